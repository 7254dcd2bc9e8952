"""The study of masks: its list is one of equal scan time, and it runs through."""

from __future__ import annotations

import argparse
import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # On the path, because processes that measure costs import it by name.
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("mri_mask")


@pytest.mark.parametrize("n_lines", [16, 24, 32])
def test_masks_take_one_time_and_differ(study: ModuleType, n_lines: int) -> None:
    masks = study.masks(n_lines)
    assert len(masks) >= 12
    for mask in masks.values():
        assert mask.shape == (n_lines,)
        assert float(mask.square().sum()) == pytest.approx(n_lines / 4, rel=1e-12)
    if n_lines >= 24:
        assert len({tuple(mask.tolist()) for mask in masks.values()}) == len(masks)


def test_side_lobe_of_even_lines_is_an_alias_as_high_as_the_peak(study: ModuleType) -> None:
    masks = study.masks(24)
    scenes = torch.zeros(1, 2, 24, 24)
    found = {
        name: study.side_lobe(study.ImagingSystem(*study.Scanner(24).with_mask(masks[name]), scenes))
        for name in ("every 4th", "middle lines")
    }
    assert found["every 4th"] == pytest.approx(1)
    # Six neighbours of 24 lines: the first sample beside the peak of sin(6 x) / (6 sin x).
    assert found["middle lines"] == pytest.approx(math.sin(math.pi / 4) / (6 * math.sin(math.pi / 24)))


def test_quick_form(study: ModuleType, tmp_path: Path) -> None:
    arguments = argparse.Namespace(quick=True, out=tmp_path, data=tmp_path / "none", seeds=2)
    result = study.main(arguments).result
    assert len(result.designs) >= 12
    assert all(math.isfinite(row.bits) for row in result.rows)
    bits, psnr = result.mean("bits"), result.mean("psnr")
    # The outermost lines of a head hold next to nothing.
    assert min(bits, key=bits.__getitem__) == min(psnr, key=psnr.__getitem__) == "outermost"
    for name in ("mri_mask.txt", "mri_mask.png", "mri_mask.json", "mri_mask_list.png", "mri_mask_bound.txt"):
        assert (tmp_path / name).stat().st_size > 0
    comparison = json.loads((tmp_path / "mri_mask_comparison.json").read_text())
    assert comparison["gain_bits"] > 0
    assert all(len(parts) == 4 for parts in comparison["parts"].values())
    shares = json.loads((tmp_path / "mri_mask_shares.json").read_text())
    assert set(shares["cost"]) == {"designed by information", "trained end to end"}
    assert shares["bits"]["designed by information"] > shares["bits"]["start"]
    for time in shares["time_of_lines"].values():
        assert sum(time) == pytest.approx(4)
