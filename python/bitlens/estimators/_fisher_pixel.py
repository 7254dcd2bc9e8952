"""Fisher information of one pixel about its mean, J(y) = E[(d log p(z|y) / dy)^2], per squared photo-electron.

Shot noise with Gaussian noise of sigma electrons has no closed form. With v = y + sigma^2 and f = y / v it is

* a quadrature over the output for v up to 1000;
* (1 + c1 / v + c2 / v^2 + c3 / v^3) / v for brighter pixels where single electrons do not stand out of sigma, c1 =
  (1 - f)^2 / 2 what the variance tells beyond the mean, c2 and c3 from the Edgeworth series of the output;
* a table over sigma and 1 / y for brighter pixels where they do;
* 1 / y where they are told apart without error.

Digitised and saturating sensors are sums over their codes. For a sensor of scalar parameters, quadratures and sums are
made at Chebyshev nodes in panels of the mean, a panel halved until it meets its own checks; per-pixel maps are summed
pixel by pixel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from torch import Tensor

from bitlens import ops
from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise, _codes
from bitlens.noise._codes import Setting

Array = NDArray[np.float64]

_DEGREE = 12
# Of J times (y + 1 / J(0)), a number of at most 1: relative where nothing limits the sensor, else absolute too, because
# near saturation J falls to nothing.
_PANEL_ERROR, _LIMITED_PANEL_ERROR = 1e-10, 1e-9
_MOST_HALVINGS = 24
_BRIGHT = 1000.0  # electrons of variance from which there are series in 1 / v
# Electrons of read noise from which the comb of counts is smooth to exp(-2 pi^2 1.44) = 5e-13.
_SMOOTH = 1.2
# Read noise at which counts are told apart but for 1e-13, for means from 1e-6 and for all.
_APART, _APART_FROM_MEAN, _ALWAYS_APART = 0.06, 1e-6, 0.0075
_COMB_PANELS = (_APART, 0.1, 0.16, 0.25, 0.4, 0.6, 0.9, _SMOOTH)
_COMB_DEGREE, _COMB_BRIGHT_DEGREE = 11, 5


@runtime_checkable
class HasFisherInformation(Protocol):
    """A noise model of the user's own that knows its J(y), elementwise, per squared unit of the mean."""

    def fisher_information(self, mean: Tensor) -> Tensor: ...


def information_per_pixel(noise: NoiseModel, mean: Tensor) -> Tensor:
    """J(y) for each element of `mean`, float64 on its device; infinite for shot noise alone at a mean of 0.

    Raises:
        TypeError: a noise model that is none of the package's and has no `fisher_information(mean)`.
    """
    y = mean.detach().to(torch.float64)
    if isinstance(noise, HasFisherInformation):
        return noise.fisher_information(y).detach().to(torch.float64).expand(y.shape)
    if isinstance(noise, GaussianNoise):
        return (noise.std.detach().to(y) ** -2).expand(y.shape)
    if isinstance(noise, PoissonNoise):
        return 1.0 / y
    if not isinstance(noise, PoissonGaussianNoise):
        raise TypeError(
            f"noise: need a noise model of bitlens.noise or one with fisher_information(mean), "
            f"got {type(noise).__name__}"
        )
    well = noise.full_well_electrons
    parameters = [noise.gain, noise.offset, noise.read_std, torch.tensor(math.inf) if well is None else well]
    values = [parameter.detach().cpu().to(torch.float64).numpy() for parameter in parameters]
    flat = y.cpu().numpy()
    if all(value.size == 1 for value in values):
        gain, offset, read_std, full_well = (float(value.reshape(())) for value in values)
        distinct, place = np.unique(flat, return_inverse=True)
        setting = Setting(gain, offset, read_std, noise.adc_bits, full_well)
        found = _one_sensor(setting, distinct)[place].reshape(flat.shape)
    else:
        columns = [np.broadcast_to(value, flat.shape).reshape(-1) for value in values]
        found = _each_pixel(flat.reshape(-1), columns, noise.adc_bits).reshape(flat.shape)
    return torch.from_numpy(np.ascontiguousarray(found)).to(y.device)


