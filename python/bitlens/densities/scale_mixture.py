"""One pattern at a random brightness: the density of images whose intensity varies as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from bitlens.densities._channel_mixture import (
    ChannelMixture,
    electrons,
    em_log_weights,
    fitted_mixture,
    fitting_scores,
    log_spaced,
    mean_level,
    noise_variance,
    smoothing_matrix,
)
from bitlens.densities.base import Density, as_images
from bitlens.noise import NoiseModel

_MOST_SCALES = 1500
_EM_STEPS = 15
# Share of a component that spreads over all scales, for images brighter or darker than any seen.
_BROAD_WEIGHT = 0.02
# Darkest pattern and scale, relative to the mean.
_DARK, _LEAST_SCALE = 1e-4, 1e-3


@final
@dataclass(frozen=True, eq=False)
class ScaleMixtureDensity(Density):
    """q(z) = sum_k w_k p(z | a_k m): the mean image m at brightnesses a_k, under the noise model itself.

    Measured values as they are, no dither: for counts q is a probability. The weights are those of smoothed
    expectation maximisation over log brightness, started at the brightnesses of the images themselves, with a broad
    component. `held_out_bias_nats` is 0: what the few effective parameters cost is below the smoothing's error.
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
        pattern = signal.mean(0)
        level = mean_level(pattern)
        pattern = (pattern / level).clamp_min(_DARK)
        # Weighted least squares brightness of each image; weights at the mean level.
        weight = pattern / noise_variance(self.noise, pattern * level)
        scales = (signal * weight).flatten(1).sum(1) / (pattern * weight).sum()
        scales = scales.clamp_min(_LEAST_SCALE * level)
        resolution = float(1.0 / (pattern * weight).sum().sqrt()) / level
        log_scales = scales.log()
        spread = float(log_scales.std())
        margin = 3.0 * resolution + 0.1 * spread + 1e-3
        # Four places to a standard deviation of the noise where light is brightest.
        brightest = float(scales.max()) / level
        step = 0.25 * resolution / math.sqrt(max(brightest, 1.0))
        places = log_spaced(
            float(scales.min()) * math.exp(-margin), float(scales.max()) * math.exp(margin), step, _MOST_SCALES
        )
        places = places.to(images.device)
        gap = float(places[1] - places[0])
        bandwidth = max(1.06 * spread * len(images) ** -0.2, 0.5 * gap)
        start = torch.exp(-0.5 * ((places[:, None] - log_scales) / bandwidth).square()).mean(1)
        start = (start / start.sum()).clamp_min(1e-9).log()
        means = places.exp().reshape(-1, *(1,) * pattern.ndim) * pattern
        scores = fitting_scores(self.noise, images, means)
        # The kernel that the start is smoothed by twice over all steps: each takes a share of its variance.
        smoothing = smoothing_matrix(places, max(bandwidth / math.sqrt(_EM_STEPS), 0.25 * gap))
        weights = em_log_weights(scores, start, _EM_STEPS, smoothing).exp()
        broad = torch.full_like(weights, 1.0 / len(weights))
        weights = (1.0 - _BROAD_WEIGHT) * weights + _BROAD_WEIGHT * broad
        return type(self)(self.noise, means, weights.log(), len(images), 0.0, True)

    def log_prob(self, measured: Tensor) -> Tensor:
        """log q(z) of each image, (n, ...) -> (n,) nats."""
        return self._fitted().log_prob(measured)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """A brightness drawn by its weight and the noise on it: n images, (n, ...)."""
        return self._fitted().sample(n, generator)

    def _fitted(self) -> ChannelMixture:
        return fitted_mixture(type(self).__name__, self.noise, self.means, self.log_weights)
