"""Information in bits per pixel, from a fitted model and a noise model."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats

from bitlens.compat.encoding_information.models.conditional_entropy_models import (
    AnalyticComplexPixelGaussianNoiseModel,
    AnalyticGaussianNoiseModel,
    PoissonNoiseModel,
)
from bitlens.compat.encoding_information.models.gaussian_process import (
    FullGaussianProcess,
    StationaryGaussianProcess,
)
from bitlens.compat.encoding_information.models.model_base_class import (
    Array,
    MeasurementModel,
    MeasurementNoiseModel,
    as_array,
)
from bitlens.compat.encoding_information.models.pixel_cnn import PixelCNN
from bitlens.noise import NoiseModel, conditional_entropy_per_sample

# Refits for the variance of training. Those of a network start from other weights, whose spread a jackknife of G
# parts counts (G - 1)^2 / G times.
_REFITS, _NETWORK_REFITS = 10, 3


@runtime_checkable
class _Refits(Protocol):
    """A model that can be fitted anew."""

    def refitted(self, images: Array, seed: int) -> MeasurementModel: ...


@runtime_checkable
class _KnowsExcess(Protocol):
    """A model whose held-out likelihood is above the entropy by a known amount."""

    @property
    def excess_nats_per_pixel(self) -> float: ...


def estimate_information(
    measurement_model: MeasurementModel,
    noise_model: MeasurementNoiseModel | NoiseModel,
    train_set: ArrayLike,
    test_set: ArrayLike,
    clean_set: ArrayLike | None = None,
    confidence_interval: float | None = None,
    num_bootstraps: int = 100,
    *,
    clean_data: ArrayLike | None = None,
    scale_total_mi: bool = False,
    num_refits: int | None = None,
    subtract_excess: bool = True,
) -> float | tuple[float, float, float]:
    """-E log q(test) - H(test | scene), bits per pixel; with `confidence_interval` in (0, 1) also its ends.

    An estimate: the upper bound of the original less the expected cost of the fit where that is known
    (`subtract_excess=False` leaves it in). The variance is that of the test images in closed form plus that of the
    training set by refits on all but one of `num_refits` (10, 3 for a network, at most `num_bootstraps`) of its parts;
    the original's interval is that of the test images alone, which is `num_refits=0`.

    Args:
        noise_model: one of `models`, or a bitlens noise model, such as PoissonGaussianNoise for read noise.
        clean_set, clean_data: noiseless images of the training and then the test images, or of other scenes.
        scale_total_mi: bits of the whole measurement instead of per pixel.
    """
    if confidence_interval is not None and not 0 < confidence_interval < 1:
        raise ValueError(f"confidence_interval: need a value between 0 and 1 or None, got {confidence_interval}")
    if clean_set is not None and clean_data is not None:
        raise ValueError("clean_data: need one of clean_set and clean_data, got both")
    training, test = as_array("train_set", train_set), as_array("test_set", test_set)
    if training.shape[1:] != test.shape[1:]:
        raise ValueError(f"test_set: need images of shape {training.shape[1:]} as train_set, got {test.shape[1:]}")
    clean_images = clean_data if clean_set is None else clean_set
    clean = None if clean_images is None else as_array("clean_set", clean_images)
    nll = np.asarray(measurement_model.compute_negative_log_likelihood(test, average=False))  # type: ignore[call-arg]
    value, variance = _difference(nll, _conditional(noise_model, training, test, clean))
    if subtract_excess and isinstance(measurement_model, _KnowsExcess):
        value -= measurement_model.excess_nats_per_pixel
    scale = (math.prod(test.shape[1:]) if scale_total_mi else 1) / math.log(2.0)
    if confidence_interval is None:
        return value * scale
    if num_refits is None:
        num_refits = min(_NETWORK_REFITS if isinstance(measurement_model, PixelCNN) else _REFITS, num_bootstraps)
    if num_refits >= 2 and isinstance(measurement_model, _Refits):
        variance += _variance_of_training(measurement_model, training, test, num_refits)
    half = float(stats.t.ppf(0.5 + 0.5 * confidence_interval, max(1, len(test) - 1))) * math.sqrt(variance)
    return value * scale, (value - half) * scale, (value + half) * scale


def estimate_mutual_information(
    noisy_images: ArrayLike,
    clean_images: ArrayLike | None = None,
    entropy_model: str = "gaussian",
    test_set_fraction: float = 0.1,
    gaussian_noise_sigma: float | None = None,
    estimate_conditional_from_model_samples: bool = False,
    patience: int | None = None,
    num_val_samples: int | None = None,
    batch_size: int | None = None,
    max_epochs: int | None = None,
    learning_rate: float | None = None,
    use_iterative_optimization: bool = True,
    eigenvalue_floor: float = 1e-3,
    gradient_clip: float | None = None,
    momentum: float | None = None,
    analytic_marginal_entropy: bool = False,
    steps_per_epoch: int | None = None,
    num_hidden_channels: int | None = None,
    num_mixture_components: int | None = None,
    do_lr_decay: bool = False,
    return_entropy_model: bool = False,
    verbose: bool = False,
) -> float | tuple[float, MeasurementModel]:
    """Bits per pixel of images split at random, once with one seed: the older call, on `estimate_information`.

    `entropy_model` is "gaussian" (stationary), "full_gaussian" or "pixelcnn"; `gaussian_noise_sigma` None is Poisson
    noise. `analytic_marginal_entropy` takes the entropy of the fitted Gaussian, below the truth on average, less the
    same conditional entropy. What steers an optimiser of the original, and samples of a model in place of clean images,
    change nothing.

    Raises:
        ValueError: another model, or a fraction that leaves one of the two sets empty.
    """
    images = as_array("noisy_images", noisy_images)
    n_test = round(test_set_fraction * len(images))
    if not 0 < n_test < len(images):
        raise ValueError(f"test_set_fraction: need both sets to have images, got {test_set_fraction} of {len(images)}")
    order = np.random.default_rng(0).permutation(len(images))
    training, test = images[order[n_test:]], images[order[:n_test]]
    model: FullGaussianProcess | StationaryGaussianProcess | PixelCNN
    if entropy_model == "gaussian":
        model = StationaryGaussianProcess(training)
    elif entropy_model == "full_gaussian":
        model = FullGaussianProcess(training)
    elif entropy_model in ("pixelcnn", "pixel_cnn"):
        model = PixelCNN(num_hidden_channels, num_mixture_components)
        model.fit(training, num_val_samples=num_val_samples)
    else:
        raise ValueError(f"entropy_model: need 'gaussian', 'full_gaussian' or 'pixelcnn', got {entropy_model!r}")
    noise = PoissonNoiseModel() if gaussian_noise_sigma is None else AnalyticGaussianNoiseModel(gaussian_noise_sigma)
    found = estimate_information(model, noise, training, test, clean_images)
    assert isinstance(found, float)
    if analytic_marginal_entropy and not isinstance(model, PixelCNN):
        clean = None if clean_images is None else as_array("clean_images", clean_images)
        conditional, _ = _conditional(noise, training, test, clean)
        found = (model.compute_analytic_entropy() - float(conditional.mean())) / math.log(2.0)
    return (found, model) if return_entropy_model else found


def analytic_multivariate_gaussian_entropy(cov_matrix: ArrayLike) -> float:
    """0.5 log det(2 pi e C) / D, nats per pixel, of a covariance (D, D).

    Raises:
        ValueError: not a square positive definite matrix.
    """
    matrix = np.asarray(cov_matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"cov_matrix: need a square matrix, got shape {matrix.shape}")
    sign, log_determinant = np.linalg.slogdet(matrix)
    if not sign > 0:
        raise ValueError("cov_matrix: need a positive definite matrix")
    return float(0.5 * (math.log(2 * math.pi * math.e) + log_determinant / matrix.shape[0]))


# ---- Both terms and their errors ----


def _conditional(
    noise_model: MeasurementNoiseModel | NoiseModel, training: Array, test: Array, clean: Array | None
) -> tuple[Array, Array | None]:
    """Nats per pixel of images of the channel, and the part of them that belongs to the test images, if one does.

    Which clean image belongs to which measurement matters for the size of the error alone.
    """
    given = np.concatenate([training, test]) if clean is None else clean
    values = _per_image(noise_model, given, clean is not None, math.prod(test.shape[1:]))
    if len(values) == len(training) + len(test):
        return values, values[len(training) :]
    return values, values if len(values) == len(test) else None


def _per_image(noise_model: MeasurementNoiseModel | NoiseModel, images: Array, clean: bool, n_pixels: int) -> Array:
    if isinstance(noise_model, PoissonNoiseModel):
        return noise_model.per_image(images, clean)
    if isinstance(noise_model, NoiseModel):
        tensor = torch.from_numpy(images)
        # The values of a measurement do not matter where there are means.
        measured, mean = (torch.zeros_like(tensor), tensor) if clean else (tensor, None)
        total = conditional_entropy_per_sample(noise_model, measured, mean)
        return np.asarray(total.numpy() / tensor[0].numel())
    value = noise_model.estimate_conditional_entropy(images)
    if isinstance(noise_model, AnalyticComplexPixelGaussianNoiseModel):
        value /= n_pixels
    return np.full(len(images), float(value))


def _difference(nll: Array, conditional: tuple[Array, Array | None]) -> tuple[float, float]:
    """Mean of nll less that of the conditional entropy, and its variance, for test images in or outside the others.

    Reference: Cochran 1977, Sampling Techniques, sec. 12.6 (regression in double sampling).
    """
    every, own = conditional
    n_test, n_every = len(nll), len(every)
    if own is None:
        return float(nll.mean() - every.mean()), float(_variance(nll) / n_test + _variance(every) / n_every)
    rows = nll - own
    centred = own - own.mean()
    power = float(centred @ centred)
    slope = 0.0 if power <= 1e-24 * n_test else float(centred @ rows) / power
    value = float(rows.mean() - slope * (own.mean() - every.mean()))
    share = n_test / n_every
    left = _variance(rows - slope * own)
    return value, ((1 - share) * left + share * _variance(rows)) / n_test


def _variance(rows: Array) -> float:
    return float(rows.var(ddof=1)) if len(rows) > 1 else math.inf


def _variance_of_training(model: _Refits, training: Array, test: Array, n_parts: int) -> float:
    """Delete-a-group jackknife of the mean of nll over the training images: to first order, so rather too large.

    Infinite where all but one part of the images are too few for a fit.
    """
    n_parts = min(n_parts, len(training))
    part = np.random.default_rng(0).permutation(len(training)) % n_parts
    means = []
    for left_out in range(n_parts):
        try:
            fitted = model.refitted(training[part != left_out], left_out + 1)
        except ValueError:
            return math.inf
        means.append(float(np.mean(fitted.compute_negative_log_likelihood(test))))
    return (n_parts - 1) / n_parts * float(np.square(np.asarray(means) - np.mean(means)).sum())
