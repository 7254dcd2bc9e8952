"""What models of measurements and of noise offer, and how their arrays are read."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[np.float64]


class MeasurementNoiseModel(ABC):
    """The conditional entropy H(Y | X) of a noise process."""

    @abstractmethod
    def estimate_conditional_entropy(self, images: ArrayLike | None = None) -> float:
        """Nats per pixel, averaged over `images`, or what the model's docstring says."""


class MeasurementModel(ABC):
    """A density of measurements (n, row, column), (n, row, column, channel) or (n, pixel)."""

    @abstractmethod
    def fit(self, train_images: ArrayLike) -> list[float]:
        """Fit in place; the negative log-likelihoods along the way, nats per pixel."""

    @abstractmethod
    def compute_negative_log_likelihood(self, data: ArrayLike) -> float | Array:
        """Nats per pixel: the average, or with `average=False` of each image, in their order."""

    @abstractmethod
    def generate_samples(self, num_samples: int) -> Array:
        """Samples in the shape of the training images."""


def as_array(name: str, value: ArrayLike) -> Array:
    """(n, ...) float64.

    Raises:
        TypeError: not real numbers.
        ValueError: not (n, ...), empty, NaN or infinity.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: need an array of real numbers, got {array.dtype}")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{name}: need (n, ...) measurements that are not empty, got shape {array.shape}")
    images = array.astype(np.float64)
    if not np.isfinite(images).all():
        raise ValueError(f"{name}: need finite values, got NaN or infinity")
    return images


def is_whole(images: Array) -> bool:
    """Whether every value is a whole number, as counts are."""
    return bool((images == np.round(images)).all())


def with_dither(images: Array, seed: int | None, stream: int) -> Array:
    """Whole numbers plus U[0, 1), whose density has the entropy of the numbers; other data as they are."""
    if not is_whole(images):
        return images
    return images + np.random.default_rng([0 if seed is None else seed, stream]).random(images.shape)


def channels_first(images: Array) -> Tensor:
    """(n, row, column, channel) as (n, channel, row, column), one channel dropped; other shapes as they are."""
    if images.ndim == 4:
        images = images[..., 0] if images.shape[3] == 1 else np.moveaxis(images, 3, 1)
    return torch.from_numpy(np.ascontiguousarray(images))


def channels_last(samples: Tensor, shape: tuple[int, ...]) -> Array:
    """The inverse of `channels_first` for images of this shape."""
    images = samples.numpy()
    if len(shape) == 3:
        images = images[..., None] if images.ndim == 3 else np.moveaxis(images, 1, 3)
    return np.asarray(images)


def cropped(images: Array, sample_shape: tuple[int, ...] | int | None) -> Array:
    """The upper left part of images (n, ...) where a shape is asked for.

    Raises:
        ValueError: a shape larger than that of the images.
    """
    if sample_shape is None:
        return images
    shape = images.shape[1:]
    wanted = (sample_shape, sample_shape) if isinstance(sample_shape, int) else tuple(sample_shape)
    if len(wanted) > len(shape) or any(asked > given for asked, given in zip(wanted, shape, strict=False)):
        raise ValueError(f"sample_shape: need at most the shape of the training images {shape}, got {wanted}")
    return images[(slice(None), *(slice(0, size) for size in wanted))]


def nonnegative(samples: Array, ensure_nonnegative: bool | None, training_minimum: float) -> Array:
    """Negative values set to 0 where asked; by default where the training images have none."""
    clip = training_minimum >= 0 if ensure_nonnegative is None else ensure_nonnegative
    return np.maximum(samples, 0.0) if clip else samples
