"""Conditional entropy h(measured | mean) averaged over the scenes: exact from means, almost unbiased without them.

Without noiseless images only z is known, and h is concave: putting z in place of the mean is up to 0.4 nats per pixel
off at a photon. Instead one function g with sum_z p(z|y) g(z) = h(y) for all y is solved for, by weighted least
squares over a grid of y with a weak pull towards the obvious guess, and averaged over the data. Largest bias for
Poisson noise, by direct summation: 0.019 nats per pixel at means of 0.1 or more, 0.0013 at 5 or more, 0.064 below 0.1;
read noise makes it smaller.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from bitlens.noise import _codes_conditional, _entropy
from bitlens.noise._abilities import ChecksMean, ChecksMeasured
from bitlens.noise._codes import Setting
from bitlens.noise.base import LOG_TWO_PI_E, NoiseModel, flat_float64, flat_map
from bitlens.noise.gaussian import GaussianNoise
from bitlens.noise.poisson import PoissonNoise
from bitlens.noise.poisson_gaussian import PoissonGaussianNoise

# Read noise in electrons: below the first the nearest integer is the count (one in 8000 is not, a bias of 3e-4 nats);
# above the last the guess itself is unbiased to 1e-4 nats.
_SIGMA_SMALL, _SIGMA_LARGE, _N_SIGMA = 0.13, 10.0, 48  # maps: linear between these is worth 8e-4 nats at most
# Weight of the pull towards the guess: it keeps the spread of g below 2 nats at every mean.
_PULL = 0.02
_STITCH = 40.0  # photo-electrons above which g is the asymptotic form


@dataclass(frozen=True)
class EntropyEstimate:
    """h(measured | mean) per pixel in nats, averaged over the scenes, and its standard error over the images."""

    nats_per_pixel: float
    stderr: float


def conditional_entropy(
    noise: NoiseModel, measured: Tensor | np.ndarray, *, mean: Tensor | np.ndarray | None = None
) -> EntropyEstimate:
    """Average of h(measured | mean) over scenes, in nats per pixel, from noisy data alone when mean is None.

    With an ADC or a full well the bias stays below 0.02 nats up to and beyond saturation where the noise spreads over
    a code (0.6 ADU or more). Coarser codes hide where between two of them the mean lies, and so its entropy; a pixel
    that always reports one code at an end of the scale counts as one whose mean lies far beyond, with no entropy.

    Args:
        noise: the sensor.
        measured: (n, ...) images.
        mean: noiseless images (n, ...), photo-electrons, if there are any; the result is then exact for them.

    Raises:
        ValueError: fewer than two images, shapes that differ, values outside the model's domain.
    """
    measured = torch.as_tensor(measured)
    per_image = conditional_entropy_per_sample(noise, measured, mean)
    n_pixels = math.prod(measured.shape[1:])
    if per_image.numel() < 2:
        raise ValueError(f"measured: need at least 2 images, got shape {tuple(measured.shape)}")
    stderr = per_image.std().item() / math.sqrt(per_image.numel())
    return EntropyEstimate(per_image.mean().item() / n_pixels, stderr / n_pixels)


def conditional_entropy_per_sample(
    noise: NoiseModel, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray | None = None
) -> Tensor:
    """One estimate of the sum over pixels of h(measured | mean) for each image: (n,) float64, nats.

    Raises:
        TypeError: not a noise model.
        ValueError: shapes that differ; values outside the model's domain; a model of the user's own without `mean`.
    """
    if not isinstance(noise, NoiseModel):
        raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise, got {type(noise).__name__}")
    z = torch.as_tensor(measured)
    if z.ndim < 2 or z.numel() == 0:
        raise ValueError(f"measured: need (n, ...) images that are not empty, got shape {tuple(z.shape)}")
    if isinstance(noise, ChecksMeasured):
        noise.check_measured(z)
    if mean is not None:
        y = torch.as_tensor(mean)
        if y.shape != z.shape:
            raise ValueError(f"mean: need the shape of measured, {tuple(z.shape)}, got {tuple(y.shape)}")
        if isinstance(noise, ChecksMean):
            noise.check_mean(y)
        return noise.entropy(y.to(torch.float64)).detach().reshape(y.shape[0], -1).sum(dim=1)
    flat, shape = flat_float64(z), z.shape[1:]
    if isinstance(noise, GaussianNoise):
        total = (0.5 * LOG_TWO_PI_E + torch.log(flat_map("std", noise.std, shape))).sum()
        return total.expand(z.shape[0]).clone()
    if isinstance(noise, PoissonNoise):
        return _poisson_function()(flat).sum(dim=1)
    if isinstance(noise, PoissonGaussianNoise):
        if noise.limited:
            return _limited(noise, flat, shape)
        gain, offset, read_std = (
            flat_map(name, getattr(noise, name), shape) for name in ("gain", "offset", "read_std")
        )
        electrons, sigma = (flat - offset) / gain, read_std / gain
        return (_poisson_gaussian_function(electrons, sigma) + torch.log(gain)).sum(dim=1)
    raise ValueError(
        f"noise: conditional entropy from noisy data alone needs Gaussian, Poisson or Poisson-Gaussian noise, "
        f"got {type(noise).__name__}; pass mean="
    )


# Sensors that get a g of their own; where there are more, alike ones share one.
_MOST_FUNCTIONS = 16


def _limited(noise: PoissonGaussianNoise, flat: Tensor, shape: torch.Size) -> Tensor:
    """g summed over pixels for a sensor with an ADC or a full well.

    Pixels of a map that stay clear of both ends of the scale take the g of an unlimited sensor with the noise of
    rounding. The others take one of at most 16 functions: of their own sensor, or of one whose parameters are rounded,
    up and down alike, so that the sum over pixels is wrong by the curvature only.
    """
    columns = [flat_map(name, getattr(noise, name), shape) for name in ("gain", "offset", "read_std")]
    well = noise.full_well_electrons
    columns.append(torch.full_like(columns[0], math.inf) if well is None else flat_map("full_well", well, shape))
    total = torch.zeros(flat.shape[0], dtype=torch.float64, device=flat.device)
    sensors = torch.stack(columns, dim=1)
    clear = torch.zeros_like(columns[0], dtype=torch.bool)
    if torch.unique(sensors, dim=0).shape[0] > 1:
        clear = _clear_of_ends(flat, columns, noise.adc_bits)
        gain, offset, read_std = (column[clear] for column in columns[:3])
        if bool(clear.any()):
            rounding = 0.0 if noise.adc_bits is None else 1 / 12
            sigma = torch.sqrt(read_std**2 + rounding) / gain
            total += (_poisson_gaussian_function((flat[:, clear] - offset) / gain, sigma) + torch.log(gain)).sum(dim=1)
    if bool(clear.all()):
        return total
    others = flat[:, ~clear]
    found, which = _few_sensors(sensors[~clear])
    for row, (gain_, offset_, read_std_, well_) in enumerate(found.tolist()):
        g = _codes_conditional.function(Setting(gain_, offset_, read_std_, noise.adc_bits, well_))
        total += g(others[:, which == row]).sum(dim=1)
    return total


def _clear_of_ends(flat: Tensor, columns: list[Tensor], adc_bits: int | None) -> Tensor:
    """Pixels whose values and noise all stay within the scale, (pixels,)."""
    gain, offset, read_std, well = columns
    highest = flat.amax(dim=0)
    reach = 8 * torch.sqrt(gain * (highest - offset).clamp(min=0) + read_std**2) + 8 * gain
    clear = highest + reach < gain * well + offset
    if adc_bits is not None:
        clear &= (highest + reach < 2**adc_bits - 1) & (offset - 8 * read_std > 0) & (read_std > 0.6)
    return clear


def _few_sensors(sensors: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of parameters, at most `_MOST_FUNCTIONS` of them, and which one each pixel takes."""
    found, which = torch.unique(sensors, dim=0, return_inverse=True)
    gain, offset, read_std, well = sensors.unbind(1)
    share = 1 / 16
    while found.shape[0] > _MOST_FUNCTIONS:
        scale = float(read_std.median())
        rounded = [torch.exp(torch.round(torch.log(v) / share) * share) for v in (gain, read_std)]
        wells = torch.where(torch.isinf(well), well, torch.exp(torch.round(torch.log(well) / share) * share))
        near = torch.round(offset / (share * scale)) * share * scale
        _, which = torch.unique(torch.stack([rounded[0], near, rounded[1], wells], dim=1), dim=0, return_inverse=True)
        # The mean of a group rather than the middle of its cell.
        count = int(which.max()) + 1
        sums = torch.zeros((count, 4), dtype=sensors.dtype, device=sensors.device).index_add_(0, which, sensors)
        found = sums / torch.bincount(which, minlength=count)[:, None]
        share *= 2
    return found, which


