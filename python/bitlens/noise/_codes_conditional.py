"""The function g of `conditional_entropy` for a digitised or saturating sensor: sum_z p(z|y) g(z) = h(y) for all y.

As for an unlimited sensor g is solved for by least squares over means with a weak pull towards the obvious guess; here
its nodes are codes, close together in the dark, where single codes show and at the shoulders of saturation, and the
means cover the same places. Without an ADC the output is cut into bins narrower than the noise first, or into single
electrons where these stand out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitlens.kernels.poisson_gaussian_bin_log_prob import op as kernel
from bitlens.noise import _codes, _entropy
from bitlens.noise._codes import Array, Setting
from bitlens.noise.base import LOG_TWO_PI_E

_PULL = 0.03  # keeps the spread of g below 2 nats where the sensor is linear
_N_REFERENCE_MEANS = 421  # the number of means that pull is relative to
_SEPARATE = 0.3  # read noise in electrons below which the output is rounded to single electrons first
_LOW = 60.0  # photo-electrons up to which the means are dense
_STITCH = 40.0  # photo-electrons from which the guess is the asymptotic form


class Function(NamedTuple):
    """g, linear between its nodes and level outside; of the output rounded to `unit` where that is not zero."""

    nodes: Array
    values: Array
    offset: float
    unit: float

    def __call__(self, z: Tensor) -> Tensor:
        if self.unit > 0:
            z = torch.round((z - self.offset) / self.unit) * self.unit + self.offset
        nodes = torch.as_tensor(self.nodes, dtype=z.dtype, device=z.device)
        values = torch.as_tensor(self.values, dtype=z.dtype, device=z.device)
        z = z.clamp(float(nodes[0]), float(nodes[-1]))
        left = (torch.bucketize(z.contiguous(), nodes, right=True) - 1).clamp(0, nodes.numel() - 2)
        fraction = (z - nodes[left]) / (nodes[left + 1] - nodes[left])
        return values[left] * (1 - fraction) + values[left + 1] * fraction


def _corners(setting: Setting) -> list[float]:
    """Means at which the output reaches an end of its range."""
    ends = [setting.full_well_electrons]
    if setting.adc_bits is not None:
        ends += [(setting.top - setting.offset) / setting.gain, -setting.offset / setting.gain]
    return [end for end in ends if 0 < end < setting.saturated_mean]


def _deviation(setting: Setting, y: Array) -> Array:
    """Of the output without limits, ADU."""
    deviation: Array = np.sqrt(setting.gain**2 * np.maximum(y, 0) + setting.read_std**2)
    return deviation


def _visible(setting: Setting) -> float:
    """Photo-electrons up to which single codes show in the entropy."""
    if setting.adc_bits is None:
        return 0.0
    return max((0.8**2 - setting.read_std**2) / setting.gain**2, 0.0)


def _means(setting: Setting) -> tuple[Array, Array]:
    """Grid of y and the weight of each: dense where h bends, heavier where accuracy is to be had."""
    end = setting.saturated_mean
    parts = [np.array([0.0, end]), np.geomspace(1e-3, 1.0, 120), np.linspace(1.0, math.sqrt(_LOW), 301)[1:] ** 2]
    if end > _LOW:
        parts.append(np.geomspace(_LOW, end, 2 + int(20 * math.log(end / _LOW))))
    for corner in _corners(setting):
        deviation = math.sqrt(corner + (setting.read_std / setting.gain) ** 2)
        parts.append(corner + deviation * np.arange(-16, 12, 0.15))
    visible = min(_visible(setting), end)
    if visible > _LOW:
        parts.append(np.arange(_LOW, visible, max(0.06 / setting.gain, visible / 4000)))
    y = np.unique(np.concatenate(parts))
    y = y[(y >= 0) & (y <= end)]
    return y, np.where(y < 0.06, 0.1, np.where(y > 4, 8.0, 1.0))


def _width(setting: Setting) -> float:
    """Of the bins that g is a function of, ADU."""
    if setting.adc_bits is not None:
        return 1.0
    sigma = setting.read_std / setting.gain
    return setting.gain if sigma < _SEPARATE else setting.read_std / 4


def _nodes(setting: Setting, width: float) -> Array:
    """Places of g's nodes, multiples of the bin width from the first."""
    if setting.adc_bits is not None:
        first, last = 0.0, setting.top
    else:
        first = setting.offset - width * math.ceil(8 * setting.read_std / width)
        last = first + width * math.ceil(
            (setting.gain * setting.full_well_electrons + setting.offset + 9 * setting.read_std - first) / width
        )
    sigma = setting.read_std / setting.gain
    low = _LOW + 9 * math.sqrt(_LOW + sigma**2)
    visible = _visible(setting)
    corners = _corners(setting)
    nodes = [first]
    while nodes[-1] < last:
        y = (nodes[-1] - setting.offset) / setting.gain
        deviation = float(_deviation(setting, np.array(y)))
        spacing = deviation / 2
        if y < low:
            spacing = min(spacing, setting.read_std * (0.5 if sigma < 1 else 0.25))
        if y < visible:
            spacing = width
        if any(abs(y - corner) * setting.gain < 14 * deviation for corner in corners):
            spacing = min(spacing, deviation / 6)
        nodes.append(min(nodes[-1] + width * max(1.0, math.floor(spacing / width)), last))
    return np.array(nodes)


