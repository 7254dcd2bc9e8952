"""Derivatives of `infonce_scores` along one direction, by blocks of the score matrix, in torch.

With P the shares exp(S - total) of a score in its sums, S' the change of the scores along the direction, and G the
gradient of the weighted outputs in the scores:

    total' = sum P S'        P' = P (S' - total')        (G^T K)' = G'^T K + G^T K'

Two visits to every block, because P' needs the whole of total'; a block is made again at each visit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.kernels._autocast import full_precision
from bitlens.kernels.infonce_scores import reference

# Scores that exist at one time; about ten such blocks are alive together.
_BLOCK_SCORES = 1 << 20
_CORES = (2, 2, 1, 0, 1, 1)


class _Problem(NamedTuple):
    """Everything with one batch axis: (B, n, d), (B, m, d), (B, n), (B, m) or (B,)."""

    query: Tensor
    key: Tensor
    positive: Tensor
    scale: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    totals: list[Tensor]  # over the row, over its negatives, over the column
    grads: list[Tensor | None]  # of the positive and of the three totals
    direction: list[Tensor | None]  # of query, key, scale and the two biases


class _Block(NamedTuple):
    """Part of the matrix: (items, rows, m)."""

    items: slice
    rows: slice
    dots: Tensor
    dots_change: Tensor
    change: Tensor
    is_positive: Tensor
    shares: list[Tensor]  # in the sums of the row, of its negatives, of the column


def _flat(tensor: Tensor | None, batch: torch.Size, core: int) -> Tensor | None:
    if tensor is None:
        return None
    shape = tensor.shape[tensor.ndim - core :]
    return tensor.detach().expand((*batch, *shape)).reshape(batch.numel(), *shape)


def _problem(
    inputs: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    direction: Sequence[Tensor | None],
    batch: torch.Size,
) -> _Problem:
    query, key, positive, scale, query_bias, key_bias = (
        _flat(tensor, batch, core) for tensor, core in zip(inputs, _CORES, strict=True)
    )
    assert query is not None
    assert key is not None
    assert scale is not None
    if positive is None:
        positive = torch.arange(query.shape[1], device=query.device).expand(query.shape[:2])
    totals = [_flat(total, batch, 1) for total in saved]
    cores = (2, 2, 0, 1, 1)
    return _Problem(
        reference.finite_or_nan(query),
        reference.finite_or_nan(key),
        positive,
        reference.finite_or_nan(scale),
        None if query_bias is None else reference.bias_or_nan(query_bias),
        None if key_bias is None else reference.bias_or_nan(key_bias),
        [total for total in totals if total is not None],
        [_flat(grad, batch, 1) for grad in grads],
        [_flat(change, batch, core) for change, core in zip(direction, cores, strict=True)],
    )


def _share(scores: Tensor, total: Tensor) -> Tensor:
    """exp(scores - total); 0 in a sum without terms."""
    return torch.exp(scores - total.masked_fill(total == -torch.inf, 0.0))


def _blocks(problem: _Problem) -> Iterator[_Block]:
    (size, n, _), m = problem.query.shape, problem.key.shape[1]
    if size * n * m == 0:
        return
    items, rows = max(1, _BLOCK_SCORES // (n * m)), max(1, min(n, _BLOCK_SCORES // m))
    for b in range(0, size, items):
        for i in range(0, n, rows):
            yield _block(problem, slice(b, b + items), slice(i, i + rows))


def _block(problem: _Problem, items: slice, rows: slice) -> _Block:
    query, key, scale = problem.query[items, rows], problem.key[items], problem.scale[items, None, None]
    d_query, d_key, d_scale, d_query_bias, d_key_bias = problem.direction
    dots = query @ key.mT
    scores = scale * dots
    if problem.query_bias is not None:
        scores += problem.query_bias[items, rows, None]
    if problem.key_bias is not None:
        scores += problem.key_bias[items, None, :]
    dots_change = torch.zeros_like(dots)
    if d_query is not None:
        dots_change += d_query[items, rows] @ key.mT
    if d_key is not None:
        dots_change += query @ d_key[items].mT
    change = scale * dots_change
    if d_scale is not None:
        change += d_scale[items, None, None] * dots
    if d_query_bias is not None:
        change += d_query_bias[items, rows, None]
    if d_key_bias is not None:
        change += d_key_bias[items, None, :]
    columns = torch.arange(key.shape[1], device=key.device)
    is_positive = columns == problem.positive[items, rows, None]
    row, negatives, column = problem.totals
    shares = [
        _share(scores, row[items, rows, None]),
        _share(scores.masked_fill(is_positive, -torch.inf), negatives[items, rows, None]),
        _share(scores, column[items, None, :]),
    ]
    return _Block(items, rows, dots, dots_change, change, is_positive, shares)


@full_precision
def derivatives(
    inputs: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    direction: Sequence[Tensor | None],
    batch: torch.Size,
    second: bool,
) -> list[Tensor | None]:
    """Changes of the four outputs, then those of the gradients in query, key, scale and the two biases if `second`.

    Args:
        inputs: query, key, positive, scale and the two biases.
        saved: the three log-sum-exps.
        grads: weights of the four outputs, whose weighted sum the gradients belong to; None is zero.
        direction: changes of query, key, scale and the two biases; None is zero.
        batch: the full batch shape, which all results have.
        second: whether the gradients are asked for; None stands in their place otherwise.
    """
    problem = _problem(inputs, saved, grads, direction, batch)
    (size, n, d), m = problem.query.shape, problem.key.shape[1]
    lengths, query = (n, n, n, m), problem.query
    outputs = [query.new_zeros(size, length) for length in lengths]
    for block in _blocks(problem):
        at = (block.items, block.rows)
        outputs[0][at] = (block.change * block.is_positive).sum(-1)
        for output, share in zip(outputs[1:3], block.shares[:2], strict=True):
            output[at] = (share * block.change).sum(-1)
        outputs[3][block.items] += (block.shares[2] * block.change).sum(-2)
    outputs[0].masked_fill_((problem.positive < 0) | (problem.positive >= m), torch.nan)
    shaped: list[Tensor | None] = [
        output.reshape((*batch, length)) for output, length in zip(outputs, lengths, strict=True)
    ]
    if not second:
        return [*shaped, *(None,) * 5]
    cores = ((n, d), (m, d), (), (n,), (m,))
    sums = [query.new_zeros(size, *core) for core in cores]
    for block in _blocks(problem):
        _add_second(problem, outputs, block, sums)
    return [*shaped, *(total.reshape((*batch, *core)) for total, core in zip(sums, cores, strict=True))]


def _add_second(problem: _Problem, changes: Sequence[Tensor], block: _Block, sums: Sequence[Tensor]) -> None:
    """Add one block's part of the changes of the five gradients."""
    items, rows = block.items, block.rows
    query, key, scale = problem.query[items, rows], problem.key[items], problem.scale[items, None, None]
    d_query, d_key, d_scale = problem.direction[:3]
    gradient, gradient_change = torch.zeros_like(block.dots), torch.zeros_like(block.dots)
    if problem.grads[0] is not None:
        gradient += problem.grads[0][items, rows, None] * block.is_positive
    wheres = ((items, rows, None), (items, rows, None), (items, None))
    for share, change, grad, where in zip(block.shares, changes[1:], problem.grads[1:], wheres, strict=True):
        if grad is not None:
            pull = grad[where] * share
            gradient += pull
            gradient_change += pull * (block.change - change[where])
    weight = scale * gradient_change
    if d_scale is not None:
        weight += d_scale[items, None, None] * gradient
    gradient_scaled = scale * gradient
    sums[0][items, rows] += weight @ key
    sums[1][items] += weight.mT @ query
    if d_key is not None:
        sums[0][items, rows] += gradient_scaled @ d_key[items]
    if d_query is not None:
        sums[1][items] += gradient_scaled.mT @ d_query[items, rows]
    sums[2][items] += (gradient_change * block.dots + gradient * block.dots_change).sum(-1).sum(-1)
    sums[3][items, rows] += gradient_change.sum(-1)
    sums[4][items] += gradient_change.sum(-2)
