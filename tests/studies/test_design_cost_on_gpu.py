"""The study of costs on a GPU, in its quick form, on whatever is at hand."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")
STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


def test_quick_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "path", [str(STUDIES), *sys.path])
    study = importlib.import_module("design_cost_on_gpu")
    study.main(["--quick", "--out", str(tmp_path), "--systems", "single pixel", "spectral aperture"])
    found = json.loads((tmp_path / "design_cost.json").read_text())
    assert set(found) == {"device", "single pixel", "spectral aperture"}
    for name in ("single pixel", "spectral aperture"):
        one = found[name]
        assert one["bits_after"] > one["bits_before"] + 3 * one["gain_stderr_bits"]
        assert set(one["psnr_db"]) == {study.START, study.DESIGNED, study.TRAINED}
        assert all(math.isfinite(value) for value in one["psnr_db"].values())
        assert all(value > 0 for value in one["seconds"].values())
    assert "spectral aperture" in capsys.readouterr().out
    assert (tmp_path / "design_cost.txt").exists()
