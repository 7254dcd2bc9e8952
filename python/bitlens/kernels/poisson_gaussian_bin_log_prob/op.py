"""Public signature, checks, dispatch and gradients of `poisson_gaussian_bin_log_prob`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bitlens.kernels import _autograd, _backend, _check, _compiled
from bitlens.kernels.poisson_gaussian_bin_log_prob import reference

IMPLEMENTED = ("cuda", "cpu", "numba", "reference")
_ARGUMENTS = ("measured", "mean", "gain", "offset", "read_std", "below", "above", "full_well_electrons")
# Row of the derivative list that each argument reads, and its sign: d/d measured = -d/d offset. The shape of the bin
# and the full well are given, not learned.
_DERIVATIVE = ((2, -1), (0, 1), (1, 1), (2, 1), (3, 1))


def poisson_gaussian_bin_log_prob(
    measured: Tensor,
    mean: Tensor | float,
    *,
    gain: Tensor | float = 1.0,
    offset: Tensor | float = 0.0,
    read_std: Tensor | float,
    below: Tensor | float = 0.5,
    above: Tensor | float = 0.5,
    full_well_electrons: Tensor | float = math.inf,
) -> Tensor:
    """log P(measured - below < gain min(N, full well) + offset + Normal(0, read_std^2) <= measured + above), nats.

    N ~ Poisson(mean). With below = above = 0 the log density at `measured`. Elementwise.

    Args:
        measured: ADU, any shape, float32 or float64; the others broadcast with it, in its dtype and on its device.
            Numbers and zero-dimensional float64 tensors keep their double precision whatever its dtype.
        mean: expected photo-electrons, 0 to 1e9.
        gain, offset, read_std: ADU per photo-electron > 0, ADU, ADU > 0.
        below, above: the bin around `measured`, ADU, at least 0; one of them may be infinite.
        full_well_electrons: > 0, infinite for none.

    Returns: the broadcast shape; NaN outside the domain. Differentiable once, but for the last three arguments.

    Raises: TypeError (not a float32/float64 tensor, mixed dtypes), ValueError (shapes or devices that do not fit).

    Reference: EMVA 1288 standard, release 4.0 (2021), section 2.
    """
    z = _check.tensor("measured", measured)
    values = (mean, gain, offset, read_std, below, above, full_well_electrons)
    tensors = (
        z,
        *(
            _check.like_or_constant(name, value, z, "measured")
            for name, value in zip(_ARGUMENTS[1:], values, strict=True)
        ),
    )
    if any(tensor.shape != z.shape for tensor in tensors[1:]):
        _check.broadcast_shape(_ARGUMENTS, [tensor.shape for tensor in tensors])
    backend = _backend.select("poisson_gaussian_bin_log_prob", z.device, IMPLEMENTED)
    if backend == "reference":
        return reference.poisson_gaussian_bin_log_prob(*tensors).to(z.dtype)
    return _autograd.apply(_VALUE, tensors, (backend,))[0]


def tabulate(
    measured: Tensor, mean: Tensor, parameters: tuple[float, ...], below: Tensor, above: Tensor
) -> list[Tensor]:
    """Float64 value and derivatives in mean, gain, offset and read_std for tables: on the CPU, past dispatch.

    Args:
        parameters: gain, offset, read_std and the full well.
    """
    gain, offset, read_std, well = (torch.tensor(value, dtype=torch.float64) for value in parameters)
    backend = "cpu" if _compiled.has_cpu() else "numba"
    outputs = _evaluate((measured, mean, gain, offset, read_std, below, above, well), backend, 1, [True] * 5)
    return [output for output in outputs if output is not None]


def _evaluate(tensors: Any, backend: str, order: int, wanted: list[bool]) -> list[Tensor | None]:
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    threads = _backend.threads()
    inputs = _compiled.with_constants(tensors)
    if backend == "numba":
        from bitlens.kernels.poisson_gaussian_bin_log_prob import fallback  # importing Numba takes a second

        return fallback.poisson_gaussian_bin_log_prob(inputs, shape, order, wanted, threads)
    return _compiled.elementwise("poisson_gaussian_bin_log_prob", backend, inputs, shape, order, wanted, threads)


def _fake(count: int) -> Any:
    def fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
        return tuple(tensors[0].new_empty(shape) for _ in range(count))

    return fake


def _value_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    wanted = [True, needs[1], needs[2], needs[0] or needs[3], needs[4]]
    outputs = _evaluate(tensors, options[0], 1 if any(needs) else 0, wanted)
    return (outputs[0],), outputs[1:] if any(needs) else None  # type: ignore[return-value]


def _value_backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    if grads[0] is None:
        return (None,) * len(_ARGUMENTS)
    first = saved if saved is not None else _autograd.apply(_GRADIENT, tensors, options)
    found: list[Tensor | None] = []
    for (row, sign), tensor, need in zip(_DERIVATIVE, tensors[:5], needs[:5], strict=True):
        # A value of -inf stands where a code is out of reach; what comes from above there is zero.
        gradient = sign * grads[0] * first[row] if need else None
        found.append(None if gradient is None else _backend.sum_to_shape(gradient, tensor.shape).to(tensor.dtype))
    return (*found, *(torch.zeros_like(t) if need else None for t, need in zip(tensors[5:], needs[5:], strict=True)))


def _value_jvp(tensors: Any, tangents: Any, outputs: Any, options: Any) -> tuple[Tensor, ...]:
    first = _autograd.apply(_GRADIENT, tensors, options)
    total = torch.zeros_like(outputs[0])
    for (row, sign), tangent in zip(_DERIVATIVE, tangents[:5], strict=True):
        if tangent is not None:
            total = total + sign * tangent * first[row]
    return (total,)


def _gradient_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    outputs = _evaluate(tensors, options[0], 1, [False] + [True] * 4)
    return tuple(outputs[1:]), None  # type: ignore[arg-type]


def _no_second(*_: Any) -> Any:
    raise RuntimeError(
        "poisson_gaussian_bin_log_prob: second derivatives are offered by the reference backend only; "
        'use `with bitlens.ops.use_backend("reference"):`'
    )


def _rule(name: str, n_outputs: int, forward: Any, backward: Any, jvp: Any) -> _autograd.Rule:
    return _autograd.register(
        _autograd.Rule(
            name=name,
            arguments=_ARGUMENTS,
            options=(("backend", "str"),),
            core_dims=(0,) * len(_ARGUMENTS),
            n_outputs=n_outputs,
            forward=forward,
            fake=_fake(n_outputs),
            backward=backward,
            jvp=jvp,
        )
    )


_VALUE = _rule("poisson_gaussian_bin_log_prob", 1, _value_forward, _value_backward, _value_jvp)
_GRADIENT = _rule("poisson_gaussian_bin_log_prob_gradient", 4, _gradient_forward, _no_second, _no_second)
