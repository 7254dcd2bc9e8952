"""The study of fluorescence pupils: its list, its light, its layers, and that it runs through."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bitlens.noise import PoissonGaussianNoise
from bitlens.systems.fluorescence_microscope import FluorescenceMicroscope

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The microscopes of the study."""
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("_fluorescence_microscope")


@pytest.fixture
def specimens(study: ModuleType) -> ModuleType:
    return importlib.import_module("_fluorescence_scenes")


@pytest.fixture
def information(study: ModuleType) -> ModuleType:
    return importlib.import_module("_stabilized_information")


def random_scenes(study: ModuleType, pixels: int) -> torch.Tensor:
    size = (pixels + 2 * study.MARGIN) * study.SAMPLES
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_every_design_gets_the_same_light(study: ModuleType) -> None:
    scenes = random_scenes(study, 8)
    assert len(study.DESIGNS) >= 12
    background = study.BACKGROUND_ELECTRONS * 64
    for design in study.DESIGNS.values():
        system = study.microscope(design, scenes)
        with torch.no_grad():
            total = system.encoder(scenes).sum((1, 2, 3)).mean()
        assert float(total) - background == pytest.approx(64 * study.LIGHT_ELECTRONS, rel=1e-6)


def test_a_layer_is_the_microscope_out_of_focus_by_its_depth(study: ModuleType) -> None:
    scenes = random_scenes(study, 4)
    design = study.DESIGNS["0.3, coma 0.3"]
    layered = study.microscope(design, scenes).encoder
    expected = torch.zeros(4, 1, 4, 4, dtype=torch.float64)
    for index, depth_um in enumerate(study.DEPTHS_UM):
        one = FluorescenceMicroscope(
            wavelength_nm=study.WAVELENGTH_NM,
            numerical_aperture=0.3,
            immersion_index=1.0,
            object_pixel_um=study.PIXEL_UM,
            defocus_um=depth_um,
            zernike_waves=design.zernike_waves,
            emitted_photons=float(layered.microscope.emitted_photons),
            efficiency=1.0,
            oversampling=study.SAMPLES,
            margin_pixels=study.MARGIN,
        )
        expected += one(scenes[:, index : index + 1])
    with torch.no_grad():
        torch.testing.assert_close(layered(scenes), expected + study.BACKGROUND_ELECTRONS)


def test_target_is_the_mean_of_all_layers_over_pixels(study: ModuleType, specimens: ModuleType) -> None:
    scenes = random_scenes(study, 4)
    edge = study.MARGIN * study.SAMPLES
    expected = scenes.sum(1)[:, edge:-edge, edge:-edge].reshape(4, 4, 2, 4, 2).mean((2, 4))
    torch.testing.assert_close(specimens.in_focus(scenes)[:, 0], expected)
    torch.testing.assert_close(specimens.in_focus(specimens.flattened(scenes))[:, 0], expected)


def test_nothing_shines_beside_the_field(specimens: ModuleType, tmp_path: Path) -> None:
    scenes = specimens.read_scenes(tmp_path, 20, 4).scenes
    edge = specimens.MARGIN * specimens.SAMPLES
    view = scenes[..., edge:-edge, edge:-edge]
    assert float(view.sum()) == pytest.approx(float(scenes.sum()), rel=1e-6)
    assert float(view.sum()) > 0


def test_roots_of_counts_have_noise_of_one_and_the_derivative_that_is_told(information: ModuleType) -> None:
    z = torch.tensor([-4.0, -0.5, 0.2, 3.0, 900.0], dtype=torch.float64, requires_grad=True)
    values, slope = information.stabilized(z, 1.6)
    (derivative,) = torch.autograd.grad(values.sum(), z)
    torch.testing.assert_close(slope.exp(), derivative)
    assert bool((values.diff() > 0).all())
    noise = PoissonGaussianNoise(read_std=1.6)
    for electrons in (5.0, 50.0, 500.0):
        seen = noise.sample(torch.full((20_000,), electrons), torch.Generator().manual_seed(0))
        assert float(information.stabilized(seen, 1.6)[0].std()) == pytest.approx(1.0, abs=0.05)


def test_two_levels_of_light_tell_one_bit(information: ModuleType) -> None:
    """A dark or a bright pixel is one bit; a Gaussian of the counts would say 4.7."""
    generator = torch.Generator().manual_seed(0)
    bright = torch.rand(3000, 1, 1, 1, generator=generator) < 0.5
    mean = torch.where(bright, 400.0, 5.0).double()
    noise = PoissonGaussianNoise(read_std=1.6)
    bits = information.image_bits(noise.sample(mean, generator), mean, noise, torch.arange(3000))
    error = information.group_error(bits, torch.arange(3000))
    assert error == pytest.approx(float(bits.std()) / math.sqrt(3000), rel=1e-3)
    assert -4 * error < float(bits.mean()) - 1.0 < 0.1 + 4 * error


def test_vortex_is_dark_in_the_middle_and_the_cube_has_no_even_part(study: ModuleType) -> None:
    size = 2 * study.MARGIN * study.SAMPLES + 1
    cube = study.plate_phase("cubic", 1.0, 0.3, size)
    torch.testing.assert_close(cube, -cube.flip(0, 1))
    design = study.Design(0.3, plate="vortex", plate_waves=1.0)
    psf = study.microscope(design, random_scenes(study, 4)).encoder.psf()[1].detach()
    assert float(psf[size // 2, size // 2]) < 1e-3 * float(psf.max())


def test_study_runs_through(study: ModuleType, tmp_path: Path) -> None:
    """On phantoms: the folder of photographs is not there."""
    importlib.import_module("fluorescence_pupil").run(tmp_path, tmp_path / "none", quick=True, seeds=1)
    for name in ("flat", "layered", "which_layer"):
        found = json.loads((tmp_path / f"fluorescence_pupil_{name}.json").read_text())
        rows = found["rows"]
        assert {row["design"] for row in rows} == set(study.DESIGNS)
        assert all(math.isfinite(row["bits"]) for row in rows)
        light = [row["light"] for row in rows]
        assert max(light) < 1.05 * min(light)
        assert (tmp_path / f"fluorescence_pupil_{name}.png").stat().st_size > 10_000
    compared = json.loads((tmp_path / "fluorescence_pupil_mirror.json").read_text())
    assert compared["gain_bits"] > 0
    assert all(cost["cpu_seconds"] > 0 and cost["peak_memory_bytes"] > 0 for cost in compared["cost"].values())
    assert set(compared["scores"]["psnr"]) < set(compared["cost"]) | {"start"}
