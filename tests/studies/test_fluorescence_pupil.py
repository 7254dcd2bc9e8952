"""The study of fluorescence pupils: its list, its light, its layers, and that it runs through."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bitlens.systems.fluorescence_microscope import FluorescenceMicroscope

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("fluorescence_pupil")


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


def test_target_is_the_mean_of_all_layers_over_pixels(study: ModuleType) -> None:
    scenes = random_scenes(study, 4)
    edge = study.MARGIN * study.SAMPLES
    expected = scenes.sum(1)[:, edge:-edge, edge:-edge].reshape(4, 4, 2, 4, 2).mean((2, 4))
    torch.testing.assert_close(study.in_focus(scenes)[:, 0], expected)
    torch.testing.assert_close(study.in_focus(study.flattened(scenes))[:, 0], expected)


def test_vortex_is_dark_in_the_middle_and_the_cube_has_no_even_part(study: ModuleType) -> None:
    size = 2 * study.MARGIN * study.SAMPLES + 1
    cube = study.plate_phase("cubic", 1.0, 0.3, size)
    torch.testing.assert_close(cube, -cube.flip(0, 1))
    design = study.Design(0.3, plate="vortex", plate_waves=1.0)
    psf = study.microscope(design, random_scenes(study, 4)).encoder.psf()[1].detach()
    assert float(psf[size // 2, size // 2]) < 1e-3 * float(psf.max())


def test_study_runs_through(study: ModuleType, tmp_path: Path) -> None:
    """On phantoms: the folder of photographs is not there."""
    study.run(tmp_path, tmp_path / "none", quick=True, seeds=1)
    for name in ("flat", "layered", "which_layer"):
        found = json.loads((tmp_path / f"fluorescence_pupil_{name}.json").read_text())
        rows = found["rows"]
        assert {row["design"] for row in rows} == set(study.DESIGNS)
        assert all(math.isfinite(row["bits"]) for row in rows)
        light = [row["light"] for row in rows]
        assert max(light) < 1.05 * min(light)
        assert (tmp_path / f"fluorescence_pupil_{name}.png").stat().st_size > 10_000
    compared = json.loads((tmp_path / "fluorescence_pupil_comparison.json").read_text())
    assert compared["gain_bits"] > 0
    assert set(compared["cost"]) == {"designed by information", "trained end to end"}
