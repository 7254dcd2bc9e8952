"""Public signatures, checks, dispatch and gradients of `psf_convolve` and `fourier_filter`.

Three bilinear operators, closed under differentiation, so that every order and mode of it works:

* convolve(a, b): a window of the linear or circular convolution. Its gradients are windows of convolutions of the
  incoming gradient with the other operand flipped.
* filter(a, t) = ifft2(fft2(a) t). Its gradients are filter(g, conj t) and cross_spectrum(g, a).
* cross_spectrum(a, b) = fft2(a) conj(fft2(b)) / (H W). Its gradients are filter(b, g) and filter(a, conj g).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitlens.kernels import _autograd, _backend, _check, _compiled
from bitlens.kernels.psf_convolve import reference

# "cuda" joins here with the kernel's cuda.cu.
IMPLEMENTED = ("cpu", "numba", "reference")
_CONVOLVE_KIND, _FILTER_KIND, _CROSS_SPECTRUM_KIND = range(3)


def psf_convolve(image: Tensor, psf: Tensor, *, mode: str = "same", boundary: str = "zero") -> Tensor:
    """out[r, c] = sum_{i, j} image[i, j] psf[r - i + h//2, c - j + w//2]: true convolution, PSF origin (h//2, w//2).

    For even sizes the origin differs from SciPy's "same" crop, which starts at ((h-1)//2, (w-1)//2).

    Args:
        image: (..., H, W), float32 or float64; NaN or infinity anywhere makes that whole image NaN.
        psf: (..., h, w), of the same dtype; leading axes broadcast with those of `image`.
        mode: "same" (H, W), "full" (H+h-1, W+w-1) or "valid" (H-h+1, W-w+1).
        boundary: "zero", or "circular" (mode "same" only), where a PSF larger than the image wraps.

    Raises:
        TypeError: an argument is not a float32/float64 tensor, or dtypes differ.
        ValueError: shapes do not fit (a PSF larger than the image in mode "valid"), or an unknown mode or boundary.

    Reference: Oppenheim and Schafer (2009), Discrete-Time Signal Processing, 3rd ed., section 8.7.
    """
    _check.tensor("image", image)
    _check.tensor("psf", psf)
    image, psf = _operands(("image", "psf"), image, psf, ("(..., H, W)", "(..., h, w)"))
    _check.choice("mode", mode, ("same", "full", "valid"))
    _check.choice("boundary", boundary, ("zero", "circular"))
    if boundary == "circular" and mode != "same":
        raise ValueError(f"mode: need 'same' with boundary 'circular', got {mode!r}")
    (height, width), (h, w) = image.shape[-2:], psf.shape[-2:]
    if mode == "valid" and (h > height or w > width):
        raise ValueError(
            f"psf: need at most the rows and columns of image, ({height}, {width}), in mode 'valid', got ({h}, {w})"
        )
    backend = _backend.select("psf_convolve", image.device, IMPLEMENTED)
    if backend == "reference":
        return reference.psf_convolve(image, psf, mode, boundary)
    if boundary == "circular":
        if h > height or w > width:
            psf = reference.fold(psf, height, width)
        return _convolve(image, psf, (h // 2, height, height, w // 2, width, width, backend))
    row = {"same": (h // 2, height), "full": (0, height + h - 1), "valid": (h - 1, height - h + 1)}[mode]
    column = {"same": (w // 2, width), "full": (0, width + w - 1), "valid": (w - 1, width - w + 1)}[mode]
    return _convolve(image, psf, (*row, 0, *column, 0, backend))


def fourier_filter(field: Tensor, transfer: Tensor, *, centered: bool = False) -> Tensor:
    """ifft2(fft2(field) * transfer), complex.

    Args:
        field: (..., H, W), any H and W; complex64/complex128, or float32/float64, which is promoted. NaN or infinity
            anywhere makes that whole field NaN.
        transfer: (..., H, W), real or complex of the same precision; leading axes broadcast with those of `field`.
        centered: whether frequency zero of `transfer` is at (H//2, W//2) instead of (0, 0).

    Raises:
        TypeError: an argument is not a tensor of one of these dtypes, or precisions differ.
        ValueError: the last two axes differ, are empty, or the leading axes do not broadcast.

    Reference: Goodman (2005), Introduction to Fourier Optics, 3rd ed., eq. 2-48.
    """
    dtypes = _check.FLOATING + _check.COMPLEX
    field, transfer = (
        tensor if tensor.is_complex() else tensor.to(_complex_of(tensor.dtype))
        for tensor in (_check.tensor("field", field, dtypes), _check.tensor("transfer", transfer, dtypes))
    )
    field, transfer = _operands(("field", "transfer"), field, transfer, ("(..., H, W)", "(..., H, W)"))
    if field.shape[-2:] != transfer.shape[-2:]:
        raise ValueError(
            f"transfer: need the last two axes of field, {tuple(field.shape[-2:])}, got {tuple(transfer.shape)}"
        )
    backend = _backend.select("fourier_filter", field.device, IMPLEMENTED)
    if backend == "reference":
        return reference.fourier_filter(field, transfer, centered)
    if centered:
        transfer = torch.fft.ifftshift(transfer, dim=(-2, -1))
    return _autograd.apply(_FILTER, (field, transfer), (backend,))[0]


def _complex_of(dtype: torch.dtype) -> torch.dtype:
    return torch.complex64 if dtype == torch.float32 else torch.complex128


def _operands(names: tuple[str, str], first: Tensor, second: Tensor, shapes: tuple[str, str]) -> tuple[Tensor, Tensor]:
    first = _check.tensor(names[0], first, (first.dtype,))
    second = _check.like(names[1], second, first, names[0])
    for name, tensor, shape in zip(names, (first, second), shapes, strict=True):
        _check.at_least_dims(name, tensor, 2, shape)
        if 0 in tensor.shape[-2:]:
            raise ValueError(f"{name}: need at least one row and one column, got {tuple(tensor.shape)}")
    _check.broadcast_shape(tuple(f"leading axes of {name}" for name in names), [first.shape[:-2], second.shape[:-2]])
    return first, second


def _convolve(first: Tensor, second: Tensor, options: tuple[Any, ...]) -> Tensor:
    return _autograd.apply(_CONVOLVE, (first, second), options)[0]


def _evaluate(kind: int, tensors: Any, window: tuple[int, ...], backend: str) -> Tensor:
    first, second = (_compiled.plain(tensor) for tensor in tensors)
    threads = _backend.threads()
    if backend == "numba":
        from bitlens.kernels.psf_convolve import fallback  # compiling with Numba takes seconds

        return fallback.psf_convolve(kind, first, second, window, threads)
    if first.dtype == torch.complex64 and not all(_is_smooth(size) for size in first.shape[-2:]):
        # Bluestein's chirp costs three digits, which float32 cannot spare.
        wide = first.to(torch.complex128), second.to(torch.complex128)
        return _compiled.psf_convolve(backend, kind, *wide, window, threads).to(torch.complex64)
    return _compiled.psf_convolve(backend, kind, first, second, window, threads)


def _is_smooth(size: int) -> bool:
    for radix in (2, 3, 5, 7):
        while size % radix == 0:
            size //= radix
    return size == 1


def _bilinear_jvp(apply: Any, tensors: Any, tangents: Any, output: Tensor) -> tuple[Tensor, ...]:
    terms = []
    if tangents[0] is not None:
        terms.append(apply(tangents[0], tensors[1]))
    if tangents[1] is not None:
        terms.append(apply(tensors[0], tangents[1]))
    if not terms:
        return (torch.zeros_like(output),)
    return (terms[0] if len(terms) == 1 else terms[0] + terms[1],)


# ---- windows of a convolution; options are start, count and period of the rows, then of the columns, then backend ----


def _convolve_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    return (_evaluate(_CONVOLVE_KIND, tensors, options[:-1], options[-1]),), None


def _convolve_fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    batch = torch.broadcast_shapes(tensors[0].shape[:-2], tensors[1].shape[:-2])
    return (tensors[0].new_empty((*batch, options[1], options[4])),)


def _convolve_backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    row_start, _, row_period, column_start, _, column_period, backend = options
    result: list[Tensor | None] = [None, None]
    for index, (like, other) in enumerate((tensors, tensors[::-1])):
        if grads[0] is None or not needs[index]:
            continue
        row = (other.shape[-2] - 1 - row_start, like.shape[-2], row_period)
        column = (other.shape[-1] - 1 - column_start, like.shape[-1], column_period)
        window = (*row, *column, backend)
        result[index] = _backend.sum_to_shape(_convolve(grads[0], other.flip(-2, -1), window), like.shape)
    return tuple(result)


def _convolve_jvp(tensors: Any, tangents: Any, outputs: Any, options: Any) -> tuple[Tensor, ...]:
    return _bilinear_jvp(lambda a, b: _convolve(a, b, options), tensors, tangents, outputs[0])


_WINDOW = tuple((f"{axis}_{part}", "SymInt") for axis in ("row", "column") for part in ("start", "count", "period"))

_CONVOLVE = _autograd.register(
    _autograd.Rule(
        name="psf_convolve",
        arguments=("first", "second"),
        options=(*_WINDOW, ("backend", "str")),
        core_dims=(2, 2),
        n_outputs=1,
        forward=_convolve_forward,
        fake=_convolve_fake,
        backward=_convolve_backward,
        jvp=_convolve_jvp,
    )
)

# ---- filters of the exact size ----


def _exact_window(tensor: Tensor) -> tuple[int, ...]:
    height, width = tensor.shape[-2:]
    return (0, height, height, 0, width, width)


def _filter_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    return (_evaluate(_FILTER_KIND, tensors, _exact_window(tensors[0]), options[0]),), None


def _cross_spectrum_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    return (_evaluate(_CROSS_SPECTRUM_KIND, tensors, _exact_window(tensors[0]), options[0]),), None


def _exact_fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    return (tensors[0].new_empty(torch.broadcast_shapes(tensors[0].shape, tensors[1].shape)),)


def _filter(first: Tensor, second: Tensor, options: Any) -> Tensor:
    return _autograd.apply(_FILTER, (first, second), options)[0]


def _cross_spectrum(first: Tensor, second: Tensor, options: Any) -> Tensor:
    return _autograd.apply(_CROSS_SPECTRUM, (first, second), options)[0]


def _filter_backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    grad, (field, transfer) = grads[0], tensors
    if grad is None:
        return (None, None)
    return (
        _backend.sum_to_shape(_filter(grad, torch.conj_physical(transfer), options), field.shape) if needs[0] else None,
        _backend.sum_to_shape(_cross_spectrum(grad, field, options), transfer.shape) if needs[1] else None,
    )


def _cross_spectrum_backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    grad, (first, second) = grads[0], tensors
    if grad is None:
        return (None, None)
    return (
        _backend.sum_to_shape(_filter(second, grad, options), first.shape) if needs[0] else None,
        _backend.sum_to_shape(_filter(first, torch.conj_physical(grad), options), second.shape) if needs[1] else None,
    )


def _filter_jvp(tensors: Any, tangents: Any, outputs: Any, options: Any) -> tuple[Tensor, ...]:
    return _bilinear_jvp(lambda a, b: _filter(a, b, options), tensors, tangents, outputs[0])


def _cross_spectrum_jvp(tensors: Any, tangents: Any, outputs: Any, options: Any) -> tuple[Tensor, ...]:
    return _bilinear_jvp(lambda a, b: _cross_spectrum(a, b, options), tensors, tangents, outputs[0])


def _exact_rule(name: str, forward: Any, backward: Any, jvp: Any) -> _autograd.Rule:
    return _autograd.register(
        _autograd.Rule(
            name=name,
            arguments=("first", "second"),
            options=(("backend", "str"),),
            core_dims=(2, 2),
            n_outputs=1,
            forward=forward,
            fake=_exact_fake,
            backward=backward,
            jvp=jvp,
        )
    )


_FILTER = _exact_rule("fourier_filter", _filter_forward, _filter_backward, _filter_jvp)
_CROSS_SPECTRUM = _exact_rule("cross_spectrum", _cross_spectrum_forward, _cross_spectrum_backward, _cross_spectrum_jvp)
