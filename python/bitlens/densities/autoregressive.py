"""Autoregressive density: a causal Gaussian, corrected by a small convolutional network."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor

from bitlens.densities import _autoregressive_mixture as mixtures
from bitlens.densities import _autoregressive_network as network
from bitlens.densities._autoregressive_linear import fit_linear, from_order, in_order, predict, predict_one
from bitlens.densities._autoregressive_training import train
from bitlens.densities.base import Density, as_images

_LEAST_IMAGES = 10
# Residuals that the first mixture is fitted to: its 3 K numbers then cost less than 1e-3 nats per value.
_START_VALUES = 20_000
_SAMPLES_PER_PART = 512
_VALUES_PER_STEP = 8192
_VALUES_PER_PART = 65536
# A fit that runs out of passes while it still gains more than this has not converged.
_CONVERGED_NATS_PER_VALUE = 2e-3


class _Data(NamedTuple):
    """What the network sees and what it is to predict."""

    seen: network.Features
    targets: mixtures.Targets

    def rows(self, chosen: Tensor | slice) -> _Data:
        return _Data(self.seen.rows(chosen), self.targets.rows(chosen))


class Conditionals(NamedTuple):
    """Weights, locations and scales of the logistic laws of each value, (n, [channel,] row, column, K) each."""

    weight: Tensor
    location: Tensor
    scale: Tensor


@final
@dataclass(frozen=True, eq=False)
class AutoregressiveDensity(Density):
    """q(z) = prod_p q(z_p | z_<p): mixtures of logistic laws from a causal network, row by row, then by channel.

    `AutoregressiveDensity().fit(measured)` is the fitted density; measured is (n, [channel,] row, column), n >= 10.
    Whole numbers are taken as such (`discrete` None): q is the probability of an integer, bins at `limits` hold the
    tail, by default 0 and none for counts. Other values have a density; nothing is ever added to them.
    The law starts as the Gaussian of the images, in causal form, and the network (`width` channels, `n_blocks`) adds
    what that cannot have. It trains for up to `max_passes` and stops by a `validation_fraction` of the images.
    `held_out_bias_nats` is NaN, because it is not known.

    Reference: Salimans et al. 2017, arXiv:1701.05517.
    """

    takes_counts: ClassVar[bool] = True

    width: int = 32
    n_blocks: int = 2
    n_components: int = 8
    max_passes: int = 16
    learning_rate: float = 8e-3
    validation_fraction: float = 0.1
    discrete: bool | None = None
    limits: tuple[float, float] | None = None
    seed: int = 0
    parameters: dict[str, Tensor] | None = field(default=None, repr=False)
    image_shape: tuple[int, ...] = ()
    is_discrete: bool = False
    lowest: float = -math.inf
    highest: float = math.inf
    validation_nats_per_pixel: tuple[float, ...] = field(default=(), repr=False)
    n_samples: int = 0
    held_out_bias_nats: float = math.nan
    converged: bool = False

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("n_blocks", 0), ("n_components", 1), ("max_passes", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral):
                raise TypeError(f"{name}: need a whole number, got {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name}: need at least {least}, got {value}")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: need a positive number, got {self.learning_rate}")
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(f"validation_fraction: need a share between 0 and 1, got {self.validation_fraction}")
        if self.limits is not None:
            whole = all(math.isinf(limit) or limit == round(limit) for limit in self.limits)
            if len(self.limits) != 2 or not whole or not self.limits[0] < self.limits[1]:
                raise ValueError(f"limits: need two whole or infinite numbers, low and high, got {self.limits}")

    def fit(self, measured: Tensor, *, generator: torch.Generator | None = None) -> Self:
        """The density of `measured`, (n, [channel,] row, column), on a random split into training and validation.

        `generator`, of the CPU, gives the split and the weights; None takes a new one with `seed`. One seed gives one
        fit, bit for bit, on one number of threads.

        Raises:
            TypeError: `generator` is not a torch.Generator.
            ValueError: fewer than 10 images, no two image axes, constant images, NaN or infinity, values that are not
                whole where `discrete` or `limits` ask for it, or outside `limits`.
        """
        if generator is None:
            generator = torch.Generator().manual_seed(self.seed)
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: need a torch.Generator or None, got {type(generator).__name__}")
        given = as_images(measured, minimum_samples=_LEAST_IMAGES)
        if given.ndim not in (3, 4):
            raise ValueError(f"measured: need shape (n, [channel,] row, column), got {tuple(given.shape)}")
        images = given if given.ndim == 4 else given[:, None]
        is_discrete, lowest, highest = self._kind(images)
        fitted = dataclasses.replace(
            self, image_shape=tuple(given.shape[1:]), is_discrete=is_discrete, lowest=lowest, highest=highest
        )
        order = torch.randperm(len(images), generator=generator).to(images.device)
        n_validation = min(max(1, round(self.validation_fraction * len(images))), len(images) - 4)
        validation, training = images[order[:n_validation]], images[order[n_validation:]]
        with torch.no_grad():
            parameters = fit_linear(training, validation)
            parameters["center"], parameters["spread"] = training.mean(), training.std()
            data = [fitted._data(parameters, in_order(part), torch.float32) for part in (training, validation)]
            chosen = torch.randperm(data[0].targets.residual.numel(), generator=generator)[:_START_VALUES]
            first = mixtures.start(data[0].targets.flatten().rows(chosen), self.n_components)
        weights = network.initial_parameters(images.shape[1], self.width, self.n_blocks, first, generator)
        trained = train(
            {name: value.to(images.device) for name, value in weights.items()},
            lambda current, chosen: -_log_prob(current, data[0].rows(chosen.to(images.device))).mean(),
            lambda current: -float(_log_probs(current, data[1]).mean()),
            n_samples=len(training),
            batch=max(1, round(_VALUES_PER_STEP / training[0].numel())),
            max_passes=self.max_passes,
            learning_rate=self.learning_rate,
            generator=generator,
        )
        history = trained.validation
        gained = history[-2] - history[-1]
        return dataclasses.replace(
            fitted,
            parameters={**parameters, **{name: value.double() for name, value in trained.parameters.items()}},
            validation_nats_per_pixel=history,
            n_samples=len(images),
            converged=trained.stopped_early or gained < _CONVERGED_NATS_PER_VALUE,
        )

    @torch.no_grad()
    def log_prob(self, measured: Tensor) -> Tensor:
        """Log probability (whole numbers) or density of each image, (n, [channel,] row, column) -> (n,) nats.

        Raises:
            ValueError: images of another shape, or values that are not whole where those of the fit were.
        """
        parameters = self._fitted()
        images = self._images(measured)
        values = in_order(images)
        log_prob = _log_probs(parameters, self._data(parameters, values, torch.float64)).sum(1)
        outside = ((values < self.lowest) | (values > self.highest)).any(1)
        return log_prob.masked_fill(outside, -math.inf)

    @torch.no_grad()
    def conditionals(self, measured: Tensor) -> Conditionals:
        """The law of each value of `measured` given those before it, as mixtures of logistic laws."""
        parameters = self._fitted()
        values = in_order(self._images(measured))
        prediction = predict(parameters, values)
        seen = network.features(parameters, values, prediction, self._shape, torch.float64)
        logit, location, log_width = mixtures.mixture(network.raw_mixtures(parameters, seen))
        scale = prediction.scale[..., None]
        parts = (logit.softmax(-1), prediction.location[..., None] + scale * location, scale * log_width.exp())
        return Conditionals(
            *(from_order(part, self._shape).reshape(len(values), *self.image_shape, -1) for part in parts)
        )

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images drawn value by value, (n, [channel,] row, column) float64."""
        parameters = self._fitted()
        parts = [
            self._sample(parameters, min(_SAMPLES_PER_PART, n - first), generator)
            for first in range(0, n, _SAMPLES_PER_PART)
        ]
        empty = parameters["mean"].new_empty(0, *self.image_shape)
        return torch.cat([empty, *(from_order(part, self._shape).reshape(-1, *self.image_shape) for part in parts)])

    def _sample(self, parameters: dict[str, Tensor], n: int, generator: torch.Generator | None) -> Tensor:
        """In causal order, (n, D). The network runs on the part of the image that a pixel depends on."""
        channels, rows, columns = self._shape
        single = {name: value.float() for name, value in parameters.items()}
        reach = network.REACH + self.n_blocks
        values = parameters["mean"].expand(n, -1).clone()
        prediction = predict(parameters, values)
        seen = network.features(parameters, values, prediction, self._shape, torch.float32)
        for pixel in range(rows * columns):
            row, column = divmod(pixel, columns)
            window = (slice(max(0, row - reach), row + 1), slice(max(0, column - reach), column + reach + 1))
            hidden: Tensor | None = None
            for channel in range(channels):
                place, where = pixel * channels + channel, (channel, row, column)
                prediction = predict_one(parameters, values, place)
                network.write(seen, where, network.per_value(parameters, values[:, place], prediction))
                present = seen.present[:, channel, row, column]
                if hidden is None:
                    hidden = network.trunk(
                        single, seen.past[(..., *window)], seen.present[:, 0][(slice(None), *window)]
                    )
                    hidden = hidden[:, -1, column - window[1].start]
                earlier = seen.earlier[:, :channel, row, column].flatten(1)
                residual = mixtures.sample(network.head(single, channel, hidden, present, earlier), generator)
                value = prediction.location + prediction.scale * residual
                if self.is_discrete:
                    value = value.round().clamp(self.lowest, self.highest)
                values[:, place] = value
                network.write(seen, where, network.per_value(parameters, value, prediction))
        return values

    def _kind(self, images: Tensor) -> tuple[bool, float, float]:
        """Whether the values are whole numbers, and the ends of their scale."""
        whole = bool((images == images.round()).all())
        if self.limits is not None:
            lowest, highest = self.limits
            if not whole or self.discrete is False:
                raise ValueError("measured: need whole numbers and discrete=True or None, because limits are given")
            if bool(((images < lowest) | (images > highest)).any()):
                span = (float(images.min()), float(images.max()))
                raise ValueError(f"measured: need values within limits {self.limits}, got {span[0]:g} to {span[1]:g}")
            return True, float(lowest), float(highest)
        if self.discrete and not whole:
            raise ValueError("measured: need whole numbers for discrete=True, got fractions")
        is_discrete = whole if self.discrete is None else self.discrete
        return is_discrete, 0.0 if is_discrete and bool((images >= 0.0).all()) else -math.inf, math.inf

    def _data(self, parameters: dict[str, Tensor], values: Tensor, dtype: torch.dtype) -> _Data:
        """Features and targets of values in causal order, (n, D)."""
        prediction = predict(parameters, values)
        residual = (values - prediction.location) / prediction.scale
        targets = mixtures.Targets(residual, prediction.scale.log())
        if self.is_discrete:
            lower_open, upper_open = values <= self.lowest, values >= self.highest
            targets = targets._replace(
                half_bin=0.5 / prediction.scale,
                lower_open=lower_open if bool(lower_open.any()) else None,
                upper_open=upper_open if bool(upper_open.any()) else None,
            )
        return _Data(network.features(parameters, values, prediction, self._shape, dtype), targets.to(dtype))

    @property
    def _shape(self) -> tuple[int, ...]:
        """(channel, row, column)."""
        return self.image_shape if len(self.image_shape) == 3 else (1, *self.image_shape)

    def _images(self, measured: Tensor) -> Tensor:
        """Checked, (n, channel, row, column)."""
        images = as_images(measured, torch.Size(self.image_shape))
        if self.is_discrete and not bool((images == images.round()).all()):
            raise ValueError("measured: need whole numbers, as in the images of the fit, got fractions")
        return images.reshape(-1, *self._shape)

    def _fitted(self) -> dict[str, Tensor]:
        if self.parameters is None:
            raise RuntimeError(f"{type(self).__name__}: call fit first; it returns the fitted density")
        return self.parameters


def _log_prob(parameters: dict[str, Tensor], data: _Data) -> Tensor:
    return mixtures.log_prob(network.raw_mixtures(parameters, data.seen), data.targets)


@torch.no_grad()
def _log_probs(parameters: dict[str, Tensor], data: _Data) -> Tensor:
    """Log probability of each value, (n, D), a limited number of images at a time."""
    n_samples, n_values = data.targets.residual.shape
    part = max(1, _VALUES_PER_PART // n_values)
    return torch.cat(
        [_log_prob(parameters, data.rows(slice(first, first + part))) for first in range(0, n_samples, part)]
    )
