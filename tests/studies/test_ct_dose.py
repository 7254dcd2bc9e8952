"""The study of CT scans in its quick form."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    spec = importlib.util.spec_from_file_location("ct_dose", STUDIES / "ct_dose.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ct_dose", module)
    spec.loader.exec_module(module)
    return module


def test_every_scan_spends_one_dose(study: ModuleType) -> None:
    scenes = study.chests(2, 24, 0)
    doses = torch.tensor([study.dose(study.scanner(scan, scenes)) for scan in study.DESIGNS.values()])
    assert len(doses) >= 12
    torch.testing.assert_close(doses, doses[:1].expand_as(doses), rtol=1e-6, atol=0.0)


def test_a_wider_element_counts_the_photons_of_those_it_replaces(study: ModuleType) -> None:
    """Dark scenes: twice as wide, twice as many; a beam on half of the field is twice as bright."""
    dark = torch.zeros(1, 1, 24, 24)
    counts = {name: study.scanner(scan, dark).encoder(dark) for name, scan in study.DESIGNS.items()}
    fine = counts["24 views"]
    assert counts["24, elements twice as wide"].shape[-1] == 12
    torch.testing.assert_close(counts["24, elements twice as wide"], 2 * fine[..., :12])
    torch.testing.assert_close(counts["24, beam on the inner half"], 2 * fine[..., :12])


def test_largest_gap_closes_the_half_turn(study: ModuleType) -> None:
    scenes = study.chests(1, 24, 0)
    gaps = {
        name: study.largest_gap_degrees(study.scanner(study.DESIGNS[name], scenes))
        for name in ("12 views", "24 over 60 degrees")
    }
    assert gaps["12 views"] == pytest.approx(15.0)
    assert gaps["24 over 60 degrees"] == pytest.approx(180 - 60 * 23 / 24)


def test_coherence_of_known_matrices(study: ModuleType) -> None:
    assert study.coherence(torch.eye(3, dtype=torch.float64)) == pytest.approx(0.0, abs=1e-12)
    # Two columns at 60 degrees, and a dark one that does not count.
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.75**0.5, 0.0]], dtype=torch.float64)
    assert study.coherence(matrix) == pytest.approx(0.5)


@pytest.mark.usefixtures("one_thread")
def test_quick_form_writes_what_it_found(study: ModuleType, tmp_path: Path) -> None:
    found, comparison = study.main(tmp_path, quick=True)
    assert all(path.is_file() for path in found.files)
    assert set(found.result.designs) == set(study.DESIGNS)
    bits = found.result.mean("bits")
    assert all(0 < value < 1000 for value in bits.values())
    # An element four times as wide only adds counts that the fine ones tell apart.
    assert bits["24, elements four times as wide"] < bits["24 views"]
    saved = json.loads((tmp_path / "ct_dose.json").read_text())
    sent = saved["extra"]["photons_sent"].values()
    assert max(sent) <= 1.001 * min(sent)
    assert set(comparison.scores["psnr"]) == {"start", "designed by information"}