def _one_sensor(setting: Setting, y: Array) -> Array:
    limited = setting.adc_bits is not None or math.isfinite(setting.full_well_electrons)
    sigma = setting.read_std / setting.gain
    result = np.zeros_like(y)
    free = np.full(y.shape, not limited)
    if setting.adc_bits is None and limited:
        free = y < setting.shoulder_mean
    plain = Setting(1.0, 0.0, sigma, None, math.inf)
    result[free] = _unlimited(y[free], np.full_like(y[free], sigma), lambda rest, _: _from_panels(plain, rest))
    bound = ~free & (y < setting.saturated_mean)
    dark = bound & (y == 0.0)
    result[dark] = exact(setting, y[dark])
    bound &= ~dark
    result[bound] = _from_panels(setting, y[bound])
    return result


def _each_pixel(y: Array, columns: list[Array], adc_bits: int | None) -> Array:
    gain, offset, read_std, well = columns
    if adc_bits is None:
        free = y + 10 * np.sqrt(y) + 40 < well
    else:
        free = np.zeros(y.shape, dtype=np.bool_)
        read_std = np.maximum(read_std, _codes.LEAST_READ_STD * np.maximum(gain, 1.0))
    result = np.empty_like(y)
    result[free] = _unlimited(y[free], read_std[free] / gain[free], _quadrature)
    rest = [column[~free] for column in (gain, offset, read_std, well)]
    result[~free] = _sums(y[~free], rest, adc_bits)
    return result


# ---- Shot noise and Gaussian noise of sigma electrons ----


def _unlimited(y: Array, sigma: Array, otherwise: Callable[[Array, Array], Array]) -> Array:
    """By closed form or table where there is one, else by `otherwise`."""
    variance = y + sigma**2
    with np.errstate(divide="ignore", over="ignore"):
        result = 1.0 / y
        dark = y == 0.0
        result[dark] = np.expm1(sigma[dark] ** -2)
    apart = (sigma <= _ALWAYS_APART) | ((sigma <= _APART) & (y >= _APART_FROM_MEAN))
    smooth = ~dark & (sigma >= _SMOOTH) & (variance >= _BRIGHT)
    result[smooth] = _series(y[smooth], variance[smooth])
    comb = ~apart & (sigma < _SMOOTH) & (y >= _BRIGHT)
    result[comb] = _from_comb(y[comb], sigma[comb])
    rest = ~(dark | apart | smooth | comb)
    result[rest] = otherwise(y[rest], sigma[rest])
    return result


def _series(y: Array, variance: Array) -> Array:
    f = y / variance
    c2 = (21 * f**2 - 15 * f + 2) / 12
    c3 = (318 * f**4 - 456 * f**3 + 203 * f**2 - 30 * f + 1) / 24
    result: Array = (1 + (1 - f) ** 2 * (0.5 + (c2 + c3 / variance) / variance) / variance) / variance
    return result


def _quadrature(y: Array, sigma: Array) -> Array:
    """Trapezoidal sums over the output in electrons, for y > 0."""
    deviation = np.sqrt(y + sigma**2)
    # At the faintest means two electrons at once add less than 1e-12.
    few = y < _APART_FROM_MEAN
    low = np.maximum(y - 9.5 * deviation - 1.0, -9.5 * sigma)
    high = np.where(few, 3.0 + 9.5 * sigma, y + 12.5 * deviation + 14.0)
    # The integrand has poles pi sigma^2 off the real axis, between two counts, where little of it is for small sigma.
    step = np.minimum(deviation / 4, np.maximum(0.6 * sigma**2, sigma / 11))
    step = np.where(sigma < _SMOOTH, np.minimum(step, sigma / 3), step)
    number = np.ceil((high - low) / step).astype(np.int64) + 1
    result = np.empty_like(y)
    for rows in _codes.rows_of_like_size(number):
        index = np.arange(number[rows].max())
        z = low[rows, None] + step[rows, None] * np.minimum(index, number[rows, None] - 1)
        weight = np.where(index < number[rows, None], step[rows, None], 0.0)
        read_std = torch.from_numpy(sigma[rows, None])
        with torch.enable_grad():
            mean = torch.from_numpy(y[rows, None]).expand(z.shape).clone().requires_grad_(True)
            log_p = ops.poisson_gaussian_log_prob(torch.from_numpy(z), mean, read_std=read_std)
            (score,) = torch.autograd.grad(log_p.sum(), mean)
        result[rows] = _mean_square(log_p, score, weight)
    return result


