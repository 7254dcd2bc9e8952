"""A Gaussian that is fitted: what densities with a mean and a Cholesky factor have in common."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.densities.base import as_images

_LOG_2PI = math.log(2.0 * math.pi)


class FittedGaussian(NamedTuple):
    """N(z; mean, L L'): the mean image (...) and the lower triangular L (D, D), D pixels."""

    mean: Tensor
    cholesky: Tensor

    def log_prob(self, measured: Tensor) -> Tensor:
        """log N(z; mean, L L') of each image, (n, ...) -> (n,) nats."""
        return self.log_prob_of_whitened(self.whiten(measured))

    def log_prob_of_whitened(self, whitened: Tensor) -> Tensor:
        """log N(z; mean, L L') of images that `whiten` made (n, D): (n,) nats."""
        log_determinant = 2.0 * self.cholesky.diagonal().log().sum()
        log_prob: Tensor = -0.5 * (whitened.square().sum(1) + log_determinant + whitened.shape[1] * _LOG_2PI)
        return log_prob

    def whiten(self, measured: Tensor) -> Tensor:
        """L^-1 (z - mean): (n, ...) -> (n, D), uncorrelated and of unit variance."""
        deviation = (as_images(measured, self.mean.shape) - self.mean).flatten(1)
        return torch.linalg.solve_triangular(self.cholesky, deviation.mT, upper=False).mT

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """mean + L e, e standard normal: n images, (n, ...)."""
        normal = torch.randn(n, self.cholesky.shape[0], dtype=torch.float64, generator=generator)
        return self.mean + (normal.to(self.cholesky.device) @ self.cholesky.mT).reshape(n, *self.mean.shape)


def fitted_gaussian(density: str, mean: Tensor | None, cholesky: Tensor | None) -> FittedGaussian:
    """Mean and factor together.

    Raises:
        RuntimeError: there are none, because the density is not fitted yet.
    """
    if mean is None or cholesky is None:
        raise RuntimeError(f"{density}: call fit first; it returns the fitted density")
    return FittedGaussian(mean, cholesky)
