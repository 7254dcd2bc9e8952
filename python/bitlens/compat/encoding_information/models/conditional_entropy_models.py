"""Noise models by the conditional entropy they have."""

from __future__ import annotations

import math
import warnings
from typing import final

import numpy as np
import torch
from numpy.typing import ArrayLike

from bitlens.compat.encoding_information.models.model_base_class import (
    Array,
    MeasurementNoiseModel,
    as_array,
    is_whole,
)
from bitlens.noise import PoissonNoise, conditional_entropy_per_sample

_LOG_TWO_PI_E = math.log(2 * math.pi * math.e)


@final
class AnalyticGaussianNoiseModel(MeasurementNoiseModel):
    """Additive Gaussian noise: 0.5 log(2 pi e sigma^2) nats per pixel, `sigma` a number or one for each pixel.

    A map of sigmas gives the average over pixels; the original takes one number. Images are not needed, and unlike in
    the original no warning says so.
    """

    def __init__(self, sigma: ArrayLike) -> None:
        values = np.asarray(sigma, dtype=np.float64)
        if values.size == 0 or not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError("sigma: need standard deviations above 0")
        self.sigma = values

    def estimate_conditional_entropy(self, images: ArrayLike | None = None) -> float:
        """Nats per pixel."""
        return float(0.5 * (_LOG_TWO_PI_E + 2 * np.log(self.sigma)).mean())


GaussianNoiseModel = AnalyticGaussianNoiseModel


@final
class UniformNoiseModel(MeasurementNoiseModel):
    """Additive uniform noise: log(max_value - min_value) nats per pixel."""

    def __init__(self, min_value: float = 0.0, max_value: float = 1.0) -> None:
        if not max_value > min_value:
            raise ValueError(f"max_value: need more than min_value {min_value}, got {max_value}")
        self.range = max_value - min_value

    def estimate_conditional_entropy(self, images: ArrayLike | None = None) -> float:
        """Nats per pixel."""
        return math.log(self.range)


@final
class PoissonNoiseModel(MeasurementNoiseModel):
    """Photon shot noise.

    The entropy of a Poisson variable is exact, where the original takes the Gaussian 0.5 log(2 pi e y), and images
    that are counts themselves give an almost unbiased average over their unknown means (to 0.02 nats at 0.1 photons,
    0.001 at 5), where the original puts the count in place of the mean. At 0.5, 1, 2, 5 photons its values are 0.48,
    0.42, 0.26, 0.07 bits per pixel lower than the truth, and information by as much higher.
    """

    def estimate_conditional_entropy(self, images: ArrayLike | None = None, clean: bool | None = None) -> float:
        """Nats per pixel of the discrete counts, averaged over images (n, ...).

        `clean` says whether the images are noiseless means or measured counts; None takes whole numbers for counts.

        Raises:
            ValueError: no images, or clean ones with negative values.
        """
        if images is None:
            raise ValueError("images: need measured or clean images for Poisson noise, got None")
        return float(self.per_image(as_array("images", images), clean).mean())

    def per_image(self, images: Array, clean: bool | None) -> Array:
        """Nats per pixel of each image, (n,)."""
        whole = is_whole(images)
        if clean is None:
            clean = not whole
        if not clean and not whole:
            warnings.warn(
                "images: counts of photons are whole numbers, got fractions, which are rounded for the conditional "
                "entropy; a sensor with read noise is bitlens.PoissonGaussianNoise",
                UserWarning,
                stacklevel=2,
            )
            images = np.maximum(np.round(images), 0.0)
        tensor = torch.from_numpy(images)
        total = conditional_entropy_per_sample(
            PoissonNoise(), torch.zeros_like(tensor) if clean else tensor, tensor if clean else None
        )
        return np.asarray(total.numpy() / tensor[0].numel())


@final
class AnalyticComplexPixelGaussianNoiseModel(MeasurementNoiseModel):
    """Complex pixels with Gaussian noise of standard deviation `sigma_vec` in real and imaginary part each.

    Measurements hold real parts, then imaginary parts: twice as many values as there are sigmas.
    """

    def __init__(self, sigma_vec: ArrayLike) -> None:
        values = np.asarray(sigma_vec, dtype=np.float64).ravel()
        if values.size == 0 or not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError("sigma_vec: need standard deviations above 0")
        self.sigma_vec = values

    def estimate_conditional_entropy(self, images: ArrayLike | None = None) -> float:
        """sum log(2 pi e sigma^2), nats of the whole measurement and not per pixel, as in the original."""
        return float((_LOG_TWO_PI_E + 2 * np.log(self.sigma_vec)).sum())
