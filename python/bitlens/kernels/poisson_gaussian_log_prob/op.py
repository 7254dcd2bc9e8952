"""Public signature, checks, dispatch and gradients of `poisson_gaussian_log_prob`.

Three operators, each the derivative of the one before: value, gradient, second derivatives. A backward pass is
written in terms of the next one, which is how every order of differentiation up to the second works in eager mode,
under torch.compile and under torch.func alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitlens.kernels import _autograd, _backend, _check, _compiled
from bitlens.kernels.poisson_gaussian_log_prob import reference

IMPLEMENTED = ("cuda", "cpu", "numba", "reference")
_ARGUMENTS = ("measured", "mean", "gain", "offset", "read_std")
# Row of the derivative list that each argument reads, and its sign: d/d measured = -d/d offset.
_DERIVATIVE = ((2, -1), (0, 1), (1, 1), (2, 1), (3, 1))
# Position of (row, column) in the upper triangle of the second derivatives.
_SECOND = ((0, 1, 2, 3), (1, 4, 5, 6), (2, 5, 7, 8), (3, 6, 8, 9))


def poisson_gaussian_log_prob(
    measured: Tensor,
    mean: Tensor | float,
    *,
    gain: Tensor | float = 1.0,
    offset: Tensor | float = 0.0,
    read_std: Tensor | float,
) -> Tensor:
    """log sum_k Poisson(k; mean) Normal(measured; gain k + offset, read_std^2), in nats, elementwise.

    Args:
        measured: ADU, any shape, float32 or float64; the others broadcast with it, in its dtype and on its device.
            Numbers and zero-dimensional float64 tensors keep their double precision whatever its dtype.
        mean: expected photo-electrons, 0 to 1e15.
        gain: ADU per photo-electron, > 0.
        offset: ADU.
        read_std: standard deviation of the read noise, ADU, > 0.

    Returns: the broadcast shape; NaN outside the domain or where not finite. Twice differentiable.

    Raises: TypeError (not a float32/float64 tensor, mixed dtypes), ValueError (shapes or devices that do not fit).

    Reference: Snyder, Hammoud and White (1993), J. Opt. Soc. Am. A 10, 1014, eq. 1. doi:10.1364/JOSAA.10.001014
    """
    z = _check.tensor("measured", measured)
    tensors = (
        z,
        _check.like_or_constant("mean", mean, z, "measured"),
        _check.like_or_constant("gain", gain, z, "measured"),
        _check.like_or_constant("offset", offset, z, "measured"),
        _check.like_or_constant("read_std", read_std, z, "measured"),
    )
    if any(tensor.shape != z.shape for tensor in tensors[1:]):
        _check.broadcast_shape(_ARGUMENTS, [tensor.shape for tensor in tensors])
    backend = _backend.select("poisson_gaussian_log_prob", z.device, IMPLEMENTED)
    if backend == "reference":
        return reference.poisson_gaussian_log_prob(*tensors).to(z.dtype)
    return _autograd.apply(_VALUE, tensors, (backend,))[0]


def tabulate(measured: Tensor, mean: Tensor, read_std: float) -> Tensor:
    """Float64 values at gain 1 and offset 0 for tables: on the CPU, past dispatch, gradients and transforms."""
    constants = [torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.0, read_std)]
    backend = "cpu" if _compiled.has_cpu() else "numba"
    (value, *_) = _evaluate((measured, mean, *constants), backend, 0, [True] + [False] * 14)
    assert value is not None
    return value


def _evaluate(tensors: Any, backend: str, order: int, wanted: list[bool]) -> list[Tensor | None]:
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    threads = _backend.threads()
    inputs = _compiled.with_constants(tensors)
    if backend == "numba":
        from bitlens.kernels.poisson_gaussian_log_prob import fallback  # importing Numba takes a second

        return fallback.poisson_gaussian_log_prob(inputs, shape, order, wanted, threads)
    return _compiled.poisson_gaussian_log_prob(backend, inputs, shape, order, wanted, threads)


def _fake(count: int) -> Any:
    def fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
        return tuple(tensors[0].new_empty(shape) for _ in range(count))

    return fake


def _reduced(terms: list[Tensor], sign: int, like: Tensor) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return _backend.sum_to_shape(total if sign > 0 else -total, like.shape).to(like.dtype)


def _value_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    wanted = [True, needs[1], needs[2], needs[0] or needs[3], needs[4]] + [False] * 10
    outputs = _evaluate(tensors, options[0], 1 if any(needs) else 0, wanted)
    return (outputs[0],), outputs[1:5] if any(needs) else None  # type: ignore[return-value]


def _value_backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    if grads[0] is None:
        return (None,) * 5
    first = saved if saved is not None else _autograd.apply(_GRADIENT, tensors, options)
    return tuple(
        _reduced([grads[0] * first[row]], sign, tensor) if need else None
        for (row, sign), tensor, need in zip(_DERIVATIVE, tensors, needs, strict=True)
    )


def _value_jvp(tensors: Any, tangents: Any, outputs: Any, options: Any) -> tuple[Tensor, ...]:
    first = _autograd.apply(_GRADIENT, tensors, options)
    pairs = zip(_DERIVATIVE, tangents, strict=True)
    return (_sum_or_zero([sign * t * first[row] for (row, sign), t in pairs if t is not None], outputs[0]),)


def _sum_or_zero(terms: list[Tensor], like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for term in terms:
        total = total + term
    return total


def _gradient_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    outputs = _evaluate(tensors, options[0], 1, [False] + [True] * 4 + [False] * 10)
    return tuple(outputs[1:5]), None  # type: ignore[arg-type]


def _gradient_backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    if all(grad is None for grad in grads):
        return (None,) * 5
    second = _autograd.apply(_SECOND_DERIVATIVES, tensors, options)
    result: list[Tensor | None] = []
    for (row, sign), tensor, need in zip(_DERIVATIVE, tensors, needs, strict=True):
        terms = [grad * second[_SECOND[m][row]] for m, grad in enumerate(grads) if grad is not None]
        result.append(_reduced(terms, sign, tensor) if need else None)
    return tuple(result)


def _gradient_jvp(tensors: Any, tangents: Any, outputs: Any, options: Any) -> tuple[Tensor, ...]:
    second = _autograd.apply(_SECOND_DERIVATIVES, tensors, options)
    return tuple(
        _sum_or_zero(
            [
                sign * t * second[_SECOND[m][row]]
                for (row, sign), t in zip(_DERIVATIVE, tangents, strict=True)
                if t is not None
            ],
            outputs[m],
        )
        for m in range(4)
    )


def _second_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    outputs = _evaluate(tensors, options[0], 2, [False] * 5 + [True] * 10)
    return tuple(outputs[5:]), None  # type: ignore[arg-type]


def _no_third(*_: Any) -> Any:
    raise RuntimeError(
        "poisson_gaussian_log_prob: third derivatives are offered by the reference backend only; "
        'use `with bitlens.ops.use_backend("reference"):`'
    )


def _rule(name: str, n_outputs: int, forward: Any, backward: Any, jvp: Any) -> _autograd.Rule:
    return _autograd.register(
        _autograd.Rule(
            name=name,
            arguments=_ARGUMENTS,
            options=(("backend", "str"),),
            core_dims=(0, 0, 0, 0, 0),
            n_outputs=n_outputs,
            forward=forward,
            fake=_fake(n_outputs),
            backward=backward,
            jvp=jvp,
        )
    )


_VALUE = _rule("poisson_gaussian_log_prob", 1, _value_forward, _value_backward, _value_jvp)
_GRADIENT = _rule("poisson_gaussian_log_prob_gradient", 4, _gradient_forward, _gradient_backward, _gradient_jvp)
_SECOND_DERIVATIVES = _rule("poisson_gaussian_log_prob_second_derivatives", 10, _second_forward, _no_third, _no_third)
