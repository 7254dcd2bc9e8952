"""Pupil and incoherent point spread function of a lens with a circular aperture: functions of tensors.

Coordinates of the pupil are relative to the full aperture, the one of the f-number: radius 1 is its edge.
Every map has frequency zero at (size // 2, size // 2), as the PSF has its origin.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class PupilGrid(NamedTuple):
    """Coordinates over the full aperture's radius: `column` (..., 1, n), `row` (..., n, 1), `step` (...)."""

    column: Tensor
    row: Tensor
    step: Tensor


def pupil_grid(size: int, *, sample_um: Tensor, wavelength_nm: Tensor, f_number: Tensor) -> PupilGrid:
    """rho = 2 wavelength f_number f, f the frequencies of `size` samples of pitch `sample_um` on the sensor.

    The amplitude behind an aperture of f-number N reaches up to f = 1 / (2 wavelength N), which is rho = 1.

    Args:
        size: samples per side of pupil and PSF.
        sample_um: pitch of the PSF's samples on the sensor, micrometres; (...) broadcasts with the next two.
        wavelength_nm, f_number: wavelength in nanometres and focal length / aperture diameter.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 6.2.
    """
    step = 2e-3 * wavelength_nm * f_number / (size * sample_um)
    index = torch.arange(size, dtype=step.dtype, device=step.device) - size // 2
    axis = step[..., None] * index
    return PupilGrid(axis[..., None, :], axis[..., :, None], step)


def soft_disc(grid: PupilGrid, radius: Tensor) -> Tensor:
    """(..., n, n): 1 inside the circle of `radius`, 0 outside, a smooth step one pupil sample wide between.

    The step is symmetric in the square of the radius, so that the disc's area is pi radius^2 whatever its
    width, and has continuous first derivatives in `radius` and in the grid.
    """
    # A narrower step makes the PSF's peak a rougher function of the radius: with 10 samples in the radius the
    # spread of d log(peak) / d log(radius) around its value 4 is 0.4 at one sample, 0.8 at half a sample.
    radius, step = radius[..., None, None], grid.step[..., None, None]
    ramp = (radius**2 - grid.column**2 - grid.row**2) / (2 * radius * step) + 0.5
    ramp = ramp.clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def pupil(amplitude: Tensor, path_waves: Tensor) -> Tensor:
    """P = amplitude exp(2 pi i path_waves), complex (..., n, n), of the optical path error in waves."""
    phase = (2 * math.pi) * path_waves
    return torch.complex(amplitude * torch.cos(phase), amplitude * torch.sin(phase))


def incoherent_psf(pupil: Tensor, transmission: Tensor) -> Tensor:
    """PSF = transmission |FFT(pupil)|^2 / sum |FFT(pupil)|^2, real (..., n, n), origin at (n // 2, n // 2).

    Its sum is `transmission` (...): the light that arrives, relative to what the full aperture passes.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, eq. 6-17.
    """
    field = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(pupil, dim=(-2, -1))), dim=(-2, -1))
    intensity = field.real**2 + field.imag**2
    psf: Tensor = intensity * (transmission[..., None, None] / intensity.sum(dim=(-2, -1), keepdim=True))
    return psf


def defocus_waves(sensor_shift_um: float, *, wavelength_nm: float, f_number: float) -> float:
    """shift / (8 wavelength f_number^2): peak defocus, in waves, of a sensor that lies beyond the focus.

    Paraxial. Peak means the path error at the aperture's edge against its centre, W = defocus_waves rho^2.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 6.4.4.
    """
    return sensor_shift_um / (8e-3 * wavelength_nm * f_number**2)


def defocus_peak_to_rms(defocus_waves: float) -> float:
    """defocus_waves / (2 sqrt 3): the coefficient of Zernike 4 (Noll), in rms waves, of a peak defocus.

    rho^2 = 1/2 + Z_4 / (2 sqrt 3): the two differ by a piston, which no intensity sees.
    """
    return defocus_waves / (2 * math.sqrt(3))
