"""Row and column statistics of the Poisson-Gaussian likelihoods of all pairs, which are never kept.

Two operators, as in `op`: the five outputs, and the gradient of any weighted sum of them. The first goes over tiles of
scores inside the kernel; the gradient takes some rows at a time, computes their scores again and weights them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.kernels import _autograd, _backend, _check, _compiled
from bitlens.kernels.poisson_gaussian_log_prob_pairs import op as pairs
from bitlens.kernels.poisson_gaussian_log_prob_pairs import reference

_ARGUMENTS = ("measured", "mean", "gain", "offset", "read_std", "positive", "row_group?", "column_group?", "row_bias?")
_CORE = (2, 2, 1, 1, 1, 1, 1, 1, 1)
_DIFFERENTIABLE = (0, 1, 2, 3, 4, 8)
# Rows at a time where scores go through torch: whole tiles of the kernel, and enough to pay for the tables of a call.
_ROWS_AT_A_TIME = 256


class ScoreRows(NamedTuple):
    """Statistics of S_ij = row_bias_i + sum over pixels of log p(measured_i | mean_j), nats.

    Attributes:
        positive: S[i, positive_i], shape (n,).
        row_logsumexp: log sum_j exp S[i, j], shape (n,).
        row_logsumexp_negatives: the same without the positive and the columns of the row's group; -inf if none is left.
        column_logsumexp: log sum_i exp S[i, j], shape (m,).
        column_logsumexp_negatives: the same without the rows whose positive it is and those of the column's group.
    """

    positive: Tensor
    row_logsumexp: Tensor
    row_logsumexp_negatives: Tensor
    column_logsumexp: Tensor
    column_logsumexp_negatives: Tensor


def poisson_gaussian_score_rows(
    measured: Tensor,
    mean: Tensor,
    *,
    positive: Tensor | None = None,
    row_group: Tensor | None = None,
    column_group: Tensor | None = None,
    row_bias: Tensor | None = None,
    gain: Tensor | float = 1.0,
    offset: Tensor | float = 0.0,
    read_std: Tensor | float,
) -> ScoreRows:
    """Positives and log-sum-exps of the scores of `poisson_gaussian_log_prob_pairs`, in O((n + m) pixels) memory.

    Args:
        measured, mean, gain, offset, read_std: as there.
        positive: (n,) int64, the column of each row's positive; default the diagonal, which needs n <= m.
        row_group, column_group: (n,) and (m,) int64, both or none; pairs of equal group are no negatives.
        row_bias: (n,) nats in the dtype of measured, added to every score of a row.

    Returns: a sum with a pair outside the domain is NaN. Once differentiable in every floating-point argument.

    Raises: TypeError, ValueError (a dtype, shape or device that does not fit, or `positive` is not a column).

    Reference: Poole et al. (2019), section 2.5. arXiv:1905.06922
    """
    tensors = pairs.checked(measured, mean, gain, offset, read_std)
    n, m, like = tensors[0].shape[0], tensors[1].shape[0], tensors[0]
    if positive is None and n > m:
        raise ValueError(f"positive: need it when there are more rows than columns, got None for {n} and {m}")
    if (row_group is None) != (column_group is None):
        missing = "row_group" if row_group is None else "column_group"
        raise ValueError(f"{missing}: need both groups or none, got None")
    columns = torch.arange(n, device=like.device) if positive is None else _vector("positive", positive, n, like)
    if positive is not None and n and columns.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (int(value) for value in torch.aminmax(columns))
        if low < 0 or high >= m:
            raise ValueError(f"positive: need columns from 0 to {m - 1}, got values from {low} to {high}")
    everything = (
        *tensors,
        columns,
        None if row_group is None else _vector("row_group", row_group, n, like),
        None if column_group is None else _vector("column_group", column_group, m, like),
        None if row_bias is None else _vector("row_bias", row_bias, n, like, like.dtype),
    )
    backend = _backend.select("poisson_gaussian_score_rows", like.device, pairs.IMPLEMENTED)
    if backend == "reference":
        return ScoreRows(*_from_matrix(reference.poisson_gaussian_log_prob_pairs(*tensors), *everything[5:]))
    return ScoreRows(*_autograd.apply(_ROWS, everything, (backend,)))


def _vector(name: str, value: object, length: int, like: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    vector = _check.tensor(name, value, (dtype,))
    if vector.shape != (length,):
        raise ValueError(f"{name}: need shape ({length},), got {tuple(vector.shape)}")
    if vector.device != like.device:
        raise ValueError(f"{name}: need the device of measured, {like.device}, got {vector.device}")
    return vector


# ---- With a matrix: the definition, and some rows at a time where no kernel does it ----


def _excluded(positive: Tensor, row_group: Tensor | None, column_group: Tensor | None, m: int) -> Tensor:
    mask = torch.arange(m, device=positive.device) == positive[..., :, None]
    if row_group is not None and column_group is not None:
        mask = mask | (row_group[..., :, None] == column_group[..., None, :])
    return mask


def _logsumexp(scores: Tensor, dim: int) -> Tensor:
    """-inf with zero gradient where every score is -inf (torch.logsumexp has gradient NaN there)."""
    empty = (scores == -torch.inf).all(dim=dim, keepdim=True)
    total = torch.logsumexp(scores.masked_fill(empty, 0.0), dim=dim)
    return total.masked_fill(empty.squeeze(dim), -torch.inf)


def _from_matrix(
    scores: Tensor, positive: Any, row_group: Any = None, column_group: Any = None, row_bias: Any = None
) -> tuple[Tensor, ...]:
    if row_bias is not None:
        scores = scores + row_bias[..., :, None]
    negatives = scores.masked_fill(_excluded(positive, row_group, column_group, scores.shape[-1]), -torch.inf)
    return (
        scores.gather(-1, positive[..., None]).squeeze(-1),
        _logsumexp(scores, -1),
        _logsumexp(negatives, -1),
        _logsumexp(scores, -2),
        _logsumexp(negatives, -2),
    )


def _by_rows(block: Any, scores_of: Callable[[Any], Tensor]) -> tuple[Tensor, ...]:
    measured, others, (positive, row_group, column_group, row_bias) = block[0], block[1:5], block[5:]
    parts, columns = [], [measured.new_full((others[0].shape[0],), -torch.inf) for _ in range(2)]
    for begin in range(0, measured.shape[0], _ROWS_AT_A_TIME):
        rows = slice(begin, begin + _ROWS_AT_A_TIME)
        *found, total, negatives = _from_matrix(
            scores_of((measured[rows].contiguous(), *others)),
            positive[rows],
            None if row_group is None else row_group[rows],
            column_group,
            None if row_bias is None else row_bias[rows],
        )
        parts.append(found)
        columns = [torch.logaddexp(kept, new) for kept, new in zip(columns, (total, negatives), strict=True)]
    joined = [torch.cat(part) for part in zip(*parts, strict=True)] if parts else [measured.new_empty(0)] * 3
    return (*joined, *columns)


def _scores_of(backend: str) -> Callable[[Any], Tensor]:
    threads = _backend.threads()
    if backend == "numba":
        from bitlens.kernels.poisson_gaussian_log_prob_pairs import fallback  # importing Numba takes a second

        return lambda inputs: fallback.scores(inputs, threads)
    return lambda inputs: _compiled.poisson_gaussian_log_prob_pairs(backend, inputs, threads)


# ---- The outputs ----


def _batch(tensors: Any, core: tuple[int, ...]) -> torch.Size:
    present = [(t, rank) for t, rank in zip(tensors, core, strict=True) if t is not None]
    if all(t.ndim == rank for t, rank in present):
        return torch.Size([])
    return torch.broadcast_shapes(*(t.shape[: t.ndim - rank] for t, rank in present))


def _blocks(tensors: Any, core: tuple[int, ...], batch: torch.Size) -> list[tuple[Tensor | None, ...]]:
    """The operands of every element of the batch, contiguous; None stays."""
    flat = []
    for tensor, rank in zip(tensors, core, strict=True):
        if tensor is None:
            flat.append([None] * batch.numel())
            continue
        shape = tensor.shape[tensor.ndim - rank :]
        whole = _compiled.plain(tensor).expand(*batch, *shape).reshape(batch.numel(), *shape)
        flat.append([part.contiguous() for part in whole])
    return list(zip(*flat, strict=True))


def _lengths(tensors: Any) -> tuple[int, int, int, int, int]:
    n, m = tensors[0].shape[-2], tensors[1].shape[-2]
    return n, n, n, m, m


def _fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    batch = _batch(tensors, _CORE)
    return tuple(tensors[0].new_empty((*batch, length)) for length in _lengths(tensors))


def _forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    batch, backend = _batch(tensors, _CORE), options[0]
    parts: list[tuple[Tensor, ...]] = []
    for block in _blocks(tensors, _CORE, batch):
        if backend == "cpu":
            parts.append(_compiled.poisson_gaussian_log_prob_pairs_statistics(backend, block, _backend.threads()))
        else:
            parts.append(_by_rows(block, _scores_of(backend)))
    if not parts:
        return _fake(tensors, options), None
    shapes = [(*batch, length) for length in _lengths(tensors)]
    return tuple(
        torch.stack(part).reshape(shape) for part, shape in zip(zip(*parts, strict=True), shapes, strict=True)
    ), None


def _backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    if all(grad is None for grad in grads):
        return (None,) * len(tensors)
    wanted = sum(1 << place for place, argument in enumerate(_DIFFERENTIABLE) if needs[argument])
    results = _autograd.apply(_GRADIENT, (*tensors, *outputs[1:], *grads), (wanted, *options))
    gradients: list[Tensor | None] = [None] * len(tensors)
    for argument, result in zip(_DIFFERENTIABLE, results, strict=True):
        if needs[argument]:
            gradients[argument] = _backend.sum_to_shape(result, tensors[argument].shape)
    return tuple(gradients)


# ---- Their gradient ----

_GRADIENT_ARGUMENTS = (
    *_ARGUMENTS,
    *("row", "negatives", "column", "column_negatives"),
    *("grad_positive?", "grad_row?", "grad_negatives?", "grad_column?", "grad_column_negatives?"),
)
_GRADIENT_CORE = (*_CORE, *(1,) * 9)


def _share(scores: Tensor, total: Tensor) -> Tensor:
    """exp(scores - total), the share of a term in a sum; 0 in a sum without terms."""
    empty = total == -torch.inf
    return torch.exp(scores - total.masked_fill(empty, 0.0)).masked_fill(empty, 0.0)


def _weights(scores: Tensor, excluded: Tensor, positive: Tensor, totals: Any, grads: Any) -> Tensor:
    """Derivative of the loss in every score of some rows."""
    negatives = scores.masked_fill(excluded, -torch.inf)
    weight = torch.zeros_like(scores)
    for total, grad, terms, by_row in (
        (totals[0], grads[1], scores, True),
        (totals[1], grads[2], negatives, True),
        (totals[2], grads[3], scores, False),
        (totals[3], grads[4], negatives, False),
    ):
        if grad is not None:
            total, grad = (total[:, None], grad[:, None]) if by_row else (total, grad)
            weight += grad * _share(terms, total)
    if grads[0] is not None:
        weight.scatter_add_(1, positive[:, None], grads[0][:, None])
    return weight


def _block_gradient(block: Any, flags: list[bool], backend: str) -> list[Tensor]:
    measured, mean, *sensor = block[:5]
    positive, row_group, column_group, row_bias = block[5:9]
    totals, grads = block[9:13], block[13:]
    scores_of, threads = _scores_of(backend), _backend.threads()
    in_measured, in_bias = torch.zeros_like(measured), measured.new_zeros(len(measured))
    sums = [torch.zeros_like(tensor) for tensor in (mean, *sensor)]

    def part(tensor: Tensor | None, rows: slice) -> Tensor | None:
        return None if tensor is None else tensor[rows]

    for begin in range(0, len(measured), _ROWS_AT_A_TIME):
        rows = slice(begin, begin + _ROWS_AT_A_TIME)
        inputs = (measured[rows].contiguous(), mean, *sensor)
        scores = scores_of(inputs)
        if row_bias is not None:
            scores = scores + row_bias[rows, None]
        weight = _weights(
            scores,
            _excluded(positive[rows], part(row_group, rows), column_group, len(mean)),
            positive[rows],
            (totals[0][rows], totals[1][rows], *totals[2:]),
            (*(part(grad, rows) for grad in grads[:3]), *grads[3:]),
        )
        in_bias[rows] = weight.sum(1)
        if backend == "numba":
            from bitlens.kernels.poisson_gaussian_log_prob_pairs import fallback

            found = fallback.gradients(inputs, weight, flags[:5], threads)
        else:
            found = _compiled.poisson_gaussian_log_prob_pairs_gradients(backend, inputs, weight, flags[:5], threads)
        if found[0] is not None:
            in_measured[rows] = found[0]
        for total, new in zip(sums, found[1:], strict=True):
            if new is not None:
                total += new
    return [in_measured, *sums, in_bias]


def _gradient_fake(tensors: Any, options: Any) -> tuple[Tensor, ...]:
    batch = _batch(tensors, _GRADIENT_CORE)
    n = tensors[0].shape[-2:-1]
    cores = [*(t.shape[t.ndim - rank :] for t, rank in zip(tensors[:5], _CORE, strict=False)), n]
    dtypes = [*(t.dtype for t in tensors[:5]), tensors[0].dtype]
    return tuple(
        tensors[0].new_empty((*batch, *core) if options[0] >> i & 1 else (*batch, 0), dtype=dtype)
        for i, (core, dtype) in enumerate(zip(cores, dtypes, strict=True))
    )


def _gradient_forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    wanted, backend = options
    flags = [bool(wanted >> i & 1) for i in range(len(_DIFFERENTIABLE))]
    batch = _batch(tensors, _GRADIENT_CORE)
    parts = [_block_gradient(block, flags, backend) for block in _blocks(tensors, _GRADIENT_CORE, batch)]
    empty = _gradient_fake(tensors, options)
    if not parts:
        return empty, None
    return tuple(
        torch.stack(part).reshape(like.shape) if flag else like
        for part, like, flag in zip(zip(*parts, strict=True), empty, flags, strict=True)
    ), None


def _no_second(*_: Any) -> Any:
    raise RuntimeError(
        "poisson_gaussian_score_rows: second derivatives are offered by the reference backend only; "
        'use `with bitlens.ops.use_backend("reference"):`'
    )


_ROWS = _autograd.register(
    _autograd.Rule(
        name="poisson_gaussian_score_rows",
        arguments=_ARGUMENTS,
        options=(("backend", "str"),),
        core_dims=_CORE,
        n_outputs=5,
        forward=_forward,
        fake=_fake,
        backward=_backward,
    )
)
_GRADIENT = _autograd.register(
    _autograd.Rule(
        name="poisson_gaussian_score_rows_gradient",
        arguments=_GRADIENT_ARGUMENTS,
        options=(("wanted", "int"), ("backend", "str")),
        core_dims=_GRADIENT_CORE,
        n_outputs=6,
        forward=_gradient_forward,
        fake=_gradient_fake,
        backward=_no_second,
    )
)
