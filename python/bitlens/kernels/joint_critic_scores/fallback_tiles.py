"""The tiles of `joint_critic_scores` in Numba, in the order of visits of csrc/kernels/joint_critic_scores."""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

from bitlens.kernels.infonce_scores import fallback_tiles as sums_of_tiles

TILE = sums_of_tiles.TILE
Plan = sums_of_tiles.Plan
_SHARED_RANGE = sums_of_tiles._SHARED_RANGE
_highest, _lowest = sums_of_tiles._highest, sums_of_tiles._lowest
_merge, _share = sums_of_tiles._merge, sums_of_tiles._share


class Problem(NamedTuple):
    """The inputs of one batch item, contiguous; `weight` has no rows with one hidden layer."""

    query: np.ndarray
    key: np.ndarray
    key_transposed: np.ndarray
    positive: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    output: np.ndarray


class Pull(NamedTuple):
    """What a gradient needs of the outputs.

    Attributes:
        rows: total, total of the negatives, weight of the negatives, gradients of the total and of the positive.
        columns: total and its gradient.
    """

    rows: np.ndarray
    columns: np.ndarray


class Sums(NamedTuple):
    """Gradients being added up, in double; those of the second layer for each row slab."""

    query: np.ndarray
    key: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    output: np.ndarray


@numba.njit(nogil=True, cache=True)
def _first_layer(units: np.ndarray, query: np.ndarray, problem: Problem, column: int, columns: int) -> None:
    """units[c, j] = relu(query[c] + key[column + j, c])."""
    for c in range(query.size):
        value, keys, line = query[c], problem.key_transposed[c, column:], units[c]
        for j in range(columns):
            x = value + keys[j]
            line[j] = 0 if x <= 0 else x  # NaN stays


@numba.njit(nogil=True, cache=True)
def _second_layer(second: np.ndarray, units: np.ndarray, problem: Problem, columns: int) -> None:
    """second[k, j] = bias[k] + sum over c of weight[k, c] units[c, j]."""
    for k in range(problem.weight.shape[0]):
        line = second[k]
        line[:columns] = problem.bias[k]
        for c in range(units.shape[0]):
            weight, source = problem.weight[k, c], units[c]
            for j in range(columns):
                line[j] += weight * source[j]


@numba.njit(nogil=True, cache=True)
def _score_line(scores: np.ndarray, units: np.ndarray, output: np.ndarray, columns: int) -> None:
    """scores[j] = sum over k of output[k] relu(units[k, j]), added up in the precision of the inputs."""
    part = np.zeros(columns, units.dtype)
    for k in range(output.size):
        weight, source = output[k], units[k]
        for j in range(columns):
            x = source[j]
            part[j] += weight * (x if not x <= 0 else x - x)
    for j in range(columns):
        scores[j] = part[j]


@numba.njit(nogil=True, cache=True)
def _forward_tile(
    problem: Problem, row_state: np.ndarray, column_state: np.ndarray, tile: tuple[int, int, int, int]
) -> None:
    row, rows, column, columns = tile
    scores = np.empty((rows, columns))
    units = np.empty((problem.query.shape[1], columns), problem.query.dtype)
    second = np.empty((problem.weight.shape[0], columns), problem.query.dtype)
    row_largest, column_largest = np.full(rows, -np.inf), np.full(columns, -np.inf)
    row_sums, column_sums = np.zeros(rows), np.zeros(columns)
    for i in range(rows):
        line = scores[i]
        _first_layer(units, problem.query[row + i], problem, column, columns)
        if problem.weight.shape[0]:
            _second_layer(second, units, problem, columns)
            _score_line(line, second, problem.output, columns)
        else:
            _score_line(line, units, problem.output, columns)
        pair = problem.positive[row + i] - column
        if 0 <= pair < columns:
            row_state[2, row + i] = line[pair]
            line[pair] = -np.inf
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
        pair = problem.positive[row + i] - column
        if 0 <= pair < columns:
            score = row_state[2, row + i]
            _merge(column_state[0], column_state[1], column + pair, score, score, 1.0)