class _Function(NamedTuple):
    """g on a regular grid, linear between nodes; asymptotic form above the stitch."""

    first: float
    step: float
    values: np.ndarray
    sigma: float  # 0 for pure Poisson

    def __call__(self, z: Tensor) -> Tensor:
        values = torch.as_tensor(self.values, dtype=z.dtype, device=z.device)
        position = ((z - self.first) / self.step).clamp(0, len(self.values) - 1)
        left = position.floor().long().clamp(max=len(self.values) - 2)
        fraction = position - left
        inside = values[left] * (1 - fraction) + values[left + 1] * fraction
        top = self.first + self.step * (len(self.values) - 1)
        return torch.where(z > top, _asymptotic(z.clamp(min=top), self.sigma), inside)


def _asymptotic(z: Tensor, sigma: float) -> Tensor:
    """g(z) for many photo-electrons: the entropy at y = z, with the bias of log z and the skewness put back."""
    # Five standard deviations down where this serves dark pixels: a dead one must not outweigh an image.
    z = z.clamp(min=-0.5 * sigma**2)
    variance = (z + sigma**2).clamp(min=1e-3)
    smooth = 0.5 * (LOG_TWO_PI_E + torch.log(variance)) + 1 / (4 * variance) - z**2 / (12 * variance**3)
    return smooth - (_entropy.ripple(sigma) if sigma > 0 else 0.0)


