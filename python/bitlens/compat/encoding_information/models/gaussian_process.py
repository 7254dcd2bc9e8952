"""Gaussian models of measurements, with a free or a stationary covariance."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Self, final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bitlens.compat.encoding_information.models.model_base_class import (
    Array,
    MeasurementModel,
    as_array,
    channels_first,
    channels_last,
    cropped,
    is_whole,
    nonnegative,
    with_dither,
)
from bitlens.densities import GaussianDensity, StationaryGaussianDensity
from bitlens.estimators._seeds import take_seed

_LOG_TWO_PI_E = math.log(2 * math.pi * math.e)
_TRAINING, _TEST = 0, 1


class GaussianProcess(MeasurementModel):
    """What both Gaussians have in common; arguments that steer the optimiser of the original change nothing.

    No eigenvalue is raised to `eigenvalue_floor`, and U[0, 1) is added to whole numbers unless `add_uniform_noise` is
    False, never to other values.
    """

    _is_image: ClassVar[bool]

    def __init__(
        self,
        images: ArrayLike | None = None,
        eigenvalue_floor: float = 1e-3,
        seed: int | None = None,
        verbose: bool = False,
        add_uniform_noise: bool | None = None,
    ) -> None:
        self._dithers = add_uniform_noise is not False
        self._density: GaussianDensity | StationaryGaussianDensity | None = None
        self._counts = False
        self.image_shape: tuple[int, ...] = ()
        if images is not None:
            self._fit(as_array("images", images), seed)

    @abstractmethod
    def _unfitted(self) -> GaussianDensity | StationaryGaussianDensity:
        """The density that is fitted."""

    def fit(
        self,
        train_images: ArrayLike | None = None,
        data_seed: int | None = None,
        learning_rate: float | None = None,
        max_epochs: int | None = None,
        steps_per_epoch: int | None = None,
        patience: int | None = None,
        batch_size: int | None = None,
        num_val_samples: int | None = None,
        percent_samples_for_validation: float | None = None,
        eigenvalue_floor: float | None = None,
        gradient_clip: float | None = None,
        momentum: float | None = None,
        precondition_gradient: bool = False,
        verbose: bool = True,
    ) -> list[float]:
        """Fit to `train_images`, or stay with those of the constructor; [nats per pixel of the fitted images].

        The largest likelihood over all images, with no learning rate or validation images.

        Raises:
            ValueError: no images here or before, too few for the pixels, or pixels that are constant or repeated.
        """
        if train_images is not None:
            self._fit(as_array("train_images", train_images), data_seed)
        elif self._density is None:
            raise ValueError("train_images: need images here or in the constructor, got None")
        return [self._training_nll]

    def compute_negative_log_likelihood(
        self,
        data: ArrayLike,
        data_seed: int | None = None,
        verbose: bool = True,
        seed: int | None = None,
        average: bool = True,
    ) -> float | Array:
        """-log q nats per pixel: the average over images, or with `average=False` (n,) in the order of `data`.

        `data_seed`, or its older name `seed`, is that of the dither of whole numbers; None is 0, so that calls repeat.
        """
        images = as_array("data", data)
        rows = self._nll(images, data_seed if seed is None else seed, _TEST)
        return float(rows.mean()) if average else rows

    def generate_samples(
        self,
        num_samples: int,
        sample_shape: tuple[int, ...] | int | None = None,
        ensure_nonnegative: bool | None = None,
        seed: int | None = None,
        verbose: bool = True,
    ) -> Array:
        """Samples (num_samples, ...) in the shape of the training images, or the upper left part of that.

        `ensure_nonnegative` None sets negative values to 0 where the training images have none; the original's
        default does so for any data. A larger `sample_shape` than that of the training images is refused.
        """
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        draws = torch.Generator().manual_seed(take_seed(rng))
        samples = self._fitted().sample(num_samples, draws)
        images = channels_last(samples, self.image_shape) if self._is_image else np.asarray(samples.numpy())
        return nonnegative(cropped(images, sample_shape), ensure_nonnegative, self._training_minimum)

    def get_cov_mat(self) -> Array:
        """Covariance of the pixels, (D, D); of a stationary model with channels, channel by channel."""
        density = self._fitted()
        assert density.cholesky is not None
        return np.asarray((density.cholesky @ density.cholesky.mT).numpy())

    def get_mean_vec(self) -> Array:
        """Mean of the pixels, (D,)."""
        density = self._fitted()
        assert density.mean is not None
        return np.asarray(density.mean.flatten().numpy())

    def compute_analytic_entropy(self) -> float:
        """Entropy of the fitted Gaussian, nats per pixel: below that of the data on average."""
        density = self._fitted()
        assert density.cholesky is not None
        logarithms = density.cholesky.diagonal().log()
        return 0.5 * _LOG_TWO_PI_E + float(logarithms.mean())

    @property
    def excess_nats_per_pixel(self) -> float:
        """Expected cost of fitting to few images that the held-out likelihood carries."""
        density = self._fitted()
        assert density.mean is not None
        return density.held_out_bias_nats / density.mean.numel()

    def refitted(self, images: Array, seed: int) -> Self:
        """A new model of the same kind for other images."""
        return type(self)(images, seed=seed, add_uniform_noise=self._dithers)

    def _fit(self, images: Array, seed: int | None) -> None:
        self._counts = self._dithers and is_whole(images)
        self.image_shape = images.shape[1:]
        self._training_minimum = float(images.min())
        self._density = self._unfitted().fit(self._as_density(images, seed, _TRAINING))
        self._training_nll = float(self._nll(images, seed, _TRAINING).mean())

    def _as_density(self, images: Array, seed: int | None, stream: int) -> Tensor:
        values = with_dither(images, seed, stream) if self._counts else images
        return channels_first(values) if self._is_image else torch.from_numpy(values)

    def _nll(self, images: Array, seed: int | None, stream: int) -> Array:
        density = self._fitted()
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"data: need images of shape {self.image_shape} as in the fit, got {images.shape[1:]}")
        rows = density.log_prob(self._as_density(images, seed, stream))
        return np.asarray(-rows.numpy() / math.prod(self.image_shape))

    def _fitted(self) -> GaussianDensity | StationaryGaussianDensity:
        if self._density is None:
            raise RuntimeError(f"{type(self).__name__}: call fit first, or give images to the constructor")
        return self._density


@final
class FullGaussianProcess(GaussianProcess):
    """Gaussian with a free mean and covariance, for measurements of any shape: `FullGaussianProcess(images)`.

    Needs at least D + 3 images for D pixels. For discrete data U[0, 1) is added; the original adds it by default to
    any. Its held-out likelihood is above the entropy of the data by `excess_nats_per_pixel` on average.
    """

    _is_image = False

    def _unfitted(self) -> GaussianDensity:
        return GaussianDensity()

    @property
    def cov_mat(self) -> Array:
        """Covariance of the pixels, (D, D)."""
        return self.get_cov_mat()

    @property
    def mean_vec(self) -> Array:
        """Mean of the pixels, (D,)."""
        return self.get_mean_vec()


@final
class StationaryGaussianProcess(GaussianProcess):
    """Gaussian whose covariance depends on the displacement of two pixels: `StationaryGaussianProcess(images)`.

    Images (n, row, column[, channel]). The fit is that of largest likelihood already in the constructor, where the
    original starts from averaged diagonals and `fit` descends. The mean is free for each pixel, and the covariance has
    all four quadrants: the original has one mean, and C(dy, dx) = C(dy, -dx), 0.09 bits per pixel too high for a field
    along a diagonal. Images of another size than those of the fit are refused.
    """

    _is_image = True

    def _unfitted(self) -> StationaryGaussianDensity:
        return StationaryGaussianDensity()
