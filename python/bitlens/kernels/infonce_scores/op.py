"""Public signature, checks, dispatch and gradients of `infonce_scores`.

Three operators: the four outputs; the gradient of any weighted sum of them; the changes of both along a direction, for
second derivatives and forward mode. All visit the scores tile by tile and keep none; the last two recompute them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.kernels import _autograd, _backend, _check, _compiled
from bitlens.kernels.infonce_scores import directional, reference

_PRECISIONS = ("full", "tf32", "bfloat16")
IMPLEMENTED = ("cuda", "cpu", "numba", "reference")
_ARGUMENTS = ("query", "key", "positive", "scale", "query_bias", "key_bias")
# Trailing axes of each argument that are not batch axes.
_CORE = (2, 2, 1, 0, 1, 1)
# The arguments that may want a gradient, in the order in which the gradient operator returns them.
_DIFFERENTIABLE = (0, 1, 3, 4, 5)


class InfoNCEScores(NamedTuple):
    """Row and column statistics of a score matrix that is never kept, in nats.

    Attributes:
        positive: S[i, positive_i], shape (..., n).
        row_logsumexp: log sum_j exp S[i, j], shape (..., n).
        row_logsumexp_negatives: the same without the row's positive, shape (..., n); -inf with one key.
        column_logsumexp: log sum_i exp S[i, j], shape (..., m).
    """

    positive: Tensor
    row_logsumexp: Tensor
    row_logsumexp_negatives: Tensor
    column_logsumexp: Tensor


def infonce_scores(
    query: Tensor,
    key: Tensor,
    *,
    positive: Tensor | None = None,
    scale: float | Tensor = 1.0,
    query_bias: Tensor | None = None,
    key_bias: Tensor | None = None,
    precision: str = "full",
) -> InfoNCEScores:
    """Positives and log-sum-exps of S_ij = scale q_i . k_j + query_bias_i + key_bias_j, without the n x m matrix.

    Args:
        query, key: (..., n, d) and (..., m, d), float32 or float64; the leading axes of all arguments broadcast.
        positive: (..., n) int64, the column of each row's positive; default the diagonal, which needs n <= m.
        scale: a number, or a tensor of the shape of the leading axes.
        query_bias, key_bias: (..., n) and (..., m), nats. -inf masks a row or key, which then adds to no sum (a sum
            of nothing is -inf, with gradient 0); any other infinity and NaN give NaN wherever they enter.
        precision: "full", or for float32 "tf32" or "bfloat16": query and key rounded to it (centre likelihoods first:
            a common mean costs its digits), products on tensor cores where there are any, sums in float32.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit, or `positive` is not a column (the CPU looks).

    Reference: van den Oord, Li and Vinyals (2018), eq. 4; Poole et al. (2019), sec. 2.5. arXiv:1905.06922
    """
    tensors, batch = _checked(query, key, positive, scale, query_bias, key_bias)
    _check_positive(tensors[2], query.shape[-2], key.shape[-2])
    if precision not in _PRECISIONS:
        raise ValueError(f"precision: need one of {', '.join(_PRECISIONS)}, got {precision!r}")
    if precision != "full":
        if query.dtype != torch.float32:
            raise ValueError(f"precision: need 'full' for {query.dtype}, got {precision!r}")
        tensors = (_rounded(tensors[0], precision), _rounded(tensors[1], precision), *tensors[2:])
    backend = _backend.select("infonce_scores", query.device, IMPLEMENTED)
    if backend == "reference":
        first = tensors[0].expand(*batch, *query.shape[-2:])  # a bias alone may carry a batch axis
        return InfoNCEScores(*reference.infonce_scores(first, *tensors[1:]))
    return InfoNCEScores(*_autograd.apply(_SCORES, tensors, (precision, backend)))


def _rounded(tensor: Tensor, precision: str) -> Tensor:
    """The nearest float32 with a short significand, as tensor cores take it; the gradient is that of the identity."""
    value = tensor.detach()
    if precision == "bfloat16":
        near = value.bfloat16().float()
    else:
        # 10 bits after the point, ties away from zero (cvt.rna). The difference is exact, and so is adding it.
        near = ((value.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return tensor + (near - value)


def _checked(
    query: object, key: object, positive: object, scale: object, query_bias: object, key_bias: object
) -> tuple[tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None], torch.Size]:
    """All arguments as tensors that fit together, and the common shape of their leading axes."""
    q = _check.tensor("query", query)
    k = _check.like("key", key, q, "query") if isinstance(key, Tensor) else _check.tensor("key", key)
    _check.at_least_dims("query", q, 2, "(..., n, d)")
    _check.at_least_dims("key", k, 2, "(..., m, d)")
    n, m, d = q.shape[-2], k.shape[-2], q.shape[-1]
    if k.shape[-1] != d:
        raise ValueError(f"key: need {d} features as query has, got shape {tuple(k.shape)}")
    if positive is None and n > m:
        raise ValueError(f"positive: need it when there are more queries than keys, got None for {n} and {m}")
    vectors: list[Tensor | None] = []
    for name, value, length, text in (
        ("positive", positive, n, "(..., n)"),
        ("query_bias", query_bias, n, "(..., n)"),
        ("key_bias", key_bias, m, "(..., m)"),
    ):
        if value is None:
            vectors.append(None)
            continue
        dtypes = (torch.int64,) if name == "positive" else (q.dtype,)
        vector = _check.tensor(name, value, dtypes)
        _check.at_least_dims(name, vector, 1, text)
        if vector.shape[-1] != length:
            raise ValueError(f"{name}: need shape {text} with {length} at the end, got {tuple(vector.shape)}")
        if vector.device != q.device:
            raise ValueError(f"{name}: need the device of query, {q.device}, got {vector.device}")
        vectors.append(vector)
    tensors = (q, k, vectors[0], _check.like("scale", scale, q, "query"), vectors[1], vectors[2])
    if all(tensor is None or tensor.ndim == core for tensor, core in zip(tensors, _CORE, strict=True)):
        return tensors, torch.Size([])
    present = [
        (name, _leading(t, core)) for name, t, core in zip(_ARGUMENTS, tensors, _CORE, strict=True) if t is not None
    ]
    names, shapes = zip(*present, strict=True)
    return tensors, _check.broadcast_shape([f"leading axes of {name}" for name in names], shapes)


def _check_positive(positive: Tensor | None, n: int, m: int) -> None:
    """ValueError when a value is no column; only where looking costs no stall and breaks no trace."""
    if positive is None or positive.device.type != "cpu" or type(positive) not in (Tensor, torch.nn.Parameter):
        return
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or positive.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(positive))
    if low < 0 or high >= m:
        raise ValueError(f"positive: need columns from 0 to {m - 1}, got values from {low} to {high}")


def _leading(tensor: Tensor, core: int) -> torch.Size:
    return tensor.shape[: tensor.ndim - core]


def _batch(tensors: Any, core: tuple[int, ...]) -> torch.Size:
    if all(tensor is None or tensor.ndim == rank for tensor, rank in zip(tensors, core, strict=True)):
        return torch.Size([])  # many times faster than asking torch
    return torch.broadcast_shapes(
        *(_leading(tensor, rank) for tensor, rank in zip(tensors, core, strict=True) if tensor is not None)
    )


# ---- The outputs ----


def _forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    batch, threads = _batch(tensors, _CORE), _backend.threads()
    precision, backend = options
    if backend == "numba":
        from bitlens.kernels.infonce_scores import fallback  # compiling with Numba takes a second

        return fallback.forward(tensors, batch, threads), None
    return _compiled.infonce_scores_forward(backend, tensors, batch, precision, threads), None


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
    *("query", "key", "positive?", "scale", "query_bias?", "key_bias?"),
    *("row_logsumexp", "row_logsumexp_negatives", "column_logsumexp"),
    *("grad_positive?", "grad_row?", "grad_negatives?", "grad_column?"),
)
_GRADIENT_CORE = (*_CORE, *(1,) * 7)


def _gradient_shapes(tensors: Any, wanted: int) -> list[tuple[int, ...]]:
    """Shape of each gradient at the full batch shape; no elements where it is not wanted."""
    n, m, d = tensors[0].shape[-2], tensors[1].shape[-2], tensors[0].shape[-1]
    batch = _batch(tensors, _GRADIENT_CORE)
    cores = ((n, d), (m, d), (), (n,), (m,))
    return [(*batch, *core) if wanted >> i & 1 else (*batch, 0) for i, core in enumerate(cores)]


def _gradient_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    wanted, precision, backend = options
    flags = [bool(wanted >> i & 1) for i in range(len(_DIFFERENTIABLE))]
    batch, threads = _batch(tensors, _GRADIENT_CORE), _backend.threads()
    inputs, saved, grads = tensors[:6], tensors[6:9], tensors[9:]
    if backend == "numba":
        from bitlens.kernels.infonce_scores import fallback

        results = fallback.backward(inputs, saved, grads, flags, batch, threads)
    else:
        results = _compiled.infonce_scores_backward(backend, inputs, saved, grads, flags, batch, precision, threads)
    shapes = _gradient_shapes(tensors, wanted)
    return tuple(
        result if result is not None else tensors[0].new_empty(shape)
        for result, shape in zip(results, shapes, strict=True)
    ), None


def _gradient_fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    return tuple(tensors[0].new_empty(shape) for shape in _gradient_shapes(tensors, options[0]))


def _gradient_backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    """Second derivatives: what pulls on the gradients is a direction in which the outputs change.

    The log-sum-exps among the arguments are functions of the others and have no derivative of their own.
    """
    wanted, _, backend = options
    direction = [grad if wanted >> i & 1 else None for i, grad in enumerate(grads)]
    if all(change is None for change in direction):
        return (None,) * len(tensors)
    second = any(needs[argument] for argument in _DIFFERENTIABLE)
    results = _directional(tensors[:9], tensors[9:13], direction, second, backend)
    gradients: list[Tensor | None] = [None] * len(tensors)
    for argument, result in zip((9, 10, 11, 12, *_DIFFERENTIABLE), results, strict=True):
        if needs[argument]:
            gradients[argument] = _backend.sum_to_shape(result, tensors[argument].shape)
    return tuple(gradients)


# ---- Changes of the outputs and of the gradients along one direction ----

_DIRECTIONAL_ARGUMENTS = (
    *_GRADIENT_ARGUMENTS,
    *("change_query?", "change_key?", "change_scale?", "change_query_bias?", "change_key_bias?"),
)
_DIRECTIONAL_CORE = (*_GRADIENT_CORE, *(_CORE[argument] for argument in _DIFFERENTIABLE))


def _directional(tensors: Any, grads: Any, direction: Any, second: bool, backend: str) -> tuple[Tensor, ...]:
    """Changes of the four outputs, then, if `second`, of the five gradients, at the full batch shape."""
    return _autograd.apply(_DIRECTIONAL, (*tensors, *grads, *direction), (second, backend))


def _directional_shapes(tensors: Any, second: bool) -> list[tuple[int, ...]]:
    n, m, d = tensors[0].shape[-2], tensors[1].shape[-2], tensors[0].shape[-1]
    batch = _batch(tensors, _DIRECTIONAL_CORE)
    outputs: list[tuple[int, ...]] = [(*batch, length) for length in (n, n, n, m)]
    gradients: list[tuple[int, ...]] = [(*batch, *core) for core in ((n, d), (m, d), (), (n,), (m,))]
    return outputs + (gradients if second else [(*batch, 0)] * len(gradients))


def _directional_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    batch = _batch(tensors, _DIRECTIONAL_CORE)
    results = directional.derivatives(tensors[:6], tensors[6:9], tensors[9:13], tensors[13:], batch, options[0])
    shapes = _directional_shapes(tensors, options[0])
    return tuple(
        result if result is not None else tensors[0].new_empty(shape)
        for result, shape in zip(results, shapes, strict=True)
    ), None


def _directional_fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    return tuple(tensors[0].new_empty(shape) for shape in _directional_shapes(tensors, options[0]))


def _directional_backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    """Of the changes of the outputs only: <weights, J v> has the derivatives J^T weights in v, H v in the inputs."""
    second, backend = options
    if second and any(grad is not None for grad in grads[4:]):
        _no_third()
    weights, gradients = grads[:4], [None] * len(tensors)
    if all(weight is None for weight in weights):
        return tuple(gradients)
    changes = tensors[13:]
    in_inputs = _directional(tensors[:9], weights, changes, True, backend)[4:]
    wanted = sum(1 << i for i, change in enumerate(changes) if change is not None)
    in_changes = _autograd.apply(_GRADIENT, (*tensors[:9], *weights), (wanted, "full", backend))
    for argument, result in zip((*_DIFFERENTIABLE, *range(13, 18)), (*in_inputs, *in_changes), strict=True):
        if needs[argument]:
            gradients[argument] = _backend.sum_to_shape(result, tensors[argument].shape)
    return tuple(gradients)


def _no_third(*_: Any) -> Any:
    raise RuntimeError(
        "infonce_scores: third derivatives are offered by the reference backend only; "
        'use `with bitlens.ops.use_backend("reference"):`'
    )


def _jvp(tensors: Any, tangents: Any, outputs: Any, options: Any) -> tuple[Tensor, ...]:
    direction = [tangents[argument] for argument in _DIFFERENTIABLE]
    return _directional((*tensors, *outputs[1:]), (None,) * 4, direction, False, options[-1])[:4]


def _gradient_jvp(tensors: Any, tangents: Any, outputs: Any, options: Any) -> tuple[Tensor, ...]:
    """H v, and the gradient with the changes of the weights in place of the weights, which it is linear in."""
    wanted, _, backend = options
    terms: list[tuple[Tensor, ...]] = []
    direction = [tangents[argument] for argument in _DIFFERENTIABLE]
    if any(change is not None for change in direction):
        terms.append(_directional(tensors[:9], tensors[9:13], direction, True, backend)[4:])
    if any(change is not None for change in tangents[9:13]):
        terms.append(_autograd.apply(_GRADIENT, (*tensors[:9], *tangents[9:13]), options))
    results = []
    for i, output in enumerate(outputs):
        parts = [term[i] for term in terms] if wanted >> i & 1 else []
        results.append(sum(parts[1:], parts[0]) if parts else torch.zeros_like(output))
    return tuple(results)


_SCORES = _autograd.register(
    _autograd.Rule(
        name="infonce_scores",
        arguments=("query", "key", "positive?", "scale", "query_bias?", "key_bias?"),
        options=(("precision", "str"), ("backend", "str")),
        core_dims=_CORE,
        n_outputs=4,
        forward=_forward,
        fake=_fake,
        backward=_backward,
        jvp=_jvp,
    )
)
_GRADIENT = _autograd.register(
    _autograd.Rule(
        name="infonce_scores_gradient",
        arguments=_GRADIENT_ARGUMENTS,
        options=(("wanted", "int"), ("precision", "str"), ("backend", "str")),
        core_dims=_GRADIENT_CORE,
        n_outputs=5,
        forward=_gradient_forward,
        fake=_gradient_fake,
        backward=_gradient_backward,
        jvp=_gradient_jvp,
    )
)
_DIRECTIONAL = _autograd.register(
    _autograd.Rule(
        name="infonce_scores_directional",
        arguments=_DIRECTIONAL_ARGUMENTS,
        options=(("second", "bool"), ("backend", "str")),
        core_dims=_DIRECTIONAL_CORE,
        n_outputs=9,
        forward=_directional_forward,
        fake=_directional_fake,
        backward=_directional_backward,
        jvp=_no_third,
    )
)