def _means() -> tuple[np.ndarray, np.ndarray]:
    """Grid of y and the weight of each: dense where h bends, heavier where accuracy is to be had."""
    y = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, 120), np.linspace(1.0, math.sqrt(60.0), 301)[1:] ** 2])
    weight = np.where(y < 0.06, 0.1, np.where(y > 4, 8.0, 1.0))
    return y, weight


def _solve(design: np.ndarray, entropy: np.ndarray, guess: np.ndarray, known: np.ndarray, pull: float) -> np.ndarray:
    """Least squares for the unknown nodes of g; the nodes above the stitch keep their asymptotic value.

    Args:
        design: (means, nodes) the weight of each node in the expectation of g at each mean.
        entropy: (means,) h(y), nats.
        guess: (nodes,) what g is pulled to.
        known: (nodes,) which nodes are fixed at the guess.
        pull: weight of the pull relative to one mean.
    """
    _, weight = _means()
    free = ~known
    target = entropy - design[:, known] @ guess[known]
    root = np.sqrt(weight)[:, None]
    prior = np.sqrt(pull * design.mean(axis=0))[free]
    rows = np.concatenate([root * design[:, free], np.diag(prior)])
    right = np.concatenate([root[:, 0] * target, prior * guess[free]])
    values = guess.copy()
    values[free] = np.linalg.lstsq(rows, right, rcond=None)[0]
    return values


