"""Public signatures, checks, dispatch and gradients of `psf_convolve` and `fourier_filter`.

Three bilinear operators, closed under differentiation, so that every order and mode of it works:

* convolve(a, b): a window of the linear or circular convolution, or, conjugated, of the correlation. Its gradients are
  correlations of the incoming gradient with the other operand, those of a correlation are a convolution and one.
* filter(a, t) = ifft2(fft2(a) t), or with conj t. Its gradients are filter(g, conj t) and cross_spectrum(g, a).
* cross_spectrum(a, b) = fft2(a) conj(fft2(b)) / (H W). Its gradients are filter(b, g) and filter(a, conj g).

Each sums over the batch axes that a bit of its option `summed` names (axis -3 - i for bit i; they stay, of length one),
so that the gradient of a shared operand is added up before its one transform back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitlens.kernels import _autograd, _backend, _check, _compiled
from bitlens.kernels.psf_convolve import reference

IMPLEMENTED = ("cuda", "cpu", "numba", "reference")
CONVOLVE_KIND, _FILTER_KIND, _CROSS_SPECTRUM_KIND = range(3)
_LARGE_IMAGE, _MANY_IMAGES = 2**20 - 1, 4
MOST_TAPS = 49  # kMostTaps of csrc/kernels/psf_convolve/direct.h


def psf_convolve(image: Tensor, psf: Tensor, *, mode: str = "same", boundary: str = "zero") -> Tensor:
    """out[r, c] = sum_{i, j} image[i, j] psf[r - i + h//2, c - j + w//2]: true convolution, PSF origin (h//2, w//2).

    For even sizes the origin differs from SciPy's "same" crop, which starts at ((h-1)//2, (w-1)//2).

    Args:
        image: (..., H, W), float32 or float64; NaN or infinity anywhere leaves nothing of that image finite.
        psf: (..., h, w), of the same dtype; leading axes broadcast with those of `image`.
        mode: "same" (H, W), "full" (H+h-1, W+w-1) or "valid" (H-h+1, W-w+1).
        boundary: "zero", or "circular" (mode "same" only), where a PSF larger than the image wraps.

    Raises:
        TypeError: an argument is not a float32/float64 tensor, or dtypes differ.
        ValueError: shapes do not fit (a PSF larger than the image in mode "valid"), or an unknown mode or boundary.

    Reference: Oppenheim and Schafer (2009), Discrete-Time Signal Processing, 3rd ed., section 8.7.
    """
    return _convolution(image, psf, mode, boundary, summed=0)


def psf_convolve_channels(image: Tensor, psf: Tensor, *, mode: str = "same", boundary: str = "zero") -> Tensor:
    """out[o] = sum_i psf_convolve(image[i], psf[o, i]), added up before the one transform back of each output.

    Args:
        image: (..., I, H, W), float32 or float64: spectral bands, depths, or what else a sensor adds up.
        psf: (..., O, I, h, w), of the same dtype; the leading axes of both broadcast.
        mode, boundary: as in `psf_convolve`.

    Returns:
        (..., O, H, W) in mode "same"; rows and columns as `psf_convolve` gives them.

    Raises:
        TypeError, ValueError: as `psf_convolve`, or the channels I of the two differ.

    Reference: Goodman (2005), Introduction to Fourier Optics, 3rd ed., eq. 6-9.
    """
    for name, tensor, least, shape in (("image", image, 3, "(..., I, H, W)"), ("psf", psf, 4, "(..., O, I, h, w)")):
        _check.at_least_dims(name, _check.tensor(name, tensor), least, shape)
    if image.shape[-3] != psf.shape[-3]:
        raise ValueError(f"psf: need the {image.shape[-3]} channels of image in axis -3, got shape {tuple(psf.shape)}")
    return _convolution(image.unsqueeze(-4), psf, mode, boundary, summed=1).squeeze(-3)


def psf_deconvolve(image: Tensor, psf: Tensor, *, regularization: float | Tensor) -> Tensor:
    """argmin_x |psf * x - image|^2 + regularization |x|^2 with circular boundary: Tikhonov's, or Wiener's, inverse.

    Its transfer function is conj(S) / (|S|^2 + regularization) with S the transfer function of the PSF, whose origin
    is at (h//2, w//2). Wiener's is the one with regularization = noise power / scene power.

    Args:
        image: (..., H, W), float32 or float64.
        psf: (..., h, w), of the same dtype; leading axes broadcast. A PSF larger than the image wraps.
        regularization: positive number, or tensor of the leading axes of `psf`, in units of the squared sum of the
            PSF; where a tensor is not positive the result is NaN.

    Raises:
        TypeError, ValueError: as `psf_convolve`, or the number is not positive.

    Reference: Gonzalez and Woods (2018), Digital Image Processing, 4th ed., eq. 5-81 and 5-85.
    """
    _check.tensor("image", image)
    _check.tensor("psf", psf)
    image, psf = _operands(("image", "psf"), image, psf, ("(..., H, W)", "(..., h, w)"))
    weight = _check.like("regularization", regularization, image, "image")
    if not isinstance(regularization, Tensor) and not regularization > 0:
        raise ValueError(f"regularization: need a positive number, got {regularization}")
    names = ("regularization", "leading axes of psf", "leading axes of image")
    _check.broadcast_shape(names, (weight.shape, psf.shape[:-2], image.shape[:-2]))
    weight = torch.where(weight > 0, weight, torch.nan)
    inverse = reference.inverse_psf(psf, weight[..., None, None], *image.shape[-2:])
    backend = _backend.select("psf_convolve", image.device, IMPLEMENTED)
    height, width = image.shape[-2:]
    if backend == "reference":
        return reference.circular(image, inverse)
    return _convolve(image, inverse, (0, height, height, 0, width, width, False, 0, backend))


def fourier_filter(field: Tensor, transfer: Tensor, *, centered: bool = False) -> Tensor:
    """ifft2(fft2(field) * transfer), complex.

    Args:
        field: (..., H, W), any H and W; complex64/complex128, or float32/float64, which is promoted. NaN or infinity
            anywhere leaves nothing of that field finite.
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
    if backend == "reference" or _torch_is_faster(*field.shape[-2:]):
        return reference.fourier_filter(field, transfer, centered)
    if centered and backend != "cpu":
        transfer, centered = torch.fft.ifftshift(transfer, dim=(-2, -1)), False
    return _filter(field, transfer, (centered, False, 0, backend))


def _convolution(image: Tensor, psf: Tensor, mode: str, boundary: str, summed: int) -> Tensor:
    """psf_convolve; with `summed` 1, summed over the last batch axis, which stays with length one."""
    _check.tensor("image", image)
    _check.tensor("psf", psf)
    image, psf = _operands(("image", "psf"), image, psf, ("(..., H, W)", "(..., h, w)"))
    (height, width), (h, w) = image.shape[-2:], psf.shape[-2:]
    check_mode((height, width), (h, w), mode, boundary)
    backend = _backend.select("psf_convolve", image.device, IMPLEMENTED)
    if backend == "reference":
        result = reference.psf_convolve(image, psf, mode, boundary)
        return result.sum(dim=-3, keepdim=True) if summed else result
    if boundary == "circular" and (h > height or w > width):
        psf = reference.fold(psf, height, width)
    return _convolve(image, psf, (*window_of((height, width), (h, w), mode, boundary), False, summed, backend))


def check_mode(image: tuple[int, int], psf: tuple[int, int], mode: str, boundary: str) -> None:
    _check.choice("mode", mode, ("same", "full", "valid"))
    _check.choice("boundary", boundary, ("zero", "circular"))
    if boundary == "circular" and mode != "same":
        raise ValueError(f"mode: need 'same' with boundary 'circular', got {mode!r}")
    if mode == "valid" and (psf[0] > image[0] or psf[1] > image[1]):
        raise ValueError(f"psf: need at most the rows and columns of image, {image}, in mode 'valid', got {psf}")


def window_of(image: tuple[int, int], psf: tuple[int, int], mode: str, boundary: str) -> tuple[int, ...]:
    """Start, count and period of the rows, then of the columns."""
    window: list[int] = []
    for n, m in zip(image, psf, strict=True):
        if boundary == "circular":
            window += (m // 2, n, n)
        else:
            window += {"same": (m // 2, n, 0), "full": (0, n + m - 1, 0), "valid": (m - 1, n - m + 1, 0)}[mode]
    return tuple(window)


def _torch_is_faster(height: int, width: int) -> bool:
    """Whether torch's own transform of complex fields beats the kernel's: prime factors from 11 to 31, none above.

    Only where no backend is forced; its rounding, unlike the kernel's, depends on the number of threads.
    benchmarks/peers/psf_convolve.py lists such shapes.
    """
    return not _backend.forced() and 7 < _largest_factor(height * width) <= 31


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


def _filter(first: Tensor, second: Tensor, options: tuple[Any, ...]) -> Tensor:
    return _autograd.apply(_FILTER, (first, second), options)[0]


def _cross_spectrum(first: Tensor, second: Tensor, options: tuple[Any, ...]) -> Tensor:
    return _autograd.apply(_CROSS_SPECTRUM, (first, second), options)[0]


def _evaluate(
    kind: int,
    tensors: Any,
    window: tuple[int, ...],
    conjugate: bool,
    summed: int,
    backend: str,
    centered: bool = False,
) -> tuple[tuple[Tensor, ...], Any]:
    first, second = (_compiled.plain(tensor) for tensor in tensors)
    threads = _backend.threads()
    if backend == "numba":
        from bitlens.kernels.psf_convolve import fallback  # compiling with Numba takes seconds

        return (fallback.psf_convolve(kind, first, second, window, conjugate, summed, threads),), None
    dtype = first.dtype
    if dtype == torch.complex64 and not all(_is_smooth(size) for size in first.shape[-2:]):
        # Bluestein's chirp costs three digits, which float32 cannot spare.
        first, second = first.to(torch.complex128), second.to(torch.complex128)
    result = _compiled.psf_convolve(backend, kind, first, second, window, conjugate, summed, threads, centered=centered)
    return (result.to(dtype),), None


def _largest_factor(number: int) -> int:
    """The largest prime factor."""
    factor = 2
    while factor * factor <= number:
        if number % factor:
            factor += 1
        else:
            number //= factor
    return number


def _is_smooth(size: int) -> bool:
    return _largest_factor(size) <= 7


def _batch(tensors: Any, summed: int) -> list[int]:
    """Batch axes of an output."""
    batch = list(torch.broadcast_shapes(tensors[0].shape[:-2], tensors[1].shape[:-2]))
    return [1 if summed >> (len(batch) - 1 - axis) & 1 else length for axis, length in enumerate(batch)]


def onto_batch(like: Tensor, first: Tensor, second: Tensor, operator: Any) -> Tensor:
    """operator(first, second, summed) brought to the batch axes of `like`: summed where it has none, repeated where
    both operands have none."""
    batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    own = [1] * (len(batch) - like.ndim + 2) + list(like.shape[:-2])
    summed = sum(
        1 << (len(batch) - 1 - axis)
        for axis, (length, there) in enumerate(zip(own, batch, strict=True))
        if length == 1 and there != 1
    )
    return operator(first, second, summed).expand(*own, -1, -1).reshape(like.shape)


def _joins(grad: Tensor, image: Tensor, psf: Tensor, backend: str) -> bool:
    """Whether both gradients come from one transform of `grad`: plain tensors, and an image for each output."""
    if backend != "cpu" or torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return False
    if torch.autograd.forward_ad._current_level >= 0:  # tangents come by differentiable calls
        return False
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in (grad, image, psf)):
        return False
    if image.dtype == torch.complex64 and not all(_is_smooth(size) for size in image.shape[-2:]):
        return False
    # One image's spectra are all in memory at once: too much beside the image itself where that is large.
    few = image.shape[-2] * image.shape[-1] <= _LARGE_IMAGE or image.shape[:-2].numel() >= _MANY_IMAGES
    return few and image.shape[:-2] == grad.shape[:-2] and image.ndim - 2 <= _compiled.MAX_AXES


def _both_gradients(
    kind: int,
    grad: Tensor,
    image: Tensor,
    psf: Tensor,
    window: tuple[int, ...],
    conjugate: bool,
    centered: bool = False,
) -> tuple[Tensor, Tensor]:
    image, psf = (_compiled.plain(tensor).contiguous() for tensor in (image, psf))
    in_image = torch.empty_like(image)

    def joint(first: Tensor, second: Tensor, summed: int) -> Tensor:
        return _compiled.psf_convolve(
            "cpu",
            kind,
            _compiled.plain(first),
            second,
            window,
            conjugate,
            summed,
            _backend.threads(),
            companion=(psf, in_image),
            centered=centered,
        )

    in_psf = onto_batch(psf, grad, image, joint)
    return in_image, in_psf


def _bilinear_jvp(apply: Any, tensors: Any, tangents: Any, output: Tensor) -> tuple[Tensor, ...]:
    terms = []
    if tangents[0] is not None:
        terms.append(apply(tangents[0], tensors[1]))
    if tangents[1] is not None:
        terms.append(apply(tensors[0], tangents[1]))
    if not terms:
        return (torch.zeros_like(output),)
    return (terms[0] if len(terms) == 1 else terms[0] + terms[1],)


# ---- windows of a convolution; options are start, count and period of the rows, then of the columns, then whether it
# is a correlation, the axes to sum over, and the backend ----


def _convolve_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    return _evaluate(CONVOLVE_KIND, tensors, options[:6], *options[6:])


def convolve_fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    return (tensors[0].new_empty((*_batch(tensors, options[7]), options[1], options[4])),)


def _convolve_backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    row_start, _, row_period, column_start, _, column_period, correlates, _, backend = options
    grad, (first, second) = grads[0], tensors
    if grad is None:
        return (None, None)

    by_transform = row_period > 0 or second.shape[-2] * second.shape[-1] > MOST_TAPS
    if all(needs) and not correlates and by_transform and _joins(grad, first, second, backend):
        window = (-row_start, second.shape[-2], row_period, -column_start, second.shape[-1], column_period)
        return _both_gradients(CONVOLVE_KIND, grad, first, second, window, True)

    def onto(like: Tensor, a: Tensor, b: Tensor, sign: int, conjugate: bool) -> Tensor:
        row = (sign * row_start, like.shape[-2], row_period)
        column = (sign * column_start, like.shape[-1], column_period)
        return onto_batch(like, a, b, lambda x, y, summed: _convolve(x, y, (*row, *column, conjugate, summed, backend)))

    in_first = onto(first, grad, second, -1, not correlates) if needs[0] else None
    if not needs[1]:
        return in_first, None
    if correlates:
        return in_first, onto(second, first, grad, 1, True)
    return in_first, onto(second, grad, first, -1, True)


def _convolve_jvp(tensors: Any, tangents: Any, outputs: Any, options: Any) -> tuple[Tensor, ...]:
    return _bilinear_jvp(lambda a, b: _convolve(a, b, options), tensors, tangents, outputs[0])


_WINDOW = tuple((f"{axis}_{part}", "SymInt") for axis in ("row", "column") for part in ("start", "count", "period"))
_SHARED = (("conjugate", "bool"), ("summed", "int"), ("backend", "str"))
CONVOLVE_OPTIONS = (*_WINDOW, *_SHARED)

_CONVOLVE = _autograd.register(
    _autograd.Rule(
        name="psf_convolve",
        arguments=("first", "second"),
        options=CONVOLVE_OPTIONS,
        core_dims=(2, 2),
        n_outputs=1,
        forward=_convolve_forward,
        fake=convolve_fake,
        backward=_convolve_backward,
        jvp=_convolve_jvp,
    )
)

# ---- filters of the exact size; options are whether frequency zero of a transfer function or cross-spectrum is in the
# middle, whether the second operand is conjugated, the axes to sum over and the backend ----


def _exact_window(tensor: Tensor) -> tuple[int, ...]:
    height, width = tensor.shape[-2:]
    return (0, height, height, 0, width, width)


def _filter_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    centered, conjugate, summed, backend = options
    return _evaluate(_FILTER_KIND, tensors, _exact_window(tensors[0]), conjugate, summed, backend, centered)


def _cross_spectrum_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    centered, conjugate, summed, backend = options
    return _evaluate(_CROSS_SPECTRUM_KIND, tensors, _exact_window(tensors[0]), conjugate, summed, backend, centered)


def _exact_fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    return (tensors[0].new_empty((*_batch(tensors, options[2]), *tensors[0].shape[-2:])),)


def _filter_backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    centered, conjugate, _, backend = options
    grad, (field, transfer) = grads[0], tensors
    if grad is None:
        return (None, None)
    if all(needs) and not conjugate and _joins(grad, field, transfer, backend):
        window = _exact_window(field)
        return _both_gradients(_CROSS_SPECTRUM_KIND, grad, field, transfer, window, False, centered)
    pair = (field, grad) if conjugate else (grad, field)
    return (
        onto_batch(
            field, grad, transfer, lambda x, y, summed: _filter(x, y, (centered, not conjugate, summed, backend))
        )
        if needs[0]
        else None,
        onto_batch(transfer, *pair, lambda x, y, summed: _cross_spectrum(x, y, (centered, False, summed, backend)))
        if needs[1]
        else None,
    )


def _cross_spectrum_backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    grad, (first, second) = grads[0], tensors
    if grad is None:
        return (None, None)
    centered, _, _, backend = options
    return tuple(
        onto_batch(like, other, grad, lambda x, y, summed, c=conjugate: _filter(x, y, (centered, c, summed, backend)))
        if wanted
        else None
        for wanted, like, other, conjugate in zip(needs, tensors, (second, first), (False, True), strict=True)
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
            options=(("centered", "bool"), *_SHARED),
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
