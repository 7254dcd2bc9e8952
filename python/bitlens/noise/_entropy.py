"""Entropies of Poisson and Poisson-Gaussian pixels: exact at nodes, interpolated between them.

Both are written as a part that is known in closed form plus a smooth remainder, and only the remainder is
interpolated, by a cubic spline in u = log(1 + y / 1e-4). Above 100 photo-electrons the Edgeworth expansion of the
entropy takes over, less what single electrons that stand out of the read noise take from it: a constant and a term in
1/y that meets the last node.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.special import gammaln
from torch import Tensor

from bitlens.kernels.poisson_gaussian_log_prob import op as kernel
from bitlens.noise.base import LOG_TWO_PI_E

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_SCALE = 1e-4
_N_NODES = 400
_LARGEST = 100.0
# Photo-electrons below which the slope of the entropy, -log y, rises no more: in the dark it is infinite, and what
# differentiates through it would be NaN. The value is off by 4e-13 nats at most.
_DARK = 1e-12
# Read noise in electrons between which tables are made. Below, the peaks of single electrons do not overlap
# (error below 1e-8 nats); above, the Edgeworth expansion holds at every mean (error below 1e-5).
_SIGMA_SMALL, _SIGMA_LARGE, _N_SIGMA = 0.07, 10.0, 48


class _Spline(NamedTuple):
    start: float
    step: float
    coefficients: np.ndarray  # (rows, intervals, 4), highest power first


def _nodes() -> np.ndarray:
    u = np.linspace(0.0, math.log1p(_LARGEST / _SCALE), _N_NODES)
    y: np.ndarray = _SCALE * np.expm1(u)
    return y


def _fit(values: np.ndarray) -> _Spline:
    u = np.linspace(0.0, math.log1p(_LARGEST / _SCALE), _N_NODES)
    spline = CubicSpline(u, values, axis=-1)
    return _Spline(0.0, u[1], np.ascontiguousarray(np.moveaxis(spline.c, 0, -1)).reshape(-1, _N_NODES - 1, 4))


def _interpolate(spline: _Spline, y: Tensor, row: Tensor | int) -> Tensor:
    u = torch.log1p(y / _SCALE)
    position = (u.detach() / spline.step).floor().clamp(0, _N_NODES - 2)
    table = torch.as_tensor(spline.coefficients, dtype=y.dtype, device=y.device)
    c = table[row, position.long()]
    t = u - position * spline.step
    return ((c[..., 0] * t + c[..., 1]) * t + c[..., 2]) * t + c[..., 3]


def _edgeworth(y: Tensor, sigma: Tensor | float) -> Tensor:
    """Entropy of Poisson(y) + Normal(0, sigma^2) by cumulants, without the ripple of single electrons."""
    variance = y + sigma**2
    skewness_squared = y**2 / variance**3
    kurtosis = y / variance**2
    correction = (
        skewness_squared / 12 + kurtosis**2 / 48 + 7 * skewness_squared**2 / 48 - skewness_squared * kurtosis / 8
    )
    return 0.5 * (LOG_TWO_PI_E + torch.log(variance)) - correction


def tabulation(build: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`build` as plain arithmetic: no gradients, no torch.func transform that happens to be active."""

    @functools.wraps(build)
    def outside(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        with torch.no_grad(), torch._C._DisableFuncTorch():
            return build(*arguments, **keywords)

    return outside


def tabulated_log_prob(measured: np.ndarray, mean: np.ndarray, sigma: float) -> np.ndarray:
    """The exact log-likelihood on one fixed backend, so that a table never depends on who asked for it first."""
    return kernel.tabulate(torch.from_numpy(measured), torch.from_numpy(mean), sigma).numpy()


@functools.cache
@tabulation
def _poisson_spline() -> _Spline:
    """E[log N!] - log Gamma(y + 1): analytic in y and at most half a nat."""
    y = _nodes()
    k = np.arange(0, 400.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = np.where((y[:, None] == 0) & (k == 0), 0.0, k * np.log(y[:, None]) - y[:, None] - gammaln(k + 1))
    log_p = np.where(np.isnan(log_p), -np.inf, log_p)
    return _fit((np.exp(log_p) * gammaln(k + 1)).sum(axis=1) - gammaln(y + 1))


def poisson_entropy(mean: Tensor) -> Tensor:
    """Entropy of Poisson(mean) in nats: y - y log y + E[log N!], elementwise; NaN for a negative mean.

    Its slope is finite: in the dark that at 1e-12 photo-electrons, 28 nats per electron.
    """
    y = mean.clamp(0.0, _LARGEST)
    small = y - y * torch.log(y.clamp(min=_DARK)) + torch.lgamma(y + 1) + _interpolate(_poisson_spline(), y, 0)
    large_y = mean.clamp(min=_LARGEST)
    large = _edgeworth(large_y, 0.0) - 19 / (360 * large_y**3)
    value = torch.where(mean > _LARGEST, large, small)
    return torch.where(mean >= 0, value, torch.full_like(value, torch.nan))


def _quadrature_entropy(y: np.ndarray, sigma: float) -> np.ndarray:
    """-integral p log p dz by the trapezoidal rule, p exact; (nodes,) nats.

    p is smooth on the scale of sigma: the step of sigma / 3 is worth 3e-8 at most.
    """
    step = sigma / 3
    spread = np.sqrt(y + sigma**2)
    low = np.maximum(y - 8.5 * spread - 4, -8.5 * sigma)
    n_points = np.ceil((y + 8.5 * spread + 12 - low) / step).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(n_points)[:-1]])
    # One call for all nodes: a call waits for its threads.
    z = np.repeat(low, n_points) + step * (np.arange(n_points.sum()) - np.repeat(first, n_points))
    log_p = tabulated_log_prob(z, np.repeat(y, n_points), sigma)
    result: np.ndarray = -np.add.reduceat(np.exp(log_p) * log_p, first) * step
    return result


