"""Public signature, checks, dispatch and gradients of `joint_critic_scores`.

Two operators: the four outputs, and the gradient of any weighted sum of them. Both visit the pairs tile by tile and
keep nothing of a pair; the second recomputes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitlens.kernels import _autograd, _backend, _check, _compiled
from bitlens.kernels.infonce_scores.op import InfoNCEScores, _batch, _check_positive, _leading
from bitlens.kernels.joint_critic_scores import reference

IMPLEMENTED = ("cpu", "numba", "reference")
_ARGUMENTS = ("query_hidden", "key_hidden", "positive", "hidden_weight", "hidden_bias", "output_weight")
# Trailing axes of each argument that are not batch axes.
_CORE = (2, 2, 1, 2, 1, 1)
# The arguments that may want a gradient, in the order in which the gradient operator returns them.
_DIFFERENTIABLE = (0, 1, 3, 4, 5)


def joint_critic_scores(
    query_hidden: Tensor,
    key_hidden: Tensor,
    output_weight: Tensor,
    *,
    hidden_weight: Tensor | None = None,
    hidden_bias: Tensor | None = None,
    output_bias: float | Tensor = 0.0,
    positive: Tensor | None = None,
) -> InfoNCEScores:
    """Positives and log-sum-exps of S_ij = w . relu(V relu(q_i + k_j) + d) + b, or w . relu(q_i + k_j) + b without V.

    Args:
        query_hidden, key_hidden: (..., n, h) and (..., m, h), the two halves of the first layer before its ReLU,
            float32 or float64 (its bias belongs to either half); the leading axes of all arguments broadcast.
        output_weight: w, (..., h), or (..., h2) with a second layer.
        hidden_weight, hidden_bias: V and d of an optional second layer, (..., h2, h) and (..., h2).
        output_bias: b, a number, or a tensor of the shape of the leading axes.
        positive: (..., n) int64, the column of each row's positive; default the diagonal, which needs n <= m.

    Infinities and NaN give NaN wherever they enter. Memory grows as (n + m) h.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit, or `positive` is not a column (the CPU looks).

    Reference: Poole et al. (2019), sec. 3 (joint critics). arXiv:1905.06922
    """
    tensors, bias, batch = _checked(
        query_hidden, key_hidden, positive, hidden_weight, hidden_bias, output_weight, output_bias
    )
    _check_positive(tensors[2], query_hidden.shape[-2], key_hidden.shape[-2])
    backend = _backend.select("joint_critic_scores", query_hidden.device, IMPLEMENTED)
    outputs: tuple[Tensor, ...]
    if backend == "reference":
        # The bias of the second layer or of the output alone may carry a batch axis.
        outputs = reference.joint_critic_scores(tensors[0].expand(*batch, *query_hidden.shape[-2:]), *tensors[1:])
    else:
        outputs = _autograd.apply(_SCORES, tensors, (backend,))
    if bias is None:
        return InfoNCEScores(*outputs)
    # A common shift of all scores is one of every output.
    shift = bias[..., None]
    return InfoNCEScores(*(output + shift for output in outputs))


def _checked(
    query_hidden: object,
    key_hidden: object,
    positive: object,
    hidden_weight: object,
    hidden_bias: object,
    output_weight: object,
    output_bias: object,
) -> tuple[tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor], Tensor | None, torch.Size]:
    """All arguments as tensors that fit together, the output's bias apart, and the common shape of leading axes."""
    q = _check.tensor("query_hidden", query_hidden)
    _check.at_least_dims("query_hidden", q, 2, "(..., n, h)")
    n, h = q.shape[-2:]

    def fitting(name: str, value: object, core: tuple[int | None, ...], text: str) -> Tensor:
        dtypes = (torch.int64,) if name == "positive" else (q.dtype,)
        found = _check.tensor(name, value, dtypes)
        _check.at_least_dims(name, found, len(core), text)
        own = found.shape[found.ndim - len(core) :]
        if any(need not in (None, length) for need, length in zip(core, own, strict=True)):
            needs = ", ".join("any" if need is None else str(need) for need in core)
            raise ValueError(f"{name}: need shape {text} with {needs} at the end, got {tuple(found.shape)}")
        if found.device != q.device:
            raise ValueError(f"{name}: need the device of query_hidden, {q.device}, got {found.device}")
        return found

    k = fitting("key_hidden", key_hidden, (None, h), "(..., m, h)")
    m, h2 = k.shape[-2], h
    weight = bias = columns = None
    if hidden_weight is not None:
        weight = fitting("hidden_weight", hidden_weight, (None, h), "(..., h2, h)")
        h2 = weight.shape[-2]
        if h2 == 0:
            raise ValueError(f"hidden_weight: need at least one unit, got shape {tuple(weight.shape)}")
    if hidden_bias is not None:
        if weight is None:
            raise ValueError("hidden_bias: need hidden_weight beside it, got None")
        bias = fitting("hidden_bias", hidden_bias, (h2,), "(..., h2)")
    output = fitting("output_weight", output_weight, (h2,), "(..., h)" if weight is None else "(..., h2)")
    if positive is not None:
        columns = fitting("positive", positive, (n,), "(..., n)")
    elif n > m:
        raise ValueError(f"positive: need it when there are more queries than keys, got None for {n} and {m}")
    shift = None
    if not (isinstance(output_bias, int | float) and output_bias == 0):
        shift = _check.like("output_bias", output_bias, q, "query_hidden")
    tensors = (q, k, columns, weight, bias, output)
    present = [
        (f"leading axes of {name}", _leading(t, core))
        for name, t, core in zip((*_ARGUMENTS, "output_bias"), (*tensors, shift), (*_CORE, 0), strict=True)
        if t is not None
    ]
    names, shapes = zip(*present, strict=True)
    return tensors, shift, _check.broadcast_shape(names, shapes)


