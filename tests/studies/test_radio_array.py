"""The study of arrays: its list is one of equal antennas and visibilities, and it runs through."""

from __future__ import annotations

import argparse
import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("radio_array")


def test_arrays_have_equal_numbers_and_differ(study: ModuleType) -> None:
    arrays = study.arrays(6)
    assert len(arrays) >= 12
    assert len({np.round(stations, 3).tobytes() for stations in arrays.values()}) == len(arrays)
    for stations in arrays.values():
        assert stations.shape == (7, 3)
        assert np.linalg.norm(stations[:, None] - stations[None], axis=-1).max() < 1050
        assert len(study.observed(stations, 24, 6).times) == 21 * 6


def test_reuleaux_triangle_has_one_width(study: ModuleType) -> None:
    """Each antenna is at the opposite corner's distance, the width of the triangle."""
    stations = study.arrays(1)["Reuleaux triangle"]
    corners = 1000 / math.sqrt(3) * np.array([[0, 1], [math.sqrt(0.75), -0.5], [-math.sqrt(0.75), -0.5]])
    distances = np.linalg.norm(stations[:, None, :2] - corners[None], axis=-1)
    np.testing.assert_allclose(distances.max(1), 1000, rtol=1e-9)


def test_quick_form(study: ModuleType, tmp_path: Path) -> None:
    arguments = argparse.Namespace(quick=True, out=tmp_path, data=tmp_path / "none", seeds=2)
    result = study.main(arguments).result
    assert len(result.designs) >= 12
    assert all(math.isfinite(row.bits) for row in result.rows)
    bits, psnr = result.mean("bits"), result.mean("psnr")
    # Baselines of 120 m see an image of 24 m per pixel as a blur.
    assert min(bits, key=bits.__getitem__) == min(psnr, key=psnr.__getitem__) == "cluster"
    for name in ("radio_array.txt", "radio_array.png", "radio_array.json", "radio_array_list.png"):
        assert (tmp_path / name).stat().st_size > 0
    comparison = json.loads((tmp_path / "radio_array_comparison.json").read_text())
    assert comparison["gain_bits"] > 0
    assert all(len(set(parts)) == 7 for parts in comparison["parts"].values())
