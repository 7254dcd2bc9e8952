"""The tiles of `infonce_scores` in Numba: the sums of csrc/kernels/infonce_scores, in the same order of visits."""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

TILE = 96
# Products that are added up in the precision of the inputs before they join a sum in double.
_DEPTH = 128
# Within this many nats of one reference, one exponential serves a row sum and a column sum.
_SHARED_RANGE = 600.0


class Plan(NamedTuple):
    """Slabs of rows and columns; in phase p row slab r meets column slab (r + p) mod phases."""

    rows_per_slab: int
    columns_per_slab: int
    row_slabs: int
    phases: int


class Problem(NamedTuple):
    """The inputs, contiguous, with one batch axis; biases and scale in double."""

    query: np.ndarray
    key: np.ndarray
    key_transposed: np.ndarray
    positive: np.ndarray
    scale: np.ndarray
    query_bias: np.ndarray
    key_bias: np.ndarray


class Pull(NamedTuple):
    """What a gradient needs of the outputs.

    Attributes:
        rows: total, total of the negatives, weight of the negatives, gradients of the total and of the positive.
        columns: total and its gradient.
    """

    rows: np.ndarray
    columns: np.ndarray


class Sums(NamedTuple):
    """Gradients being added up: rows [score, score * dot product], columns, and the two matrices."""

    rows: np.ndarray
    columns: np.ndarray
    query: np.ndarray
    key: np.ndarray


@numba.njit(nogil=True, cache=True)
def _tile_dots(dots: np.ndarray, problem: Problem, b: int, tile: tuple[int, int, int, int]) -> None:
    row, rows, column, columns = tile
    query, key_transposed = problem.query[b], problem.key_transposed[b]
    features = query.shape[1]
    part = np.empty(columns, query.dtype)
    for i in range(rows):
        for j in range(columns):
            dots[i, j] = 0.0
        line = query[row + i]
        for start in range(0, features, _DEPTH):
            end = min(start + _DEPTH, features)
            part[:] = 0
            k = start
            while k + 4 <= end:
                a0, a1, a2, a3 = line[k], line[k + 1], line[k + 2], line[k + 3]
                b0, b1 = key_transposed[k, column:], key_transposed[k + 1, column:]
                b2, b3 = key_transposed[k + 2, column:], key_transposed[k + 3, column:]
                for j in range(columns):
                    part[j] = part[j] + a0 * b0[j] + a1 * b1[j] + a2 * b2[j] + a3 * b3[j]
                k += 4
            while k < end:
                a0, b0 = line[k], key_transposed[k, column:]
                for j in range(columns):
                    part[j] += a0 * b0[j]
                k += 1
            for j in range(columns):
                dots[i, j] += part[j]


@numba.njit(nogil=True, cache=True)
def _scores_of_row(
    line: np.ndarray, narrow: np.ndarray, dots: np.ndarray, problem: Problem, b: int, i: int, column: int
) -> None:
    """Scores of row i from `column` on, rounded to the precision of the inputs by way of `narrow`.

    The totals that a gradient takes from them are: of a large score and its total only what rounds alike cancels.
    """
    for j in range(line.size):
        narrow[j] = problem.scale[b] * dots[j] + (problem.query_bias[b, i] + problem.key_bias[b, column + j])
    for j in range(line.size):
        line[j] = narrow[j]


@numba.njit(nogil=True, cache=True)
def _share(x: float, total: float) -> float:
    return 0.0 if total == -np.inf else math.exp(x - total)


@numba.njit(nogil=True, cache=True)
def _merge(
    largest: np.ndarray, sums: np.ndarray, i: int, part_largest: float, part_reference: float, part_sum: float
) -> None:
    """Add part_sum exp(part_reference) to a sum kept as (largest, sum of exp(x - largest)); NaN stays in the sum."""
    joined = part_largest if part_largest > largest[i] else largest[i]
    reference = 0.0 if joined == -np.inf else joined
    part = part_largest if part_largest == -np.inf else part_reference
    sums[i] = sums[i] * math.exp(largest[i] - reference) + part_sum * math.exp(part - reference)
    largest[i] = joined


@numba.njit(nogil=True, cache=True)
def _log_sum(largest: float, total: float) -> float:
    return largest + (math.log(total) if total > 0.0 else (-np.inf if total == 0.0 else np.nan))


