"""Row sums of a pointwise map in Numba: the tiles and phases of `infonce_scores`, another function of each score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from bitlens.kernels.infonce_scores import fallback as scores_fallback
from bitlens.kernels.infonce_scores import fallback_tiles as tiles

_SOFTPLUS = 0  # the place of "softplus" in op.MAPS


@numba.njit(nogil=True, cache=True)
def _value(score: float, kind: int, limit: float) -> float:
    if score == -np.inf:
        return 0.0
    if kind == _SOFTPLUS:
        return max(score, 0.0) + math.log1p(math.exp(-abs(score)))
    return math.exp(score if math.isnan(score) else min(max(score, -limit), limit))


@numba.njit(nogil=True, cache=True)
def _slope(score: float, kind: int, limit: float) -> float:
    if kind == _SOFTPLUS:
        small = math.exp(-abs(score))
        return (1.0 if score > 0.0 else small) / (1.0 + small)
    return 0.0 if score < -limit or score > limit else math.exp(score)


@numba.njit(nogil=True, cache=True)
def _scores_of_row(line: np.ndarray, dots: np.ndarray, problem: tiles.Problem, b: int, i: int, column: int) -> None:
    for j in range(line.size):
        line[j] = problem.scale[b] * dots[j] + (problem.query_bias[b, i] + problem.key_bias[b, column + j])


@numba.njit(nogil=True, cache=True)
def _forward_phase(
    problem: tiles.Problem,
    rows_out: np.ndarray,
    kind: int,
    limit: float,
    plan: tiles.Plan,
    phase: int,
    begin: int,
    end: int,
) -> None:
    """Add the tiles of one phase to rows_out [positive, sum]."""
    for task in range(begin, end):
        b = task // plan.row_slabs
        for tile in tiles._tiles(problem, plan, phase, task):
            row, rows, column, columns = tile
            dots, line = np.empty((rows, columns)), np.empty(columns)
            tiles._tile_dots(dots, problem, b, tile)
            for i in range(rows):
                _scores_of_row(line, dots[i], problem, b, row + i, column)
                pair = problem.positive[b, row + i] - column
                if 0 <= pair < columns:
                    rows_out[0, b, row + i] = line[pair]
                    line[pair] = -np.inf
                total = 0.0
                for j in range(columns):
                    total += _value(line[j], kind, limit)
                rows_out[1, b, row + i] += total


@numba.njit(nogil=True, cache=True)
def _backward_phase(
    problem: tiles.Problem,
    pull: np.ndarray,
    sums: tiles.Sums,
    kind: int,
    limit: float,
    plan: tiles.Plan,
    phase: int,
    begin: int,
    end: int,
) -> None:
    """Add the tiles of one phase to the sums; `pull` has the gradients of the positives and of the row sums."""
    for task in range(begin, end):
        b = task // plan.row_slabs
        for tile in tiles._tiles(problem, plan, phase, task):
            row, rows, column, columns = tile
            dots, line = np.empty((rows, columns)), np.empty(columns)
            gradient = np.empty((rows, columns), problem.query.dtype)
            tiles._tile_dots(dots, problem, b, tile)
            for i in range(rows):
                _scores_of_row(line, dots[i], problem, b, row + i, column)
                pair = problem.positive[b, row + i] - column
                for j in range(columns):
                    value = pull[0, b, row + i] if j == pair else pull[1, b, row + i] * _slope(line[j], kind, limit)
                    gradient[i, j] = value
                    sums.rows[0, b, row + i] += value
                    sums.rows[1, b, row + i] += value * dots[i, j]
                    sums.columns[b, column + j] += value
            if sums.query.size:
                tiles._add_product(sums.query[b], gradient, problem.key[b], row, column)
            if sums.key.size:
                tiles._add_product(sums.key[b], np.ascontiguousarray(gradient.T), problem.query[b], column, row)


def _problem(inputs: Sequence[Tensor | None], batch: torch.Size) -> tuple[tiles.Problem, np.dtype]:
    """The inputs in double, and the precision they came in.

    A clipped map has slopes only near score 0, where long products cancel: added in float32 without a fused
    multiply-add they miss torch's error by up to a factor 5.
    """
    assert inputs[0] is not None
    dtype = inputs[0].detach()[..., :0, :0].numpy().dtype
    wide = [t.double() if t is not None and t.is_floating_point() else t for t in inputs]
    return scores_fallback._problem(wide, batch), dtype


def forward(
    inputs: Sequence[Tensor | None], kind: int, limit: float, batch: torch.Size, threads: int
) -> tuple[Tensor, ...]:
    """Positives and sums at the full batch shape; `inputs` are query, key, positive, scale and the two biases."""
    problem, dtype = _problem(inputs, batch)
    (size, n, _), m = problem.query.shape, problem.key.shape[1]
    rows = np.zeros((2, size, n))
    rows[0] = np.nan
    scores_fallback._run(_forward_phase, (problem, rows, kind, limit), scores_fallback._plan(n, m), size, threads)
    rows[1][(problem.positive < 0) | (problem.positive >= m)] = np.nan
    return tuple(torch.from_numpy(part.astype(dtype)).reshape(*batch, n) for part in rows)


def backward(
    inputs: Sequence[Tensor | None],
    kind: int,
    limit: float,
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
    batch: torch.Size,
    threads: int,
) -> list[Tensor | None]:
    """Gradients in query, key, scale and the two biases, at the full batch shape; None where not wanted."""
    problem, dtype = _problem(inputs, batch)
    (size, n, d), m = problem.query.shape, problem.key.shape[1]
    pull = np.stack([scores_fallback._vector(grad, batch, n) for grad in grads])
    sums = tiles.Sums(
        rows=np.zeros((2, size, n)),
        columns=np.zeros((size, m)),
        query=np.zeros((size, n, d) if wanted[0] else (size, 0, 0)),
        key=np.zeros((size, m, d) if wanted[1] else (size, 0, 0)),
    )
    arrays = (problem, pull, sums, kind, limit)
    scores_fallback._run(_backward_phase, arrays, scores_fallback._plan(n, m), size, threads)
    if wanted[0]:
        np.multiply(sums.query, problem.scale[:, None, None], out=sums.query)
    if wanted[1]:
        np.multiply(sums.key, problem.scale[:, None, None], out=sums.key)
    scale = np.array([tiles.ordered_sum(line) for line in sums.rows[1]]) if wanted[2] else sums.rows[1]
    results = (sums.query, sums.key, scale, sums.rows[0], sums.columns)
    shapes = ((n, d), (m, d), (), (n,), (m,))
    return [
        torch.from_numpy(array.astype(dtype)).reshape((*batch, *shape)) if want else None
        for array, shape, want in zip(results, shapes, wanted, strict=True)
    ]