@numba.njit(nogil=True, cache=True)
def _tiles(rows: int, columns: int, plan: Plan, phase: int, slab: int) -> list[tuple[int, int, int, int]]:
    """(row, rows, column, columns) of the tiles where a row slab meets its column slab in this phase."""
    partner = (slab + phase) % plan.phases
    row_end = min((slab + 1) * plan.rows_per_slab, rows)
    column_end = min((partner + 1) * plan.columns_per_slab, columns)
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
    for slab in range(begin, end):
        for tile in _tiles(problem.query.shape[0], problem.key.shape[0], plan, phase, slab):
            _forward_tile(problem, rows, columns, tile)


@numba.njit(nogil=True, cache=True)
def _gradient_line(target: np.ndarray, scores: np.ndarray, problem: Problem, pull: Pull, i: int, column: int) -> None:
    """Gradient in the scores of row i with the columns from `column` on."""
    columns = scores.size
    column_total, grad_column = pull.columns[0, column:], pull.columns[1, column:]
    pair = problem.positive[i] - column
    for j in range(columns):
        if j == pair:
            value = (
                pull.rows[4, i]
                + pull.rows[3, i] * _share(scores[j], pull.rows[0, i])
                + grad_column[j] * _share(scores[j], column_total[j])
            )
        else:
            value = pull.rows[2, i] * _share(scores[j], pull.rows[1, i])
            value += grad_column[j] * _share(scores[j], column_total[j])
        target[j] = value


@numba.njit(nogil=True, cache=True)
def _pull_first_layer(
    sums: Sums, gradient: np.ndarray, units: np.ndarray, row: int, column: int, c: int, weight: float
) -> None:
    """Add weight * gradient[j] to both sides of hidden unit c where it is active."""
    line, total = units[c], 0.0
    for j in range(gradient.size):
        if not line[j] <= 0:
            value = weight * gradient[j]
            total += value
            if sums.key.size:
                sums.key[column + j, c] += value
    if sums.query.size:
        sums.query[row, c] += total


@numba.njit(nogil=True, cache=True)
def _backward_tile(problem: Problem, pull: Pull, sums: Sums, slab: int, tile: tuple[int, int, int, int]) -> None:
    row, rows, column, columns = tile
    hidden, n_second = problem.query.shape[1], problem.weight.shape[0]
    scores, gradient = np.empty(columns), np.empty(columns, problem.query.dtype)
    units = np.empty((hidden, columns), problem.query.dtype)
    second = np.empty((n_second, columns), problem.query.dtype)
    through = np.empty(columns, problem.query.dtype)
    last = second if n_second else units
    for i in range(row, row + rows):
        _first_layer(units, problem.query[i], problem, column, columns)
        if n_second:
            _second_layer(second, units, problem, columns)
        _score_line(scores, last, problem.output, columns)
        _gradient_line(gradient, scores, problem, pull, i, column)
        for k in range(problem.output.size):
            total = 0.0
            for j in range(columns):
                if not last[k, j] <= 0:
                    total += gradient[j] * last[k, j]
            sums.output[slab, k] += total
        if not n_second:
            for c in range(hidden):
                _pull_first_layer(sums, gradient, units, i, column, c, problem.output[c])
            continue
        for k in range(n_second):
            total = 0.0
            for j in range(columns):
                second[k, j] = 0 if second[k, j] <= 0 else gradient[j] * problem.output[k]
                total += second[k, j]
            sums.bias[slab, k] += total
        if sums.weight.size:
            for k in range(n_second):
                for c in range(hidden):
                    total = 0.0
                    for j in range(columns):
                        total += second[k, j] * units[c, j]
                    sums.weight[slab, k, c] += total
        if sums.query.size or sums.key.size:
            for c in range(hidden):
                through[:] = 0
                for k in range(n_second):
                    weight = problem.weight[k, c]
                    for j in range(columns):
                        through[j] += weight * second[k, j]
                _pull_first_layer(sums, through, units, i, column, c, 1.0)


@numba.njit(nogil=True, cache=True)
def backward_phase(problem: Problem, pull: Pull, sums: Sums, plan: Plan, phase: int, begin: int, end: int) -> None:
    """Add the tiles of one phase to the sums."""
    for slab in range(begin, end):
        for tile in _tiles(problem.query.shape[0], problem.key.shape[0], plan, phase, slab):
            _backward_tile(problem, pull, sums, slab, tile)