def _guess(setting: Setting, nodes: Array) -> Array:
    """What g is pulled to: the entropy at y = z with the bias of log z put back, that of saturation at the end."""
    rounding = 1 / 12 if setting.adc_bits is not None else 0.0
    sigma = math.sqrt(setting.read_std**2 + rounding) / setting.gain
    z = (nodes - setting.offset) / setting.gain
    faint = 0.5 * (LOG_TWO_PI_E + np.log(np.maximum(z, 0) + sigma**2))
    variance = np.maximum(z, 0) + sigma**2
    bright = 0.5 * (LOG_TWO_PI_E + np.log(variance)) + 1 / (4 * variance) - z**2 / (12 * variance**3)
    if rounding == 0.0 and sigma < 1:
        bright = bright - _entropy.ripple(max(sigma, 0.02))
    guess = np.where(z > _STITCH, bright, faint) + math.log(setting.gain)
    zero = torch.zeros(())
    known = _codes.interpolate(setting, 0, torch.from_numpy(np.maximum(z, 0.0)), (zero, zero, zero)).numpy()
    saturated = known_at_end(setting)
    guess = np.where(z < _visible(setting), known, guess)
    if setting.adc_bits is not None:
        guess[-1] = saturated
    return np.where(z >= setting.full_well_electrons, saturated, guess)


def known_at_end(setting: Setting) -> float:
    """Entropy of a saturated pixel, nats."""
    return float(_codes.table(setting).coefficients[0, -1, 3])


def _design(setting: Setting, y: Array, nodes: Array, width: float) -> Array:
    """(means, nodes): weight of each node in the expectation of g."""
    design = np.zeros((y.size, nodes.size))
    parts = _code_probabilities(setting, y) if setting.adc_bits is not None else _bins(setting, y, nodes, width)
    for rows, z, p in parts:
        left = np.clip(np.searchsorted(nodes, z, "right") - 1, 0, nodes.size - 2)
        fraction = (z - nodes[left]) / (nodes[left + 1] - nodes[left])
        row = np.broadcast_to(rows[:, None], p.shape)
        np.add.at(design, (row, left), p * (1 - fraction))
        np.add.at(design, (row, left + 1), p * fraction)
    return design


def _code_probabilities(setting: Setting, y: Array) -> Iterator[tuple[NDArray[np.int64], Array, Array]]:
    """Rows of y, their codes and the probability of each."""
    for part in _codes.distribution(setting, y):
        yield part.rows, part.values, np.exp(part.log_p) * part.weight


def _bins(setting: Setting, y: Array, nodes: Array, width: float) -> Iterator[tuple[NDArray[np.int64], Array, Array]]:
    """Rows of y, middles of bins around multiples of the width and the probability of each."""
    full = np.full_like(y, setting.full_well_electrons)
    deviation = _deviation(setting, np.minimum(y, full))
    middle = setting.gain * np.minimum(y, full) + setting.offset
    low = np.floor((middle - 9 * deviation - setting.gain - nodes[0]) / width)
    high = np.ceil((middle + 12 * deviation + 14 * setting.gain - nodes[0]) / width)
    low, high = np.maximum(low, 0), np.minimum(high, np.round((nodes[-1] - nodes[0]) / width))
    # Wide outputs need not every bin: the nodes are some standard deviations over six apart there.
    stride = np.maximum(1.0, np.floor(deviation / width / 80))
    number = np.floor((high - low) / stride).astype(np.int64) + 1
    parameters = (setting.gain, setting.offset, setting.read_std, setting.full_well_electrons)
    for rows in _codes.rows_of_like_size(number):
        index = np.arange(number[rows].max())
        inside = index < number[rows, None]
        position = low[rows, None] + stride[rows, None] * np.where(inside, index, 0)
        z = torch.from_numpy(nodes[0] + width * position)
        half = torch.full_like(z, 0.5 * width)
        log_p = kernel.tabulate(z, torch.from_numpy(y[rows, None]), parameters, half, half)[0].numpy()
        yield rows, z.numpy(), np.where(inside, np.exp(log_p) * stride[rows, None], 0.0)


@functools.lru_cache(maxsize=64)
@_entropy.tabulation
def function(setting: Setting) -> Function:
    """g for one sensor."""
    width = _width(setting)
    y, weight = _means(setting)
    nodes = _nodes(setting, width)
    design = _design(setting, y, nodes, width)
    zero = torch.zeros(())
    start = setting.shoulder_mean if setting.adc_bits is None else 0.0
    entropy = _codes.interpolate(setting, 0, torch.from_numpy(y), (zero, zero, zero)).numpy()
    if start > 0:
        sigma = torch.tensor(setting.read_std / setting.gain, dtype=torch.float64)
        plain = _entropy.poisson_gaussian_entropy(torch.from_numpy(y), sigma).numpy() + math.log(setting.gain)
        entropy = np.where(y < start, plain, entropy)
    guess = _guess(setting, nodes)
    root = np.sqrt(weight)[:, None]
    pull = _PULL if setting.read_std < 3 * setting.gain else 0.1
    prior = np.sqrt(pull * design.sum(axis=0) / _N_REFERENCE_MEANS + 1e-12)
    weighted = root * design
    normal = weighted.T @ weighted + np.diag(prior**2)
    # Of the difference from the guess, so that what the pull is too weak to hold keeps its digits.
    values = guess + np.linalg.solve(normal, weighted.T @ (root[:, 0] * (entropy - design @ guess)))
    return Function(nodes, values, setting.offset, width if width == setting.gain and setting.adc_bits is None else 0.0)
