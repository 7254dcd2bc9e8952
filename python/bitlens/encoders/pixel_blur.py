"""A PSF on a fine grid and the pixels behind it, away from every boundary: the convolution, and its exact adjoint."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bitlens import ops
from bitlens.encoders.convolution import adjoint_convolution, never_below_zero
from bitlens.encoders.detector import as_planes
from bitlens.encoders.sensor import integrate_pixels


def blurred_pixels(scene: Tensor | np.ndarray, psf: Tensor, oversampling: int) -> Tensor:
    """Mean of psf * scene over pixels of `oversampling` x `oversampling` samples, as far as no boundary is seen.

    Shapes: scene (batch, channel, row, column) and psf (h, w) or (channel, h, w), both on the fine grid, ->
    (batch, channel, (row - h + 1) / oversampling, (column - w + 1) / oversampling).

    Raises:
        TypeError: a scene of another dtype than float32 or float64.
        ValueError: the scene is smaller than the PSF, or what is left is not a whole number of pixels.
    """
    scene = as_planes("scene", scene)
    rows, columns = (size - reach + 1 for size, reach in zip(scene.shape[-2:], psf.shape[-2:], strict=True))
    if min(rows, columns) < oversampling or rows % oversampling or columns % oversampling:
        raise ValueError(
            f"scene: need rows and columns of {psf.shape[-2] - 1} and {psf.shape[-1] - 1} samples more than a "
            f"multiple of oversampling = {oversampling}, got {tuple(scene.shape)}"
        )
    psf = psf.to(scene.dtype)
    blurred = never_below_zero(ops.psf_convolve(scene, psf, mode="valid"), scene, psf)
    return integrate_pixels(blurred, oversampling)


def blurred_pixels_adjoint(measured: Tensor | np.ndarray, psf: Tensor, oversampling: int) -> Tensor:
    """The adjoint of `blurred_pixels`: each pixel's value over its samples, and a correlation with the PSF."""
    measured = as_planes("measured", measured)
    fine = measured.repeat_interleave(oversampling, dim=-2).repeat_interleave(oversampling, dim=-1)
    return adjoint_convolution(fine / oversampling**2, psf.to(measured.dtype), mode="valid")
