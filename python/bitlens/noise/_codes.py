"""The distribution of a digitised or saturating sensor's output: support, entropy and moments, tabulated over the mean.

Entropy, expectation and variance of the output are sums over codes (quadratures over ADU without an ADC). For a sensor
of scalar parameters they are made once at nodes of the mean, halved until a cubic Hermite polynomial meets each
midpoint, which puts nodes close at no light, at the ripple of single codes and at the shoulder of saturation. Their
derivatives in gain, offset and read noise come from the same sums. Per-pixel maps are summed pixel by pixel, but for
those in closed form: noise wider than a code and away from both ends of the scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicHermiteSpline, CubicSpline
from torch import Tensor

from bitlens.kernels.poisson_gaussian_bin_log_prob import op as kernel
from bitlens.noise import _entropy

Array = NDArray[np.float64]

_REACH = 9.0  # standard deviations of the output that a sum covers on each side
# Gaussian shapes summed with a third of their standard deviation as step are right to exp(-2 pi^2 9).
_STEPS_PER_SCALE = 3.0
# Noise in codes above which codes are summed in blocks: the midpoint rule errs by 1 / (24 100^2) of the density where
# an end of the scale cuts it, and by nothing elsewhere.
_CODES_IN_BLOCKS, _BLOCKS_PER_SCALE = 100.0, 100.0
_ENTROPY_ERROR, _MOMENT_ERROR = 1e-5, 1e-5  # of a midpoint before it becomes a node, which divides the error by 16
_MOST_POINTS = 4_000_000  # of one kernel call
LARGEST_MEAN = 1e9  # of the kernel
# Of the larger of a code and an electron: less read noise changes no probability unless a count falls that close to the
# edge of a code, and the kernel's log p is right to some 1e-16 over its square (5e-3 at 1e-8, 1e-6 at 1e-6).
LEAST_READ_STD = 1e-5
# Without light a code that needs an electron has log p of about -(0.5 / read_std)^2 / 2, and d entropy / d mean is the
# negative of that, the limit of -log mean. Cut off here, near the smallest number that double precision tells from 0.
LEAST_DARK_LOG_P = -700.0
# Read noise in ADU from which rounding is one more source of noise: codes ripple by exp(-2 pi^2 read_std^2) below.
_SMOOTH = 0.75


class Setting(NamedTuple):
    """Scalar parameters; adc_bits None and full_well_electrons infinite where there is no such limit."""

    gain: float
    offset: float
    read_std: float
    adc_bits: int | None
    full_well_electrons: float

    @property
    def top(self) -> float:
        """The largest code."""
        return math.inf if self.adc_bits is None else float(2**self.adc_bits - 1)

    @property
    def saturated_mean(self) -> float:
        """Photo-electrons from which nothing changes any more."""
        ends = [LARGEST_MEAN]
        if math.isfinite(self.full_well_electrons):
            ends.append(self.full_well_electrons + 12 * math.sqrt(self.full_well_electrons) + 60)
        if self.adc_bits is not None:
            sigma = self.read_std / self.gain
            reached = max((self.top + 1 - self.offset) / self.gain, 0.0)
            ends.append(reached + 12 * math.sqrt(reached + sigma**2) + 60)
        return min(ends)

    @property
    def summed(self) -> tuple[float, float, float, float]:
        """gain, offset, read_std and full well of the sums, with as much read noise as they need for their digits."""
        least = 0.0 if self.adc_bits is None else LEAST_READ_STD * max(1.0, self.gain)
        return self.gain, self.offset, max(self.read_std, least), self.full_well_electrons

    @property
    def shoulder_mean(self) -> float:
        """Photo-electrons below which the full well is never reached."""
        well = self.full_well_electrons
        return max(0.0, well - 10 * math.sqrt(well) - 40) if math.isfinite(well) else math.inf


class Support(NamedTuple):
    """For each mean the output values that carry its probability: first, step and number of them, and end codes.

    Where the noise spreads over many codes, the step stands for a block of codes around each value (midpoint rule)
    and the first and the last code of the scale, with all beyond them, are values of their own.
    """

    first: Array
    step: Array
    number: NDArray[np.int64]
    bottom: NDArray[np.bool_]
    top: NDArray[np.bool_]

    def points(self, rows: NDArray[np.int64], largest: float) -> tuple[Array, Array]:
        """Values of these rows, (rows, values), and how many codes (or ADU) each stands for: 0 for padding."""
        index = np.arange(self.number[rows].max())
        inside = index < self.number[rows, None]
        values = self.first[rows, None] + self.step[rows, None] * np.where(inside, index, 0)
        weight = np.where(inside, self.step[rows, None], 0.0)
        if not (self.bottom[rows].any() or self.top[rows].any()):
            return values, weight
        ends = np.broadcast_to([0.0, largest], (rows.size, 2))
        return (
            np.concatenate([values, ends], axis=1),
            np.concatenate([weight, np.stack([self.bottom[rows], self.top[rows]], axis=1)], axis=1),
        )


def support(
    y: Array, gain: Array, offset: Array, read_std: Array, full_well: Array, *, adc_bits: int | None
) -> Support:
    """All parameters in the shape of y, (n,)."""
    charge = np.minimum(y, full_well)
    deviation = np.sqrt(gain**2 * charge + read_std**2)
    middle = gain * charge + offset
    low, high = middle - _REACH * deviation - gain, middle + 1.3 * _REACH * deviation + 14 * gain
    low = np.maximum(low, offset - _REACH * read_std)
    high = np.minimum(high, gain * full_well + offset + _REACH * read_std)
    # What the output is smooth over: single electrons stand out of little read noise, and so does a full well.
    filled = y + 12 * np.sqrt(y) + 60 > full_well
    scale = np.where((read_std < 0.8 * gain) | filled, read_std, deviation)
    nowhere = np.zeros(y.shape, dtype=np.bool_)
    if adc_bits is None:
        step = scale / _STEPS_PER_SCALE
        return Support(low, step, (np.floor((high - low) / step + 1e-9)).astype(np.int64) + 1, nowhere, nowhere)
    top = float(2**adc_bits - 1)
    low, high = np.clip(np.floor(low), 0.0, top), np.clip(np.ceil(high), 0.0, top)
    blocks = scale > _CODES_IN_BLOCKS
    at_bottom, at_top = blocks & (low <= 0), blocks & (high >= top)
    low, high = low + at_bottom, high - at_top
    codes = np.maximum(high - low + 1, 0.0)
    number = np.where(blocks, np.ceil(codes / scale * _BLOCKS_PER_SCALE), codes).astype(np.int64)
    step = np.where(blocks, codes / np.maximum(number, 1), 1.0)
    return Support(low - 0.5 + 0.5 * step, step, number, at_bottom, at_top)


def bins(values: Tensor, adc_bits: int | None) -> tuple[Tensor, Tensor]:
    """What is below and above each value in its bin: half a code, everything at an end of the scale, or nothing."""
    if adc_bits is None:
        return torch.zeros_like(values), torch.zeros_like(values)
    half, all_of_it = torch.full_like(values, 0.5), torch.full_like(values, torch.inf)
    return torch.where(values <= 0, all_of_it, half), torch.where(values >= 2**adc_bits - 1, all_of_it, half)


class Part(NamedTuple):
    """Some means (rows of all of them) with their values (means, values), weights (0 for padding) and log p."""

    rows: NDArray[np.int64]
    values: Array
    weight: Array
    log_p: Array
    slopes: list[Array]  # d log p / d mean, gain, offset, read_std


def distribution(setting: Setting, y: Array) -> Iterator[Part]:
    """The distribution of the output at every mean, in parts that fit in memory."""
    gain, offset, read_std, well = (
        np.full_like(y, v) for v in (setting.gain, setting.offset, setting.read_std, setting.full_well_electrons)
    )
    area = support(y, gain, offset, read_std, well, adc_bits=setting.adc_bits)
    parameters = setting.summed
    for rows in rows_of_like_size(area.number):
        values, weight = area.points(rows, setting.top)
        measured = torch.from_numpy(values)
        below, above = bins(measured, setting.adc_bits)
        log_p, *slopes = kernel.tabulate(measured, torch.from_numpy(y[rows, None]), parameters, below, above)
        yield Part(rows, values, weight, log_p.numpy(), [s.numpy() for s in slopes])


def rows_of_like_size(count: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Indices in groups whose largest count times their number stays within what one call may take."""
    order = np.ascontiguousarray(np.argsort(count, kind="stable")[::-1])
    begin = 0
    while begin < order.size:
        largest = max(int(count[order[begin]]), 1)
        end = min(order.size, begin + max(1, _MOST_POINTS // largest))
        # No more padding than what is there.
        end = begin + max(1, int(np.count_nonzero(2 * count[order[begin:end]] >= largest)))
        yield order[begin:end]
        begin = end


class _Exact(NamedTuple):
    """Rows entropy, expectation, variance; (3, means), (3, means) in the mean, (3, 3, means) by the parameters."""

    value: Array
    slope: Array
    by_parameter: Array


def exact(setting: Setting, y: Array) -> _Exact:
    """Sums over the output at each mean, and their derivatives."""
    value, slope = np.empty((3, y.size)), np.empty((3, y.size))
    by_parameter = np.empty((3, 3, y.size))
    for part in distribution(setting, y):
        p = np.exp(part.log_p) * part.weight
        log_p = np.where(p > 0, part.log_p, 0.0)
        # Over the sum of p, which blocks of codes at an end of the scale miss by some 1e-6.
        expected = (p * part.values).sum(axis=1) / p.sum(axis=1)
        centred = part.values - expected[:, None]
        value[0, part.rows] = -(p * log_p).sum(axis=1)
        value[1, part.rows] = expected
        value[2, part.rows] = (p * centred**2).sum(axis=1)
        for target, score in zip((slope, *by_parameter.swapaxes(0, 1)), part.slopes, strict=True):
            flow = p * np.where(p > 0, score, 0.0)
            if target is slope:
                dark = y[part.rows] == 0
                flow[dark] = electron_for_none(setting, part.values[dark]) * part.weight[dark] - p[dark]
                log_p[dark] = np.maximum(part.log_p[dark], LEAST_DARK_LOG_P)
            target[0, part.rows] = -(flow * log_p).sum(axis=1)
            target[1, part.rows] = (flow * centred).sum(axis=1)
            target[2, part.rows] = (flow * centred**2).sum(axis=1)
    return _Exact(value, slope, by_parameter)


def electron_for_none(setting: Setting, values: Array) -> Array:
    """p(value) of exactly one electron. Less p of none it is dp / d mean without light, which d log p overflows for."""
    measured = torch.from_numpy(values)
    below, above = bins(measured, setting.adc_bits)
    gain, offset, read_std, well = setting.summed
    parameters = (gain, offset + gain * min(1.0, well), read_std, well)
    log_p = kernel.tabulate(measured, torch.zeros(1, dtype=torch.float64), parameters, below, above)[0]
    p: Array = torch.exp(log_p).numpy()
    return p


class Table(NamedTuple):
    """Piecewise cubics in the mean: (quantity, interval, 4) highest power first; then those by the parameters."""

    nodes: Array
    coefficients: Array
    by_parameter: Array  # (quantity, parameter, interval, 4)


def _first_nodes(setting: Setting) -> Array:
    end = setting.saturated_mean
    start = setting.shoulder_mean if setting.adc_bits is None else 0.0
    sigma = setting.read_std / setting.gain
    nodes = [np.array([start, end])]
    if start == 0.0:
        nodes.append(np.geomspace(1e-6, 1.0, 13))
        nodes.append(np.geomspace(1.0, max(end, 2.0), 4 + int(6 * math.log(max(end, 2.0)))))
    # Half a standard deviation apart where saturation begins, and wherever single codes show in the entropy.
    for corner in _corners(setting):
        deviation = math.sqrt(corner + sigma**2 + 1.0)
        nodes.append(corner + deviation * np.arange(-10, 14, 0.5))
    if setting.adc_bits is not None and setting.read_std < _SMOOTH:
        visible = min(end, max((_SMOOTH**2 - setting.read_std**2) / setting.gain**2, 0.0))
        if setting.gain * visible > 0.5:
            nodes.append(np.arange(0.0, visible, min(0.25 / setting.gain, max(visible / 4, 1e-3))))
    joined = np.unique(np.concatenate(nodes))
    joined = joined[(joined >= start) & (joined <= end)]
    return joined[np.concatenate([[True], np.diff(joined) > 1e-9 * (1 + joined[1:])])]


def _corners(setting: Setting) -> list[float]:
    corners = [setting.full_well_electrons]
    if setting.adc_bits is not None:
        corners += [(setting.top - setting.offset) / setting.gain, -setting.offset / setting.gain]
    return [corner for corner in corners if 0 < corner < setting.saturated_mean]


@functools.lru_cache(maxsize=64)
@_entropy.tabulation
def table(setting: Setting) -> Table:
    """Entropy, expectation and variance of the output over the mean, for one sensor."""
    nodes = _first_nodes(setting)
    found = exact(setting, nodes)
    fresh = np.ones(nodes.size - 1, dtype=np.bool_)
    for _ in range(14):
        splines = CubicHermiteSpline(nodes, found.value, found.slope, axis=1)
        chosen = np.flatnonzero(fresh)
        middles = 0.5 * (nodes[chosen] + nodes[chosen + 1])
        new = exact(setting, middles)
        error = np.abs(splines(middles) - new.value)
        deviation = np.sqrt(np.maximum(new.value[2], 0.0)) + 1e-2
        bad = (error[0] > _ENTROPY_ERROR) | (error[1] > _MOMENT_ERROR * deviation)
        bad |= error[2] > _MOMENT_ERROR * deviation**2
        order = np.argsort(np.concatenate([nodes, middles]), kind="stable")
        rough = np.zeros(nodes.size + middles.size, dtype=np.bool_)
        rough[nodes.size :] = bad
        nodes = np.concatenate([nodes, middles])[order]
        found = _Exact(*(np.concatenate([a, b], axis=-1)[..., order] for a, b in zip(found, new, strict=True)))
        at_middle = rough[order]
        fresh = at_middle[:-1] | at_middle[1:]
        if not fresh.any():
            break
    spline = CubicHermiteSpline(nodes, found.value, found.slope, axis=1)
    parameters = CubicSpline(nodes, found.by_parameter, axis=2)
    # scipy has the power and the interval in front.
    return Table(nodes, _last(spline.c, 3), _last(parameters.c, 4))


def _last(coefficients: Array, ndim: int) -> Array:
    # (4, intervals, ...) or (4, ..., intervals) -> (..., intervals, 4)
    moved = np.moveaxis(coefficients, (0, 1), (-1, -2))
    assert moved.ndim == ndim
    return np.ascontiguousarray(moved)


def interpolate(setting: Setting, quantity: int, mean: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    """Entropy (0), expectation (1) or variance (2) at each mean, with its derivative in mean and parameters.

    Args:
        parameters: gain, offset, read_std, of which only the derivative is taken; one element each.
    """
    tabulated = table(setting)
    nodes = torch.as_tensor(tabulated.nodes, device=mean.device)
    y = mean.to(torch.float64).clamp(float(nodes[0]), float(nodes[-1]))
    interval = (torch.bucketize(y.detach().contiguous(), nodes, right=True) - 1).clamp(0, nodes.numel() - 2)
    t = y - nodes[interval]

    def cubic(coefficients: Array) -> Tensor:
        c = torch.as_tensor(coefficients, device=mean.device)[interval]
        return ((c[..., 0] * t + c[..., 1]) * t + c[..., 2]) * t + c[..., 3]

    value = cubic(tabulated.coefficients[quantity])
    for row, parameter in enumerate(parameters):
        if parameter.requires_grad or not _entropy._is_constant(parameter):
            change = parameter.to(torch.float64).reshape(()) - parameter.detach().to(torch.float64).reshape(())
            value = value + change * cubic(tabulated.by_parameter[quantity, row]).detach()
    return value