# ---- The outputs ----


def _forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    batch, threads = _batch(tensors, _CORE), _backend.threads()
    if options[0] == "numba":
        from bitlens.kernels.joint_critic_scores import fallback  # compiling with Numba takes a second

        return fallback.forward(tensors, batch, threads), None
    return _compiled.joint_critic_scores_forward(options[0], tensors, batch, threads), None


def _fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    n, m, batch = tensors[0].shape[-2], tensors[1].shape[-2], _batch(tensors, _CORE)
    return tuple(tensors[0].new_empty((*batch, length)) for length in (n, n, n, m))


def _backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    if all(grad is None for grad in grads):
        return (None,) * len(tensors)
    wanted = sum(1 << position for position, argument in enumerate(_DIFFERENTIABLE) if needs[argument])
    results = _autograd.apply(_GRADIENT, (*tensors, *outputs[1:], *grads), (wanted, *options))
    gradients: list[Tensor | None] = [None] * len(tensors)
    for argument, result in zip(_DIFFERENTIABLE, results, strict=True):
        if needs[argument]:
            gradients[argument] = _backend.sum_to_shape(result, tensors[argument].shape)
    return tuple(gradients)


# ---- Their gradient ----

_GRADIENT_ARGUMENTS = (
    *("query_hidden", "key_hidden", "positive?", "hidden_weight?", "hidden_bias?", "output_weight"),
    *("row_logsumexp", "row_logsumexp_negatives", "column_logsumexp"),
    *("grad_positive?", "grad_row?", "grad_negatives?", "grad_column?"),
)
_GRADIENT_CORE = (*_CORE, *(1,) * 7)


def _gradient_shapes(tensors: Any, wanted: int) -> list[tuple[int, ...]]:
    """Shape of each gradient at the full batch shape; no elements where it is not wanted."""
    (n, h), m, last = tensors[0].shape[-2:], tensors[1].shape[-2], tensors[5].shape[-1]
    batch = _batch(tensors, _GRADIENT_CORE)
    cores = ((n, h), (m, h), (last, h), (last,), (last,))
    return [(*batch, *core) if wanted >> i & 1 else (*batch, 0) for i, core in enumerate(cores)]


def _gradient_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    wanted, backend = options
    flags = [bool(wanted >> i & 1) for i in range(len(_DIFFERENTIABLE))]
    batch, threads = _batch(tensors, _GRADIENT_CORE), _backend.threads()
    inputs, saved, grads = tensors[:6], tensors[6:9], tensors[9:]
    if backend == "numba":
        from bitlens.kernels.joint_critic_scores import fallback

        results = fallback.backward(inputs, saved, grads, flags, batch, threads)
    else:
        results = _compiled.joint_critic_scores_backward(backend, inputs, saved, grads, flags, batch, threads)
    shapes = _gradient_shapes(tensors, wanted)
    return tuple(
        result if result is not None else tensors[0].new_empty(shape)
        for result, shape in zip(results, shapes, strict=True)
    ), None


def _gradient_fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    return tuple(tensors[0].new_empty(shape) for shape in _gradient_shapes(tensors, options[0]))


def _no_second(*_: Any) -> Any:
    raise RuntimeError(
        "joint_critic_scores: second derivatives are offered by the reference backend only; "
        'use `with bitlens.ops.use_backend("reference"):`'
    )


_SCORES = _autograd.register(
    _autograd.Rule(
        name="joint_critic_scores",
        arguments=_GRADIENT_ARGUMENTS[:6],
        options=(("backend", "str"),),
        core_dims=_CORE,
        n_outputs=4,
        forward=_forward,
        fake=_fake,
        backward=_backward,
    )
)
_GRADIENT = _autograd.register(
    _autograd.Rule(
        name="joint_critic_scores_gradient",
        arguments=_GRADIENT_ARGUMENTS,
        options=(("wanted", "int"), ("backend", "str")),
        core_dims=_GRADIENT_CORE,
        n_outputs=5,
        forward=_gradient_forward,
        fake=_gradient_fake,
        backward=_no_second,
    )
)
