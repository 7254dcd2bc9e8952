"""Scores of a joint critic in Numba: the tiles, phases and sums of csrc/kernels/joint_critic_scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bitlens.kernels.infonce_scores import fallback_tiles as sums_of_tiles
from bitlens.kernels.infonce_scores.fallback import _finite_or_nan, _matrix, _plan, _run, _vector
from bitlens.kernels.joint_critic_scores import fallback_tiles as tiles


def _problems(inputs: Sequence[Tensor | None], batch: torch.Size) -> Iterator[tiles.Problem]:
    """The inputs of each batch item in turn."""
    query, key, positive, weight, bias, output = inputs
    assert query is not None
    assert key is not None
    assert output is not None
    n, h, size = query.shape[-2], query.shape[-1], batch.numel()
    queries, keys = _matrix(query, batch), _matrix(key, batch)
    columns = torch.arange(n) if positive is None else positive
    positives = columns.expand(*batch, n).reshape(size, n).contiguous().numpy()
    weights = _matrix(query.new_empty(0, h) if weight is None else weight, batch)
    biases = _vector(None if bias is None else _finite_or_nan(bias), batch, weights.shape[1]).astype(queries.dtype)
    outputs = _matrix(output.unsqueeze(-2), batch)[:, 0]
    for b in range(size):
        transposed = np.ascontiguousarray(keys[b].T)
        yield tiles.Problem(queries[b], keys[b], transposed, positives[b], weights[b], biases[b], outputs[b])


def forward(inputs: Sequence[Tensor | None], batch: torch.Size, threads: int) -> tuple[Tensor, ...]:
    """The four outputs at the full batch shape; `inputs` are both halves, positive, second layer and output weight."""
    query, key = inputs[0], inputs[1]
    assert query is not None
    assert key is not None
    size, n, m = batch.numel(), query.shape[-2], key.shape[-2]
    results = [np.empty((size, length)) for length in (n, n, n, m)]
    for b, problem in enumerate(_problems(inputs, batch)):
        rows, columns = np.zeros((3, n)), np.zeros((2, m))
        rows[0], rows[2], columns[0] = -np.inf, np.nan, -np.inf
        _run(tiles.forward_phase, (problem, rows, columns), _plan(n, m), 1, threads)
        largest, sums, positive = rows
        sums_of_tiles.totals(largest, sums, results[2][b])
        results[2][b][(problem.positive < 0) | (problem.positive >= m)] = np.nan
        sums_of_tiles.join_positives(largest, sums, positive)
        results[0][b] = positive
        sums_of_tiles.totals(largest, sums, results[1][b])
        sums_of_tiles.totals(columns[0], columns[1], results[3][b])
    return tuple(torch.from_numpy(array).to(query.dtype).reshape(*batch, array.shape[1]) for array in results)


def backward(
    inputs: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
    batch: torch.Size,
    threads: int,
) -> list[Tensor | None]:
    """Gradients in both halves, the second layer and the output weight, at the full batch shape; None if unwanted."""
    query, key = inputs[0], inputs[1]
    assert query is not None
    assert key is not None
    (n, h), m, size = query.shape[-2:], key.shape[-2], batch.numel()
    plan = _plan(n, m)
    rows = np.stack([_vector(t, batch, n) for t in (*saved[:2], None, grads[1], grads[0])])
    sums_of_tiles.row_weights(rows.reshape(5, -1), _vector(grads[2], batch, n).reshape(-1))
    columns = np.stack([_vector(saved[2], batch, m), _vector(grads[3], batch, m)])
    if grads[3] is None:
        columns[0] = -np.inf  # no pull, whatever the column holds
    found: list[list[np.ndarray]] = [[] for _ in wanted]
    for b, problem in enumerate(_problems(inputs, batch)):
        units, last = problem.weight.shape[0], problem.output.size
        sums = tiles.Sums(
            query=np.zeros((n, h) if wanted[0] else (0, 0)),
            key=np.zeros((m, h) if wanted[1] else (0, 0)),
            weight=np.zeros((plan.row_slabs, units, h) if wanted[2] else (0, 0, 0)),
            bias=np.zeros((plan.row_slabs, units)),
            output=np.zeros((plan.row_slabs, last)),
        )
        pull = tiles.Pull(np.ascontiguousarray(rows[:, b]), np.ascontiguousarray(columns[:, b]))
        _run(tiles.backward_phase, (problem, pull, sums), plan, 1, threads)
        own = (sums.query, sums.key, *(array.sum(axis=0) for array in sums[2:]))
        for part, array in zip(found, own, strict=True):
            part.append(array)
    last = inputs[5].shape[-1] if inputs[5] is not None else 0
    shapes = ((n, h), (m, h), (last, h), (last,), (last,))
    return [
        torch.from_numpy(np.array(part).reshape(size, *shape)).to(query.dtype).reshape(*batch, *shape) if want else None
        for part, want, shape in zip(found, wanted, shapes, strict=True)
    ]
