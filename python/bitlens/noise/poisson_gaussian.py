"""A real sensor: shot noise, gain, offset and read noise."""

from __future__ import annotations

import math
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from bitlens import ops
from bitlens.noise import _entropy, _pairs
from bitlens.noise.base import (
    NoiseModel,
    ScoreFeatures,
    as_mean,
    check_finite,
    check_mean,
    flat_float64,
    flat_map,
    set_parameter,
)


@final
class PoissonGaussianNoise(NoiseModel):
    """measured = gain N + offset + n, N ~ Poisson(mean), n ~ Normal(0, read_std^2).

    Args:
        gain: ADU per photo-electron, > 0; a number or a per-pixel map, as the other two.
        offset: ADU of a dark pixel.
        read_std: standard deviation of the read noise in ADU, > 0.

    Reference: EMVA 1288 standard, release 4.0, section 2 (linear camera model).
    """

    # What an optimiser may reach; None leaves a side open.
    parameter_domain: ClassVar[dict[str, tuple[float | None, float | None]]] = {
        "gain": (1e-6, None),
        "read_std": (1e-6, None),
    }

    gain: Tensor
    offset: Tensor
    read_std: Tensor

    def __init__(self, gain: object = 1.0, offset: object = 0.0, *, read_std: object) -> None:
        super().__init__()
        set_parameter(self, "gain", gain, positive=True)
        set_parameter(self, "offset", offset, positive=False)
        set_parameter(self, "read_std", read_std, positive=True)

    def sample(self, mean: Tensor | np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        """ADU; no gradient passes through the photon counts."""
        mean = as_mean(mean)
        counts = torch.poisson(mean.detach(), generator=generator)
        white = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return self.gain.to(mean) * counts + self.offset.to(mean) + self.read_std.to(mean) * white

    def log_prob(self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray) -> Tensor:
        """log sum_k Poisson(k; mean) Normal(measured; gain k + offset, read_std^2), in nats per ADU; exact."""
        mean = as_mean(mean)
        measured = torch.as_tensor(measured).to(mean.dtype)
        return ops.poisson_gaussian_log_prob(
            measured,
            mean,
            gain=self.gain.to(mean),
            offset=self.offset.to(mean),
            read_std=self.read_std.to(mean),
        )

    def log_prob_pairs(
        self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray, *, approximate: bool = False
    ) -> Tensor:
        """All log p(measured_i | mean_j), summed over pixels: (n, ...), (m, ...) -> (n, m) nats per ADU^pixels.

        `approximate` gives the variance-weighted Gaussian surrogate of `score_features` instead, without gradients:
        a critic for lower bounds, not the likelihood.
        """
        mean = as_mean(mean)
        measured = torch.as_tensor(measured).to(mean.dtype)
        if approximate:
            return _pairs.from_features(self.score_features(measured, mean)).to(mean.dtype)
        gain, offset, read_std = (tensor.to(mean.device) for tensor in (self.gain, self.offset, self.read_std))
        return ops.poisson_gaussian_log_prob_pairs(measured, mean, gain=gain, offset=offset, read_std=read_std)

    def entropy(self, mean: Tensor | np.ndarray) -> Tensor:
        """h(measured | mean) in nats per ADU, to 1e-4; differentiable in mean, gain and read_std."""
        mean = as_mean(mean)
        gain = self.gain.to(mean)
        return _entropy.poisson_gaussian_entropy(mean, self.read_std.to(mean) / gain) + torch.log(gain)

    def variance(self, mean: Tensor) -> Tensor:
        """gain^2 mean + read_std^2, ADU^2."""
        return self.gain.to(mean) ** 2 * mean + self.read_std.to(mean) ** 2

    def expected(self, mean: Tensor) -> Tensor:
        """gain mean + offset, ADU."""
        return self.gain.to(mean) * mean + self.offset.to(mean)

    def check_measured(self, measured: Tensor) -> None:
        """ValueError unless every value is finite."""
        check_finite("measured", measured)

    def check_mean(self, mean: Tensor) -> None:
        """ValueError unless every mean is finite and not negative."""
        check_mean(mean)

    def score_features(self, measured: Tensor, mean: Tensor) -> ScoreFeatures:
        """Variance-weighted Gaussian surrogate of the log-likelihoods of all pairs: a critic, not the likelihood."""
        shape = mean.shape[1:]
        gain, offset, read_std = (flat_map(n, getattr(self, n), shape) for n in ("gain", "offset", "read_std"))
        z, y = flat_float64(measured), flat_float64(mean)
        variance = gain**2 * y + read_std**2
        centre = gain * y.mean(dim=0) + offset
        z, signal = z - centre, gain * y + offset - centre
        quadratic, linear = -0.5 / variance, signal / variance
        middle_square = (z**2).mean(dim=0)
        middle_quadratic, middle_linear = quadratic.mean(dim=0), linear.mean(dim=0)
        query = torch.cat([z**2 - middle_square, z], dim=1)
        key = torch.cat([quadratic - middle_quadratic, linear - middle_linear], dim=1)
        constant = -0.5 * (signal * linear + torch.log(variance) + math.log(2 * math.pi)).sum(1)
        query_bias = (z**2 - middle_square) @ middle_quadratic + z @ middle_linear
        return ScoreFeatures(query, key, query_bias, constant + quadratic @ middle_square, False)
