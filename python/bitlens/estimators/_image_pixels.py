"""Log densities of single pixels of a window, each given those before it, from densities of the whole window.

Before means row by row, and by channel within a pixel. Their sum over a window is the log density of the window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bitlens.densities import AutoregressiveDensity, Density, GaussianMixtureDensity, StationaryGaussianDensity

# Values of components, windows and pixels kept at a time.
_MOST_VALUES = 4_000_000


class PixelLaws(NamedTuple):
    """`log_prob`: windows (n, channel, row, column) -> log densities of their pixels, same shape, nats.

    `highest` is the most that it can be at each pixel, (channel, row, column), for a Gaussian; None for others.
    """

    log_prob: Callable[[Tensor], Tensor]
    highest: Tensor | None


def pixel_laws(density: Density) -> PixelLaws:
    """The exact conditional laws of a fitted density of windows (n, channel, row, column).

    Raises:
        TypeError: a density whose marginals are not known exactly.
        RuntimeError: a density that is not fitted.
    """
    if isinstance(density, AutoregressiveDensity):
        return PixelLaws(lambda windows: _logistic(density, windows), None)
    if isinstance(density, StationaryGaussianDensity):
        if density.mean is None or density.cholesky is None:
            raise RuntimeError(f"{type(density).__name__}: call fit first; it returns the fitted density")
        covariance = density.cholesky @ density.cholesky.mT
        gaussian = _Components(density.mean[None], _factor(covariance, density.mean.shape)[None])
        highest = _from_order(gaussian.highest(), density.mean.shape)[0]
        return PixelLaws(lambda windows: _each_part(gaussian.log_prob, windows, 1), highest)
    if isinstance(density, GaussianMixtureDensity):
        mixture = _mixture(density)
        n_components = len(mixture.means)
        return PixelLaws(lambda windows: _each_part(mixture.log_prob, windows, n_components), None)
    raise TypeError(f"density: need one whose marginals are exact, got {type(density).__name__}")


class _Components(NamedTuple):
    """Gaussians: means (K, channel, row, column), Cholesky factors (K, D, D) in causal order, log weights (K,)."""

    means: Tensor
    factors: Tensor
    log_weights: Tensor | None = None

    def highest(self) -> Tensor:
        """Log densities of the most likely values, (K, D)."""
        return -0.5 * math.log(2.0 * math.pi) - self.factors.diagonal(dim1=-2, dim2=-1).log()

    def log_prob(self, windows: Tensor) -> Tensor:
        """Of windows (n, channel, row, column), the same shape: components weigh by what they gave so far."""
        parts = []
        for mean, factor, highest in zip(self.means, self.factors, self.highest(), strict=True):
            whitened = torch.linalg.solve_triangular(factor, _in_order(windows - mean).mT, upper=False).mT
            parts.append(highest - 0.5 * whitened.square())
        if self.log_weights is None:
            return _from_order(parts[0], windows.shape[1:])
        so_far = torch.stack([part.cumsum(1) for part in parts], 2) + self.log_weights
        total = so_far.logsumexp(2)
        return _from_order(torch.diff(total, dim=1, prepend=torch.zeros_like(total[:, :1])), windows.shape[1:])


def _mixture(density: GaussianMixtureDensity) -> _Components:
    if density.log_weights is None or density.means is None or density.variances is None or density.basis is None:
        raise RuntimeError(f"{type(density).__name__}: call fit first; it returns the fitted density")
    shape = density.means.shape[1:]
    factors = [_factor((density.basis * variance) @ density.basis.mT, shape) for variance in density.variances]
    # Weights that sum to one: the first pixel's density is then one too.
    return _Components(density.means, torch.stack(factors), density.log_weights.log_softmax(0))


def _factor(covariance: Tensor, shape: torch.Size) -> Tensor:
    """Lower Cholesky factor (D, D) of a covariance in the order (channel, row, column), put into causal order."""
    places = torch.arange(covariance.shape[0], device=covariance.device)
    order = _in_order(places.reshape(1, *shape))[0]
    factor: Tensor = torch.linalg.cholesky(covariance[order][:, order])
    return factor


def _in_order(windows: Tensor) -> Tensor:
    """(n, channel, row, column) -> (n, D), row by row, channels of a pixel together."""
    return windows.movedim(1, -1).flatten(1)


def _from_order(values: Tensor, shape: torch.Size) -> Tensor:
    channels, rows, columns = shape
    return values.reshape(-1, rows, columns, channels).movedim(-1, 1)


def _each_part(log_prob: Callable[[Tensor], Tensor], windows: Tensor, n_components: int) -> Tensor:
    part = max(1, _MOST_VALUES // (n_components * windows[0].numel()))
    return torch.cat([log_prob(some) for some in windows.split(part)])


def _logistic(density: AutoregressiveDensity, windows: Tensor) -> Tensor:
    """Of mixtures of logistic laws: densities, or probabilities of bins where the fit was to whole numbers."""
    part = max(1, _MOST_VALUES // (3 * density.n_components * windows[0].numel()))
    results = []
    for values in windows.split(part):
        weight, location, scale = density.conditionals(values)
        centre = (values[..., None] - location) / scale
        if density.is_discrete:
            half = 0.5 / scale
            below_upper = functional.logsigmoid(centre + half)
            above_lower = functional.logsigmoid(half - centre)
            between = torch.log(-torch.expm1(-1.0 / scale))
            lowest, highest = (values <= density.lowest)[..., None], (values >= density.highest)[..., None]
            above_lower = above_lower.masked_fill(lowest, 0.0)
            below_upper = below_upper.masked_fill(highest, 0.0)
            component = below_upper + above_lower + between.masked_fill(lowest | highest, 0.0)
        else:
            component = functional.logsigmoid(centre) + functional.logsigmoid(-centre) - scale.log()
        found = torch.logsumexp(weight.log() + component, -1)
        outside = (values < density.lowest) | (values > density.highest)
        results.append(found.masked_fill(outside, -math.inf))
    return torch.cat(results)