@numba.njit(nogil=True, cache=True)
def _lowest(values: np.ndarray, count: int, lowest: float) -> float:
    for i in range(count):
        if values[i] != -np.inf and values[i] < lowest:
            lowest = values[i]
    return lowest


@numba.njit(nogil=True, cache=True)
def _highest(values: np.ndarray, count: int) -> float:
    highest = -np.inf
    for i in range(count):
        if values[i] > highest:
            highest = values[i]
    return highest


@numba.njit(nogil=True, cache=True)
def _forward_tile(
    problem: Problem, b: int, row_state: np.ndarray, column_state: np.ndarray, tile: tuple[int, int, int, int]
) -> None:
    row, rows, column, columns = tile
    positive = problem.positive[b]
    scores, narrow = np.empty((rows, columns)), np.empty(columns, problem.query.dtype)
    _tile_dots(scores, problem, b, tile)
    row_largest, column_largest = np.full(rows, -np.inf), np.full(columns, -np.inf)
    row_sums, column_sums = np.zeros(rows), np.zeros(columns)
    for i in range(rows):
        line = scores[i]
        _scores_of_row(line, narrow, line, problem, b, row + i, column)
        j = positive[row + i] - column
        if 0 <= j < columns:
            row_state[2, row + i] = line[j]
            line[j] = -np.inf
        for j in range(columns):
            if line[j] > row_largest[i]:
                row_largest[i] = line[j]
            if line[j] > column_largest[j]:
                column_largest[j] = line[j]

    highest = _highest(row_largest, rows)
    lowest = _lowest(column_largest, columns, _lowest(row_largest, rows, np.inf))
    if lowest >= highest - _SHARED_RANGE:
        reference = 0.0 if highest == -np.inf else highest
        row_reference, column_reference = np.full(rows, reference), np.full(columns, reference)
        for i in range(rows):
            for j in range(columns):
                term = math.exp(scores[i, j] - reference)
                row_sums[i] += term
                column_sums[j] += term
    else:
        row_reference, column_reference = row_largest, column_largest
        for i in range(rows):
            for j in range(columns):
                row_sums[i] += _share(scores[i, j], row_largest[i])
                column_sums[j] += _share(scores[i, j], column_largest[j])
    for i in range(rows):
        _merge(row_state[0], row_state[1], row + i, row_largest[i], row_reference[i], row_sums[i])
    for j in range(columns):
        _merge(column_state[0], column_state[1], column + j, column_largest[j], column_reference[j], column_sums[j])
    for i in range(rows):
        j = positive[row + i] - column
        if 0 <= j < columns:
            score = row_state[2, row + i]
            _merge(column_state[0], column_state[1], column + j, score, score, 1.0)


@numba.njit(nogil=True, cache=True)
def _tiles(problem: Problem, plan: Plan, phase: int, task: int) -> list[tuple[int, int, int, int]]:
    """(row, rows, column, columns) of the tiles where a task's row slab meets its column slab in this phase."""
    slab = task % plan.row_slabs
    partner = (slab + phase) % plan.phases
    row_end = min((slab + 1) * plan.rows_per_slab, problem.query.shape[1])
    column_end = min((partner + 1) * plan.columns_per_slab, problem.key.shape[1])
    return [
        (row, min(TILE, row_end - row), column, min(TILE, column_end - column))
        for column in range(partner * plan.columns_per_slab, column_end, TILE)
        for row in range(slab * plan.rows_per_slab, row_end, TILE)
    ]


@numba.njit(nogil=True, cache=True)
def forward_phase(
    problem: Problem, rows: np.ndarray, columns: np.ndarray, plan: Plan, phase: int, begin: int, end: int
) -> None:
    """Add the tiles of one phase to rows [largest, sum, positive] and columns [largest, sum]."""
    for task in range(begin, end):
        b = task // plan.row_slabs
        for tile in _tiles(problem, plan, phase, task):
            _forward_tile(problem, b, rows[:, b], columns[:, b], tile)


