"""Public signature, checks and dispatch of `psf_convolve` and `fourier_filter`."""

from __future__ import annotations

from torch import Tensor

from bitlens.kernels import _check
from bitlens.kernels.psf_convolve import reference


def psf_convolve(image: Tensor, psf: Tensor, *, mode: str = "same", boundary: str = "zero") -> Tensor:
    _check.tensor("image", image)
    return reference.psf_convolve(image, psf, mode, boundary)


def fourier_filter(field: Tensor, transfer: Tensor, *, centered: bool = False) -> Tensor:
    return reference.fourier_filter(field, transfer, centered)