def ripple(sigma: float) -> float:
    """Integral of w log w over one electron, w a comb of Gaussians: entropy lost to single electrons."""
    x = np.linspace(0.0, 1.0, 513)[:-1]
    offsets = np.arange(-math.ceil(9 * sigma) - 1, math.ceil(9 * sigma) + 2)
    w = np.exp(-0.5 * ((x[:, None] - offsets) / sigma) ** 2).sum(axis=1) / (sigma * math.sqrt(2 * math.pi))
    return float(np.mean(w * np.log(np.maximum(w, 1e-300))))


def _spread(y: Tensor, sigma: Tensor | float) -> Tensor:
    """Gaussian entropy of the variance: the smooth part that is taken out before interpolation."""
    return 0.5 * (LOG_TWO_PI_E + torch.log(y + sigma**2))


class _Tables(NamedTuple):
    spline: _Spline
    beyond: np.ndarray  # (rows, 2) entropy minus Edgeworth above the last node: constant, and times (last node / y)


@functools.lru_cache(maxsize=64)
@tabulation
def _row(sigma: float) -> _Tables:
    y = _nodes()
    entropy = _quadrature_entropy(y, sigma)
    remainder = entropy - _spread(torch.from_numpy(y), sigma).numpy()
    constant = -ripple(sigma)
    last = torch.tensor(_LARGEST, dtype=torch.float64)
    decaying = entropy[-1] - _edgeworth(last, sigma).item() - constant
    return _Tables(_fit(remainder[None]), np.array([[constant, decaying]]))


def _sigma_nodes() -> np.ndarray:
    nodes: np.ndarray = np.geomspace(_SIGMA_SMALL, _SIGMA_LARGE, _N_SIGMA)
    return nodes


