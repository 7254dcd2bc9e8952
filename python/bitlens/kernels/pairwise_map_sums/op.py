"""Public signature, checks, dispatch and gradients of `pairwise_map_sums`.

Two operators, as in `infonce_scores`: the outputs, and the gradient of any weighted sum of them. Both visit the scores
tile by tile and keep none; the second recomputes them.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.kernels import _autograd, _backend, _check, _compiled
from bitlens.kernels.infonce_scores import op as scores_op
from bitlens.kernels.pairwise_map_sums import reference

IMPLEMENTED = ("cpu", "numba", "reference")
MAPS = ("softplus", "clipped_exp")
# exp(limit) times 10^10 keys stays inside the range of each precision.
LARGEST_LIMIT = {torch.float32: 64.0, torch.float64: 600.0}
_CORE = (2, 2, 1, 0, 1, 1)
_DIFFERENTIABLE = (0, 1, 3, 4, 5)


class PairwiseMapSums(NamedTuple):
    """Row sums of a map of a score matrix that is never kept.

    Attributes:
        positive: S[i, positive_i], shape (..., n), nats.
        row_sum_negatives: sum over j != positive_i of map(S[i, j]), shape (..., n).
        n_negatives: how many pairs that sum has: keys that are not masked and not the positive; 0 in a masked row.
            Shape (..., n) or one that broadcasts to it.
        limit: says which map was summed: the limit of "clipped_exp", 0 for "softplus". float64 on the CPU, shape ();
            a tensor, so that `torch.func.vmap` can return it.
    """

    positive: Tensor
    row_sum_negatives: Tensor
    n_negatives: Tensor
    limit: Tensor


def pairwise_map_sums(
    query: Tensor,
    key: Tensor,
    *,
    map: str,
    limit: float | None = None,
    positive: Tensor | None = None,
    scale: float | Tensor = 1.0,
    query_bias: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> PairwiseMapSums:
    """sum_{j != positive_i} map(S_ij), S_ij = scale q_i . k_j + query_bias_i + key_bias_j, without the n x m matrix.

    Args:
        query, key, positive, scale, query_bias, key_bias: as in `infonce_scores`; a bias of -inf masks.
        map: "softplus", log(1 + exp S), or "clipped_exp", exp(clip(S, -limit, limit)).
        limit: nats, of "clipped_exp" only; above 0 and at most 64 in float32, 600 in float64.

    Raises:
        TypeError, ValueError: as `infonce_scores`, and when `map` and `limit` do not fit each other.

    Reference: Nowozin et al. (2016), arXiv:1606.00709; Song and Ermon (2020), arXiv:1910.06222
    """
    tensors, batch = scores_op._checked(query, key, positive, scale, query_bias, key_bias)
    n, m = query.shape[-2], key.shape[-2]
    scores_op._check_positive(tensors[2], n, m)
    kind, bound = MAPS.index(_check.choice("map", map, MAPS)), _checked_limit(map, limit, query.dtype)
    backend = _backend.select("pairwise_map_sums", query.device, IMPLEMENTED)
    if backend == "reference":
        first = tensors[0].expand(*batch, n, query.shape[-1])  # a bias alone may carry a batch axis
        own, sums = reference.pairwise_map_sums(first, *tensors[1:], map, bound)
    else:
        own, sums = _autograd.apply(_SUMS, tensors, (kind, bound, backend))
    return PairwiseMapSums(own, sums, _n_negatives(tensors, m), torch.tensor(bound, dtype=torch.float64, device="cpu"))


def _checked_limit(map: str, limit: object, dtype: torch.dtype) -> float:
    if map != "clipped_exp":
        if limit is not None:
            raise ValueError(f"limit: need None with map={map!r}, got {limit!r}")
        return 0.0
    if not isinstance(limit, numbers.Real):
        raise TypeError(f"limit: need a number with map='clipped_exp', got {type(limit).__name__}")
    value, largest = float(limit), LARGEST_LIMIT[dtype]
    if not 0.0 < value <= largest or math.isnan(value):
        raise ValueError(f"limit: need a number above 0 and at most {largest:g} in {dtype}, got {limit}")
    return value


def _n_negatives(tensors: tuple[Tensor | None, ...], m: int) -> Tensor:
    query, _, positive, _, query_bias, key_bias = tensors
    assert query is not None
    n = query.shape[-2]
    count = query.new_full((n,), m - 1)
    if key_bias is not None:
        live = key_bias.detach() != -torch.inf
        column = torch.arange(n, device=query.device) if positive is None else positive
        lead = torch.broadcast_shapes(live.shape[:-1], column.shape[:-1])
        own = live.expand(*lead, m).gather(-1, column.expand(*lead, n).clamp(0, max(m - 1, 0)))
        count = live.sum(dim=-1, keepdim=True).to(query.dtype) - own.to(query.dtype)
    if query_bias is not None:
        count = count * (query_bias.detach() != -torch.inf)
    return count


# ---- The outputs ----


def _forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    kind, limit, backend = options
    batch, threads = scores_op._batch(tensors, _CORE), _backend.threads()
    if backend == "numba":
        from bitlens.kernels.pairwise_map_sums import fallback  # compiling with Numba takes a second

        return fallback.forward(tensors, kind, limit, batch, threads), None
    return _compiled.pairwise_map_sums_forward(backend, tensors, kind, limit, batch, threads), None


def _fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    shape = (*scores_op._batch(tensors, _CORE), tensors[0].shape[-2])
    return tensors[0].new_empty(shape), tensors[0].new_empty(shape)


def _backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    if all(grad is None for grad in grads):
        return (None,) * len(tensors)
    wanted = sum(1 << position for position, argument in enumerate(_DIFFERENTIABLE) if needs[argument])
    results = _autograd.apply(_GRADIENT, (*tensors, *grads), (wanted, *options))
    gradients: list[Tensor | None] = [None] * len(tensors)
    for argument, result in zip(_DIFFERENTIABLE, results, strict=True):
        if needs[argument]:
            gradients[argument] = _backend.sum_to_shape(result, tensors[argument].shape)
    return tuple(gradients)


# ---- Their gradient ----

_GRADIENT_CORE = (*_CORE, 1, 1)


def _gradient_shapes(tensors: Any, wanted: int) -> list[tuple[int, ...]]:
    """Shape of each gradient at the full batch shape; no elements where it is not wanted."""
    n, m, d = tensors[0].shape[-2], tensors[1].shape[-2], tensors[0].shape[-1]
    batch = scores_op._batch(tensors, _GRADIENT_CORE)
    cores = ((n, d), (m, d), (), (n,), (m,))
    return [(*batch, *core) if wanted >> i & 1 else (*batch, 0) for i, core in enumerate(cores)]


def _gradient_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    wanted, kind, limit, backend = options
    flags = [bool(wanted >> i & 1) for i in range(len(_DIFFERENTIABLE))]
    batch, threads = scores_op._batch(tensors, _GRADIENT_CORE), _backend.threads()
    inputs, grads = tensors[:6], tensors[6:]
    if backend == "numba":
        from bitlens.kernels.pairwise_map_sums import fallback

        results = fallback.backward(inputs, kind, limit, grads, flags, batch, threads)
    else:
        results = _compiled.pairwise_map_sums_backward(backend, inputs, kind, limit, grads, flags, batch, threads)
    shapes = _gradient_shapes(tensors, wanted)
    return tuple(
        result if result is not None else tensors[0].new_empty(shape)
        for result, shape in zip(results, shapes, strict=True)
    ), None


def _gradient_fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    return tuple(tensors[0].new_empty(shape) for shape in _gradient_shapes(tensors, options[0]))


def _no_second(*_: Any) -> Any:
    raise RuntimeError(
        "pairwise_map_sums: second derivatives are offered by the reference backend only; "
        'use `with bitlens.ops.use_backend("reference"):`'
    )


_ARGUMENTS = ("query", "key", "positive?", "scale", "query_bias?", "key_bias?")
_OPTIONS = (("kind", "int"), ("limit", "float"), ("backend", "str"))

_SUMS = _autograd.register(
    _autograd.Rule(
        name="pairwise_map_sums",
        arguments=_ARGUMENTS,
        options=_OPTIONS,
        core_dims=_CORE,
        n_outputs=2,
        forward=_forward,
        fake=_fake,
        backward=_backward,
    )
)
_GRADIENT = _autograd.register(
    _autograd.Rule(
        name="pairwise_map_sums_gradient",
        arguments=(*_ARGUMENTS, "grad_positive?", "grad_sum?"),
        options=(("wanted", "int"), *_OPTIONS),
        core_dims=_GRADIENT_CORE,
        n_outputs=5,
        forward=_gradient_forward,
        fake=_gradient_fake,
        backward=_no_second,
    )
)
