"""Pupil and PSF against closed forms of diffraction theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import j1
from torch import Tensor

from bitlens.encoders import (
    PupilGrid,
    defocus_peak_to_rms,
    defocus_waves,
    incoherent_psf,
    pupil,
    pupil_grid,
    soft_disc,
    zernike,
)

WAVELENGTH_NM, F_NUMBER = 550.0, 4.0
AIRY_UM = WAVELENGTH_NM * 1e-3 * F_NUMBER


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def fine_grid(size: int = 513, sample_um: float = AIRY_UM / 4) -> PupilGrid:
    return pupil_grid(size, sample_um=number(sample_um), wavelength_nm=number(WAVELENGTH_NM), f_number=number(F_NUMBER))


def psf_of(path_waves: Tensor | float, grid: PupilGrid, radius: float = 1.0) -> Tensor:
    path = torch.as_tensor(path_waves, dtype=torch.float64)
    return incoherent_psf(pupil(soft_disc(grid, number(radius)), path), number(radius) ** 2)


def test_airy_pattern() -> None:
    sample_um = AIRY_UM / 4
    psf = psf_of(0.0, fine_grid()).numpy()
    offset = (np.arange(65) - 32) * sample_um
    distance = np.hypot(offset[:, None], offset[None, :])
    argument = np.pi * np.where(distance == 0, 1e-9, distance) / AIRY_UM
    density = np.pi / 4 / AIRY_UM**2 * (2 * j1(argument) / argument) ** 2
    window = psf[256 - 32 : 256 + 33, 256 - 32 : 256 + 33]
    peak = density.max() * sample_um**2
    # The window is 64 Airy units to each side: 0.3 % of the light is beyond it, and as much in the soft edge.
    assert np.abs(window - density * sample_um**2).max() < 0.006 * peak


def test_first_dark_ring_lies_at_1_22_wavelength_f_number() -> None:
    sample_um = AIRY_UM / 20
    psf = psf_of(0.0, fine_grid(1001, sample_um)).numpy()
    profile = psf[500, 500:540]
    ring = int(np.argmin(profile))
    curvature = np.polyfit(np.arange(ring - 2, ring + 3), profile[ring - 2 : ring + 3], 2)
    ring_um = -curvature[1] / (2 * curvature[0]) * sample_um
    assert ring_um == pytest.approx(1.2197 * AIRY_UM, rel=0.01)
    # The nearest sample is up to half a sample off the zero, where 2 J1(v)/v has the slope -0.21.
    assert profile[ring] < (0.21 * np.pi / 40) ** 2 * profile[0]


def test_mtf_of_a_circular_pupil() -> None:
    sample_um = AIRY_UM / 4
    psf = psf_of(0.0, fine_grid()).numpy()
    frequency = np.fft.fftfreq(513, sample_um)
    relative = np.hypot(frequency[:, None], frequency[None, :]) * AIRY_UM
    inside = np.clip(relative, 0, 1)
    closed = 2 / np.pi * (np.arccos(inside) - inside * np.sqrt(1 - inside**2))
    transfer = np.fft.fft2(np.fft.ifftshift(psf))
    assert np.abs(transfer.imag).max() < 1e-12
    assert np.abs(transfer.real - closed).max() < 0.006
    # Beyond the cut-off there is nothing: the only light comes from the outer half of the soft edge.
    assert np.abs(transfer.real[relative > 1 + 2 / 64]).max() < 1e-12


@pytest.mark.parametrize("waves", [0.1, 0.25, 0.5, 0.8, 1.0, 1.5])
def test_intensity_on_the_axis_of_a_defocused_pupil(waves: float) -> None:
    # |integral of exp(2 pi i W rho^2) over the disc|^2 = sinc(W)^2 for a peak of W waves: 0 at W = 1.
    grid = fine_grid()
    sharp = psf_of(0.0, grid)[256, 256]
    blurred = psf_of(waves * (grid.column**2 + grid.row**2), grid)[256, 256]
    assert float(blurred / sharp) == pytest.approx(float(np.sinc(waves)) ** 2, abs=2e-3)


@pytest.mark.parametrize("indices", [(4,), (5,), (8,), (11,), (4, 6, 7, 11)])
@pytest.mark.parametrize("rms_waves", [0.02, 0.05])
def test_strehl_ratio_of_small_aberrations(indices: tuple[int, ...], rms_waves: float) -> None:
    grid = fine_grid()
    share = rms_waves / math.sqrt(len(indices))
    path = sum((share * zernike(index, grid.column, grid.row) for index in indices), number(0.0))
    strehl = float(psf_of(path, grid).max() / psf_of(0.0, grid).max())
    variance = (2 * math.pi * rms_waves) ** 2
    # Mahajan's exponential drops terms of order variance^2 times the phase's fourth cumulant.
    assert strehl == pytest.approx(math.exp(-variance), abs=0.3 * variance**2 + 1e-3)


def test_defocus_is_symmetric_in_its_sign_only_when_otherwise_in_focus() -> None:
    grid = fine_grid(129)
    rho_squared = grid.column**2 + grid.row**2
    spherical = 0.15 * zernike(11, grid.column, grid.row)
    peak = psf_of(0.0, grid).max()
    assert (psf_of(0.7 * rho_squared, grid) - psf_of(-0.7 * rho_squared, grid)).abs().max() < 1e-12 * peak
    apart = psf_of(0.7 * rho_squared + spherical, grid) - psf_of(-0.7 * rho_squared + spherical, grid)
    assert apart.abs().max() > 0.05 * peak


def test_peak_defocus_and_zernike_four_agree() -> None:
    grid = fine_grid(129)
    peak = psf_of(0.8 * (grid.column**2 + grid.row**2), grid)
    rms = psf_of(defocus_peak_to_rms(0.8) * zernike(4, grid.column, grid.row), grid)
    torch.testing.assert_close(peak, rms, rtol=0, atol=1e-14)


def test_tilt_moves_the_psf_by_twice_its_peak_in_airy_units() -> None:
    # W = t x, t waves at the edge, moves the image by 2 t wavelength f_number towards +x: here 6 samples.
    sample_um = AIRY_UM / 4
    grid = fine_grid(129, sample_um)
    edge_waves = 6 * sample_um / (2 * AIRY_UM)
    sharp = psf_of(0.0, grid)
    to_column = psf_of(edge_waves / 2 * zernike(2, grid.column, grid.row), grid)
    to_row = psf_of(edge_waves / 2 * zernike(3, grid.column, grid.row), grid)
    torch.testing.assert_close(to_column, torch.roll(sharp, 6, dims=-1), rtol=0, atol=1e-14)
    torch.testing.assert_close(to_row, torch.roll(sharp, 6, dims=-2), rtol=0, atol=1e-14)


def test_half_the_aperture_is_twice_the_f_number_with_a_quarter_of_the_light() -> None:
    stopped_down = psf_of(0.0, fine_grid(129), radius=0.5)
    slow = pupil_grid(
        129,
        sample_um=number(AIRY_UM / 4),
        wavelength_nm=number(WAVELENGTH_NM),
        f_number=number(2 * F_NUMBER),
    )
    torch.testing.assert_close(stopped_down, psf_of(0.0, slow) / 4, rtol=0, atol=1e-14)
    assert float(stopped_down.sum()) == pytest.approx(0.25, rel=1e-12)


def test_soft_disc_has_the_area_of_the_disc_and_its_derivative() -> None:
    grid = fine_grid(257, AIRY_UM / 2)
    for radius in (0.3, 0.77, 1.0):
        # The derivative at one radius follows the lattice of samples; over some samples of radius it is 2 pi R.
        radii = radius + torch.linspace(-2, 2, 33, dtype=torch.float64) * grid.step
        radii.requires_grad_()
        copies = PupilGrid(grid.column, grid.row, grid.step.expand(33))
        areas = soft_disc(copies, radii).sum(dim=(-2, -1)) * grid.step**2
        (derivative,) = torch.autograd.grad(areas.sum(), radii)
        expected = math.pi * radii.detach() ** 2
        torch.testing.assert_close(areas.detach(), expected, rtol=2e-3, atol=0)
        assert float(derivative.mean()) == pytest.approx(2 * math.pi * radius, rel=0.01)


def test_soft_disc_gradient() -> None:
    wavelength, radius = number(1.0).requires_grad_(), number(0.83).requires_grad_()

    def disc(relative_wavelength: Tensor, radius: Tensor) -> Tensor:
        grid = pupil_grid(
            15,
            sample_um=number(AIRY_UM / 3),
            wavelength_nm=WAVELENGTH_NM * relative_wavelength,
            f_number=number(F_NUMBER),
        )
        return soft_disc(grid, radius)

    assert torch.autograd.gradcheck(disc, (wavelength, radius))


def test_leading_axes_are_wavelengths() -> None:
    wavelengths = torch.tensor([450.0, 550.0, 650.0], dtype=torch.float64)
    sample_um = number(0.5)
    together = pupil_grid(33, sample_um=sample_um, wavelength_nm=wavelengths, f_number=number(F_NUMBER))
    psf = psf_of(0.0, together)
    assert psf.shape == (3, 33, 33)
    for channel, wavelength in enumerate(wavelengths):
        alone = pupil_grid(33, sample_um=sample_um, wavelength_nm=wavelength, f_number=number(F_NUMBER))
        torch.testing.assert_close(psf[channel], psf_of(0.0, alone), rtol=0, atol=1e-15)


def test_defocus_of_a_sensor_shift() -> None:
    # Path of the marginal ray by Pythagoras: focal length f, aperture radius a, sensor moved by d.
    focal_um, f_number, shift_um = 50e3, 8.0, 100.0
    radius_um = focal_um / (2 * f_number)
    edge = math.hypot(focal_um, radius_um) - math.hypot(focal_um + shift_um, radius_um)
    waves = (edge + shift_um) / 0.55
    assert defocus_waves(shift_um, wavelength_nm=550, f_number=f_number) == pytest.approx(waves, rel=0.01)