@functools.cache
@tabulation
def _grid() -> _Tables:
    rows = [_row.__wrapped__(float(sigma)) for sigma in _sigma_nodes()]
    first = rows[0].spline
    coefficients = np.concatenate([row.spline.coefficients for row in rows])
    return _Tables(_Spline(first.start, first.step, coefficients), np.concatenate([row.beyond for row in rows]))


def _from_tables(tables: _Tables, y: Tensor, sigma: Tensor, row: Tensor | int) -> Tensor:
    inside = y.clamp(0.0, _LARGEST)
    low = _spread(inside, sigma) + _interpolate(tables.spline, inside, row)
    beyond = torch.as_tensor(tables.beyond, dtype=y.dtype, device=y.device)[row]
    large = y.clamp(min=_LARGEST)
    high = _edgeworth(large, sigma) + beyond[..., 0] + beyond[..., 1] * (_LARGEST / large)
    return torch.where(y > _LARGEST, high, low)


def poisson_gaussian_entropy(mean: Tensor, sigma: Tensor) -> Tensor:
    """h of Poisson(mean) + Normal(0, sigma^2) in nats per electron, elementwise; NaN for a negative mean.

    Args:
        mean: photo-electrons.
        sigma: read noise in electrons, a scalar or anything that broadcasts with the mean.
    """
    y = mean.clamp(min=0.0)
    if sigma.numel() == 1 and _is_constant(sigma):
        value = _scalar_sigma(y, float(sigma))
    else:
        value = _many_sigmas(y, sigma)
    return torch.where(mean >= 0, value, torch.full_like(value, torch.nan))


def _is_constant(sigma: Tensor) -> bool:
    """Whether nothing differentiates in sigma or maps over it."""
    if sigma.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(sigma):
        return False
    if torch.autograd.forward_ad._current_level < 0:
        return True
    return torch.autograd.forward_ad.unpack_dual(sigma).tangent is None


def _scalar_sigma(y: Tensor, sigma: float) -> Tensor:
    if sigma <= _SIGMA_SMALL:
        return poisson_entropy(y) + 0.5 * LOG_TWO_PI_E + math.log(sigma)
    if sigma >= _SIGMA_LARGE:
        return _edgeworth(y, sigma)
    return _from_tables(_row(sigma), y, torch.tensor(sigma, dtype=y.dtype, device=y.device), 0)


def _many_sigmas(y: Tensor, sigma: Tensor) -> Tensor:
    y, sigma = torch.broadcast_tensors(y, sigma)
    separate = poisson_entropy(y) + 0.5 * LOG_TWO_PI_E + torch.log(sigma)
    inside = sigma.clamp(_SIGMA_SMALL, _SIGMA_LARGE)
    log_step = math.log(_SIGMA_LARGE / _SIGMA_SMALL) / (_N_SIGMA - 1)
    position = torch.log(inside / _SIGMA_SMALL) / log_step
    first = (position.detach().floor().long() - 1).clamp(0, _N_SIGMA - 4)
    t = position - first
    weights = (  # cubic Lagrange through four neighbouring read noises
        -(t - 1) * (t - 2) * (t - 3) / 6,
        t * (t - 2) * (t - 3) / 2,
        -t * (t - 1) * (t - 3) / 2,
        t * (t - 1) * (t - 2) / 6,
    )
    tables = _grid()
    nodes = torch.as_tensor(_sigma_nodes(), dtype=y.dtype, device=y.device)
    # What varies slowly is entropy - spread, so that is what the four rows give.
    middle = torch.zeros_like(t)
    for offset, weight in enumerate(weights):
        row = first + offset
        middle = middle + weight * (_from_tables(tables, y, nodes[row], row) - _spread(y, nodes[row]))
    middle = middle + _spread(y, inside)
    return torch.where(sigma < _SIGMA_SMALL, separate, torch.where(sigma > _SIGMA_LARGE, _edgeworth(y, sigma), middle))
