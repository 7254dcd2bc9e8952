"""Public signature, checks, dispatch and gradients of `poisson_gaussian_log_prob_pairs`.

Two operators: all scores, and the gradient of any weighted sum of them. Neither forms the n m pixels likelihoods.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from bitlens.kernels import _autograd, _backend, _check, _compiled
from bitlens.kernels.poisson_gaussian_log_prob_pairs import reference

IMPLEMENTED = ("cuda", "cpu", "numba", "reference")
_ARGUMENTS = ("measured", "mean", "gain", "offset", "read_std")
_CORE = (2, 2, 1, 1, 1)


def poisson_gaussian_log_prob_pairs(
    measured: Tensor,
    mean: Tensor,
    *,
    gain: Tensor | float = 1.0,
    offset: Tensor | float = 0.0,
    read_std: Tensor | float,
) -> Tensor:
    """S_ij = sum over pixels of log p(measured_i | mean_j), nats: all pairs in O(n m) memory.

    Args:
        measured: ADU, (n, ...), float32 or float64.
        mean: photo-electrons, (m, ...) with the pixel shape, dtype and device of measured.
        gain, offset, read_std: as in `poisson_gaussian_log_prob`, numbers or tensors that broadcast to the pixel
            shape; numbers and float64 tensors keep their precision whatever the dtype of measured.

    Returns: (n, m); NaN where a pair leaves the domain in any pixel. Once differentiable in every argument.

    Raises: TypeError (not float32/float64, mixed dtypes), ValueError (shapes or devices that do not fit).

    Reference: Snyder, Hammoud and White (1993), J. Opt. Soc. Am. A 10, 1014, eq. 1. doi:10.1364/JOSAA.10.001014
    """
    tensors = checked(measured, mean, gain, offset, read_std)
    backend = _backend.select("poisson_gaussian_log_prob_pairs", tensors[0].device, IMPLEMENTED)
    if backend == "reference":
        return reference.poisson_gaussian_log_prob_pairs(*tensors)
    return _autograd.apply(_SCORES, tensors, (backend,))[0]


def checked(
    measured: object, mean: object, gain: object, offset: object, read_std: object
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The arguments of all pairs as (n, pixels), (m, pixels) and three float64 (pixels,)."""
    z = _check.tensor("measured", measured)
    y = _check.tensor("mean", mean, (z.dtype,))
    _check.at_least_dims("measured", z, 1, "(n, ...)")
    _check.at_least_dims("mean", y, 1, "(m, ...)")
    if y.device != z.device:
        raise ValueError(f"mean: need the device of measured, {z.device}, got {y.device}")
    shape = z.shape[1:]
    if y.shape[1:] != shape:
        raise ValueError(f"mean: need the pixel shape of measured, {tuple(shape)}, got shape {tuple(y.shape)}")
    pixels = math.prod(shape)
    sensor = [
        _sensor(name, value, z, shape) for name, value in zip(_ARGUMENTS[2:], (gain, offset, read_std), strict=True)
    ]
    return z.reshape(z.shape[0], pixels), y.reshape(y.shape[0], pixels), sensor[0], sensor[1], sensor[2]


def _sensor(name: str, value: object, like: Tensor, shape: torch.Size) -> Tensor:
    """A parameter of the sensor for each pixel, float64."""
    if isinstance(value, numbers.Real):
        return torch.full((math.prod(shape),), float(value), dtype=torch.float64, device=like.device)
    tensor = _check.tensor(name, value)
    if tensor.device != like.device:
        raise ValueError(f"{name}: need the device of measured, {like.device}, got {tensor.device}")
    sizes = zip(reversed(tensor.shape), reversed(shape), strict=False)
    if tensor.ndim > len(shape) or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(
            f"{name}: need a number or a tensor that broadcasts to pixels {tuple(shape)}, got {tuple(tensor.shape)}"
        )
    return tensor.to(torch.float64).expand(shape).reshape(-1)


def _batch(tensors: Any, core: tuple[int, ...]) -> torch.Size:
    return torch.broadcast_shapes(*(t.shape[: t.ndim - rank] for t, rank in zip(tensors, core, strict=True)))