def _mean_square(log_p: Tensor, score: Tensor, weight: Array) -> Array:
    p = np.exp(log_p.detach().numpy()) * weight
    total: Array = (p * np.where(p > 0, score.numpy(), 0.0) ** 2).sum(axis=1)
    return total


# ---- Bright pixels whose single electrons stand out ----


def _from_comb(y: Array, sigma: Array) -> Array:
    panel = np.clip(np.searchsorted(_COMB_PANELS, sigma, "right") - 1, 0, len(_COMB_PANELS) - 2)
    ratio = np.empty_like(y)
    for index in np.unique(panel):
        chosen = panel == index
        low, high = _COMB_PANELS[index], _COMB_PANELS[index + 1]
        across = chebyshev.chebvander((2 * sigma[chosen] - low - high) / (high - low), _COMB_DEGREE)
        along = chebyshev.chebvander(2 * _BRIGHT / y[chosen] - 1, _COMB_BRIGHT_DEGREE)
        ratio[chosen] = np.einsum("ni,ij,nj->n", across, _comb(int(index)), along)
    return ratio / (y + sigma**2)


@functools.lru_cache(maxsize=len(_COMB_PANELS))
def _comb(panel: int) -> Array:
    """Coefficients of J (y + sigma^2) over sigma in this panel and over 1 / y from 0 to 1 / 1000."""
    low, high = _COMB_PANELS[panel], _COMB_PANELS[panel + 1]
    across, along = chebyshev.chebpts1(_COMB_DEGREE + 1), chebyshev.chebpts1(_COMB_BRIGHT_DEGREE + 1)
    sigma = 0.5 * (low + high + (high - low) * across)
    y = 2 * _BRIGHT / (1 + along)
    sigma, y = (grid.reshape(-1) for grid in np.meshgrid(sigma, y, indexing="ij"))
    values = (_quadrature(y, sigma) * (y + sigma**2)).reshape(len(across), len(along))
    first = np.linalg.inv(chebyshev.chebvander(across, _COMB_DEGREE))
    second = np.linalg.inv(chebyshev.chebvander(along, _COMB_BRIGHT_DEGREE))
    result: Array = first @ values @ second.T
    return result


# ---- Digitised and saturating sensors ----


def _sums(y: Array, columns: list[Array], adc_bits: int | None) -> Array:
    """Over the output of each pixel; gain, offset, read_std and full well in the shape of y, (n,)."""
    gain, offset, read_std, well = columns
    area = _codes.support(y, gain, offset, read_std, well, adc_bits=adc_bits)
    if adc_bits is None:
        # Squares of scores are sharper than the probabilities that these steps suffice for.
        area = area._replace(step=area.step / 2, number=2 * area.number)
    top = math.inf if adc_bits is None else float(2**adc_bits - 1)
    result = np.empty_like(y)
    for rows in _codes.rows_of_like_size(area.number):
        values, weight = area.points(rows, top)
        z = torch.from_numpy(values)
        below, above = _codes.bins(z, adc_bits)
        g, o, s, w = (torch.from_numpy(column[rows, None]) for column in (gain, offset, read_std, well))
        keywords = {"gain": g, "read_std": s, "below": below, "above": above, "full_well_electrons": w}
        light = torch.from_numpy(y[rows, None])
        with torch.enable_grad():
            mean = light.expand(z.shape).clone().requires_grad_(True)
            log_p = ops.poisson_gaussian_bin_log_prob(z, mean, offset=o, **keywords)
            (score,) = torch.autograd.grad(log_p.sum(), mean)
        dark = light[:, 0] == 0
        if bool(dark.any()):
            # One electron for none: the limit of the score, which overflows where it has no limit.
            lit = ops.poisson_gaussian_bin_log_prob(z, light, offset=o + g * w.clamp(max=1.0), **keywords)
            score = torch.where(dark[:, None], torch.expm1(lit - log_p.detach()), score)
        with np.errstate(over="ignore"):
            result[rows] = _mean_square(log_p, score, weight)
    return result


