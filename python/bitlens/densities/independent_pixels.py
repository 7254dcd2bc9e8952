"""Pixels independent of each other, each a noise model at a random level."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from bitlens.densities._channel_mixture import (
    electrons,
    likeliest_log_weights,
    mean_level,
    noise_variance,
    shrunk_to_constant,
)
from bitlens.densities.base import Density, as_images
from bitlens.noise import NoiseModel

# Values that the weights are fitted to: they have few effective parameters.
_MOST_VALUES = 20_000
_MOST_LEVELS = 600
_EM_STEPS = 60
_LEVEL_STEP = 0.5  # in standard deviations of the noise
_CHUNK_EVALUATIONS = 4_000_000
_DARK = 1e-6
_BROAD_WEIGHT = 1e-3


@final
@dataclass(frozen=True, eq=False)
class IndependentPixelsDensity(Density):
    """q(z) = prod_p sum_l w_l p(z_p | m_p u_l): pixel p's mean m_p times a level u_l whose law all pixels share.

    The law of the levels is the nonparametric maximum of the likelihood (Kiefer and Wolfowitz 1956) over levels a
    fraction of the noise apart, with a small broad component. Measured values as they are: for counts q is a
    probability. `held_out_bias_nats` = D / (2 n), that of the pixel means.
    """

    takes_counts: ClassVar[bool] = True

    noise: NoiseModel
    pixel_means: Tensor | None = field(default=None, repr=False)
    levels: Tensor | None = field(default=None, repr=False)
    log_weights: Tensor | None = field(default=None, repr=False)
    n_samples: int = 0
    held_out_bias_nats: float = 0.0
    converged: bool = False

    @torch.no_grad()
    def fit(self, measured: Tensor) -> Self:
        """Pixel means and the shared law of the levels of `measured`, (n, ...).

        Raises:
            ValueError: fewer than 4 images, values that are not finite, or images without light.
        """
        images = as_images(measured, minimum_samples=4)
        signal = electrons(self.noise, images)
        means = signal.mean(0)
        level = mean_level(means)
        means, kept = shrunk_to_constant(means, signal.var(0) / len(signal))
        means = means.clamp_min(_DARK * level)
        levels = _levels(self.noise, signal, means, level)
        rows = images[:: max(1, len(images) * means.numel() // _MOST_VALUES)]
        scores = self._scores(rows, means, levels).movedim(1, -1).reshape(-1, len(levels))
        start = torch.full_like(levels, 1.0 / len(levels)).log()
        weights = likeliest_log_weights(scores, start.to(scores), _EM_STEPS).exp().to(torch.float64)
        weights = (1.0 - _BROAD_WEIGHT) * weights + _BROAD_WEIGHT / len(weights)
        bias = (1.0 + kept * (means.numel() - 1)) / (2.0 * len(images))
        return type(self)(self.noise, means, levels, weights.log(), len(images), bias, True)

    @torch.no_grad()
    def log_prob(self, measured: Tensor) -> Tensor:
        """log q(z) of each image, (n, ...) -> (n,) nats."""
        means, levels, log_weights = self._fitted()
        images = as_images(measured, means.shape)
        step = max(1, _CHUNK_EVALUATIONS // (means.numel() * len(levels)))
        weights = log_weights.to(torch.float32).reshape(-1, *(1,) * means.ndim)
        parts = [
            torch.logsumexp(self._scores(part, means, levels) + weights, 1).flatten(1).sum(1, dtype=torch.float64)
            for part in images.split(step)
        ]
        return torch.cat(parts)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """A level for every pixel and the noise on it: n images, (n, ...)."""
        means, levels, log_weights = self._fitted()
        weights = log_weights.exp().cpu()
        drawn = torch.multinomial(weights, n * means.numel(), replacement=True, generator=generator)
        return self.noise.sample(levels[drawn].reshape(n, *means.shape) * means, generator).to(torch.float64)

    def _scores(self, measured: Tensor, means: Tensor, levels: Tensor) -> Tensor:
        """log p(z_p | m_p u_l), (n, levels, ...), in single precision, whose error a mean over pixels does not show."""
        mean = levels.reshape(-1, *(1,) * means.ndim) * means
        return self.noise.log_prob(measured[:, None].to(torch.float32), mean[None].to(torch.float32))

    def _fitted(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.pixel_means is None or self.levels is None or self.log_weights is None:
            raise RuntimeError(f"{type(self).__name__}: call fit first; it returns the fitted density")
        return self.pixel_means, self.levels, self.log_weights


def _levels(noise: NoiseModel, signal: Tensor, means: Tensor, level: float) -> Tensor:
    """Levels half a standard deviation of the noise apart at the mean brightness, over all values and zero."""
    dark = float(noise_variance(noise, torch.zeros_like(means)).mean())
    relative = signal / means
    brightest = means.flatten().median() if level > 0 else means.mean()
    low = torch.quantile(relative.flatten()[:: max(1, relative.numel() // 100_000)], 0.0005)
    first = 2.0 * math.sqrt(dark)
    last = 2.0 * math.sqrt(max(float(relative.max()), 1.0) * float(brightest) + dark) + 1.0
    count = min(_MOST_LEVELS, max(8, math.ceil((last - first) / _LEVEL_STEP) + 1))
    stabilised = torch.linspace(first, last, count, dtype=torch.float64, device=means.device)
    levels = ((0.5 * stabilised).square() - dark).clamp_min(0.0) / float(brightest)
    least = max(
        0.0, float(low) - 6.0 * math.sqrt(max(float(low), 0.0) / float(brightest) + dark / float(brightest) ** 2)
    )
    return levels[levels >= least]