def _blocks(tensors: Any, core: tuple[int, ...], batch: torch.Size) -> list[tuple[Tensor, ...]]:
    """The operands of every element of the batch, contiguous."""
    plain = [_compiled.plain(tensor) for tensor in tensors]
    if not batch:
        return [tuple(tensor.contiguous() for tensor in plain)]
    flat = [
        t.expand(*batch, *t.shape[t.ndim - rank :]).reshape(-1, *t.shape[t.ndim - rank :])
        for t, rank in zip(plain, core, strict=True)
    ]
    return [tuple(tensor[i].contiguous() for tensor in flat) for i in range(batch.numel())]


# ---- The scores ----


def _forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    batch, threads = _batch(tensors, _CORE), _backend.threads()
    if options[0] == "numba":
        from bitlens.kernels.poisson_gaussian_log_prob_pairs import fallback  # importing Numba takes a second

        parts = [fallback.scores(block, threads) for block in _blocks(tensors, _CORE, batch)]
    else:
        parts = [
            _compiled.poisson_gaussian_log_prob_pairs(options[0], block, threads)
            for block in _blocks(tensors, _CORE, batch)
        ]
    if not batch:
        return (parts[0],), None
    shape = (*batch, tensors[0].shape[-2], tensors[1].shape[-2])
    return (torch.stack(parts).reshape(shape) if parts else tensors[0].new_empty(shape),), None


def _fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    return (tensors[0].new_empty((*_batch(tensors, _CORE), tensors[0].shape[-2], tensors[1].shape[-2])),)


def _backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    if grads[0] is None:
        return (None,) * 5
    wanted = sum(1 << argument for argument in range(5) if needs[argument])
    results = _autograd.apply(_GRADIENT, (*tensors, grads[0]), (wanted, *options))
    return tuple(
        _backend.sum_to_shape(result, tensor.shape) if need else None
        for result, tensor, need in zip(results, tensors, needs, strict=True)
    )


# ---- Their gradient ----

_GRADIENT_CORE = (*_CORE, 2)


def _gradient_shapes(tensors: Any, wanted: int) -> list[tuple[int, ...]]:
    """Shape of each gradient at the full batch shape; no elements where it is not wanted."""
    batch = _batch(tensors, _GRADIENT_CORE)
    return [
        (*batch, *t.shape[t.ndim - rank :]) if wanted >> i & 1 else (*batch, 0)
        for i, (t, rank) in enumerate(zip(tensors[:5], _CORE, strict=True))
    ]


def _gradient_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    wanted, backend = options
    flags = [bool(wanted >> i & 1) for i in range(5)]
    batch, threads = _batch(tensors, _GRADIENT_CORE), _backend.threads()
    parts: list[list[Tensor | None]] = []
    for *inputs, weight in _blocks(tensors, _GRADIENT_CORE, batch):
        if backend == "numba":
            from bitlens.kernels.poisson_gaussian_log_prob_pairs import fallback

            parts.append(fallback.gradients(inputs, weight, flags, threads))
        else:
            parts.append(_compiled.poisson_gaussian_log_prob_pairs_gradients(backend, inputs, weight, flags, threads))
    results = []
    for i, (tensor, shape) in enumerate(zip(tensors, _gradient_shapes(tensors, wanted), strict=False)):
        found = [part[i] for part in parts]
        if not flags[i] or not found:
            results.append(tensor.new_empty(shape))
        else:
            results.append(torch.stack(found).reshape(shape) if batch else found[0])  # type: ignore[arg-type]
    return tuple(results), None


def _gradient_fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    shapes = _gradient_shapes(tensors, options[0])
    return tuple(tensor.new_empty(shape) for tensor, shape in zip(tensors, shapes, strict=False))


def _no_second(*_: Any) -> Any:
    raise RuntimeError(
        "poisson_gaussian_log_prob_pairs: second derivatives are offered by the reference backend only; "
        'use `with bitlens.ops.use_backend("reference"):`'
    )


_SCORES = _autograd.register(
    _autograd.Rule(
        name="poisson_gaussian_log_prob_pairs",
        arguments=_ARGUMENTS,
        options=(("backend", "str"),),
        core_dims=_CORE,
        n_outputs=1,
        forward=_forward,
        fake=_fake,
        backward=_backward,
    )
)
_GRADIENT = _autograd.register(
    _autograd.Rule(
        name="poisson_gaussian_log_prob_pairs_gradient",
        arguments=(*_ARGUMENTS, "weight"),
        options=(("wanted", "int"), ("backend", "str")),
        core_dims=_GRADIENT_CORE,
        n_outputs=5,
        forward=_gradient_forward,
        fake=_gradient_fake,
        backward=_no_second,
    )
)
