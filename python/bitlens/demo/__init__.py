"""`bitlens demo`: how many bits three cameras carry about real scenes, and two designs; as a table and a report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from bitlens._files import replace_file
from bitlens.demo.study import Settings, Study, full_settings, quick_settings, run_study
from bitlens.report import write_report

__all__ = ["Settings", "Study", "full_settings", "quick_settings", "run_demo", "run_study"]


def run_demo(settings: Settings, folder: str | Path, *, say: Callable[[str], None] = print) -> Study:
    """Run the study, say its tables and findings, write `report.html`, `results.json` and the figures into `folder`.

    Every file is replaced in one step once all of them are computed.

    Raises:
        OSError: the folder cannot be made or written to; found out before the work starts.
        ModuleNotFoundError: scikit-image or scikit-learn is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    study = run_study(settings, say=say)
    # Late, so that a study needs no figures.
    from bitlens.demo.figures import draw_all
    from bitlens.demo.summary import findings, make_report, tables
    from bitlens.report import to_text

    for table in tables(study):
        say("\n" + to_text(table))
    say("")
    for finding in findings(study):
        say(finding)
    replace_file(folder / "results.json", study.to_json().encode())
    path = write_report(make_report(study, draw_all(study)), folder)
    say(f"\nreport: {path}    numbers: {folder / 'results.json'}    {study.seconds:.0f} s")
    return study
