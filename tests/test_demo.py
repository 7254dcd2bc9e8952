"""The demo, once, in its quick form: what it promises about its numbers and its files."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch

from bitlens import cli
from bitlens.demo import Settings, Study, quick_settings, run_demo
from bitlens.demo.study import DESIGNS, PHOTONS, paired_gain, run_study
from bitlens.design import DesignStep

FIGURES = (
    "psf",
    "measurements",
    "bits_against_photons",
    "before_after_pupil",
    "history_pupil",
    "before_after_phase_mask",
    "history_phase_mask",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "report"


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def study(folder: Path, said: list[str]) -> Study:
    return run_demo(quick_settings(), folder, say=said.append)


def test_designed_pupil_gains_and_nearly_reaches_focus(study: Study) -> None:
    assert study.pupil.gain_stderr_bits_per_pixel is not None
    assert study.pupil.gain_bits_per_pixel >= 3 * study.pupil.gain_stderr_bits_per_pixel > 0
    assert study.pupil_share_of_in_focus >= 0.95
    assert study.pupil.warnings == ()


def test_in_focus_is_the_same_camera_in_both_tables(study: Study) -> None:
    in_table = study.estimates["in focus"][PHOTONS.index(200.0)]
    # One is encoded at one photon in float32 and scaled, the other directly.
    assert in_table.bits == pytest.approx(study.in_focus.bits, rel=1e-3)


def test_more_light_more_bits_and_focus_is_best(study: Study) -> None:
    for row in study.estimates.values():
        values = [estimate.bits_per_pixel for estimate in row]
        assert values == sorted(values)
    for level in range(len(PHOTONS)):
        best = study.estimates["in focus"][level].bits
        assert all(study.estimates[name][level].bits < best for name in DESIGNS if name != "in focus")


def test_every_value_has_its_interval_and_bounds(study: Study) -> None:
    every = [estimate for row in study.estimates.values() for estimate in row]
    for estimate in (*every, study.pupil.before, study.pupil.after, study.phase.before, study.phase.after):
        assert estimate.confidence_interval_bits is not None
        low, high = estimate.confidence_interval_bits
        assert low < estimate.bits < high
        assert estimate.lower_bits is not None
        assert estimate.ceiling_bits is not None
        assert estimate.upper_bits is not None
        assert estimate.lower_bits <= estimate.ceiling_bits + 1e-9


def test_phase_mask_stays_within_its_box_and_its_finding_is_said(study: Study, said: list[str]) -> None:
    assert study.phase.parameters["phase_mask_waves"].abs().max() <= 0.5
    text = "\n".join(said)
    found = "A phase mask was found" in text
    none = "No phase mask was found" in text
    assert found != none
    assert found == study.phase_mask_gains


def test_table_is_said(study: Study, said: list[str]) -> None:
    text = "\n".join(said)
    for name, row in study.estimates.items():
        assert name in text
        for estimate in row:
            assert f"{estimate.bits_per_pixel:.3f} [" in text


def test_files(study: Study, folder: Path) -> None:
    names = {entry.name for entry in folder.iterdir()}
    assert names == {"report.html", "results.json", *(f"{figure}.png" for figure in FIGURES)}
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(FIGURES)
    assert "http" not in page
    numbers = json.loads((folder / "results.json").read_text())
    assert numbers == json.loads(json.dumps(study.to_dict()))
    assert numbers["designed_pupil"]["after"]["bits"] == study.pupil.after.bits


def small_settings() -> Settings:
    return Settings(n_patches=64, patch_pixels=6, n_pupil_steps=3, n_phase_steps=2, batch_size=32)


def test_repeats_bit_for_bit_with_one_and_two_threads() -> None:
    n_threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(json.dumps(run_study(small_settings()).to_dict()))
    finally:
        torch.set_num_threads(n_threads)
    assert found[0] == found[1]


def test_json_on_stdout_is_the_file_and_progress_is_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitlens.demo.quick_settings", lambda seed: dataclasses.replace(small_settings(), seed=seed))
    assert cli.main(["demo", "--quick", "--seed", "3", "--out", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out == (tmp_path / "results.json").read_text() + "\n"
    assert json.loads(captured.out)["seed"] == 3
    assert "designing a pupil" in captured.err


def test_what_was_found_is_read_only(study: Study) -> None:
    with pytest.raises(TypeError, match="item assignment"):
        study.estimates["in focus"] = ()  # type: ignore[index]
    with pytest.raises(TypeError, match="item assignment"):
        study.examples["in focus"] = study.examples["phase mask"]  # type: ignore[index]


def test_interrupt_during_a_design_ends_the_demo_and_leaves_old_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("old")

    def interrupt(line: str) -> None:
        if line.startswith("designing"):
            signal.raise_signal(signal.SIGINT)

    def interrupt_design(_: DesignStep) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(small_settings(), callback=interrupt_design)
    with pytest.raises(KeyboardInterrupt):
        run_demo(small_settings(), tmp_path, say=interrupt)
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"results.json": "old"}


def test_paired_gain() -> None:
    assert paired_gain([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1.0 / 3**0.5))
