"""Contrastive scores in Numba: the tiles, phases and sums of csrc/kernels/infonce_scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bitlens.kernels import _fallback
from bitlens.kernels.infonce_scores import fallback_tiles as tiles

_MAX_SLABS = 32


def _per_slab(length: int) -> int:
    count = (length + tiles.TILE - 1) // tiles.TILE
    return max(1, (count + _MAX_SLABS - 1) // _MAX_SLABS) * tiles.TILE


def _plan(n: int, m: int) -> tiles.Plan:
    rows_per_slab, columns_per_slab = _per_slab(n), _per_slab(m)
    row_slabs = (n + rows_per_slab - 1) // rows_per_slab
    column_slabs = (m + columns_per_slab - 1) // columns_per_slab
    return tiles.Plan(rows_per_slab, columns_per_slab, row_slabs, max(row_slabs, column_slabs))


def _finite_or_nan(value: Tensor) -> Tensor:
    return value.detach().masked_fill(value.detach().isinf(), torch.nan)


def _matrix(tensor: Tensor, batch: torch.Size) -> np.ndarray:
    shape = tensor.shape[-2:]
    expanded = _finite_or_nan(tensor).expand(*batch, *shape)
    return expanded.reshape(batch.numel(), *shape).contiguous().numpy()


def _vector(values: Tensor | None, batch: torch.Size, length: int) -> np.ndarray:
    """[batch, length] in double; absent means 0."""
    if values is None:
        return np.zeros((batch.numel(), length))
    return values.detach().double().expand(*batch, length).reshape(batch.numel(), length).contiguous().numpy()


def _bias(bias: Tensor | None, batch: torch.Size, length: int) -> np.ndarray:
    """A bias of -inf stays, any other infinity becomes NaN."""
    vector = _vector(bias, batch, length)
    return np.where(vector == np.inf, np.nan, vector)


def _problem(inputs: Sequence[Tensor | None], batch: torch.Size) -> tiles.Problem:
    query, key, positive, scale, query_bias, key_bias = inputs
    assert query is not None
    assert key is not None
    assert scale is not None
    n, m, size = query.shape[-2], key.shape[-2], batch.numel()
    keys = _matrix(key, batch)
    columns = torch.arange(n) if positive is None else positive
    return tiles.Problem(
        query=_matrix(query, batch),
        key=keys,
        key_transposed=np.ascontiguousarray(keys.transpose(0, 2, 1)),
        positive=columns.expand(*batch, n).reshape(size, n).contiguous().numpy(),
        scale=_finite_or_nan(scale.double()).expand(batch).reshape(size).contiguous().numpy(),
        query_bias=_bias(query_bias, batch, n),
        key_bias=_bias(key_bias, batch, m),
    )


def _run(
    phase_function: Callable[..., None], arrays: tuple[object, ...], plan: tiles.Plan, size: int, threads: int
) -> None:
    """Every phase in turn; the tasks of one are independent, so the number of threads does not change a bit."""
    tasks = size * plan.row_slabs
    for phase in range(plan.phases if tasks else 0):

        def run(begin: int, end: int, phase: int = phase) -> None:
            phase_function(*arrays, plan, phase, begin, end)

        _fallback.in_threads(run, tasks, 1, threads)


def forward(inputs: Sequence[Tensor | None], batch: torch.Size, threads: int) -> tuple[Tensor, ...]:
    """The four outputs at the full batch shape; `inputs` are query, key, positive, scale and the two biases."""
    problem = _problem(inputs, batch)
    (size, n, _), m = problem.query.shape, problem.key.shape[1]
    rows, columns = np.zeros((3, size, n)), np.zeros((2, size, m))
    rows[0], rows[2], columns[0] = -np.inf, np.nan, -np.inf
    _run(tiles.forward_phase, (problem, rows, columns), _plan(n, m), size, threads)

    negatives, total, column = np.empty(size * n), np.empty(size * n), np.empty(size * m)
    largest, sums, positive = rows.reshape(3, -1)
    tiles.totals(largest, sums, negatives)
    negatives[((problem.positive < 0) | (problem.positive >= m)).reshape(-1)] = np.nan
    tiles.join_positives(largest, sums, positive)
    tiles.totals(largest, sums, total)
    tiles.totals(columns[0].reshape(-1), columns[1].reshape(-1), column)
    outputs = ((positive, n), (total, n), (negatives, n), (column, m))
    return tuple(
        torch.from_numpy(array.astype(problem.query.dtype)).reshape(*batch, length) for array, length in outputs
    )


def backward(
    inputs: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
    batch: torch.Size,
    threads: int,
) -> list[Tensor | None]:
    """Gradients in query, key, scale and the two biases, at the full batch shape; None where not wanted."""
    problem = _problem(inputs, batch)
    (size, n, d), m = problem.query.shape, problem.key.shape[1]
    rows = np.stack([_vector(t, batch, n) for t in (*saved[:2], None, grads[1], grads[0])])
    tiles.row_weights(rows.reshape(5, -1), _vector(grads[2], batch, n).reshape(-1))
    columns = np.stack([_vector(saved[2], batch, m), _vector(grads[3], batch, m)])
    if grads[3] is None:
        columns[0] = -np.inf  # no pull, whatever the column holds
    sums = tiles.Sums(
        rows=np.zeros((2, size, n)),
        columns=np.zeros((size, m)),
        query=np.zeros((size, n, d) if wanted[0] else (size, 0, 0)),
        key=np.zeros((size, m, d) if wanted[1] else (size, 0, 0)),
    )
    _run(tiles.backward_phase, (problem, tiles.Pull(rows, columns), sums), _plan(n, m), size, threads)

    if wanted[0]:
        np.multiply(sums.query, problem.scale[:, None, None], out=sums.query)
    if wanted[1]:
        np.multiply(sums.key, problem.scale[:, None, None], out=sums.key)
    scale = np.array([tiles.ordered_sum(line) for line in sums.rows[1]]) if wanted[2] else sums.rows[1]
    results = (sums.query, sums.key, scale, sums.rows[0], sums.columns)
    shapes = ((n, d), (m, d), (), (n,), (m,))
    return [
        torch.from_numpy(array.astype(problem.query.dtype)).reshape((*batch, *shape)) if want else None
        for array, shape, want in zip(results, shapes, wanted, strict=True)
    ]
