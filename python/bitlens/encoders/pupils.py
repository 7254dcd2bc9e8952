"""Pupils that are not a plain disc, and the PSFs made of them: coherent, polychromatic, depth-dependent, high aperture.

Builds on `bitlens.encoders.optics`, with its grid (radius 1 is the edge of the full aperture) and its signs: a path
error W enters as exp(2 pi i W), W > 0 at the edge where the wavefront is ahead of the sphere around the image point, as
of a sensor beyond the focus, and W = t column moves the image towards +column.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from bitlens.encoders import optics

Number = float | Tensor
Apodization = Literal["none", "focusing", "collecting"]


def coherent_psf(pupil: Tensor) -> Tensor:
    """h = FFT(pupil) / n^2, complex (..., n, n), origin at (n // 2, n // 2): the image's amplitude of a point.

    Its sum is the pupil at the centre, so that an even illumination keeps its amplitude; |h|^2 is proportional to
    `optics.incoherent_psf`.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 6.2.
    """
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(pupil, dim=axes), norm="forward"), dim=axes)


def polychromatic_psf(pupil: Tensor, *, weights: Tensor, transmission: Tensor) -> Tensor:
    """sum_w weights PSF_w / sum_w weights, real (..., n, n): the incoherent PSF of a spectrum.

    Args:
        pupil: complex (..., wavelength, n, n), each on the grid that `optics.pupil_grid` gives for its wavelength and
            one common `sample_um`: the pupil grows with the wavelength in samples of frequency.
        weights: (..., wavelength) of spectrum times detector response.
        transmission: (..., wavelength), the sum of each wavelength's PSF; see `pupil_transmission`.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 6.1.3.
    """
    psf = optics.incoherent_psf(pupil, transmission)
    share = weights / weights.sum(dim=-1, keepdim=True)
    return (share[..., None, None] * psf).sum(dim=-3)


def pupil_transmission(pupil: Tensor, grid: optics.PupilGrid) -> Tensor:
    """sum |pupil|^2 step^2 / pi (...): light passed, relative to what the full open aperture passes."""
    energy = (pupil * pupil.conj()).real if pupil.is_complex() else pupil**2
    result: Tensor = energy.sum(dim=(-2, -1)) * grid.step**2 / math.pi
    return result


def strehl_ratio(pupil: Tensor) -> Tensor:
    """|sum pupil|^2 / (sum |pupil|)^2 (...): the PSF at its origin over that without path error.

    Reference: Born and Wolf, Principles of Optics, 7th ed. 1999, sec. 9.1.3.
    """
    total = pupil.sum(dim=(-2, -1))
    result: Tensor = (total * total.conj()).real / pupil.abs().sum(dim=(-2, -1)) ** 2
    return result


def soft_annulus(grid: optics.PupilGrid, *, outer_radius: Number, inner_radius: Number) -> Tensor:
    """(..., n, n): 1 between the two radii, 0 elsewhere, with the soft edges of `optics.soft_disc`.

    Differentiable in both radii; an inner radius of 0 is no obstruction and has the derivative 0, the annulus' own.
    """
    outer = torch.as_tensor(outer_radius, dtype=grid.step.dtype, device=grid.step.device)
    inner = torch.as_tensor(inner_radius, dtype=grid.step.dtype, device=grid.step.device)
    obstructed = inner > 0
    # The disc divides by its radius, so that the branch not taken needs one too.
    hole = optics.soft_disc(grid, torch.where(obstructed, inner, 1.0))
    return optics.soft_disc(grid, outer) - torch.where(obstructed[..., None, None], hole, 0.0)


def spider(grid: optics.PupilGrid, *, angle_rad: Tensor, width: Number) -> Tensor:
    """(..., n, n): the transmission of vanes of `width` from the centre outwards: 0 on them, 1 elsewhere.

    Edges are smooth steps two pupil samples wide, such that a vane covers width x length however thin it is.
    Differentiable in width and angle. Where vanes meet, at the centre, their transmissions multiply.

    Args:
        angle_rad: (vane,), from +column to +row.
        width: over the full aperture's radius, a number or (...).
    """
    step = grid.step[..., None, None]
    half = torch.as_tensor(width, dtype=step.dtype, device=step.device)[..., None, None] / 2
    transmission = torch.ones_like(grid.column + grid.row)
    for angle in torch.as_tensor(angle_rad, dtype=step.dtype, device=step.device).reshape(-1):
        along = grid.column * angle.cos() + grid.row * angle.sin()
        across = grid.row * angle.cos() - grid.column * angle.sin()
        strip = _smooth_step((across + half) / step) - _smooth_step((across - half) / step)
        transmission = transmission * (1 - strip * _smooth_step(along / step))
    return transmission


def gaussian_apodization(grid: optics.PupilGrid, *, waist: Number) -> Tensor:
    """exp(-rho^2 / waist^2) (..., n, n): amplitude of a beam whose 1/e^2 radius of intensity is `waist`."""
    waist = torch.as_tensor(waist, dtype=grid.step.dtype, device=grid.step.device)[..., None, None]
    return torch.exp(-(grid.column**2 + grid.row**2) / waist**2)


def object_defocus_waves(
    object_distance_mm: Number, *, focus_distance_mm: Number, aperture_diameter_mm: Number, wavelength_nm: Number
) -> Tensor:
    """D^2 / (8 wavelength) (1 / focus - 1 / object): peak defocus, in waves, of a point off the plane in focus.

    Paraxial; both distances from the lens, infinity included. Positive for what is farther than the plane in focus,
    whose image lies before the sensor. W = defocus rho^2, as in `optics.defocus_waves`.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 6.4.4.
    """
    distance, focus, diameter, wavelength = _tensors(
        object_distance_mm, focus_distance_mm, aperture_diameter_mm, wavelength_nm
    )
    return diameter**2 / (8e-6 * wavelength) * (1 / focus - 1 / distance)


def depth_psf(
    size: int,
    *,
    sample_um: Number,
    wavelength_nm: Number,
    focal_length_mm: Number,
    f_number: Number,
    focus_distance_mm: Number,
    object_distance_mm: Number,
) -> Tensor:
    """Incoherent PSF (..., size, size), on the sensor, of points at `object_distance_mm`: ideal thin lens, sum 1.

    The sensor stands where the plane at `focus_distance_mm` is sharp, behind focal length / `f_number` of aperture.

    Args:
        sample_um: pitch on the sensor, at most half the wavelength times the working f-number.
        wavelength_nm, object_distance_mm: broadcast with the other numbers, for example (wavelength,) and (depth, 1).

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 6.4.4.
    """
    sample, wavelength, focal, number, focus, distance = torch.broadcast_tensors(
        *_tensors(sample_um, wavelength_nm, focal_length_mm, f_number, focus_distance_mm, object_distance_mm)
    )
    diameter, image_distance = focal / number, 1 / (1 / focal - 1 / focus)
    working = image_distance / diameter
    grid = optics.pupil_grid(size, sample_um=sample, wavelength_nm=wavelength, f_number=working)
    amplitude = optics.soft_disc(grid, torch.ones_like(working))
    defocus = object_defocus_waves(
        distance, focus_distance_mm=focus, aperture_diameter_mm=diameter, wavelength_nm=wavelength
    )
    path = defocus[..., None, None] * (grid.column**2 + grid.row**2)
    return optics.incoherent_psf(optics.pupil(amplitude, path), torch.ones_like(working))


def high_aperture_defocus_waves(
    grid: optics.PupilGrid,
    *,
    depth_um: Tensor,
    wavelength_nm: Tensor,
    numerical_aperture: Tensor,
    immersion_index: Number,
) -> Tensor:
    """W = n z (1 - cos theta) / wavelength (..., n, n), sin theta = NA rho / n: defocus without a small angle.

    Positive depth: the point lies beyond the plane in focus, seen from the objective. Frequencies beyond sin theta = 1
    count as sin theta = 1. The grid is the one of f_number = 1 / (2 NA) with samples in object space.

    Reference: Gibson and Lanni 1989, J. Opt. Soc. Am. A 6, 1969, doi:10.1364/JOSAA.6.001969.
    """
    index, sine_squared = _sine_squared(grid, numerical_aperture, immersion_index)
    versine = sine_squared / (1 + (1 - sine_squared).sqrt())
    result: Tensor = 1e3 * index * (depth_um / wavelength_nm)[..., None, None] * versine
    return result


def aplanatic_amplitude(grid: optics.PupilGrid, *, numerical_aperture: Tensor, immersion_index: Number) -> Tensor:
    """sqrt(cos theta) (..., n, n): amplitude over the pupil of an aplanatic lens that focuses an even beam.

    Its inverse is the amplitude that such an objective collects from a point that radiates evenly.

    Reference: Richards and Wolf 1959, Proc. R. Soc. A 253, 358, sec. 2, doi:10.1098/rspa.1959.0200.
    """
    _, sine_squared = _sine_squared(grid, numerical_aperture, immersion_index)
    return (1 - sine_squared) ** 0.25


def microscope_psf(
    size: int,
    *,
    sample_um: Number,
    wavelength_nm: Number,
    numerical_aperture: Number,
    immersion_index: Number = 1.0,
    depth_um: Number = 0.0,
    apodization: Apodization = "none",
) -> Tensor:
    """Incoherent PSF (..., size, size) of an ideal objective at `depth_um`, scalar theory, sum 1.

    Args:
        sample_um: pitch in object space, at most wavelength / (4 NA) to resolve the PSF.
        depth_um: of the point beyond the plane in focus; with wavelength and aperture it broadcasts: (...).
        apodization: "focusing" sqrt(cos theta), as of a beam focused into the sample, or "collecting", its inverse.

    Raises:
        ValueError: an aperture of at least the index, or samples too coarse (numbers only, not tensors).

    Reference: Gibson and Lanni 1989, J. Opt. Soc. Am. A 6, 1969, doi:10.1364/JOSAA.6.001969.
    """
    if apodization not in get_args(Apodization):
        raise ValueError(f"apodization: need one of {get_args(Apodization)}, got {apodization!r}")
    _check_microscope(sample_um, wavelength_nm, numerical_aperture, immersion_index)
    sample, wavelength, aperture, depth = torch.broadcast_tensors(
        *_tensors(sample_um, wavelength_nm, numerical_aperture, depth_um)
    )
    grid = optics.pupil_grid(size, sample_um=sample, wavelength_nm=wavelength, f_number=0.5 / aperture)
    amplitude = optics.soft_disc(grid, torch.ones_like(aperture))
    if apodization != "none":
        factor = aplanatic_amplitude(grid, numerical_aperture=aperture, immersion_index=immersion_index)
        # Beyond the aperture the factor reaches 0, where its inverse and its slope are infinite.
        factor = torch.where(amplitude > 0, factor, 1.0)
        amplitude = amplitude * factor if apodization == "focusing" else amplitude / factor
    path = high_aperture_defocus_waves(
        grid, depth_um=depth, wavelength_nm=wavelength, numerical_aperture=aperture, immersion_index=immersion_index
    )
    return optics.incoherent_psf(optics.pupil(amplitude, path), torch.ones_like(aperture))


def _tensors(*values: Number) -> list[Tensor]:
    """In float64, on the device of the first that is a tensor."""
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    return [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]


def _sine_squared(grid: optics.PupilGrid, numerical_aperture: Tensor, immersion_index: Number) -> tuple[Tensor, Tensor]:
    index = torch.as_tensor(immersion_index, dtype=grid.step.dtype, device=grid.step.device)[..., None, None]
    aperture = torch.as_tensor(numerical_aperture, dtype=grid.step.dtype, device=grid.step.device)[..., None, None]
    sine_squared = (aperture / index) ** 2 * (grid.column**2 + grid.row**2)
    # The roots of cos theta have infinite slopes at 0, and the clamp passes none on.
    return index, sine_squared.clamp(max=1 - 1e-12)


def _smooth_step(x: Tensor) -> Tensor:
    """The integral of a triangle of half-width 1: copies one sample apart add up to a straight line."""
    inside = x.clamp(-1, 1)
    return 0.5 + inside - inside * inside.abs() / 2


def _check_microscope(sample_um: Number, wavelength_nm: Number, aperture: Number, immersion_index: Number) -> None:
    if (
        not isinstance(aperture, Tensor)
        and not isinstance(immersion_index, Tensor)
        and not 0 < aperture < immersion_index
    ):
        raise ValueError(
            f"numerical_aperture: need more than 0 and less than the index {immersion_index}, got {aperture}"
        )
    if any(isinstance(value, Tensor) for value in (sample_um, wavelength_nm, aperture)):
        return
    coarsest = 0.25e-3 * float(wavelength_nm) / float(aperture)
    if not 0 < float(sample_um) <= coarsest * (1 + 1e-12):
        raise ValueError(f"sample_um: need more than 0 and at most {coarsest:.4g} to resolve the PSF, got {sample_um}")
