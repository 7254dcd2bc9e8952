"""Phase contrast against symmetry, explicit plane waves, finite differences and Zernike's closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens import optimize_design
from bitlens.encoders import angular_spectrum, optics
from bitlens.systems.phase_contrast_microscope import (
    PhaseContrastMicroscope,
    phase_contrast_microscope,
    source_pattern,
    source_points,
)

SIZE, PIXEL_UM, WAVELENGTH_UM = 32, 0.3, 0.5


def microscope(weights: Tensor, **changes) -> PhaseContrastMicroscope:
    numbers = {
        "wavelength_nm": 1e3 * WAVELENGTH_UM,
        "numerical_aperture": 0.4,
        "illumination_aperture": 0.4,
        "object_pixel_um": PIXEL_UM,
        "source_weights": weights,
        "photons": 1.0,
        "margin_pixels": 0,
    }
    return PhaseContrastMicroscope(**{**numbers, **changes})


def a_scene(strength: float, size: int = SIZE) -> Tensor:
    both = torch.randn((1, 2, size, size), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return strength * both


def test_half_circles_have_odd_phase_and_even_absorption_transfer_functions() -> None:
    found = microscope(source_pattern("half_circles")).transfer_functions((SIZE, SIZE))
    mirrored = torch.roll(found.phase.flip((-2, -1)), (1, 1), (-2, -1))
    inside = found.phase.abs() > 1e-12
    assert float(found.phase.real.abs().max()) < 1e-14
    torch.testing.assert_close(mirrored, -found.phase, rtol=0, atol=1e-14)
    assert inside.any()
    # Opposite halves differ in phase alone: the difference image has no absorption in it.
    torch.testing.assert_close(found.absorption[0], found.absorption[1], rtol=0, atol=1e-13)
    torch.testing.assert_close(found.phase[0], -found.phase[1], rtol=0, atol=1e-13)
    assert float(found.phase[0].abs().max()) > 0.2
    # Nothing beyond the sum of both apertures, and no phase along the axis of symmetry.
    frequency = torch.fft.fftfreq(SIZE, PIXEL_UM)
    beyond = torch.hypot(frequency[:, None], frequency[None, :]) > 0.85 / WAVELENGTH_UM
    assert float(found.phase[:, beyond].abs().max()) < 1e-14
    assert float(found.phase[0, 0].abs().max()) < 1e-14


@pytest.mark.parametrize("design", ["brightfield", "zernike_ring"])
def test_a_symmetric_source_does_not_see_phase_in_focus(design: str) -> None:
    found = microscope(source_pattern(design)).transfer_functions((SIZE, SIZE))  # type: ignore[arg-type]
    assert float(found.phase.abs().max()) < 1e-14
    assert float(found.absorption.abs().max()) > 0.5
    blurred = microscope(source_pattern(design), defocus_um=3.0).transfer_functions((SIZE, SIZE))  # type: ignore[arg-type]
    assert float(blurred.phase.abs().max()) > 0.02


def test_abbes_sum_is_that_of_explicit_plane_waves() -> None:
    # Three points across: their directions are whole numbers of cycles over the object.
    bins = 6
    weights = torch.rand((2, 3, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    aperture = bins * WAVELENGTH_UM / (SIZE * PIXEL_UM) / (2 / 3)
    scene = a_scene(0.4)
    mean = microscope(weights, illumination_aperture=aperture, numerical_aperture=0.35)(scene)[0].numpy()
    field = np.exp(-scene[0, 0].numpy() + 1j * scene[0, 1].numpy())
    place = np.arange(SIZE) / SIZE
    scale = WAVELENGTH_UM / 0.35
    frequency = torch.fft.fftfreq(SIZE, PIXEL_UM, dtype=torch.float64) * scale
    step = torch.tensor(scale / (SIZE * PIXEL_UM), dtype=torch.float64)
    disc = optics.soft_disc(optics.PupilGrid(frequency[None, :], frequency[:, None], step), torch.ones_like(step))
    truth = np.zeros((2, SIZE, SIZE))
    inside = 0
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            if math.hypot(i, j) * 2 / 3 > 1:
                continue
            inside += 1
            wave = np.exp(2j * math.pi * bins * (i * place[:, None] + j * place[None, :]))
            image = np.abs(np.fft.ifft2(np.fft.fft2(field * wave) * disc.numpy())) ** 2
            truth += weights[:, i + 1, j + 1].numpy()[:, None, None] * image
    np.testing.assert_allclose(mean, truth / inside / 2, rtol=0, atol=1e-12)


def test_the_weak_object_is_the_derivative_of_abbes_sum() -> None:
    weights = torch.cat((source_pattern("half_circles", 7), source_pattern("zernike_ring", 7)))
    arguments = {
        "zernike_waves": {5: 0.05, 7: -0.08}, "defocus_um": 1.5, "ring_radii": (0.4, 0.8), "ring_amplitude": 0.6,
        "ring_phase_rad": -1.2, "photons": 5.0,
    }  # fmt: skip
    abbe, weak = (microscope(weights, model=model, **arguments) for model in ("abbe", "weak_object"))
    step = a_scene(1e-5)
    slope = (abbe(step) - abbe(-step)) / 2
    linear = weak(step) - weak(torch.zeros_like(step))
    torch.testing.assert_close(linear, slope, rtol=0, atol=1e-6 * float(slope.abs().max()))
    torch.testing.assert_close(weak(torch.zeros_like(step)), abbe(torch.zeros_like(step)), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("amplitude", "phase"), [(1.0, -math.pi / 2), (0.5, math.pi / 2), (0.7, 0.4)])
def test_zernikes_phase_plate_on_the_axis(amplitude: float, phase: float) -> None:
    # One point of light, a plate on it alone: intensity = a^2 + 2 a sin(delta) phi for a small phase phi.
    place = torch.arange(SIZE, dtype=torch.float64) / SIZE
    weak = 1e-4 * (torch.cos(2 * math.pi * 4 * place)[:, None] + torch.sin(2 * math.pi * 5 * place)[None, :])
    scene = torch.stack((torch.zeros_like(weak), weak))[None]
    encoder = microscope(torch.ones(1, 1, 1), ring_radii=(0.0, 0.15), ring_amplitude=amplitude, ring_phase_rad=phase)
    expected = amplitude**2 + 2 * amplitude * math.sin(phase) * weak
    torch.testing.assert_close(encoder(scene)[0, 0], expected, rtol=0, atol=1e-7)


def phase_object(field: Tensor) -> Tensor:
    return torch.stack((-field.abs().log(), field.angle()), dim=1)


@pytest.mark.parametrize("depth_um", [-9.0, 9.0])
def test_an_object_beyond_the_focus_is_that_object_after_propagation(depth_um: float) -> None:
    scene = a_scene(0.1)
    field = torch.polar((-scene[:, 0]).exp(), scene[:, 1])
    arriving = angular_spectrum(
        field[:, None], distance_mm=1e-3 * depth_um, wavelength_nm=1e3 * WAVELENGTH_UM, sample_um=PIXEL_UM, pad=1,
        band_limit=False,
    )  # fmt: skip
    point = torch.ones(1, 1, 1)
    beyond = microscope(point, defocus_um=depth_um)(scene)
    torch.testing.assert_close(beyond, microscope(point)(phase_object(arriving[:, 0])), rtol=1e-6, atol=1e-9)


def test_a_zernike_term_undoes_the_defocus_of_the_other_sign() -> None:
    # Beyond the plane in focus W = depth NA^2 rho^2 / (2 wavelength), of which Noll 4 has the rms over 2 sqrt 3.
    point, scene, aperture, depth_um = torch.ones(1, 1, 1), a_scene(0.1), 0.2, 8.0
    waves = depth_um * aperture**2 / (2 * WAVELENGTH_UM) / (2 * math.sqrt(3))
    sharp, against, along = (
        microscope(point, numerical_aperture=aperture, defocus_um=z, zernike_waves={4: w})(scene)
        for z, w in ((0.0, 0.0), (depth_um, -waves), (depth_um, waves))
    )
    assert float((against - sharp).norm()) < 0.05 * float((along - sharp).norm())


def test_what_retards_the_light_is_dark_in_the_zernike_ring() -> None:
    encoder = phase_contrast_microscope("zernike_ring", n_scenes=1).encoder
    scene = torch.zeros(1, 2, 40, 40, dtype=torch.float64)
    scene[:, 1, 18:23, 18:23] = 0.3  # the object's phase is optical path, longer than beside it
    empty, seen = encoder(torch.zeros_like(scene)), encoder(scene)
    assert float(seen[..., 14:19, 14:19].mean() / empty.mean()) < 0.8
    # Half of the amplitude, a quarter of the light, of the 24 of 69 points within the annulus.
    points, _ = source_points(9)
    share = float(((points.norm(dim=1) > 0.45) & (points.norm(dim=1) < 0.75)).double().mean())
    torch.testing.assert_close(empty, torch.full_like(empty, 0.25 * share * 8000 + 0.5), rtol=2e-4, atol=0)


@pytest.mark.parametrize("design", ["half_circles", "half_annuli", "zernike_ring", "brightfield"])
def test_light_of_an_empty_field_does_not_depend_on_its_size(design: str) -> None:
    encoder = phase_contrast_microscope(design, n_scenes=1).encoder  # type: ignore[arg-type]
    means = [
        encoder(torch.zeros(1, 2, *encoder.scene_shape(shape))).mean(dim=(0, 2, 3))
        for shape in ((24, 24), (32, 41), (96, 80))
    ]
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], rtol=1e-4, atol=0)


def test_a_slope_of_phase_darkens_the_half_that_it_bends_out_of_the_pupil() -> None:
    place = torch.arange(SIZE, dtype=torch.float64) / SIZE
    phase = (0.1 * torch.sin(2 * math.pi * 2 * place))[None, :].expand(SIZE, SIZE)
    slope = torch.cos(2 * math.pi * 2 * place)[None, :].expand(SIZE, SIZE)
    bottom, top, right, left = microscope(source_pattern("half_circles"))(
        torch.stack((torch.zeros_like(phase), phase))[None]
    )[0].unbind(0)
    contrast = (left - right) / (left + right)
    assert float((contrast * slope).sum() / (contrast.norm() * slope.norm())) > 0.99
    torch.testing.assert_close(bottom, top, rtol=0, atol=1e-12)


def test_light_of_an_empty_field() -> None:
    points, inside = source_points(9)
    assert len(points) == int(inside.sum()) == int(source_pattern("brightfield").sum())
    empty = torch.zeros(1, 2, 40, 40)
    full = phase_contrast_microscope("brightfield", n_scenes=64, illumination_aperture=0.3).encoder(empty)
    torch.testing.assert_close(full, torch.full_like(full, 8000.5), rtol=1e-5, atol=0)
    halves = phase_contrast_microscope("half_circles", n_scenes=64, illumination_aperture=0.3).encoder(empty)
    # Nine points on the line between them belong to neither half.
    share = (len(points) - 9) / 2 / len(points)
    torch.testing.assert_close(halves, torch.full_like(halves, 2000 * share + 0.5), rtol=1e-5, atol=0)


def test_design_by_information_finds_opposite_halves() -> None:
    start = 0.5 + 0.1 * torch.rand((2, 5, 5), generator=torch.Generator().manual_seed(0))
    system = phase_contrast_microscope(source_weights=start, shape=(6, 6), n_scenes=160, learn=("source_weights",))
    result = optimize_design(*system, n_steps=30, generator=torch.Generator().manual_seed(0))
    _, inside = source_points(5)
    found = result.parameters["source_weights"]
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    one, two = found.flatten(1)[:, inside]
    assert float(torch.corrcoef(torch.stack((one, two)))[0, 1]) < -0.5
    assert result.after.bits > 1.5 * result.before.bits


def test_designs_and_errors() -> None:
    systems = [
        phase_contrast_microscope(design, n_scenes=64)
        for design in ("half_circles", "half_annuli", "zernike_ring", "brightfield")
    ]
    assert all(torch.equal(system.scenes, systems[0].scenes) for system in systems)
    assert [system.encoder(system.scenes[:2]).shape[1] for system in systems] == [4, 4, 1, 1]

    def contrast(system) -> float:
        phase_only = system.scenes[:8] * torch.tensor([0.0, 1.0])[:, None, None]
        mean = system.encoder(phase_only)
        return float((mean.std(dim=(-2, -1)) / mean.mean(dim=(-2, -1))).mean())

    assert min(contrast(system) for system in systems[:3]) > 3 * contrast(systems[3])
    with pytest.raises(ValueError, match="object_pixel_um: need at most"):
        phase_contrast_microscope(magnification=10.0)
    with pytest.raises(ValueError, match="design: need one of"):
        phase_contrast_microscope("dark")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"source_weights: need shape \(image, n, n\)"):
        microscope(torch.ones(1, 3, 4))


def test_crossed_ring_radii_never_amplify() -> None:
    encoder, _, scenes = phase_contrast_microscope("zernike_ring", shape=(8, 8), n_scenes=4)
    with torch.no_grad():
        encoder.ring_radii.copy_(torch.tensor([0.8, 0.4]))
        crossed = encoder(torch.zeros_like(scenes))
        encoder.ring_radii.copy_(torch.tensor([0.0, 0.0]))
        without = encoder(torch.zeros_like(scenes))
    assert float(crossed.max()) <= float(without.max()) * (1 + 1e-6)
