"""Photon shot noise alone: a photon counter."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from bitlens.noise import _entropy, _pairs, _rows
from bitlens.noise._draws import photon_counts
from bitlens.noise.base import NoiseModel, ScoreFeatures, as_mean, check_finite, check_mean, flat_float64
from bitlens.ops import InfoNCEScores


@final
class PoissonNoise(NoiseModel):
    """measured ~ Poisson(mean): integer counts, probabilities rather than densities."""

    discrete = True
    fast_pairs = True

    def sample(self, mean: Tensor | np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        """Counts; no gradient passes through them."""
        mean = as_mean(mean)
        return photon_counts(mean, generator)

    def log_prob(self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray) -> Tensor:
        """measured log(mean) - mean - log(measured!), in nats; at mean 0: 0 for no count, else -inf."""
        mean = as_mean(mean)
        measured = torch.as_tensor(measured).to(mean.dtype)
        # At a mean of 0 the derivative of 0 log 0 would be NaN.
        dark = mean == 0
        bright = torch.xlogy(measured, torch.where(dark, 1.0, mean))
        return torch.where(dark & (measured > 0), -torch.inf, bright) - mean - torch.lgamma(measured + 1)

    def log_prob_pairs(self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray) -> Tensor:
        """All log p(measured_i | mean_j), summed over pixels: (n, ...), (m, ...) -> (n, m) nats."""
        mean = as_mean(mean)
        return _pairs.poisson(torch.as_tensor(measured), mean)

    def score_rows(
        self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray, *, positive: Tensor | None = None
    ) -> InfoNCEScores:
        """Positives and log-sum-exps of `log_prob_pairs`, save that a count at a mean of 0 costs 69 nats, not infinity.

        By row and column, without keeping the matrix. The bilinear kernel has no scores of -inf: sums with a pair that
        counts where its mean is dark are those of a surrogate, all others are exact.

        measured (n, ...), mean (m, ...); `positive` (n,) the column of each row's own mean, default the diagonal.
        """
        mean = as_mean(mean)
        return _rows.from_features(_pairs.poisson_with_floor(torch.as_tensor(measured), mean), positive)

    def entropy(self, mean: Tensor | np.ndarray) -> Tensor:
        """-sum_k p(k) log p(k) in nats (discrete), to 1e-7; differentiable in the mean."""
        mean = as_mean(mean)
        return _entropy.poisson_entropy(mean)

    def variance(self, mean: Tensor) -> Tensor:
        """Var[measured] = mean."""
        return mean

    def expected(self, mean: Tensor) -> Tensor:
        """E[measured] = mean."""
        return mean

    def check_measured(self, measured: Tensor) -> None:
        """ValueError unless every value is a count: finite, whole, not negative."""
        check_finite("measured", measured)
        if bool((measured < 0).any()):
            raise ValueError(f"measured: need counts of at least 0, got {measured.min().item():g}")
        if bool((measured != torch.round(measured)).any()):
            raise ValueError("measured: need whole counts for Poisson noise, got fractions")

    def check_mean(self, mean: Tensor) -> None:
        """ValueError unless every mean is finite and not negative."""
        check_mean(mean)

    def score_features(self, measured: Tensor, mean: Tensor) -> ScoreFeatures:
        """Exact bilinear form of the log-likelihoods of all pairs, centred on the mean images."""
        z, y = flat_float64(measured), flat_float64(mean)
        log_y = torch.log(y.clamp(min=_pairs.DARK_FLOOR))
        centre_z, centre_log = _pairs.centre_of(y), _pairs.centre_of(log_y)
        query_bias = (z - centre_z) @ centre_log - torch.lgamma(z + 1).sum(1)
        key_bias = log_y @ centre_z - y.sum(1)
        return ScoreFeatures(z - centre_z, log_y - centre_log, query_bias, key_bias, True)
