"""Gaussian with a free mean and a full covariance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self, final

import torch
from torch import Tensor

from bitlens.densities._fitted import FittedGaussian, fitted_gaussian
from bitlens.densities.base import Density, as_images


def plug_in_bias_nats(n_samples: int, n_pixels: int) -> float:
    """E[h(fitted)] - h = 0.5 sum_{i<D} (psi((n-i)/2) - ln(n/2)), n = N - 1: nats per image, negative.

    Exact for a Gaussian fitted to N Gaussian images of D pixels with the covariance divided by N - 1.

    Raises:
        ValueError: N <= D, where the fitted covariance is singular.

    Reference: Ahmed and Gokhale 1989, doi:10.1109/18.30996.
    """
    if n_samples <= n_pixels:
        raise ValueError(f"n_samples: need more than {n_pixels} images for {n_pixels} pixels, got {n_samples}")
    degrees = n_samples - 1
    order = torch.arange(n_pixels, dtype=torch.float64)
    return float(0.5 * (torch.digamma((degrees - order) / 2.0) - math.log(degrees / 2.0)).sum())


def held_out_bias_nats(n_samples: int, n_pixels: int) -> float:
    """E[-log q(z)] - h = 0.5 D (n/(n-D-1) (1 + 1/N) - 1) + plug-in bias, n = N - 1: nats per image, positive.

    z is an image that the fit has not seen; exact for Gaussian data, approximate for others.

    Raises:
        ValueError: N < D + 3, where the expectation is infinite.
    """
    if n_samples < n_pixels + 3:
        raise ValueError(f"n_samples: need at least {n_pixels + 3} images for {n_pixels} pixels, got {n_samples}")
    degrees = n_samples - 1
    spread = degrees / (degrees - n_pixels - 1) * (1.0 + 1.0 / n_samples) - 1.0
    return 0.5 * n_pixels * spread + plug_in_bias_nats(n_samples, n_pixels)


@final
@dataclass(frozen=True, eq=False)
class GaussianDensity(Density):
    """q(z) = N(z; mean, covariance), both free: unbiased sample mean and covariance.

    `GaussianDensity().fit(measured)` returns the fitted density; measured is (n, ...) with n >= D + 3 for D
    pixels. `held_out_bias_nats` is exact for Gaussian data.
    """

    mean: Tensor | None = field(default=None, repr=False)
    cholesky: Tensor | None = field(default=None, repr=False)
    n_samples: int = 0
    held_out_bias_nats: float = math.nan
    converged: bool = False

    def fit(self, measured: Tensor) -> Self:
        """The Gaussian of the sample mean and the unbiased covariance of `measured`, (n, ...).

        Raises:
            ValueError: fewer than D + 3 images, values that are not finite, or a singular covariance.
        """
        images = as_images(measured)
        flat = images.flatten(1)
        n_samples, n_pixels = flat.shape
        as_images(images, minimum_samples=n_pixels + 3)
        mean = flat.mean(0)
        deviation = flat - mean
        cholesky, failed = torch.linalg.cholesky_ex(deviation.mT @ deviation / (n_samples - 1))
        if int(failed) or not bool(torch.isfinite(cholesky).all()):
            raise ValueError("measured: need a covariance of full rank, got pixels that are constant or repeated")
        bias = held_out_bias_nats(n_samples, n_pixels)
        return type(self)(mean.reshape(images.shape[1:]), cholesky, n_samples, bias, True)

    def log_prob(self, measured: Tensor) -> Tensor:
        """log N(z; mean, covariance) of each image, (n, ...) -> (n,) nats."""
        return self._fitted().log_prob(measured)

    def whiten(self, measured: Tensor) -> Tensor:
        """Each image less the mean, made uncorrelated and of unit variance: (n, ...) -> (n, D)."""
        return self._fitted().whiten(measured)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """mean + L e, e standard normal: n images, (n, ...)."""
        return self._fitted().sample(n, generator)

    def _fitted(self) -> FittedGaussian:
        return fitted_gaussian(type(self).__name__, self.mean, self.cholesky)
