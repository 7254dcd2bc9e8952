"""One pattern at a random brightness: the density of images whose intensity varies as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np
import torch
from torch import Tensor

from bitlens.densities._channel_mixture import (
    ChannelMixture,
    electrons,
    em_log_weights,
    fitted_mixture,
    fitting_scores,
    mean_level,
    noise_variance,
    shrunk_to_constant,
    smoothing_matrix,
)
from bitlens.densities.base import Density, as_images
from bitlens.noise import NoiseModel

# Standard deviations of the noise from one brightness to the next: at 1.5 the sum over them ripples by 3e-4.
_STEP = 1.5
_MOST_SCALES = 4000
_EM_STEPS = 15
# Share of a component that spreads over all brightnesses is this over the number of images, for images brighter or
# darker than any seen; it reaches this factor beyond them.
_BROAD_IMAGES, _BROAD_REACH = 8.0, 4.0
_MOST_BROAD = 0.02
# Darkest pattern and scale, relative to the mean.
_DARK, _LEAST_SCALE = 1e-4, 1e-3
# Points by which brightness is turned into standard deviations of the noise.
_INTEGRATION_POINTS = 500


@final
@dataclass(frozen=True, eq=False)
class ScaleMixtureDensity(Density):
    """q(z) = sum_k w_k p(z | a_k m): the mean image m at brightnesses a_k, under the noise model itself.

    Measured values as they are, no dither: for counts q is a probability. The weights are those of smoothed
    expectation maximisation over log brightness, started at the brightnesses of the images themselves, with a broad
    component. `held_out_bias_nats` = kept (D - 1) / (2 n) + n^(-4/5) / 2 + broad share: the pattern as far as it was
    not drawn to a constant one, the kernel by which the weights are smoothed, the broad component.
    """

    takes_counts: ClassVar[bool] = True

    noise: NoiseModel
    means: Tensor | None = field(default=None, repr=False)
    log_weights: Tensor | None = field(default=None, repr=False)
    n_samples: int = 0
    held_out_bias_nats: float = 0.0
    converged: bool = False

    @torch.no_grad()
    def fit(self, measured: Tensor) -> Self:
        """Pattern and brightnesses of `measured`, (n, ...).

        Raises:
            ValueError: fewer than 4 images, values that are not finite, or images without light.
        """
        images = as_images(measured, minimum_samples=4)
        signal = electrons(self.noise, images)
        level = mean_level(signal)
        pattern, scales, kept = _pattern_and_scales(self.noise, signal, level)
        places = _places(self.noise, pattern, float(scales.min()), float(scales.max()))
        log_places = places.log()
        cells = _cells(log_places)
        spread = float(scales.log().std())
        bandwidth = max(1.06 * spread * len(images) ** -0.2, 1e-9)
        # A kernel narrower than a cell is the cell.
        width = (bandwidth**2 + 0.25 * cells.square()).sqrt()
        distance = (log_places[:, None] - scales.log()) / width[:, None]
        start = cells / width * torch.exp(-0.5 * distance.square()).mean(1)
        start = (start / start.sum()).clamp_min(1e-9).log()
        means = places.reshape(-1, *(1,) * pattern.ndim) * pattern
        scores = fitting_scores(self.noise, images, means)
        # The kernel that the start is smoothed by twice over all steps: each takes a share of its variance.
        step_width = (bandwidth**2 / _EM_STEPS + 0.0625 * cells.square()).sqrt()
        weights = em_log_weights(scores, start, _EM_STEPS, smoothing_matrix(log_places, step_width, cells)).exp()
        share = min(_MOST_BROAD, _BROAD_IMAGES / len(images))
        weights = (1.0 - share) * weights + share * cells / cells.sum()
        bias = kept * (pattern.numel() - 1) / (2.0 * len(images)) + 0.5 * len(images) ** -0.8 + share
        return type(self)(self.noise, means, weights.log(), len(images), bias, True)

    def log_prob(self, measured: Tensor) -> Tensor:
        """log q(z) of each image, (n, ...) -> (n,) nats."""
        return self._fitted().log_prob(measured)

    def conditional_entropy(self, measured: Tensor) -> Tensor:
        """E_q[h(z|mean) given z] of each image, (n, ...) -> (n,) nats: by the brightness that all its pixels tell."""
        return self._fitted().conditional_entropy(measured)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """A brightness drawn by its weight and the noise on it: n images, (n, ...)."""
        return self._fitted().sample(n, generator)

    def _fitted(self) -> ChannelMixture:
        return fitted_mixture(type(self).__name__, self.noise, self.means, self.log_weights)


def _pattern_and_scales(noise: NoiseModel, signal: Tensor, level: float) -> tuple[Tensor, Tensor, float]:
    """The mean image over its mean, drawn to a constant as far as its scatter is noise; each image's brightness (n,).

    Also the share of the pattern that was kept.
    """
    pattern = ((signal.sum(0) + 0.5) / (len(signal) * level + 0.5)).clamp_min(_DARK)
    # Weighted least squares brightness of each image; weights at the mean level.
    weight = pattern / noise_variance(noise, pattern * level)
    scales = (signal * weight).flatten(1).sum(1) / (pattern * weight).sum()
    scales = scales.clamp_min(_LEAST_SCALE * level)
    residual = signal - scales.reshape(-1, *(1,) * pattern.ndim) * pattern
    pattern, kept = shrunk_to_constant(pattern, residual.square().mean(0) / (len(signal) * level**2))
    return pattern.clamp_min(_DARK), scales, kept


def _places(noise: NoiseModel, pattern: Tensor, low: float, high: float) -> Tensor:
    """Brightnesses `_STEP` standard deviations of their estimate apart, from far below `low` to far above `high`.

    An image says sum m^2 / var(a m) about its brightness a.
    """
    grid = torch.linspace(math.log(low / _BROAD_REACH), math.log(high * _BROAD_REACH), _INTEGRATION_POINTS)
    grid = grid.to(pattern).exp()
    information = torch.stack([(pattern.square() / noise_variance(noise, a * pattern)).sum() for a in grid])
    deviations = torch.cumulative_trapezoid(information.sqrt(), grid)
    total = float(deviations[-1])
    count = min(_MOST_SCALES, max(8, math.ceil(total / _STEP) + 1))
    # The logarithm of the brightness where the deviations pass each of `count` equal steps.
    steps = np.linspace(0.0, total, count)
    seen = np.concatenate([[0.0], deviations.cpu().numpy()])
    log_places = np.interp(steps, seen, grid.log().cpu().numpy())
    return torch.from_numpy(log_places).to(pattern).exp()


def _cells(log_places: Tensor) -> Tensor:
    """Width of the interval that each place stands for."""
    edges = torch.cat([log_places[:1], 0.5 * (log_places[1:] + log_places[:-1]), log_places[-1:]])
    return edges.diff()
