"""Probability of a bin in Numba: the algorithm of csrc/kernels/poisson_gaussian_bin_log_prob/math.h."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from bitlens.kernels import _fallback
from bitlens.kernels.poisson_gaussian_log_prob.fallback_double import _exact_product, _stirling_error, _wright_omega

# As in math.h, where each is explained.
_MILLS = np.array(
    [
        1.1568486282918946,
        -0.22948753825211315,
        0.07778159886873769,
        0.0250721793016388,
        -0.0661776007790963,
        0.0615050458401865,
        -0.03802659218584139,
        0.01634823128102938,
        -0.004201290329187307,
        1.9530638370790786e-05,
        0.00045704392357953655,
        -0.0001343742785571135,
        -2.480583845192319e-05,
        2.270961270923768e-05,
        -1.7633239265736746e-07,
        -3.277287633208865e-06,
        3.2054316652589574e-07,
        4.91996233147834e-07,
        -6.588974491108954e-08,
        -7.758520236786343e-08,
        9.092476134019147e-09,
        1.1032071151574336e-08,
        -7.073898575561589e-10,
        -9.564832934712551e-10,
    ]
)
_LARGEST_MEAN, _TAIL, _MOST_TERMS, _FAINT = 1e9, 1e-19, 1 << 21, 1e-290
_ROOT_TWO_PI, _LOG_ROOT_TWO_PI = math.sqrt(2 * math.pi), 0.5 * math.log(2 * math.pi)


@numba.njit(nogil=True, cache=True)
def _exp(x: float) -> float:
    return math.exp(min(x, 709.0)) if x > -745.0 else 0.0


@numba.njit(nogil=True, cache=True)
def _mills_ratio(x: float) -> float:
    t = (x - 5.0) / (x + 5.0)
    total = _MILLS[23]
    for power in range(22, -1, -1):
        total = total * t + _MILLS[power]
    return total / (1.0 + x)


@numba.njit(nogil=True, cache=True)
def _bin_mass(
    m: float, half: float, unit: float, side: float, is_open: bool, narrow: bool
) -> tuple[float, float, float, float]:
    """n, mass, edge and moment."""
    if not is_open:
        side = -1.0 if m < 0.0 else 1.0
    distance = m if is_open else abs(m)
    near, far = distance - half, distance + half
    n = max(near, 0.0)
    if narrow and distance * half <= 2.0:
        square = half * half
        scale = unit * _exp(-0.5 * (distance - n) * (distance + n))
        even, odd, total, total_even, total_odd = 1.0, distance, 1.0, 1.0, distance
        for order in range(2, 27, 2):
            even = square * (distance * odd - even) / order
            odd = (distance * even - square * odd) / (order + 1)
            total += even / (order + 1)
            total_even += even
            total_odd += odd
        return n, scale * total, scale * side * total_odd, scale * (total_even - distance * total_odd)
    at_near = 1.0 if near > 0.0 else _exp(-0.5 * near * near)
    tail = at_near * _mills_ratio(abs(near))
    mass = tail if near > 0.0 else _ROOT_TWO_PI - tail
    if is_open:
        return n, mass, side * at_near, -near * at_near
    at_far = _exp(-2.0 * distance * half if near > 0.0 else -0.5 * far * far)
    mass -= at_far * _mills_ratio(far)
    return n, mass, side * (at_near - at_far), far * at_far - near * at_near


@numba.njit(nogil=True, cache=True)
def _log_poisson(k: float, y: float, log_y: float) -> float:
    excess = (k - y) / y
    if abs(excess) < 0.5:
        deviance = y * ((1.0 + excess) * math.log1p(excess) - excess)
    else:
        deviance = k * (math.log(k) - log_y) + (y - k)
    return -deviance - _stirling_error(k) - 0.5 * math.log(k) - _LOG_ROOT_TWO_PI


@numba.njit(nogil=True, cache=True)
def _poisson_tail(count: float, y: float, log_y: float) -> tuple[float, float]:
    """log P(N >= count), and P(N = count - 1) over it."""
    below = count - 1.0
    first = _log_poisson(below, y, log_y) if below > 0.5 else -y
    total, term = 1.0, 1.0
    terms = 0
    if count >= y:
        k = count
        while term > 1e-18 * total and terms < _MOST_TERMS:
            k += 1.0
            term *= y / k
            total += term
            terms += 1
        return first + log_y - math.log(count) + math.log(total), count / (y * total)
    k = below
    while term > 1e-18 * total and terms < _MOST_TERMS:
        term *= max(k, 0.0) / y
        k -= 1.0
        total += term
        terms += 1
    rest = math.log1p(-math.exp(first) * total)
    return rest, math.exp(first - rest)


@numba.njit(nogil=True, cache=True)
def _evaluate(
    measured: float,
    mean: float,
    gain: float,
    offset: float,
    read_std: float,
    below: float,
    above: float,
    well: float,
    out: np.ndarray,
) -> None:
    """Value and first derivatives of one element into out[0:5]."""
    out[:] = math.nan
    if not (0.0 <= mean <= _LARGEST_MEAN and 0.0 < gain < math.inf and 0.0 < read_std < math.inf):
        return
    open_below, open_above = below == math.inf, above == math.inf
    if not (math.isfinite(measured) and math.isfinite(offset) and below >= 0.0 and above >= 0.0 and well > 0.0):
        return
    if open_below and open_above:
        return
    dark = mean < _FAINT
    y = 1.0 if dark else mean
    down, up = 0.0 if open_below else below, 0.0 if open_above else above
    log_y, inverse_s = math.log(y), 1.0 / read_std
    ratio = gain * inverse_s
    a = ratio * ratio
    is_open = open_below or open_above
    width = down + up
    density = width == 0.0 and not is_open
    half = 0.0 if is_open else 0.5 * width * inverse_s
    unit = 1.0 if density else width * inverse_s
    narrow = not is_open and half <= 0.25
    middle = 0.5 * (up - down)
    if is_open:
        middle = up if open_below else -down
    signal = measured - offset
    virtual = measured - signal
    signal_error = (measured - (signal + virtual)) + (virtual - offset)
    side = 1.0 if signal + middle - gain * min(0.0 if dark else y, well) >= 0.0 else -1.0
    complement = is_open and side != (1.0 if open_above else -1.0)
    slope = side * ratio if is_open else ratio

    reach, centre = 0.0 if is_open else 0.5 * width, signal + middle
    nearest = max(centre - reach, min(centre + reach, gain * y))
    solution = _wright_omega(math.log(a) + log_y + ratio * (nearest * inverse_s)) / a
    lumped = math.ceil(min(well, 1e15))
    start = 0.0 if dark else min(max(float(round(min(solution, 9e15))), 0.0), lumped - 1.0)
    product, product_error = _exact_product(gain, start)
    m0 = ((signal - product) - product_error + (middle + signal_error)) * inverse_s * (side if is_open else 1.0)
    n0, mass0, edge0, moment0 = _bin_mass(m0, half, unit, side, is_open, narrow)
    weight, shift, edge, charge, moment, unit_log = mass0, 0.0, edge0, edge0 * start, moment0, 0.0
    at_start = 0.0 if dark else -y
    if start > 0.5:
        at_start = _log_poisson(start, y, log_y)

    by_mean = 0.0
    if not dark:
        reference = max(start, 1.0)
        from_y = (reference - y) / y
        pull = math.log1p(from_y) if abs(from_y) < 0.5 else math.log(reference) - log_y
        base = _stirling_error(reference)
        of_one = 0.0 if start > 0.5 else log_y
        spread = 1.0 / math.sqrt(1.0 / reference + a)
        stride = 1.0
        if start + 40.0 * spread + 40.0 < lumped:
            stride = max(1.0, float(round(spread * 0.25 - 0.5)))
        for direction in (1.0, -1.0):
            k, before, terms = start, weight, 0
            while terms < _MOST_TERMS:
                k += direction * stride
                terms += 1
                if k < 0.0 or k >= lumped:
                    break
                if k > 0.5:
                    d = k - reference
                    growth = math.log1p(d / reference)
                    poisson = of_one - (k * growth - d + d * pull + 0.5 * growth + _stirling_error(k) - base)
                else:
                    poisson = -y - at_start
                n, mass, edge_k, moment_k = _bin_mass(m0 - slope * (k - start), half, unit, side, is_open, narrow)
                exponent = poisson + 0.5 * (n0 - n) * (n0 + n) - unit_log
                if exponent > 200.0:
                    factor = _exp(-exponent)
                    weight, shift, edge, charge, moment = (
                        weight * factor,
                        shift * factor,
                        edge * factor,
                        charge * factor,
                        moment * factor,
                    )
                    unit_log += exponent
                    exponent = 0.0
                scale = _exp(exponent)
                added = scale * mass
                weight += added
                shift += added * (k - start)
                edge += scale * edge_k
                charge += scale * edge_k * k
                moment += scale * moment_k
                if added <= _TAIL * weight and added <= before:
                    break
                before = added
        weight, shift, edge, charge, moment = (
            weight * stride,
            shift * stride,
            edge * stride,
            charge * stride,
            moment * stride,
        )

    log_sum = at_start - 0.5 * n0 * n0 + unit_log + math.log(weight)
    edge, charge, moment = edge / weight, charge / weight, moment / weight
    if not dark:
        by_mean = (start - y) / y + shift / weight / y
        if lumped < 1e15:
            n, mass, edge_k, moment_k = _bin_mass(m0 - slope * (well - start), half, unit, side, is_open, narrow)
            log_mass = math.log(max(mass, 1e-300)) - 0.5 * n * n
            ahead = lumped - y
            bound = -0.5 * ahead * ahead / (y + ahead) if ahead > 0.0 else 0.0
            if bound + log_mass > log_sum - 60.0:
                log_tail, hazard = _poisson_tail(float(lumped), y, log_y)
                log_full = log_tail + log_mass
                top = max(log_sum, log_full)
                below_share, full_share = _exp(log_sum - top), _exp(log_full - top)
                total = below_share + full_share
                kept, added = below_share / total, full_share / total
                scale = added / max(mass, 1e-300)
                log_sum = top + math.log(total)
                by_mean = kept * by_mean + added * hazard
                edge = kept * edge + scale * edge_k
                charge = kept * charge + scale * edge_k * well
                moment = kept * moment + scale * moment_k
    norm = _LOG_ROOT_TWO_PI + (math.log(read_std) if density else 0.0)
    log_sum -= norm
    factor, part = 1.0, 0.0
    out[0] = log_sum if density else min(log_sum, 0.0)
    if complement:
        part = min(_exp(min(log_sum, 0.0)), 1.0 - 1e-15)
        out[0] = math.log1p(-part)
        factor = -part / (1.0 - part)
    if dark:  # one electron is the only other count that a little light would bring
        n, mass, _, _ = _bin_mass(m0 - slope * min(1.0, well), half, unit, side, is_open, narrow)
        one_log = math.log(max(mass, 1e-300)) - 0.5 * n * n - norm
        if complement:
            out[1] = (part - _exp(min(one_log, 0.0))) / (1.0 - part)
        else:
            out[1] = _exp(min(one_log - log_sum, 708.0)) - 1.0
    else:
        out[1] = factor * by_mean
    out[2] = factor * charge * inverse_s
    out[3] = factor * edge * inverse_s
    out[4] = -factor * moment * inverse_s


@numba.njit(nogil=True, cache=True)
def _evaluate_range(
    measured: np.ndarray,
    mean: np.ndarray,
    gain: np.ndarray,
    offset: np.ndarray,
    read_std: np.ndarray,
    below: np.ndarray,
    above: np.ndarray,
    well: np.ndarray,
    outputs: np.ndarray,
    begin: int,
    end: int,
) -> None:
    row = np.empty(5)
    for i in range(begin, end):
        _evaluate(
            np.float64(measured[i]),
            np.float64(mean[i]),
            np.float64(gain[i]),
            np.float64(offset[i]),
            np.float64(read_std[i]),
            np.float64(below[i]),
            np.float64(above[i]),
            np.float64(well[i]),
            row,
        )
        for j in range(outputs.shape[0]):
            outputs[j, i] = row[j]


def poisson_gaussian_bin_log_prob(
    inputs: Sequence[Tensor], shape: torch.Size, order: int, wanted: Sequence[bool], threads: int
) -> list[Tensor | None]:
    """Value and derivatives of broadcast inputs; `wanted` marks which of the 5 outputs to return."""
    flat = [tensor.expand(shape).reshape(-1).numpy() for tensor in inputs]
    count = (1, 5)[order]
    outputs = np.empty((count, flat[0].size), dtype=flat[0].dtype)
    _fallback.in_threads(lambda begin, end: _evaluate_range(*flat, outputs, begin, end), flat[0].size, 512, threads)
    # Copies: the outputs of an operator must not share memory.
    return [
        torch.from_numpy(outputs[i].copy()).reshape(shape) if i < count and want else None
        for i, want in enumerate(wanted)
    ]
