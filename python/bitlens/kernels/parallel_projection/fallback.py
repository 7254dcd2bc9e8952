"""The sums of `reference` in Numba.

Both directions look up running sums, of a line of pixels or of the bins of a view; nothing is scattered, so that every
output is added up by one thread in a fixed order. All of it is in double, because the running sums cancel.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from bitlens.kernels import _fallback
from bitlens.kernels.parallel_projection.reference import Views

# Lookups of one thread that make the start of another, 0.1 ms, worth while.
_GRAIN = 100_000


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _running_loop(image: Any, factor: Any, transposed: bool, out: Any, begin: int, end: int) -> None:
    """out [batch, line, pixel + 2]: factor [line] times the integral of a line up to every edge, the last one twice."""
    lines, pixels = out.shape[1], out.shape[2] - 2
    for item in range(begin, end):
        index, line = item // lines, item % lines
        total = 0.0
        out[index, line, 0] = 0.0
        for pixel in range(pixels):
            value = image[index, pixel, line] if transposed else image[index, line, pixel]
            total += factor[line] * value
            out[index, line, pixel + 1] = total
        out[index, line, pixels + 1] = total


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_lookups(sums: Any, table: Any, start: float, step: float) -> None:
    """sums[n] += table at start + step n, linear between its entries, constant beyond its first and last but one."""
    limit, count = float(table.size - 2), float(sums.size)
    if not np.isfinite(start):
        sums += np.nan
        return
    enters, leaves = -start / step, (limit - start) / step
    if step < 0:
        enters, leaves = leaves, enters
    # Rounding may put the outermost positions 1e-13 outside: the cast and the table's spare entry allow for it.
    first = int(min(max(np.ceil(enters), 0.0), count))
    last = int(min(max(np.floor(leaves) + 1.0, float(first)), count))
    for n in range(first):
        sums[n] += table[0] if step > 0 else table[-1]
    for n in range(first, last):
        x = start + step * n
        entry = np.uint64(x)
        value = table[entry]
        sums[n] += value + (x - entry) * (table[entry + np.uint64(1)] - value)
    for n in range(last, sums.size):
        sums[n] += table[-1] if step > 0 else table[0]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _project_loop(of_rows: Any, of_columns: Any, views: Any, out: Any, begin: int, end: int) -> None:
    """out [batch, view, bin] from running sums of rows and of columns; begin to end count batch x view."""
    start, width, slope, inside, factor = views
    n_views, bins = out.shape[1:]
    sums = np.empty(bins + 1)
    for item in range(begin, end):
        image, view = item // n_views, item % n_views
        if not (inside[0, view] or inside[1, view]):
            continue
        part = 0 if inside[0, view] else 1
        running = of_rows if part == 0 else of_columns
        sums[:] = 0.0
        for line in range(running.shape[1]):
            _add_lookups(sums, running[image, line], start[part, view] + slope[part, view] * line, width[part, view])
        for k in range(bins):
            out[image, view, k] = factor[view] * (sums[k + 1] - sums[k])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _backproject_loop(running: Any, views: Any, of_rows: Any, of_columns: Any, begin: int, end: int) -> None:
    """of_rows [batch, row, column], of_columns [batch, column, row]; begin to end count batch x (row and column)."""
    start, width, slope, inside, _ = views
    rows, columns = of_rows.shape[1:]
    every_sum = np.empty(max(rows, columns) + 1)
    for item in range(begin, end):
        image, line = item // (rows + columns), item % (rows + columns)
        part = 0 if line < rows else 1
        line -= part * rows
        target = of_rows[image, line] if part == 0 else of_columns[image, line]
        sums = every_sum[: target.size + 1]
        sums[:] = 0.0
        for view in range(inside.shape[1]):
            if inside[part, view]:
                place = start[part, view] + slope[part, view] * line
                _add_lookups(sums, running[image, view], -place / width[part, view], 1.0 / width[part, view])
        for pixel in range(target.size):
            target[pixel] = sums[pixel + 1] - sums[pixel]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _join_loop(of_rows: Any, of_columns: Any, out: Any, begin: int, end: int) -> None:
    """out [batch, row, column], the sum of rows and transposed columns; begin to end count batch x row."""
    rows, columns = out.shape[1:]
    for item in range(begin, end):
        image, row = item // rows, item % rows
        for column in range(columns):
            out[image, row, column] = of_rows[image, row, column] + of_columns[image, column, row]


def in_threads(
    loop: Any, inputs: tuple[Any, ...], outputs: tuple[Any, ...], count: int, each: int, threads: int
) -> None:
    """Run the loop over `count` items of about `each` lookups."""
    _fallback.in_threads(
        lambda begin, end: loop(*inputs, *outputs, begin, end), count, max(1, _GRAIN // max(1, each)), threads
    )


# What follows fills arrays made by NumPy and takes running sums in loops: a handful of torch's operations, each of
# which waits for all threads, took several times as long as the loops on a busy machine.


def running_sums(image: Tensor, factor: np.ndarray, threads: int, transposed: bool = False) -> np.ndarray:
    """(batch, line, pixel + 2): factor (line,) times the integral of a line up to every edge, the last one twice."""
    batch, lines, pixels = (image.mT if transposed else image).shape
    out = np.empty((batch, lines, pixels + 2))
    arrays = (image.contiguous().numpy(), factor, transposed)
    in_threads(_running_loop, arrays, (out,), batch * lines, pixels, threads)
    return out


def running_sums_both(image: Tensor, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Running sums of rows, and those of columns."""
    ones = np.ones(max(image.shape[1:]))
    return running_sums(image, ones, threads), running_sums(image, ones, threads, transposed=True)


def join(of_rows: np.ndarray, of_columns: np.ndarray, dtype: np.dtype, threads: int) -> Tensor:
    """(batch, row, column), the sum of the rows' part and of the transposed columns' part."""
    batch, rows, columns = of_rows.shape
    out = np.empty((batch, rows, columns), dtype=dtype)
    in_threads(_join_loop, (of_rows, of_columns), (out,), batch * rows, columns, threads)
    return torch.from_numpy(out)


def project(image: Tensor, views: Views, n_bins: int, threads: int) -> Tensor:
    """(batch, view, bin) of `image` (batch, row, column)."""
    n_views = len(views.factor)
    out = np.zeros((len(image), n_views, n_bins), dtype=image.numpy().dtype)
    inputs = (*running_sums_both(image, threads), _arrays(views))
    in_threads(_project_loop, inputs, (out,), len(image) * n_views, max(image.shape[1:]) * n_bins, threads)
    return torch.from_numpy(out)


def backproject(bins: Tensor, views: Views, shape: tuple[int, int], threads: int) -> Tensor:
    """(batch, row, column) of `bins` (batch, view, bin)."""
    (batch, n_views, _), (rows, columns) = bins.shape, shape
    of_rows, of_columns = np.empty((batch, rows, columns)), np.empty((batch, columns, rows))
    weight = torch.where(views.inside, views.factor * views.width.abs(), 0.0).sum(0)
    inputs = (running_sums(bins, weight.numpy(), threads), _arrays(views))
    each = n_views * max(shape) // 2
    in_threads(_backproject_loop, inputs, (of_rows, of_columns), batch * (rows + columns), each, threads)
    return join(of_rows, of_columns, bins.numpy().dtype, threads)


def _arrays(views: Views) -> tuple[np.ndarray, ...]:
    return tuple(value.contiguous().numpy() for value in views)
