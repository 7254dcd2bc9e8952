"""PSF convolution and Fourier filtering in a few lines of differentiable torch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def _rfft2(image: Tensor, size: tuple[int, int]) -> Tensor:
    """torch's transform, which refuses an empty batch."""
    if image.numel():
        return torch.fft.rfft2(image, s=size)
    return image.new_zeros((*image.shape[:-2], size[0], size[1] // 2 + 1), dtype=image.dtype.to_complex()) + image.sum()


def _irfft2(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    if spectrum.numel():
        return torch.fft.irfft2(spectrum, s=size)
    return spectrum.real.new_zeros((*spectrum.shape[:-2], *size)) + spectrum.real.sum()


def psf_convolve(image: Tensor, psf: Tensor, mode: str, boundary: str) -> Tensor:
    """out[r, c] = sum_{i, j} image[i, j] psf[r - i + h//2, c - j + w//2], the PSF origin at (h//2, w//2)."""
    (height, width), (h, w) = image.shape[-2:], psf.shape[-2:]
    if boundary == "circular":
        shape = (height, width)
        return circular(image, centered(psf, height, width))
    shape = (height + h - 1, width + w - 1)
    full = _irfft2(_rfft2(image, shape) * _rfft2(psf, shape), shape)
    if mode == "full":
        return full
    if mode == "same":
        return full[..., h // 2 : h // 2 + height, w // 2 : w // 2 + width]
    return full[..., h - 1 : height, w - 1 : width]


def circular(image: Tensor, kernel: Tensor) -> Tensor:
    """Circular convolution with a kernel of the same size whose origin is at (0, 0)."""
    size = (image.shape[-2], image.shape[-1])
    return _irfft2(_rfft2(image, size) * _rfft2(kernel, size), size)


def centered(psf: Tensor, height: int, width: int) -> Tensor:
    """The PSF on a circular (height, width) with its origin at (0, 0)."""
    h, w = psf.shape[-2:]
    if h > height or w > width:
        whole = fold(psf, height, width)
    else:
        whole = torch.nn.functional.pad(psf, (0, width - w, 0, height - h))
    return torch.roll(whole, (-(h // 2), -(w // 2)), dims=(-2, -1))


def inverse_psf(psf: Tensor, regularization: Tensor, height: int, width: int) -> Tensor:
    """The kernel, origin at (0, 0), whose transfer function is conj(S) / (|S|^2 + regularization); in double inside."""
    transfer = _rfft2(centered(psf, height, width).double(), (height, width))
    power = transfer.real.square() + transfer.imag.square()
    inverse = _irfft2(transfer.conj() / (power + regularization.double()), (height, width))
    return inverse.to(psf.dtype)


def fold(psf: Tensor, height: int, width: int) -> Tensor:
    """(..., height, width): the sum of all entries of `psf` whose indices agree modulo (height, width)."""
    h, w = psf.shape[-2:]
    padded = torch.nn.functional.pad(psf, (0, -w % width, 0, -h % height))
    return padded.unflatten(-1, (-1, width)).unflatten(-3, (-1, height)).sum(dim=(-4, -2))


def fourier_filter(field: Tensor, transfer: Tensor, centered: bool) -> Tensor:
    """ifft2(fft2(field) * transfer); `centered` says that frequency zero of `transfer` is at (H//2, W//2)."""
    if centered:
        transfer = torch.fft.ifftshift(transfer, dim=(-2, -1))
    if not field.numel() or not transfer.numel():
        return field * transfer  # torch's transform refuses an empty batch
    return torch.fft.ifft2(torch.fft.fft2(field) * transfer)