@functools.cache
@_entropy.tabulation
def _poisson_function() -> _Function:
    y, _ = _means()
    k = np.arange(0, 160.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = k * np.log(y[:, None]) - y[:, None] - gammaln(k + 1)
    log_p[0] = np.where(k == 0, 0.0, -np.inf)
    entropy = _entropy.poisson_entropy(torch.from_numpy(y)).numpy()
    above = k > _STITCH
    variance = np.maximum(k, 0) + 1 / 12
    guess = np.where(above, _asymptotic(torch.from_numpy(k), 0.0).numpy(), 0.5 * (LOG_TWO_PI_E + np.log(variance)))
    return _Function(0.0, 1.0, _solve(np.exp(log_p), entropy, guess, above, _PULL), 0.0)


@functools.lru_cache(maxsize=64)
@_entropy.tabulation
def _sigma_function(sigma: float) -> _Function:
    y, _ = _means()
    step = sigma / 2 if sigma < 1 else sigma / 4
    refinement = 4
    first, last = -8.0 * sigma, 60 + 9 * math.sqrt(60 + sigma**2)
    n_nodes = math.ceil((last - first) / step) + 1
    fine_step = step / refinement
    fine = first + fine_step * np.arange((n_nodes - 1) * refinement + 1)
    p = np.exp(_entropy.tabulated_log_prob(fine, y[:, None], sigma)) * fine_step
    # Hat functions of the nodes, integrated against p on the fine grid.
    position = np.arange(fine.size) / refinement
    left = np.minimum(position.astype(int), n_nodes - 2)
    fraction = position - left
    design = np.zeros((y.size, n_nodes))
    for part in range(refinement + 1):
        chosen = np.flatnonzero((np.arange(fine.size) - left * refinement) == part)
        np.add.at(design.T, left[chosen], (p[:, chosen] * (1 - fraction[chosen])).T)
        np.add.at(design.T, left[chosen] + 1, (p[:, chosen] * fraction[chosen]).T)
    entropy = _entropy.poisson_gaussian_entropy(torch.from_numpy(y), torch.tensor(sigma)).numpy()
    nodes = first + step * np.arange(n_nodes)
    variance = np.maximum(nodes, 0) + sigma**2
    above = nodes > _STITCH
    high = _asymptotic(torch.from_numpy(nodes), sigma).numpy()
    guess = np.where(above, high, 0.5 * (LOG_TWO_PI_E + np.log(variance)))
    return _Function(first, step, _solve(design, entropy, guess, above, _PULL if sigma < 3 else 0.1), sigma)


def _at_sigma(electrons: Tensor, sigma: float) -> Tensor:
    if sigma < _SIGMA_SMALL:
        counts = torch.round(electrons).clamp(min=0)
        return _poisson_function()(counts) + 0.5 * LOG_TWO_PI_E + math.log(sigma)
    if sigma > _SIGMA_LARGE:
        return _asymptotic(electrons, sigma)
    return _sigma_function(sigma)(electrons)


def _poisson_gaussian_function(electrons: Tensor, sigma: Tensor) -> Tensor:
    """g for every pixel: one function where the read noise is one number, else interpolated in log sigma."""
    if bool((sigma == sigma[0]).all()):
        return _at_sigma(electrons, float(sigma[0]))
    nodes = np.geomspace(_SIGMA_SMALL, _SIGMA_LARGE, _N_SIGMA)
    log_step = math.log(_SIGMA_LARGE / _SIGMA_SMALL) / (_N_SIGMA - 1)
    result = torch.empty_like(electrons)
    position = (torch.log(sigma / _SIGMA_SMALL) / log_step).clamp(0, _N_SIGMA - 1)
    left = position.floor().long().clamp(max=_N_SIGMA - 2)
    outside = (sigma < _SIGMA_SMALL) | (sigma > _SIGMA_LARGE)
    for pixel in torch.nonzero(outside)[:, 0].tolist():
        result[:, pixel] = _at_sigma(electrons[:, pixel], float(sigma[pixel]))
    for node in torch.unique(left[~outside]).tolist():
        here = ~outside & (left == node)
        fraction = position[here] - node
        low, high = (_sigma_function(float(nodes[node + i]))(electrons[:, here]) for i in (0, 1))
        result[:, here] = low * (1 - fraction) + high * fraction
    return result
