"""The study of face recognition: its list at equal light, its figures, and that it runs through."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bitlens import estimate_task_information
from bitlens.design.objectives import Batch
from bitlens.noise import PoissonGaussianNoise

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


def test_identity_objective_is_that_of_gaussian_people(study: ModuleType) -> None:
    """People of variance b, photographs of each of variance w, noise n: log2(1 + b / (w + n)) / 2 bits a pixel."""
    identity = importlib.import_module("_face_identity")
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(400).repeat_interleave(10)
    people = 30 * torch.randn(400, 4, generator=draws, dtype=torch.float64)
    inside = 10 * torch.randn(4000, 4, generator=draws, dtype=torch.float64)
    mean = (1000 + people[labels] + inside).reshape(-1, 1, 2, 2)
    noise = PoissonGaussianNoise(read_std=20.0)

    def bits(mean: torch.Tensor) -> float:
        batch = Batch(identity.named(mean, labels), mean, noise, torch.Generator(), lambda n: (mean, mean))
        return float(identity.IdentityObjective().nats(batch)) / math.log(2)

    assert bits(mean) == pytest.approx(4 * 0.5 * math.log2(1 + 900 / (100 + 1000 + 400)), rel=0.06)
    # Without people nothing is left but chance.
    assert bits((1000 + inside).reshape(-1, 1, 2, 2)) < 0.02
    assert identity.Named(torch.nn.Identity())(identity.named(mean, labels)).equal(mean)


def test_identity_information_is_that_of_the_public_estimate(study: ModuleType) -> None:
    found = study.faces(None, 2, 16, photographs=slice(60, 140))
    systems = {
        name: study.at_equal_light(study.Design(8, defocus_waves=w), found.scenes) for name, w in (("a", 0), ("b", 2))
    }
    bits = study.identity_bits(systems, found, "logistic")
    measured = systems["b"].noise.sample(study.mean_of(systems["b"]), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    public = estimate_task_information(
        measured, found.labels, method="logistic", groups=found.groups, generator=generator
    )
    assert bits.bits["b"] == pytest.approx(public.bits, abs=1e-9)
    assert bits.stderr_bits["b"] == pytest.approx(public.stderr_bits)
    assert bits.gain_stderr_bits["a"] == 0.0


def test_told_error_is_that_of_the_best_linear_estimate(study: ModuleType) -> None:
    """One pixel of variance v behind noise of variance n, each of n the mean: v n / (v + n)."""
    told_error = importlib.import_module("_face_image").told_error
    scene = torch.randn(8000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = PoissonGaussianNoise(read_std=20.0)
    error = told_error(1000 + 30 * scene, noise, scene, torch.arange(8000))
    assert error == pytest.approx(1400 / (900 + 1400), rel=0.06)


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
    halves = json.loads((tmp_path / "face_recognition_by_identity.json").read_text())["by identity"]
    assert 0.05 < halves["aperture_radius"]["designed by identity"] <= 1
    assert set(halves["bits"]) == {"start", "designed by information", "designed by identity"}
    table = json.loads((tmp_path / "face_recognition.json").read_text())["spearman"]
    assert {"bits", "identity bits"} < set(table)
    for name in ("face_recognition.txt", "face_recognition_identity.png", "face_recognition_image.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert torch.isfinite(torch.tensor(list(psnr.values()))).all()
