"""The autoregressive network by its name in the original."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Self, final

import numpy as np
import torch
from numpy.typing import ArrayLike

from bitlens.compat.encoding_information.models.model_base_class import (
    Array,
    MeasurementModel,
    as_array,
    channels_first,
    channels_last,
    cropped,
    nonnegative,
)
from bitlens.estimators._seeds import take_seed

if TYPE_CHECKING:
    from bitlens.densities.autoregressive import AutoregressiveDensity


@final
class PixelCNN(MeasurementModel):
    """`bitlens.densities.autoregressive.AutoregressiveDensity` for images (n, row, column[, channel]).

    Whole numbers have a probability each, where the original adds U[0, 1) and takes mixtures of Gaussians no narrower
    than 1; other values have a density as they are. Training starts from the causal Gaussian of the images and steers
    itself. `num_hidden_channels` and `num_mixture_components` None are those of `density`, which may be given with
    settings of its own.
    """

    def __init__(
        self,
        num_hidden_channels: int | None = None,
        num_mixture_components: int | None = None,
        density: AutoregressiveDensity | None = None,
    ) -> None:
        if density is None:
            # Read here: a script with Gaussians alone does not wait for the network.
            from bitlens.densities.autoregressive import AutoregressiveDensity

            density = AutoregressiveDensity()
        if num_hidden_channels is not None:
            density = dataclasses.replace(density, width=num_hidden_channels)
        if num_mixture_components is not None:
            density = dataclasses.replace(density, n_components=num_mixture_components)
        self._start = density
        self._density: AutoregressiveDensity | None = None
        self.image_shape: tuple[int, ...] = ()
        self.val_loss_history: list[float] = []

    def fit(
        self,
        train_images: ArrayLike,
        condition_vectors: ArrayLike | None = None,
        learning_rate: float | None = None,
        max_epochs: int | None = None,
        steps_per_epoch: int | None = None,
        patience: int | None = None,
        sigma_min: float | None = None,
        batch_size: int | None = None,
        num_val_samples: int | None = None,
        percent_samples_for_validation: float = 0.1,
        do_lr_decay: bool = False,
        verbose: bool = True,
        add_gaussian_noise: bool = False,
        add_uniform_noise: bool = True,
        model_seed: int | None = None,
        data_seed: int | None = None,
        seed: int | None = None,
    ) -> list[float]:
        """Fit in place; the validation losses pass by pass, nats per pixel, also kept as `val_loss_history`.

        `learning_rate`, `max_epochs`, `steps_per_epoch`, `patience`, `sigma_min`, `batch_size` and `do_lr_decay` steer
        the optimiser of the original and change nothing; `add_uniform_noise` neither, as nothing is added.
        The seed is `model_seed`, else `seed`, else `data_seed`, else that of the density. A second fit starts anew.

        Raises:
            ValueError: condition vectors or Gaussian training noise, which are not offered; see also the density.
        """
        if condition_vectors is not None:
            raise ValueError("condition_vectors: need None, conditioning is not offered")
        if add_gaussian_noise:
            raise ValueError("add_gaussian_noise: need False, which takes the images as they are")
        images = as_array("train_images", train_images)
        if images.ndim not in (3, 4):
            raise ValueError(f"train_images: need (n, row, column) or (n, row, column, channel), got {images.shape}")
        share = percent_samples_for_validation if num_val_samples is None else num_val_samples / len(images)
        seeds = [given for given in (model_seed, seed, data_seed, self._start.seed) if given is not None]
        start = dataclasses.replace(self._start, validation_fraction=share, seed=seeds[0])
        self.image_shape = images.shape[1:]
        self._training_minimum = float(images.min())
        self._density = start.fit(channels_first(images))
        self.val_loss_history = list(self._density.validation_nats_per_pixel)
        return self.val_loss_history

    def compute_negative_log_likelihood(
        self,
        data: ArrayLike,
        conditioning_vecs: ArrayLike | None = None,
        data_seed: int | None = None,
        average: bool = True,
        verbose: bool = True,
        seed: int | None = None,
    ) -> float | Array:
        """-log q nats per pixel: the average over images, or with `average=False` (n,) in the order of `data`.

        One image (row, column) is a stack of one. Nothing is random, so that `data_seed` and `seed` change nothing.
        """
        if conditioning_vecs is not None:
            raise ValueError("conditioning_vecs: need None, conditioning is not offered")
        images = as_array("data", data)
        if images.ndim == 2:
            images = images[None]
        density = self._fitted()
        if images.shape[1:3] != self.image_shape[:2]:
            raise ValueError(f"data: need images of shape {self.image_shape} as in the fit, got {images.shape[1:]}")
        rows = -density.log_prob(channels_first(images)).numpy() / math.prod(self.image_shape)
        return float(rows.mean()) if average else np.asarray(rows)

    def generate_samples(
        self,
        num_samples: int,
        conditioning_vecs: ArrayLike | None = None,
        sample_shape: tuple[int, ...] | int | None = None,
        ensure_nonnegative: bool | None = None,
        seed: int | None = None,
        verbose: bool = True,
    ) -> Array:
        """Samples (num_samples, ...) in the shape of the training images, or the upper left part of that.

        `ensure_nonnegative` None sets negative values to 0 where the training images have none.
        """
        if conditioning_vecs is not None:
            raise ValueError("conditioning_vecs: need None, conditioning is not offered")
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        draws = torch.Generator().manual_seed(take_seed(rng))
        samples = cropped(channels_last(self._fitted().sample(num_samples, draws), self.image_shape), sample_shape)
        return nonnegative(samples, ensure_nonnegative, self._training_minimum)

    def refitted(self, images: Array, seed: int) -> Self:
        """A new model of the same kind for other images, from other weights."""
        model = type(self)(density=self._start)
        model.fit(images, seed=seed)
        return model

    def _fitted(self) -> AutoregressiveDensity:
        if self._density is None:
            raise RuntimeError("PixelCNN: call fit first")
        return self._density