@numba.njit(nogil=True, cache=True)
def _add_product(sums: np.ndarray, weights: np.ndarray, matrix: np.ndarray, row: int, start: int) -> None:
    """sums[row + i] += weights[i] @ matrix[start:], added up in the precision of `matrix` within a tile."""
    count, depth = weights.shape
    line = np.empty(matrix.shape[1], matrix.dtype)
    for i in range(count):
        line[:] = 0
        for k in range(depth):
            weight, source = weights[i, k], matrix[start + k]
            for c in range(line.size):
                line[c] += weight * source[c]
        target = sums[row + i]
        for c in range(line.size):
            target[c] += line[c]


@numba.njit(nogil=True, cache=True)
def _backward_tile(problem: Problem, pull: Pull, sums: Sums, b: int, tile: tuple[int, int, int, int]) -> None:
    row, rows, column, columns = tile
    positive = problem.positive[b]
    dots = np.empty((rows, columns))
    gradient = np.empty((rows, columns), problem.query.dtype)
    line, narrow = np.empty(columns), np.empty(columns, problem.query.dtype)
    _tile_dots(dots, problem, b, tile)
    total, negatives, weight = pull.rows[0, b, row:], pull.rows[1, b, row:], pull.rows[2, b, row:]
    grad_row, grad_positive = pull.rows[3, b, row:], pull.rows[4, b, row:]
    column_total, grad_column = pull.columns[0, b, column:], pull.columns[1, b, column:]

    highest = _highest(negatives, rows)
    lowest = _lowest(column_total, columns, _lowest(negatives, rows, np.inf))
    shared = lowest >= highest - _SHARED_RANGE
    reference = 0.0 if highest == -np.inf else highest
    column_factor = np.zeros(columns)
    if shared:
        for j in range(columns):
            if column_total[j] != -np.inf:
                column_factor[j] = grad_column[j] * math.exp(reference - column_total[j])

    for i in range(rows):
        _scores_of_row(line, narrow, dots[i], problem, b, row + i, column)
        pair = positive[row + i] - column
        here = 0 <= pair < columns
        score = line[pair] if here else 0.0
        if here:
            line[pair] = -np.inf
        if shared:
            row_factor = 0.0 if negatives[i] == -np.inf else weight[i] * math.exp(reference - negatives[i])
            for j in range(columns):
                line[j] = math.exp(line[j] - reference) * (row_factor + column_factor[j])
        else:
            for j in range(columns):
                line[j] = weight[i] * _share(line[j], negatives[i]) + grad_column[j] * _share(line[j], column_total[j])
        if here:
            line[pair] = (
                grad_positive[i]
                + grad_row[i] * _share(score, total[i])
                + grad_column[pair] * _share(score, column_total[pair])
            )
        for j in range(columns):
            gradient[i, j] = line[j]
            sums.rows[0, b, row + i] += line[j]
            sums.rows[1, b, row + i] += line[j] * dots[i, j]
            sums.columns[b, column + j] += line[j]

    if sums.query.size:
        _add_product(sums.query[b], gradient, problem.key[b], row, column)
    if sums.key.size:
        _add_product(sums.key[b], np.ascontiguousarray(gradient.T), problem.query[b], column, row)


@numba.njit(nogil=True, cache=True)
def backward_phase(problem: Problem, pull: Pull, sums: Sums, plan: Plan, phase: int, begin: int, end: int) -> None:
    """Add the tiles of one phase to the sums."""
    for task in range(begin, end):
        for tile in _tiles(problem, plan, phase, task):
            _backward_tile(problem, pull, sums, task // plan.row_slabs, tile)


@numba.njit(nogil=True, cache=True)
def totals(largest: np.ndarray, sums: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.size):
        out[i] = _log_sum(largest[i], sums[i])


@numba.njit(nogil=True, cache=True)
def join_positives(largest: np.ndarray, sums: np.ndarray, positive: np.ndarray) -> None:
    for i in range(positive.size):
        _merge(largest, sums, i, positive[i], positive[i], 1.0)


@numba.njit(nogil=True, cache=True)
def row_weights(rows_in: np.ndarray, grad_negatives: np.ndarray) -> None:
    """rows_in[2]: what both row outputs pull on a negative S with, as a multiple of exp(S - negatives)."""
    for i in range(grad_negatives.size):
        if rows_in[1, i] == -np.inf:
            rows_in[2, i] = 0.0
        else:
            rows_in[2, i] = grad_negatives[i] + rows_in[3, i] * _share(rows_in[1, i], rows_in[0, i])


@numba.njit(nogil=True, cache=True)
def ordered_sum(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += value
    return total
