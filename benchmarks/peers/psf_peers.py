"""The peers of `psf_convolve` and `fourier_filter`: the usual FFT libraries behind one small interface.

A convolution of mode "same" is two padded real transforms, a product and a transform back. A period of H + h // 2
points suffices: what wraps around falls on rows that are cropped. Every peer chooses the fastest smooth even period by
measurement. Products run in torch on both threads whichever library transforms, since NumPy's use one.
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import scipy.fft
import torch
from pair_ratios import seconds_of
from torch import Tensor

Size = tuple[int, int]
AXES = (-2, -1)


class Library(NamedTuple):
    """Two-dimensional transforms of tensors over the last two axes; the real ones pad with zeros to `size`."""

    rfft2: Callable[[Tensor, Size], Tensor]
    irfft2: Callable[[Tensor, Size], Tensor]
    fft2: Callable[[Tensor], Tensor]
    ifft2: Callable[[Tensor], Tensor]


def torch_library() -> Library:
    return Library(
        lambda x, size: torch.fft.rfft2(x, s=size),
        lambda x, size: torch.fft.irfft2(x, s=size),
        torch.fft.fft2,
        torch.fft.ifft2,
    )


def scipy_library(threads: int) -> Library:
    def on(function: Callable[..., object], **options: object) -> Callable[..., Tensor]:
        return lambda x, size=None: torch.from_numpy(function(x.numpy(), s=size, workers=threads, **options))

    return Library(
        on(scipy.fft.rfft2),
        on(scipy.fft.irfft2, overwrite_x=True),
        on(scipy.fft.fft2),
        on(scipy.fft.ifft2, overwrite_x=True),
    )


def ducc_library(threads: int) -> Library:
    import ducc0

    def rfft2(x: Tensor, size: Size) -> Tensor:
        rows, columns = size[0] - x.shape[-2], size[1] - x.shape[-1]
        padded = torch.nn.functional.pad(x, (0, columns, 0, rows)) if rows or columns else x
        return torch.from_numpy(ducc0.fft.r2c(padded.numpy(), axes=AXES, nthreads=threads))

    def irfft2(x: Tensor, size: Size) -> Tensor:
        options = {"axes": AXES, "lastsize": size[1], "forward": False, "inorm": 2, "nthreads": threads}
        return torch.from_numpy(ducc0.fft.c2r(x.numpy(), allow_overwriting_input=True, **options))

    def fft2(x: Tensor) -> Tensor:
        return torch.from_numpy(ducc0.fft.c2c(x.numpy(), axes=AXES, nthreads=threads))

    def ifft2(x: Tensor) -> Tensor:
        values = x.numpy()
        options = {"axes": AXES, "forward": False, "inorm": 2, "out": values, "nthreads": threads}
        return torch.from_numpy(ducc0.fft.c2c(values, **options))

    return Library(rfft2, irfft2, fft2, ifft2)


def fftw_library(threads: int) -> Library:
    import pyfftw
    from pyfftw.interfaces import scipy_fft

    pyfftw.config.PLANNER_EFFORT = "FFTW_MEASURE"
    pyfftw.interfaces.cache.enable()
    pyfftw.interfaces.cache.set_keepalive_time(60)

    def on(function: Callable[..., object], **options: object) -> Callable[..., Tensor]:
        return lambda x, size=None: torch.from_numpy(function(x.numpy(), s=size, workers=threads, **options))

    return Library(
        on(scipy_fft.rfft2),
        on(scipy_fft.irfft2, overwrite_x=True),
        on(scipy_fft.fft2),
        on(scipy_fft.ifft2, overwrite_x=True),
    )


def libraries(threads: int) -> dict[str, Library]:
    """torch and SciPy, and those of ducc0 and pyFFTW that are installed."""
    found = {"torch": torch_library(), "scipy": scipy_library(threads)}
    if importlib.util.find_spec("ducc0"):
        found["ducc0"] = ducc_library(threads)
    if importlib.util.find_spec("pyfftw"):
        found["pyfftw"] = fftw_library(threads)
    return found


def centred(psf: Tensor, size: Size) -> Tensor:
    """The PSF in a plane of `size` with its origin (h // 2, w // 2) at (0, 0)."""
    h, w = psf.shape[-2:]
    padded = torch.nn.functional.pad(psf, (0, size[1] - w, 0, size[0] - h))
    return torch.roll(padded, (-(h // 2), -(w // 2)), dims=AXES)


def convolve(library: Library, image: Tensor, psf: Tensor, boundary: str, size: Size) -> Tensor:
    """The convolution of mode "same"; differentiable where the library is torch's."""
    if boundary == "circular":
        return library.irfft2(library.rfft2(image, size) * library.rfft2(centred(psf, size), size), size)
    full = library.irfft2(library.rfft2(image, size) * library.rfft2(psf, size), size)
    row, column = (length // 2 for length in psf.shape[-2:])
    return full[..., row : row + image.shape[-2], column : column + image.shape[-1]]


def convolve_and_gradients(
    library: Library, image: Tensor, psf: Tensor, grad: Tensor, boundary: str, size: Size
) -> tuple[Tensor, Tensor, Tensor]:
    """Output and gradients in image and PSF written out, with the spectra of the forward pass kept."""
    (height, width), (h, w) = image.shape[-2:], psf.shape[-2:]
    circular = boundary == "circular"
    image_spectrum = library.rfft2(image, size)
    psf_spectrum = library.rfft2(centred(psf, size) if circular else psf, size)
    row, column = (0, 0) if circular else (h // 2, w // 2)
    output = library.irfft2(image_spectrum * psf_spectrum, size)[..., row : row + height, column : column + width]
    if not circular:
        # Where the crop took the outputs from.
        grad = torch.nn.functional.pad(grad, (column, size[1] - width - column, row, size[0] - height - row))
    grad_spectrum = library.rfft2(grad, size)
    image_grad = library.irfft2(grad_spectrum * psf_spectrum.conj_physical(), size)[..., :height, :width]
    products = image_spectrum.conj_physical_().mul_(grad_spectrum)
    psf_grad = library.irfft2(products.sum_to_size(psf_spectrum.shape), size)
    if circular:
        psf_grad = torch.roll(psf_grad, (h // 2, w // 2), dims=AXES)
    return output, image_grad, psf_grad[..., :h, :w]


def direct(image: Tensor, psf: Tensor) -> Tensor:
    """torch's conv2d with one PSF of odd sides, zeros outside."""
    stack = image.reshape(-1, 1, *image.shape[-2:])
    padding = [length // 2 for length in psf.shape]
    return torch.nn.functional.conv2d(stack, psf.flip(0, 1)[None, None], padding=padding).reshape(image.shape)


def periods(length: int, psf_length: int, boundary: str) -> list[int]:
    """Periods that are worth a measurement: the next four smooth even ones and the next power of two."""
    if boundary == "circular":
        return [length]
    least = max(length + psf_length // 2, length + psf_length - 1 - psf_length // 2)
    smooth = itertools.islice((size for size in itertools.count(least) if size % 2 == 0 and _is_smooth(size)), 4)
    candidates = list(smooth)
    power = 1 << (least - 1).bit_length()
    return candidates if power in candidates or power > 1.4 * least else [*candidates, power]


def fastest_size(call: Callable[[Size], object], image: Tensor, psf: Tensor, boundary: str) -> Size:
    """The size of the transforms with which `call(size)` took the least time, by medians of three."""
    rows, columns = (periods(image.shape[axis], psf.shape[axis], boundary) for axis in AXES)
    square = image.shape[-2] == image.shape[-1] and psf.shape[-2] == psf.shape[-1]
    sizes = list(zip(rows, columns, strict=True)) if square else list(itertools.product(rows[:2], columns[:2]))
    if len(sizes) == 1:
        return sizes[0]

    def median(size: Size) -> float:
        call(size)
        return statistics.median(seconds_of(lambda: call(size)) for _ in range(3))

    return min(sizes, key=median)


def _is_smooth(size: int) -> bool:
    for prime in (2, 3, 5, 7):
        while size % prime == 0:
            size //= prime
    return size == 1
