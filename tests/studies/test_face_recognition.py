"""The study of face recognition: its list at equal light, its figures, and that it runs through."""

from __future__ import annotations

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
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("face_recognition")


def test_cameras_get_one_light(study: ModuleType) -> None:
    scenes = study.faces(None, 1, 32, photographs=slice(20)).scenes
    assert len(study.DESIGNS) >= 12
    for design in study.DESIGNS.values():
        system = study.at_equal_light(design, scenes)
        assert study.light_of(system) == pytest.approx(study.LIGHT, rel=1e-4)
        assert float(system.noise.read_std) == pytest.approx(study.READ_ELECTRONS * math.sqrt(design.n_frames))


def test_copies_of_a_photograph_are_one_group_and_one_person(study: ModuleType) -> None:
    found = study.faces(None, 3, 32, photographs=slice(90, 110))
    assert found.scenes.shape == (60, 1, 64, 64)
    for group in range(20):
        rows = found.groups == group
        assert int(rows.sum()) == 3
        assert len(found.labels[rows].unique()) == 1


def test_resolution_of_a_sharp_camera_is_that_of_its_pixel(study: ModuleType) -> None:
    """Pixels of 17.6 um are far wider than the PSF: MTF50 is where sinc, averaged over directions, falls to 1/2."""
    found = study.faces(None, 1, 32, photographs=slice(20))
    systems = {
        name: study.at_equal_light(study.DESIGNS[name], found.scenes)
        for name in ("2.2 um", "2.2 um, 1 wave of defocus", "2.2 um, 2 waves of defocus", "17.6 um")
    }
    figures = study.metrics(systems, found, dict.fromkeys(systems, 0.0))
    sharp, one, two, coarse = (figures["MTF50 (cycles per um)"](system) for system in systems.values())
    assert sharp > one > two
    # A square of side 1: between 0.603 along its sides and 0.63 along its diagonals.
    assert 0.58 < 17.6 * coarse < 0.64
    assert figures["pixels across"](systems["2.2 um"]) == 16


def test_quick_form(study: ModuleType, tmp_path: Path) -> None:
    identity, image, comparison = study.run(tmp_path, data=tmp_path / "none", quick=True)
    for found in (identity, image):
        assert len(found.result.designs) >= 12
        assert all(math.isfinite(row.bits) for row in found.result.rows)
        light = [row.light for row in found.result.rows]
        assert max(light) < 1.05 * min(light)
    bits, psnr = image.result.mean("bits"), image.result.mean("psnr")
    assert min(bits, key=bits.__getitem__) == "17.6 um"
    assert psnr["2.2 um"] > psnr["17.6 um"]
    assert comparison.gain_bits > 0
    table = json.loads((tmp_path / "face_recognition.json").read_text())["spearman"]
    assert {"bits", "identity bits"} < set(table)
    for name in ("face_recognition.txt", "face_recognition_identity.png", "face_recognition_image.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert torch.isfinite(torch.tensor(list(psnr.values()))).all()
