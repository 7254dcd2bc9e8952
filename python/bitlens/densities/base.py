"""What every model of the density of a measurement offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from bitlens.densities._samples import samples


class Density(ABC):
    """A model q(z) of the density of one measurement z; immutable, fitting makes a new one.

    Measurements are (n, ...), one image of any shape per row; log densities are nats per image.
    A fitted density also says what its finite sample costs (`held_out_bias_nats`: the expected excess of its
    held-out cross-entropy over the entropy, when the data follow the model) and whether its fit converged.

    Raises:
        RuntimeError: `log_prob` or `sample` of a density that is not fitted.
        TypeError, ValueError: images that cannot be used, named with what is needed and what came.
    """

    # Whether counts are taken as they are and log_prob is of a probability; otherwise U[0, 1) is to be added first.
    takes_counts: ClassVar[bool] = False
    held_out_bias_nats: float
    converged: bool

    @abstractmethod
    def fit(self, measured: Tensor) -> Self:
        """A new density fitted to `measured`, (n, ...)."""

    @abstractmethod
    def log_prob(self, measured: Tensor) -> Tensor:
        """log q(z) of each image of `measured`, (n, ...) -> (n,) float64, nats."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images drawn from q, (n, ...) float64."""


def as_images(measured: object, image_shape: torch.Size | None = None, minimum_samples: int = 1) -> Tensor:
    """`measured` as a float64 tensor (n, ...), checked against the shape of one image, whose density it then is.

    With an `image_shape`, for `log_prob`, it keeps its graph: a log density can be differentiated in the measurement.

    Raises:
        TypeError: not an array of real numbers.
        ValueError: no image axis, no pixels, too few images, another image shape, NaN or infinity.
    """
    images = samples("measured", measured, keep_graph=image_shape is not None).to(torch.float64)
    if image_shape is not None and images.shape[1:] != image_shape:
        raise ValueError(f"measured: need images of shape {tuple(image_shape)}, got {tuple(images.shape[1:])}")
    if images.shape[0] < minimum_samples:
        raise ValueError(f"measured: need at least {minimum_samples} images to fit, got {images.shape[0]}")
    return images
