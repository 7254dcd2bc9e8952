"""Coherent images of a thin object under oblique plane waves: what Fourier ptychography and Abbe's theory sum up.

Fields have the time dependence exp(-i omega t) of `bitlens.encoders.propagation`. In it the transfer function of a
pupil P = amplitude exp(2 pi i W) of `bitlens.encoders.optics` is its conjugate: W > 0 is a wavefront ahead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitlens.encoders import optics, pupils
from bitlens.encoders.zernike import zernike_basis


def pupil_coordinates(
    shape: tuple[int, int],
    *,
    sample_um: Tensor,
    wavelength_nm: Tensor,
    numerical_aperture: Tensor,
    center: Tensor | None = None,
) -> optics.PupilGrid:
    """rho = f wavelength / NA of the frequencies f of an image of `shape`, around `center` (n, 2), cycles/um.

    Frequency zero (of the image) is at (rows // 2, columns // 2). Returns column (..., 1, columns), row (..., rows, 1).
    """
    scale = 1e-3 * wavelength_nm / numerical_aperture
    axes = []
    for axis, size in enumerate(shape):
        index = torch.arange(size, dtype=scale.dtype, device=scale.device) - size // 2
        frequency = index / (size * sample_um)
        if center is not None:
            frequency = frequency + center[:, axis, None]
        axes.append(scale * frequency)
    step = scale / (min(shape) * sample_um)
    return optics.PupilGrid(axes[1][..., None, :], axes[0][..., :, None], step)


def objective_pupil(
    grid: optics.PupilGrid,
    *,
    wavelength_nm: Tensor,
    numerical_aperture: Tensor,
    immersion_index: float,
    defocus_um: Tensor,
    zernike_indices: Sequence[int],
    zernike_waves: Tensor,
) -> Tensor:
    """Complex (..., rows, columns): soft-edged disc times exp(2 pi i W), W of defocus and Zernike terms, in waves.

    `defocus_um` is the object's distance beyond the plane in focus, as in `pupils.high_aperture_defocus_waves`.
    """
    path = pupils.high_aperture_defocus_waves(
        grid,
        depth_um=defocus_um,
        wavelength_nm=wavelength_nm,
        numerical_aperture=numerical_aperture,
        immersion_index=immersion_index,
    )
    basis = zernike_basis(zernike_indices, grid.column, grid.row)
    path = path + (zernike_waves[:, None, None] * basis).sum(dim=-3)
    return optics.pupil(optics.soft_disc(grid, torch.ones_like(numerical_aperture)), path)


def window_centers(illumination: Tensor, shape: tuple[int, int], sample_um: Tensor) -> tuple[Tensor, Tensor]:
    """Sample of the object's spectrum nearest to -illumination (n, 2) int64, and the remaining frequency (n, 2).

    The light that passes the middle of the pupil is that of the object's frequency -illumination (cycles/um); the
    remainder, at most half a sample, is differentiable in the illumination.
    """
    size = torch.tensor(shape, dtype=illumination.dtype, device=illumination.device)
    step = 1 / (size * sample_um)
    with torch.no_grad():
        nearest = torch.round(-illumination / step).to(torch.int64)
    return nearest, nearest * step + illumination


def oblique_fields(field: Tensor, transfer: Tensor, centers: Tensor) -> Tensor:
    """F^-1{transfer(u) O(u - k)}, complex (..., n, rows, columns), up to a phase ramp that no intensity sees.

    The object is periodic; one of ones under k = 0 keeps the amplitude transfer(0).

    Args:
        field: (..., row, column), the object's complex transmission.
        transfer: (n, rows, columns), frequency zero in the middle; fewer samples than the object has make an image of
            the same extent with a coarser pitch.
        centers: (n, 2) of `window_centers`.

    Reference: Zheng, Horstmeyer and Yang 2013, Nat. Photonics 7, 739, doi:10.1038/nphoton.2013.187.
    """
    axes = (-2, -1)
    spectrum = torch.fft.fft2(field, norm="forward")
    index = []
    for axis, size in enumerate(transfer.shape[-2:]):
        window = torch.arange(size, device=field.device) - size // 2
        index.append((centers[:, axis, None] + window).remainder(field.shape[axis - 2]))
    passed = spectrum[..., index[0][:, :, None], index[1][:, None, :]] * transfer.to(field.dtype)
    return torch.fft.ifft2(torch.fft.ifftshift(passed, dim=axes), norm="forward")
