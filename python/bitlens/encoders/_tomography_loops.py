"""Sums over the pixels between the edges of detector bins, their exact adjoint and their slopes.

Part 0 holds the rays that cross the image's rows at less than 45 degrees from their normal; part 1 the others, which do
so in the transpose of the image. The ray at the edge between two bins crosses row i at the column position
x = intercept + slope i, with 0 at the first pixel's outer edge. With P(x) the integral of row i from 0 to x, linear
within a pixel, a bin collects sum_i weight_i (P(x right) - P(x left)). The sums and their adjoint both look values up
in running sums, of a row or of the bins; nothing is scattered, so that every output is added up by one thread in a
fixed order. All of it is in double, because the running sums cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from torch import Tensor

from bitlens.encoders._tomography_rays import NEAR, Rays
from bitlens.encoders._tomography_tensors import adjoint_in_torch, pieces, slopes_in_torch, sums_in_torch
from bitlens.kernels import _fallback

# Lookups of one thread that make the start of another, 0.1 ms, worth while.
_GRAIN = 100_000


def bin_sums(image: Tensor, rays: Rays) -> Tensor:
    """(batch, view, bin) of `image` (batch, row, column), of its dtype."""
    return (_sums_on_cpu if image.device.type == "cpu" else sums_in_torch)(image, rays)


def bin_sums_adjoint(bins: Tensor, rays: Rays, shape: tuple[int, int]) -> Tensor:
    """(batch, row, column) of `bins` (batch, view, bin), of their dtype: the adjoint of `bin_sums`."""
    return (_adjoint_on_cpu if bins.device.type == "cpu" else adjoint_in_torch)(bins, rays, shape)


def edge_slopes(image: Tensor, rays: Rays) -> Tensor:
    """(3, part, batch, view, edge): d (sum up to an edge) / d its intercept, slope and source row, float64."""
    return (_slopes_on_cpu if image.device.type == "cpu" else slopes_in_torch)(image, rays)


# ---- loops ----

_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def _compile(loop: _Loop) -> _Loop:
    compiled: _Loop = numba.njit(nogil=True, cache=True, error_model="numpy")(loop)
    return compiled


@_compile
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


@_compile
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


@_compile
def _parallel_loop(of_rows: Any, of_columns: Any, rays: Any, out: Any, begin: int, end: int) -> None:
    """out [batch, view, bin] from running sums of rows and of columns; begin to end count batch x view."""
    intercept, slope, _, _, inside, _, edge, factor = rays
    views, edges = intercept.shape[1], edge.size
    sums = np.empty(edges)
    for item in range(begin, end):
        image, view = item // views, item % views
        part = 0 if inside[0, view, 0] else 1
        running = of_rows if part == 0 else of_columns
        sums[:] = 0.0
        for row in range(running.shape[1]):
            start = intercept[part, view, 0] + slope[part, view, 0] * row
            _add_lookups(sums, running[image, row], start, intercept[part, view, 1])
        for k in range(edges - 1):
            out[image, view, k] = factor[view] * (sums[k + 1] - sums[k])


@_compile
def _parallel_adjoint_loop(
    running: Any, _: Any, rays: Any, of_rows: Any, of_columns: Any, begin: int, end: int
) -> None:
    """of_rows [batch, row, column], of_columns [batch, column, row]; begin to end count batch x (row and column)."""
    intercept, slope, _source, _inverse, inside, _direction, _edge, _factor = rays
    rows, columns = of_rows.shape[1:]
    every_sum = np.empty(max(rows, columns) + 1)
    for item in range(begin, end):
        image, line = item // (rows + columns), item % (rows + columns)
        part = 0 if line < rows else 1
        line -= part * rows
        target = of_rows[image, line] if part == 0 else of_columns[image, line]
        sums = every_sum[: target.size + 1]
        sums[:] = 0.0
        for view in range(intercept.shape[1]):
            if inside[part, view, 0]:
                width = intercept[part, view, 1]
                start = intercept[part, view, 0] + slope[part, view, 0] * line
                _add_lookups(sums, running[image, view], -start / width, 1.0 / width)
        for pixel in range(target.size):
            target[pixel] = sums[pixel + 1] - sums[pixel]


@_compile
def _join_loop(of_rows: Any, of_columns: Any, out: Any, begin: int, end: int) -> None:
    """out [batch, row, column], the sum of rows and transposed columns; begin to end count batch x row."""
    rows, columns = out.shape[1:]
    for item in range(begin, end):
        image, row = item // rows, item % rows
        for column in range(columns):
            out[image, row, column] = of_rows[image, row, column] + of_columns[image, column, row]


@_compile
def _range(inside: Any) -> Any:
    """First of the bins and one past the last of them: they are neighbours."""
    first = 0
    while first < inside.size and not inside[first]:
        first += 1
    last = first
    while last < inside.size and inside[last]:
        last += 1
    return first, last


@_compile
def _fan_loop(of_rows: Any, of_columns: Any, rays: Any, out: Any, begin: int, end: int) -> None:
    """out [batch, view, bin] from running sums of rows and of columns; begin to end count batch x view."""
    intercept, slope, source_row, _, inside, direction, _, factor = rays
    views, edges = intercept.shape[1:]
    sums = np.empty(edges)
    for item in range(begin, end):
        image, view = item // views, item % views
        for part in range(2):
            first, last = _range(inside[part, view])
            if first == last:
                continue
            running = of_rows if part == 0 else of_columns
            columns = running.shape[2] - 2
            alpha, beta = intercept[part, view], slope[part, view]
            sums[:] = 0.0
            for row in range(running.shape[1]):
                distance = row - source_row[part, view]
                if distance * direction[part, view] <= NEAR:
                    continue
                line = running[image, row]
                for edge in range(first, last + 1):
                    x = alpha[edge] + beta[edge] * row
                    # Written so that NaN becomes 0: a cast of NaN to an index may be anything.
                    x = x if x > 0.0 else 0.0
                    x = x if x < columns else float(columns)
                    pixel = np.uint64(x)
                    left = line[pixel]
                    sums[edge] += (left + (x - pixel) * (line[pixel + np.uint64(1)] - left)) / distance
            for k in range(first, last):
                out[image, view, k] = factor[view] * (sums[k + 1] - sums[k])


@_compile
def _fan_adjoint_loop(
    constants: Any, values: Any, rays: Any, of_rows: Any, of_columns: Any, begin: int, end: int
) -> None:
    """constants, values [part, batch, view, bin + 2]; outputs as those of the parallel loop."""
    intercept, slope, source_row, inverse, inside, direction, _, _ = rays
    rows, columns = of_rows.shape[1:]
    views, bins = inside.shape[1:]
    every_sum = np.empty(max(rows, columns) + 1)
    for item in range(begin, end):
        image, line = item // (rows + columns), item % (rows + columns)
        part = 0 if line < rows else 1
        line -= part * rows
        target = of_rows[image, line] if part == 0 else of_columns[image, line]
        sums = every_sum[: target.size + 1]
        sums[:] = 0.0
        for view in range(views):
            first, last = _range(inside[part, view])
            source = source_row[part, view]
            distance, ahead = line - source, direction[part, view]
            if first == last or distance * ahead <= NEAR:
                continue
            a, b, c, d = inverse[part, view]
            constant, value = constants[part, image, view], values[part, image, view]
            source_column = intercept[part, view, first] + slope[part, view, first] * source
            sign = ahead if slope[part, view, last] > slope[part, view, first] else -ahead
            for edge in range(sums.size):
                q = (edge - source_column) / distance
                position = 1.0 + (a - c * q) / (d * q - b)
                position = position if position > 0.0 else 0.0
                position = position if position < bins + 1 else bins + 1.0
                piece = np.uint64(position)
                sums[edge] += sign * (constant[piece] + value[piece] * q)
        for pixel in range(target.size):
            target[pixel] = sums[pixel + 1] - sums[pixel]


@_compile
def _slopes_loop(of_rows: Any, of_columns: Any, rays: Any, out: Any, begin: int, end: int) -> None:
    """out [batch, view, 3, part, edge], zeros before; begin to end count batch x view."""
    intercept, slope, source_row, _, inside, direction, edge_numbers, factor = rays
    views, fan = intercept.shape[1], source_row.size > 0
    for item in range(begin, end):
        image, view = item // views, item % views
        for part in range(2):
            first, last = _range(inside[part, view])
            if first == last:
                continue
            if not fan:
                last = edge_numbers.size - 1
            running = of_rows if part == 0 else of_columns
            columns = running.shape[2] - 2
            for row in range(running.shape[1]):
                weight = factor[view]
                distance = 1.0
                if fan:
                    distance = row - source_row[part, view]
                    if distance * direction[part, view] <= NEAR:
                        continue
                    weight /= distance
                line = running[image, row]
                for edge in range(first, last + 1):
                    if fan:
                        x = intercept[part, view, edge] + slope[part, view, edge] * row
                    else:
                        x = intercept[part, view, 0] + intercept[part, view, 1] * edge + slope[part, view, 0] * row
                    if not x > 0.0:
                        continue
                    x = x if x < columns else float(columns)
                    pixel = np.uint64(x)
                    left = line[pixel]
                    value = line[pixel + np.uint64(1)] - left
                    out[image, view, 0, part, edge] += weight * value
                    out[image, view, 1, part, edge] += weight * row * value
                    if fan:
                        out[image, view, 2, part, edge] += weight / distance * (left + (x - pixel) * value)


def _in_threads(loop: Any, inputs: tuple[Any, ...], outputs: tuple[Any, ...], count: int, each: int) -> None:
    """Run the loop over `count` items of about `each` lookups."""
    _fallback.in_threads(
        lambda begin, end: loop(*inputs, *outputs, begin, end),
        count,
        max(1, _GRAIN // max(1, each)),
        torch.get_num_threads(),
    )


def _arrays(rays: Rays) -> tuple[np.ndarray, ...]:
    return tuple(value.contiguous().numpy() for value in rays)


# What follows fills arrays made by NumPy and takes running sums in loops: a handful of torch's operations, each of
# which waits for all threads, took several times as long as the loops on a busy machine.


def _running(image: Tensor, factor: np.ndarray, transposed: bool = False) -> np.ndarray:
    batch, lines, pixels = (image.mT if transposed else image).shape
    out = np.empty((batch, lines, pixels + 2))
    arrays = (image.resolve_neg().contiguous().numpy(), factor, transposed)
    _in_threads(_running_loop, arrays, (out,), batch * lines, pixels)
    return out


def _running_both(image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    ones = np.ones(max(image.shape[1:]))
    return _running(image, ones), _running(image, ones, transposed=True)


def _sums_on_cpu(image: Tensor, rays: Rays) -> Tensor:
    views, bins = rays.inside.shape[1], len(rays.edge) - 1
    out = np.zeros((len(image), views, bins), dtype=image.numpy().dtype)
    loop = _fan_loop if rays.fan else _parallel_loop
    inputs = (*_running_both(image), _arrays(rays))
    _in_threads(loop, inputs, (out,), len(image) * views, max(image.shape[1:]) * bins)
    return torch.from_numpy(out)


def _adjoint_on_cpu(bins: Tensor, rays: Rays, shape: tuple[int, int]) -> Tensor:
    batch, views, _ = bins.shape
    rows, columns = shape
    of_rows, of_columns = np.empty((batch, rows, columns)), np.empty((batch, columns, rows))
    out = np.empty((batch, rows, columns), dtype=bins.numpy().dtype)
    if rays.fan:
        tables = tuple(value.contiguous().numpy() for value in pieces(bins.double(), rays))
    else:
        width = torch.where(rays.inside[:, :, 0], rays.intercept[:, :, 1].abs(), 0.0).sum(0)
        running = _running(bins, (rays.factor * width).numpy())
        tables = (running, running)
    loop = _fan_adjoint_loop if rays.fan else _parallel_adjoint_loop
    inputs = (*tables, _arrays(rays))
    _in_threads(loop, inputs, (of_rows, of_columns), batch * (rows + columns), views * max(shape) // 2)
    _in_threads(_join_loop, (of_rows, of_columns), (out,), batch * rows, columns)
    return torch.from_numpy(out)


def _slopes_on_cpu(image: Tensor, rays: Rays) -> Tensor:
    views, edges = rays.inside.shape[1], len(rays.edge)
    out = np.zeros((len(image), views, 3, 2, edges))
    inputs = (*_running_both(image), _arrays(rays))
    _in_threads(_slopes_loop, inputs, (out,), len(image) * views, max(image.shape[1:]) * edges)
    return torch.from_numpy(out).permute(2, 3, 0, 1, 4)
