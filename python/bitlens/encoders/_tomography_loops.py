"""Sums over the pixels between the edges of detector bins, their exact adjoint and their slopes.

Part 0 holds the rays that cross the image's rows at less than 45 degrees from their normal; part 1 the others, which do
so in the transpose of the image. The ray at the edge between two bins crosses row i at the column position
x = intercept + slope i, with 0 at the first pixel's outer edge. With P(x) the integral of row i from 0 to x, linear
within a pixel, a bin collects sum_i weight_i (P(x right) - P(x left)). The sums and their adjoint both look values up
in running sums, of a row or of the bins; nothing is scattered, so that every output is added up by one thread in a
fixed order. All of it is in double, because the running sums cancel.

Parallel rays have a compiled kernel of their own; the loops here are those of fans and of the slopes.
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
from bitlens.kernels import _backend
from bitlens.kernels.parallel_projection import fallback
from bitlens.kernels.parallel_projection import op as parallel


def bin_sums(image: Tensor, rays: Rays) -> Tensor:
    """(batch, view, bin) of `image` (batch, row, column), of its dtype."""
    if not rays.fan:
        return parallel.project(image, _views(rays), len(rays.edge) - 1)
    return (_sums_on_cpu if image.device.type == "cpu" else sums_in_torch)(image, rays)


def bin_sums_adjoint(bins: Tensor, rays: Rays, shape: tuple[int, int]) -> Tensor:
    """(batch, row, column) of `bins` (batch, view, bin), of their dtype: the adjoint of `bin_sums`."""
    if not rays.fan:
        return parallel.backproject(bins, _views(rays), shape)
    return (_adjoint_on_cpu if bins.device.type == "cpu" else adjoint_in_torch)(bins, rays, shape)


def edge_slopes(image: Tensor, rays: Rays) -> Tensor:
    """(3, part, batch, view, edge): d (sum up to an edge) / d its intercept, slope and source row, float64."""
    return (_slopes_on_cpu if image.device.type == "cpu" else slopes_in_torch)(image, rays)


def _views(rays: Rays) -> parallel.Views:
    start, width = rays.intercept.unbind(-1)
    return parallel.Views(start, width, rays.slope[..., 0], rays.inside[..., 0], rays.factor)


# ---- loops ----

_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def _compile(loop: _Loop) -> _Loop:
    compiled: _Loop = numba.njit(nogil=True, cache=True, error_model="numpy")(loop)
    return compiled


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
    fallback.in_threads(loop, inputs, outputs, count, each, _backend.threads())


def _arrays(rays: Rays) -> tuple[np.ndarray, ...]:
    return tuple(value.contiguous().numpy() for value in rays)


def _running(image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return fallback.running_sums_both(image.resolve_neg(), _backend.threads())


def _sums_on_cpu(image: Tensor, rays: Rays) -> Tensor:
    views, bins = rays.inside.shape[1], len(rays.edge) - 1
    out = np.zeros((len(image), views, bins), dtype=image.numpy().dtype)
    inputs = (*_running(image), _arrays(rays))
    _in_threads(_fan_loop, inputs, (out,), len(image) * views, max(image.shape[1:]) * bins)
    return torch.from_numpy(out)


def _adjoint_on_cpu(bins: Tensor, rays: Rays, shape: tuple[int, int]) -> Tensor:
    batch, views, _ = bins.shape
    rows, columns = shape
    of_rows, of_columns = np.empty((batch, rows, columns)), np.empty((batch, columns, rows))
    inputs = (*(value.contiguous().numpy() for value in pieces(bins.double(), rays)), _arrays(rays))
    each = views * max(shape) // 2
    _in_threads(_fan_adjoint_loop, inputs, (of_rows, of_columns), batch * (rows + columns), each)
    return fallback.join(of_rows, of_columns, bins.numpy().dtype, _backend.threads())


def _slopes_on_cpu(image: Tensor, rays: Rays) -> Tensor:
    views, edges = rays.inside.shape[1], len(rays.edge)
    out = np.zeros((len(image), views, 3, 2, edges))
    inputs = (*_running(image), _arrays(rays))
    _in_threads(_slopes_loop, inputs, (out,), len(image) * views, max(image.shape[1:]) * edges)
    return torch.from_numpy(out).permute(2, 3, 0, 1, 4)