def exact(setting: Setting, y: Array) -> Array:
    """J at each mean by quadrature or summation alone, without tables."""
    if setting.adc_bits is None and not math.isfinite(setting.full_well_electrons):
        return _quadrature(y, np.full_like(y, setting.read_std / setting.gain))
    gain, offset, read_std, well = setting.summed
    return _sums(y, [np.full_like(y, value) for value in (gain, offset, read_std, well)], setting.adc_bits)


# ---- Tables over the mean ----


def _from_panels(setting: Setting, y: Array) -> Array:
    octaves = np.frexp(y)[1]
    scaled = np.empty_like(y)
    for octave in np.unique(octaves):
        chosen = octaves == octave
        edges, coefficients = _panels(setting, int(octave))
        mean = y[chosen]
        panel = np.clip(np.searchsorted(edges, mean, "right") - 1, 0, len(edges) - 2)
        low, high = edges[panel], edges[panel + 1]
        scaled[chosen] = _clenshaw(coefficients[panel].T, (2 * mean - low - high) / (high - low))
    return np.maximum(scaled, 0.0) / (y + _dark_mean(setting))


def _clenshaw(coefficients: Array, t: Array) -> Array:
    result: Array = np.asarray(chebyshev.chebval(t, coefficients, tensor=False), dtype=np.float64)
    return result


def _dark_mean(setting: Setting) -> float:
    """1 / J(0) without limits: J is at most 1 / (y + this) but for a factor of order 1."""
    precision = (setting.gain / setting.read_std) ** 2
    return 1.0 / math.expm1(precision) if precision < 700.0 else 0.0


@functools.lru_cache(maxsize=4096)
def _panels(setting: Setting, octave: int) -> tuple[Array, Array]:
    """Edges of the panels from 2^(octave - 1) to 2^octave and the Chebyshev coefficients of J (y + 1 / J(0))."""
    limited = setting.adc_bits is not None or math.isfinite(setting.full_well_electrons)
    dark = _dark_mean(setting)
    nodes = chebyshev.chebpts1(_DEGREE + 1)
    to_coefficients = np.linalg.inv(chebyshev.chebvander(nodes, _DEGREE)).T
    checks = np.array([-0.99, -0.4, 0.17, 0.8, 0.97])
    points = np.concatenate([nodes, checks])
    at_checks = chebyshev.chebvander(checks, _DEGREE).T
    pending = np.array([[math.ldexp(0.5, octave), math.ldexp(1.0, octave)]])
    accepted: list[tuple[Array, Array]] = []
    for halving in range(_MOST_HALVINGS + 1):
        middle, half = pending.mean(axis=1), 0.5 * (pending[:, 1] - pending[:, 0])
        y = middle[:, None] + half[:, None] * points
        values = exact(setting, y.reshape(-1)).reshape(y.shape) * (y + dark)
        coefficients: Array = values[:, : len(nodes)] @ to_coefficients
        truth = values[:, len(nodes) :]
        error = np.abs(coefficients @ at_checks - truth)
        allowed = _LIMITED_PANEL_ERROR * np.maximum(truth, 0.1) if limited else _PANEL_ERROR * truth
        good = (error <= allowed).all(axis=1) | (halving == _MOST_HALVINGS)
        accepted.append((pending[good], coefficients[good]))
        rough, centre = pending[~good], middle[~good]
        if not len(rough):
            break
        left, right = np.stack([rough[:, 0], centre], axis=1), np.stack([centre, rough[:, 1]], axis=1)
        pending = np.concatenate([left, right])
    edges = np.concatenate([pair for pair, _ in accepted])
    order = np.argsort(edges[:, 0])
    return np.append(edges[order, 0], edges[order[-1], 1]), np.concatenate([part for _, part in accepted])[order]
