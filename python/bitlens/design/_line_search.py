"""Descent with a memory of curvature within a box: L-BFGS whose every iteration can be put on file and gone on from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Pairs of steps and gradient changes that are remembered, and evaluations of one line search.
_MEMORY, _MOST_TRIALS = 10, 30
# A step must lower the function by this share of what its slope promises, and leave no more than that of the slope.
_DECREASE, _CURVATURE = 1e-4, 0.9
# A point is a minimum once a step gains less than this share, or no slope within the box is steeper than that.
_SMALLEST_GAIN, _FLAT = 2.2e-9, 1e-5

# Why a descent ends: the first two at a minimum, as far as numbers tell.
FLAT, SMALL = "no slope is left", "a step gains next to nothing"
STUCK, NOT_FINITE = "no step gains anything", "the objective is not finite"

Function = Callable[[Tensor], tuple[float, Tensor]]


class Box(NamedTuple):
    """Lower and upper end of each number, (n,), infinite where there is none."""

    lower: Tensor
    upper: Tensor

    def clamp(self, x: Tensor) -> Tensor:
        """The nearest point inside."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)


class Point(NamedTuple):
    """A point (n,) with the function's value and gradient there, and the remembered pairs, latest last, (m, n)."""

    x: Tensor
    value: float
    gradient: Tensor
    steps: Tensor
    changes: Tensor


def first_point(function: Function, x: Tensor) -> Point:
    """`x` with nothing remembered."""
    value, gradient = function(x)
    return Point(x, value, gradient, x.new_zeros(0, len(x)), x.new_zeros(0, len(x)))


def next_point(function: Function, point: Point, box: Box) -> tuple[Point, str]:
    """The point one iteration lower, and why it is the last one ("" while it is not).

    Numbers at an end of the box that the gradient holds there stay; the others follow the L-BFGS direction along its
    projection onto the box, as far as the weak Wolfe conditions ask.

    Reference: Bertsekas 1982, doi:10.1137/0320018 (projected Newton); Nocedal and Wright 2006, Numerical Optimization,
        algorithm 7.4; Lewis and Overton 2013, doi:10.1007/s10107-012-0514-2 (line search).
    """
    x, gradient = point.x, point.gradient
    if not (math.isfinite(point.value) and bool(gradient.isfinite().all())):
        return point, NOT_FINITE
    if float((box.clamp(x - gradient) - x).abs().max()) <= _FLAT:
        return point, FLAT
    held = ((x <= box.lower) & (gradient > 0)) | ((x >= box.upper) & (gradient < 0))
    direction = _direction(point, held)
    steepest = torch.where(held, 0.0, -gradient)
    tries = [(direction, True)] if len(point.steps) else []
    for trial_direction, known in (*tries, (steepest, False)):
        length = 1.0 if known else min(1.0, 1.0 / float(torch.linalg.vector_norm(trial_direction)))
        found = _search(function, point, trial_direction, length, box)
        if found is not None:
            break
        # The memory misled: the next try begins without it.
        point = point._replace(steps=point.steps[:0], changes=point.changes[:0])
    if found is None:
        return point, STUCK
    lower = _remembering(point, *found)
    gain = point.value - lower.value
    small = gain <= _SMALLEST_GAIN * max(abs(point.value), abs(lower.value), 1.0)
    return lower, SMALL if small else ""


def _direction(point: Point, held: Tensor) -> Tensor:
    """-H g by the two-loop recursion over the numbers that are not held."""
    free = ~held
    q = torch.where(free, point.gradient, 0.0)
    pairs = []
    for step, change in zip(point.steps, point.changes, strict=True):
        step, change = step * free, change * free
        curvature = float(step @ change)
        if curvature > 1e-12 * float(change @ change):
            pairs.append((step, change, curvature))
    weights = []
    for step, change, curvature in reversed(pairs):
        weights.append(float(step @ q) / curvature)
        q = q - weights[-1] * change
    if pairs:
        _, change, curvature = pairs[-1]
        q = q * (curvature / float(change @ change))
    for (step, change, curvature), weight in zip(pairs, reversed(weights), strict=True):
        q = q + (weight - float(change @ q) / curvature) * step
    return -q


def _search(
    function: Function, point: Point, direction: Tensor, length: float, box: Box
) -> tuple[Tensor, float, Tensor] | None:
    """A point along the projected direction that is low and flat enough; None where none is lower."""
    if float(direction @ point.gradient) >= 0:
        return None
    shortest, longest = 0.0, math.inf
    best: tuple[Tensor, float, Tensor] | None = None
    for _ in range(_MOST_TRIALS):
        x = box.clamp(point.x + length * direction)
        promised = float(point.gradient @ (x - point.x))
        if promised >= 0:  # nowhere to go within the box, or by less than rounding
            break
        value, gradient = function(x)
        if not math.isfinite(value) or value > point.value + _DECREASE * promised:
            longest = length
        else:
            # The slope along what still moves: numbers that have come to an end of the box are no reason to go on.
            moving = torch.where(x == point.x + length * direction, direction, 0.0)
            if best is None or value <= best[1]:
                best = x, value, gradient
            if float(gradient @ moving) >= _CURVATURE * float(point.gradient @ moving):
                break
            shortest = length
        length = 2.0 * length if math.isinf(longest) else 0.5 * (shortest + longest)
    return best


def _remembering(point: Point, x: Tensor, value: float, gradient: Tensor) -> Point:
    step, change = x - point.x, gradient - point.gradient
    steps, changes = point.steps, point.changes
    if float(step @ change) > 1e-12 * float(change @ change):
        steps = torch.cat((steps, step[None]))[-_MEMORY:]
        changes = torch.cat((changes, change[None]))[-_MEMORY:]
    return Point(x, value, gradient, steps, changes)
