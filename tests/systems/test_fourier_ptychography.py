"""Fourier ptychography against explicit plane waves, the incoherent PSF, and propagation to the plane in focus."""

from __future__ import annotations

import importlib.util
import math
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens.encoders import angular_spectrum, optics
from bitlens.encoders.linear import complex_to_channels
from bitlens.encoders.zernike import zernike_basis
from bitlens.systems.fourier_ptychography import FourierPtychography, fourier_ptychography, led_array

SIZE, PIXEL_UM, WAVELENGTH_UM = 32, 1.0, 0.5


def load_study(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "studies" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def shared_data(file: str) -> Path:
    folder = Path(__file__).parents[2].resolve().parent / "shared" / "data"
    if not (folder / file).is_file():
        pytest.skip(f"no real data at {folder / file}")
    return folder


def microscope(**changes) -> FourierPtychography:
    numbers = {
        "wavelength_nm": 1e3 * WAVELENGTH_UM,
        "numerical_aperture": 0.15,
        "object_pixel_um": PIXEL_UM,
        "led_position_mm": [(0.0, 0.0)],
        "led_height_mm": 80.0,
        "photons": 1.0,
        "upsampling": 2,
    }
    return FourierPtychography(**{**numbers, **changes})


def an_object(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand((2, size, size), generator=generator, dtype=torch.float64)
    return torch.polar(0.3 + 0.7 * a, 2 * b)[None, None]


def towards(bins: tuple[int, int], height_mm: float = 80.0) -> tuple[float, float]:
    """X of the plane wave with this many cycles over the object."""
    sine = [count * WAVELENGTH_UM / (SIZE * PIXEL_UM) for count in bins]
    scale = height_mm / math.sqrt(1 - sine[0] ** 2 - sine[1] ** 2)
    return scale * sine[0], scale * sine[1]


def test_a_large_aperture_on_the_axis_gives_the_coherent_image_itself() -> None:
    frequency = torch.fft.fftfreq(SIZE, 0.25, dtype=torch.float64)
    passed = torch.hypot(frequency[:, None], frequency[None, :]) < 0.9 / WAVELENGTH_UM
    field = torch.fft.ifft2(torch.fft.fft2(an_object(SIZE)) * passed)
    encoder = microscope(numerical_aperture=0.95, object_pixel_um=0.25, upsampling=1, photons=100.0)
    mean = encoder(complex_to_channels(field))
    torch.testing.assert_close(mean, 100 * field.abs() ** 2, rtol=1e-10, atol=0)


@pytest.mark.parametrize("bins", [(0, 0), (5, -3), (-7, 2)])
def test_an_led_multiplies_the_object_by_its_plane_wave(bins: tuple[int, int]) -> None:
    field = an_object(2 * SIZE)
    encoder = microscope(led_position_mm=[towards(bins)])
    place = np.arange(2 * SIZE) / (2 * SIZE)
    wave = np.exp(2j * math.pi * (bins[0] * place[:, None] + bins[1] * place[None, :]))
    spectrum = np.fft.fft2(field[0, 0].numpy() * wave)
    frequency = np.fft.fftfreq(2 * SIZE, PIXEL_UM / 2)
    scale = WAVELENGTH_UM / 0.15
    grid = optics.PupilGrid(
        torch.from_numpy(scale * frequency)[None, :],
        torch.from_numpy(scale * frequency)[:, None],
        torch.tensor(scale / (SIZE * PIXEL_UM), dtype=torch.float64),
    )
    disc = optics.soft_disc(grid, torch.tensor(1.0, dtype=torch.float64)).numpy()
    image = np.abs(np.fft.ifft2(spectrum * disc)[::2, ::2]) ** 2
    mean = encoder(complex_to_channels(field))[0, 0].numpy()
    np.testing.assert_allclose(mean, image, rtol=0, atol=1e-12)


def test_an_led_shifts_the_spectrum_by_any_part_of_a_sample() -> None:
    # Two plane waves in the object, one at the pupil's rim: it is cut as the LED goes on by half a sample, no step.
    place = torch.arange(2 * SIZE, dtype=torch.float64) / (2 * SIZE)
    wave = torch.polar(torch.ones_like(place), 2 * math.pi * 9 * place)[None, None, None, :]
    field = 0.5 * torch.ones(1, 1, 2 * SIZE, 2 * SIZE) + 0.5 * wave
    contrast = []
    for part in torch.arange(-1.0, 2.01, 0.25).tolist():
        mean = microscope(led_position_mm=[towards((0, part))])(complex_to_channels(field))  # type: ignore[arg-type]
        contrast.append(float(mean.max() - mean.min()) / 2)
    # NA 0.15 is 9.6 samples wide: 9 + part passes whole below 9.1 and not at all above 10.1.
    assert contrast[0] == pytest.approx(0.5, abs=1e-9)
    assert contrast[-1] == pytest.approx(0.0, abs=1e-9)
    assert all(first >= second for first, second in pairwise(contrast))
    assert 0.1 < contrast[6] < 0.49


def test_directions_of_an_array_and_bright_and_dark_field() -> None:
    encoder = microscope(led_position_mm=led_array(5, 5.0), led_height_mm=80.0, upsampling=3)
    sine = encoder.illumination().norm(dim=1) * WAVELENGTH_UM
    expected = torch.sin(torch.atan(led_array(5, 5.0).norm(dim=1) / 80.0))
    torch.testing.assert_close(sine, expected, rtol=1e-12, atol=0)
    mean = encoder(complex_to_channels(torch.ones(1, 1, 192, 192, dtype=torch.complex128)))
    step = WAVELENGTH_UM / (64 * PIXEL_UM)
    bright, dark = sine < 0.15 - step, sine > 0.15 + step
    assert bright.sum() == 21
    assert dark.sum() == 4
    torch.testing.assert_close(25 * mean[0, bright], torch.ones(21, 64, 64).double(), rtol=1e-9, atol=0)
    assert float(mean[0, dark].max()) < 1e-12


def test_the_image_of_a_point_is_the_incoherent_psf_of_the_same_pupil() -> None:
    size, waves = 33, {5: 0.07, 7: 0.12, 8: -0.1}
    field = torch.zeros(1, 1, size, size, dtype=torch.complex128)
    field[..., size // 2, size // 2] = 1.0
    mean = microscope(upsampling=1, zernike_waves=waves)(complex_to_channels(field))[0, 0]
    one = torch.tensor(1.0, dtype=torch.float64)
    grid = optics.pupil_grid(size, sample_um=one * PIXEL_UM, wavelength_nm=500 * one, f_number=0.5 / 0.15 * one)
    basis = zernike_basis(tuple(waves), grid.column, grid.row)
    path = (torch.tensor(list(waves.values()), dtype=torch.float64)[:, None, None] * basis).sum(0)
    psf = optics.incoherent_psf(optics.pupil(optics.soft_disc(grid, one), path), one)
    torch.testing.assert_close(mean / mean.sum(), psf, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("bins", [(0, 0), (4, -2)])
def test_an_object_beyond_the_focus_is_that_object_after_propagation(bins: tuple[int, int]) -> None:
    field = an_object(SIZE)
    place = torch.arange(SIZE, dtype=torch.float64) / SIZE
    wave = torch.polar(
        torch.ones(SIZE, SIZE).double(), 2 * math.pi * (bins[0] * place[:, None] + bins[1] * place[None, :])
    )
    arriving = angular_spectrum(
        field * wave, distance_mm=0.03, wavelength_nm=500.0, sample_um=PIXEL_UM, pad=1, band_limit=False
    )
    beyond = microscope(upsampling=1, led_position_mm=[towards(bins)], defocus_um=30.0)
    # The same wave is in the field already: it arrives at an objective in focus under light along the axis.
    focused = microscope(upsampling=1)
    torch.testing.assert_close(
        beyond(complex_to_channels(field)), focused(complex_to_channels(arriving)), rtol=1e-6, atol=1e-9
    )


def test_light_gains_and_pixels() -> None:
    leds = led_array(3, 4.0)
    gain = torch.linspace(0.5, 1.5, 9)
    encoder = microscope(
        led_position_mm=leds, led_gain=gain, photons=900.0, dark_electrons=2.0, pixel_samples=2, margin_pixels=3
    )
    mean = encoder(complex_to_channels(torch.ones(1, 1, 48, 60, dtype=torch.complex64)))
    assert mean.shape == (1, 9, 18, 24)
    torch.testing.assert_close(mean, (100 * gain + 2)[None, :, None, None].expand_as(mean), rtol=1e-4, atol=0)


def test_designs_share_scenes_and_time() -> None:
    systems = [fourier_ptychography(design, n_scenes=64) for design in ("dense_array", "sparse_array", "on_axis")]
    assert all(torch.equal(system.scenes, systems[0].scenes) for system in systems)
    empty = complex_to_channels(torch.ones(1, 1, 80, 80, dtype=torch.complex64))
    for system, count, bright in zip(systems, (25, 9, 1), (9, 1, 1), strict=True):
        mean = system.encoder(empty)
        assert mean.shape == (1, count, 32, 32)
        light = float(mean.sum(1).mean() - 0.5 * count) * count / 20000
        assert light == pytest.approx(bright, rel=1e-4)


@pytest.mark.parametrize("design", ["dense_array", "sparse_array", "on_axis"])
def test_every_led_is_in_the_bright_field_or_the_dark_one_whatever_the_size(design: str) -> None:
    encoder = fourier_ptychography(design, n_scenes=1).encoder  # type: ignore[arg-type]
    for shape in ((8, 8), (16, 24), (96, 100)):
        empty = torch.ones(1, 1, *encoder.scene_shape(shape), dtype=torch.complex64)
        light = (encoder(complex_to_channels(empty)) - 0.5) * len(encoder.led_gain) / 20000
        sine = encoder.illumination().norm(dim=1) * 0.532
        expected = (sine < 0.1).to(light.dtype)[None, :, None, None].expand_as(light)
        torch.testing.assert_close(light, expected, rtol=0, atol=1e-3)


def test_what_cannot_be_built_is_named() -> None:
    with pytest.raises(ValueError, match="upsampling: need at least 3"):
        microscope(led_position_mm=led_array(5, 20.0))
    with pytest.raises(ValueError, match="object_pixel_um: need values of"):
        microscope(numerical_aperture=0.4)
    with pytest.raises(ValueError, match="led_gain: need one of 4 LEDs"):
        microscope(led_position_mm=led_array(2, 4.0), led_gain=[1.0])


def test_recorded_stack_has_the_pupils_edges_where_the_stated_leds_put_them() -> None:
    study = load_study("real_ptychography")
    recording = study.read(shared_data(study.FILE), 5)
    steps = {name: study.edge_step(recording, turn(recording.position_mm)) for name, turn in study.ORIENTATIONS.items()}
    stated = steps.pop("as stated")
    assert stated > 0.8
    assert stated > 1.8 * max(steps.values())
    # The spiral of the file's description: right, down, two left, two up.
    assert study.spiral(8).tolist() == [[0, 0], [0, 1], [1, 1], [1, 0], [1, -1], [0, -1], [-1, -1], [-1, 0]]


@pytest.mark.slow
def test_recorded_stack_is_reproduced_from_a_fitted_object() -> None:
    study = load_study("real_ptychography")
    found = study.fit(study.read(shared_data(study.FILE), 5), n_steps=60, free_pupil=False)
    assert found.fitted < 0.17 < found.start
    # LEDs that the fit never saw, two of them in the bright field.
    assert found.held_out < 0.13
    assert float(found.by_led[:10].max()) < 0.2
