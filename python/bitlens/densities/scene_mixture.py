"""A few scenes, each a noiseless image of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from bitlens.densities._channel_mixture import (
    ChannelMixture,
    counts_photons,
    electrons,
    em_log_weights,
    fitted_mixture,
    fitting_scores,
    noise_variance,
    posteriors,
)
from bitlens.densities._starts import clustered
from bitlens.densities.base import Density, as_images
from bitlens.noise import NoiseModel

_MOST_SCENES = 128
_IMAGES_PER_SCENE = 10
_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)
_TRIAL_STEPS, _FINAL_STEPS = 4, 15
_DARK = 1e-4


@final
@dataclass(frozen=True, eq=False)
class SceneMixtureDensity(Density):
    """q(z) = sum_k w_k p(z | y_k): K free noiseless images y_k with weights w_k, under the noise model itself.

    Measured values as they are, no dither: for counts q is a probability. Many scenes are found by clustering,
    merged two at a time (Ward 1963), refined by expectation maximisation; their number is the best on a fifth of the
    images kept from that. `held_out_bias_nats` = K D / (2 n) for D pixels.
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
        """Scenes, their number and weights for `measured`, (n, ...).

        Raises:
            ValueError: fewer than 10 images, or values that are not finite.
        """
        images = as_images(measured, minimum_samples=_IMAGES_PER_SCENE)
        held = torch.arange(len(images), device=images.device) % 5 == 4
        fitting, validation = images[~held], images[held]
        best, best_score, chosen = 1, -torch.inf, None
        worse = 0
        for means, log_weights in self._merged(fitting):
            means, log_weights = self._refined(fitting, means, log_weights, _TRIAL_STEPS)
            score = float(ChannelMixture(self.noise, means, log_weights).log_prob(validation).mean())
            if score > best_score:
                best, best_score, chosen, worse = len(means), score, (means, log_weights), 0
            else:
                worse += 1
            if worse == 4:  # the score rises to the right number and falls beyond it
                break
        assert chosen is not None
        means, log_weights = self._refined(images, *chosen, _FINAL_STEPS)
        bias = best * images[0].numel() / (2.0 * len(images))
        return type(self)(self.noise, means, log_weights, len(images), bias, True)

    def log_prob(self, measured: Tensor) -> Tensor:
        """log q(z) of each image, (n, ...) -> (n,) nats."""
        return self._fitted().log_prob(measured)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """A scene drawn by its weight and the noise on it: n images, (n, ...)."""
        return self._fitted().sample(n, generator)

    def _fitted(self) -> ChannelMixture:
        return fitted_mixture(type(self).__name__, self.noise, self.means, self.log_weights)

    def _merged(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Means and log weights for every number of scenes tried, fewest first."""
        signal = electrons(self.noise, images)
        flat = signal.flatten(1)
        # A pixel that is always dark has no noise of its own to be judged by.
        least = _DARK * max(float(signal.mean()), 1e-6)
        variance = noise_variance(self.noise, signal.mean(0).clamp_min(least)).flatten()
        whitened = flat / variance.sqrt()
        count = max(1, min(_MOST_SCENES, len(images) // _IMAGES_PER_SCENE))
        label = clustered(whitened, count)
        size = torch.bincount(label, minlength=count).to(torch.float64)
        sums = whitened.new_zeros(count, whitened.shape[1]).index_add_(0, label, whitened)
        sums, size = sums[size > 0], size[size > 0]
        found: list[tuple[Tensor, Tensor]] = []
        while True:
            if len(size) in _COUNTS:
                means = (sums / size[:, None] * variance.sqrt()).reshape(-1, *images.shape[1:])
                found.append((self._lit(means, signal), (size / size.sum()).log()))
            if len(size) == 1:
                return found[::-1]
            sums, size = _merge_nearest(sums, size)

    def _lit(self, means: Tensor, signal: Tensor) -> Tensor:
        if not counts_photons(self.noise, signal.shape[1:]):
            return means
        return means.clamp_min(_DARK * max(float(signal.mean()), 1e-6))

    def _refined(self, images: Tensor, means: Tensor, log_weights: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
        """Some steps of expectation maximisation of means and weights together."""
        signal = electrons(self.noise, images)
        for _ in range(n_steps):
            scores = fitting_scores(self.noise, images, means)
            share = posteriors(scores, log_weights)
            log_weights = em_log_weights(scores, log_weights, 1)
            count = share.sum(0)
            update = (share.mT @ signal.flatten(1)) / count.clamp_min(1e-12)[:, None]
            kept = (count > 1e-6)[:, None]
            means = torch.where(kept, update, means.flatten(1)).reshape(means.shape)
            means = self._lit(means, signal)
        return means, log_weights


def _merge_nearest(sums: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The two clusters whose union costs least squared error made one."""
    centres = sums / size[:, None]
    power = centres.square().sum(1)
    squared = (power[:, None] + power - 2.0 * centres @ centres.mT).clamp_min(0.0)
    cost = squared * size[:, None] * size / (size[:, None] + size)
    cost.fill_diagonal_(torch.inf)
    first, second = divmod(int(cost.argmin()), len(size))
    keep = torch.ones(len(size), dtype=torch.bool, device=size.device)
    keep[second] = False
    sums, size = sums.clone(), size.clone()
    sums[first] += sums[second]
    size[first] += size[second]
    return sums[keep], size[keep]
