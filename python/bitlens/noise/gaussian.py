"""Additive Gaussian noise."""

from __future__ import annotations

import math
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from bitlens.noise import _pairs, _rows
from bitlens.noise._draws import white_noise
from bitlens.noise.base import (
    LOG_TWO_PI_E,
    NoiseModel,
    ScoreFeatures,
    as_mean,
    check_finite,
    flat_float64,
    flat_map,
    set_parameter,
)
from bitlens.ops import InfoNCEScores


@final
class GaussianNoise(NoiseModel):
    """measured = mean + n, n ~ Normal(0, std^2).

    Args:
        std: standard deviation in the unit of the mean, > 0; a number or a per-pixel map.
    """

    # What an optimiser may reach; None leaves a side open.
    parameter_domain: ClassVar[dict[str, tuple[float | None, float | None]]] = {"std": (1e-6, None)}

    fast_pairs = True
    std: Tensor

    def __init__(self, std: object) -> None:
        super().__init__()
        set_parameter(self, "std", std, positive=True)

    def sample(self, mean: Tensor | np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        """mean + std * standard normal, differentiable in the mean and in std."""
        mean = as_mean(mean)
        white = white_noise(mean, generator)
        return mean + self.std.to(mean) * white

    def log_prob(self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray) -> Tensor:
        """-((measured - mean) / std)^2 / 2 - log std - log(2 pi) / 2, in nats."""
        mean = as_mean(mean)
        measured = torch.as_tensor(measured).to(mean.dtype)
        std = self.std.to(mean)
        return -0.5 * ((measured - mean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)

    def log_prob_pairs(self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray) -> Tensor:
        """All log p(measured_i | mean_j), summed over pixels: (n, ...), (m, ...) -> (n, m) nats."""
        mean = as_mean(mean)
        return _pairs.gaussian(torch.as_tensor(measured), mean, self.std).matrix()

    def score_rows(
        self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray, *, positive: Tensor | None = None
    ) -> InfoNCEScores:
        """Positives and log-sum-exps by row and column of `log_prob_pairs`, whose matrix is never kept.

        measured (n, ...), mean (m, ...); `positive` (n,) the column of each row's own mean, default the diagonal.
        """
        mean = as_mean(mean)
        return _rows.from_features(_pairs.gaussian(torch.as_tensor(measured), mean, self.std), positive)

    def entropy(self, mean: Tensor | np.ndarray) -> Tensor:
        """log(2 pi e std^2) / 2, in nats, whatever the mean."""
        mean = as_mean(mean)
        return (0.5 * LOG_TWO_PI_E + torch.log(self.std.to(mean))).expand(mean.shape)

    def variance(self, mean: Tensor) -> Tensor:
        """std^2, in the shape of the mean."""
        return (self.std.to(mean) ** 2).expand(mean.shape)

    def expected(self, mean: Tensor) -> Tensor:
        """E[measured] = mean."""
        return mean

    def check_measured(self, measured: Tensor) -> None:
        """ValueError unless every value is finite."""
        check_finite("measured", measured)

    def check_mean(self, mean: Tensor) -> None:
        """ValueError unless every value is finite."""
        check_finite("mean", mean)

    def score_features(self, measured: Tensor, mean: Tensor) -> ScoreFeatures:
        """Exact bilinear form of the log-likelihoods of all pairs, centred on the mean image."""
        z, y = flat_float64(measured), flat_float64(mean)
        std = flat_map("std", self.std, mean.shape[1:])
        centre = _pairs.centre_of(y)
        z, y = (z - centre) / std, (y - centre) / std
        constant = torch.log(std).sum() + 0.5 * math.log(2 * math.pi) * std.numel()
        return ScoreFeatures(z, y, -0.5 * (z**2).sum(1) - constant, -0.5 * (y**2).sum(1), True)
