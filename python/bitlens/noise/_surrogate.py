"""Measurements with a gradient in their means, for noise models whose samples have none."""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.noise._abilities import HasMoments
from bitlens.noise.base import NoiseModel
from bitlens.noise.gaussian import GaussianNoise

# Below this variance (electrons squared) the surrogate's gradient is cut: it grows without bound.
_LEAST_VARIANCE = 1e-3


def differentiable_sample(noise: NoiseModel, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A measurement drawn from the noise model, whose gradient is that of expected + sqrt(variance) e, e held fixed.

    For `GaussianNoise` the sample's own. Photon counts have none: they are drawn exactly, and only the gradient is the
    Gaussian surrogate's, which is 33 % off at a mean of 0.5 photons, 12 % at 2, 0.2 % at 20.

    Raises:
        TypeError: a noise model whose samples have no graph and that has no moments either.
    """
    measured = noise.sample(mean, generator)
    if isinstance(noise, GaussianNoise):
        return measured
    if isinstance(noise, HasMoments):
        expected, deviation = noise.expected(mean), noise.variance(mean).clamp(min=_LEAST_VARIANCE).sqrt()
        return expected + deviation * ((measured - expected) / deviation).detach()
    if measured.requires_grad:
        return measured
    raise TypeError(
        "noise: need differentiable samples, or methods expected(mean) and variance(mean), for gradients through "
        f"measurements; {type(noise).__name__} has neither"
    )
