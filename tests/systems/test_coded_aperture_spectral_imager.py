"""The spectral imager: an explicit sum, where light of each band lands, and what a code is good for."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from bitlens.design import optimize_design
from bitlens.encoders import N_BK7, sellmeier_index
from bitlens.systems.coded_aperture_spectral_imager import (
    SpectralImagerDesign,
    band_positions,
    coded_aperture_spectral_imager,
    spectral_scenes,
)

DESIGNS: tuple[SpectralImagerDesign, ...] = ("random", "colored", "slits", "open")


def explicit_sum(scene: Tensor, mask: Tensor, photons: list[float], columns: list[float], width: int) -> Tensor:
    """Light of every sample, one after the other, shared by the two columns beside where it lands."""
    _, bands, rows, n_columns = scene.shape
    plane = torch.zeros(len(scene), 1, rows, width, dtype=scene.dtype)
    for band in range(bands):
        for row in range(rows):
            for column in range(n_columns):
                passed = mask[band, row, column] if mask.ndim == 3 else mask[row, column]
                light = photons[band] * passed * scene[:, band, row, column]
                place = column + columns[band]
                left = math.floor(place)
                plane[:, 0, row, left] += (1 - (place - left)) * light
                if place > left:
                    plane[:, 0, row, left + 1] += (place - left) * light
    return plane


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("dispersion", [4.0, 5.3])
@pytest.mark.parametrize("learn", [(), ("mask", "dispersion_pixels")])
def test_means_are_an_explicit_sum(design: SpectralImagerDesign, dispersion: float, learn: tuple[str, ...]) -> None:
    scene = torch.rand(2, 5, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    photons = [10.0, 20.0, 5.0, 7.0, 11.0]
    encoder, _, _ = coded_aperture_spectral_imager(
        design, shape=(4, 7), n_bands=5, dispersion_pixels=dispersion, photons=photons, dark_electrons=0.5,
        scenes=scene, learn=learn,
    )  # fmt: skip
    columns = [dispersion * band / 4 for band in range(5)]
    width = 7 + math.ceil(1.5 * dispersion if learn else dispersion)
    expected = explicit_sum(scene, encoder.linear.mask.detach(), photons, columns, width) + 0.5
    with torch.no_grad():
        torch.testing.assert_close(encoder(scene), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dispersion", [4.0, 5.3])
def test_adjoint(dispersion: float) -> None:
    scene = torch.rand(2, 5, 4, 7, generator=torch.Generator().manual_seed(2))
    linear = coded_aperture_spectral_imager(
        "colored", shape=(4, 7), n_bands=5, dispersion_pixels=dispersion, scenes=scene
    ).encoder.linear
    image = linear.A(scene)
    z = torch.randn(image.shape, generator=torch.Generator().manual_seed(3))
    left, right = (image.double() * z).sum(), (scene.double() * linear.A_adjoint(z)).sum()
    assert abs(float(left - right)) <= 1e-6 * float(image.norm() * z.norm())


def test_light_is_what_the_aperture_passes() -> None:
    """A scene of ones: photons x bands x pixels x open share, wherever it lands."""
    scene = torch.ones(1, 6, 8, 16, dtype=torch.float64)
    for design, share in (("open", 1.0), ("slits", 0.25)):
        encoder, _, _ = coded_aperture_spectral_imager(
            design, shape=(8, 16), n_bands=6, dispersion_pixels=7.7, photons=3.0, dark_electrons=0.0, scenes=scene
        )
        assert encoder(scene).sum().item() == pytest.approx(3.0 * 6 * 8 * 16 * share, rel=1e-12)


def test_positions_of_bands() -> None:
    wavelength = torch.linspace(450, 650, 5, dtype=torch.float64)
    grating = band_positions(wavelength, "grating")
    torch.testing.assert_close(grating, torch.linspace(0, 1, 5, dtype=torch.float64))
    prism = band_positions(wavelength, "prism")
    index = [float(sellmeier_index(float(value), N_BK7)) for value in wavelength]
    # Short waves are bent most and spread widest: the first step is the longest.
    expected = [(index[0] - value) / (index[0] - index[-1]) for value in index]
    torch.testing.assert_close(prism, torch.tensor(expected, dtype=torch.float64))
    assert bool((prism.diff() > 0).all())
    assert bool((prism.diff().diff() < 0).all())
    with pytest.raises(ValueError, match=r"disperser: need one of .*got 'lens'"):
        band_positions(wavelength, "lens")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"wavelength_nm: need growing"):
        band_positions(wavelength.flip(0), "prism")


def test_scenes_are_smooth_spectra_on_patches() -> None:
    wavelength = torch.linspace(450, 650, 28, dtype=torch.float64)
    scenes = spectral_scenes(20, wavelength, (12, 16), n_materials=3, generator=torch.Generator().manual_seed(0))
    assert scenes.shape == (20, 28, 12, 16)
    assert float(scenes.min()) >= 0.0
    assert float(scenes.max()) <= 1.0
    # Up to their shading, at most three spectra in a scene.
    spectra = scenes[0].flatten(1).T.double()
    directions = spectra / spectra.norm(dim=1, keepdim=True)
    assert 2 <= torch.linalg.matrix_rank(directions, rtol=1e-5) <= 3
    again = spectral_scenes(20, wavelength, (12, 16), n_materials=3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scenes, again)


def test_optimiser_keeps_the_dispersion_on_the_sensor() -> None:
    system = coded_aperture_spectral_imager(
        "random", shape=(6, 8), n_bands=4, dispersion_pixels=2.2, photons=20.0, n_scenes=80,
        learn=("mask", "dispersion_pixels"),
    )  # fmt: skip
    result = optimize_design(*system, n_steps=15, objective="gaussian", generator=torch.Generator().manual_seed(0))
    dispersion, mask = (
        value.detach() for value in (result.encoder.linear.dispersion_pixels, result.encoder.linear.mask)
    )
    assert 0.0 <= float(dispersion) <= 1.5 * 2.2
    assert 0.0 <= float(mask.min()) <= float(mask.max()) <= 1.0
    assert float(dispersion) != 2.2
    assert not torch.equal(mask, system.encoder.linear.mask.detach())


def test_snapshot_of_28_bands_takes_milliseconds(one_thread: None) -> None:
    scene = torch.rand(1, 28, 128, 128, generator=torch.Generator().manual_seed(0))
    encoder = coded_aperture_spectral_imager(shape=(128, 128), scenes=scene).encoder
    best = math.inf
    with torch.no_grad():
        for _ in range(20):
            start = time.perf_counter()
            mean = encoder(scene)
            best = min(best, time.perf_counter() - start)
    assert mean.shape == (1, 1, 128, 182)
    assert best < 12e-3  # 4 ms on an idle core, with room for others


def test_what_is_wrong_is_named() -> None:
    scene = torch.ones(1, 4, 6, 8)
    with pytest.raises(ValueError, match=r"design: need one of .*'colored'.*got 'striped'"):
        coded_aperture_spectral_imager("striped", scenes=scene)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"photons: need a number or 4, one per band, got 3"):
        coded_aperture_spectral_imager(shape=(6, 8), n_bands=4, photons=[1.0, 2.0, 3.0], scenes=scene)
    with pytest.raises(ValueError, match=r"learn: need names among mask, dispersion_pixels, got 'slit'"):
        coded_aperture_spectral_imager(shape=(6, 8), n_bands=4, scenes=scene, learn=("slit",))
    encoder = coded_aperture_spectral_imager(shape=(6, 8), n_bands=4, scenes=scene).encoder
    with pytest.raises(ValueError, match=r"scene: need shape \(batch, 4, row, column\), got \(1, 3, 6, 8\)"):
        encoder(scene[:, :3])


def test_a_mask_that_is_learned_moves() -> None:
    system = coded_aperture_spectral_imager(shape=(8, 8), n_bands=4, n_scenes=64, learn=("mask",))
    start = {name: value.detach().clone() for name, value in system.encoder.named_parameters()}
    (name,) = start
    assert 0.2 <= float(start[name].min()) < float(start[name].max()) <= 0.8
    found = optimize_design(*system, n_steps=5, generator=torch.Generator().manual_seed(0))
    moved = dict(found.encoder.named_parameters())[name].detach() - start[name]
    assert float(moved.abs().mean()) > 0.05
