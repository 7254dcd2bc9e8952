"""Normalising-flow density: a causal Gaussian, then masked autoregressive transformations of the zuko library."""

from __future__ import annotations

import dataclasses
import importlib
import math
import numbers
from dataclasses import dataclass, field
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from bitlens.densities._autoregressive_linear import fit_linear, from_order, in_order, predict, predict_one
from bitlens.densities._autoregressive_training import train
from bitlens.densities.base import Density, as_images

_LEAST_IMAGES = 10
_IMAGES_PER_STEP = 128
_IMAGES_PER_PART = 1024
# A fit that runs out of passes while it still gains more than this has not converged.
_CONVERGED_NATS_PER_VALUE = 2e-3
_LOG_2PI = math.log(2.0 * math.pi)
_PREFIX = "flow."


@final
@dataclass(frozen=True, eq=False)
class FlowDensity(Density):
    """q(z) = N(f(z); 0, 1) |df/dz|: f whitens, then an affine and `n_splines` spline autoregressive maps follow.

    `FlowDensity().fit(measured)` is the fitted density; measured is (n, [[channel,] row,] column), n >= 10. f starts
    as the whitening of the images' Gaussian. Needs the zuko library.
    A flow has a density, whole numbers have probabilities: they need `dequantize`, which fits a density to z + u, u
    uniform on [-1/2, 1/2), and takes log q(z) = log mean_j q(z + u_j) over `n_draws` fixed u_j, in expectation at
    most the log probability of z. `held_out_bias_nats` is NaN, because it is not known.

    Reference: Papamakarios et al. 2017, arXiv:1705.07057; Durkan et al. 2019, arXiv:1906.04032.
    """

    n_splines: int = 1
    hidden: int = 128
    bins: int = 8
    max_passes: int = 30
    learning_rate: float = 2e-3
    validation_fraction: float = 0.1
    dequantize: bool = False
    n_draws: int = 8
    seed: int = 0
    parameters: dict[str, Tensor] | None = field(default=None, repr=False)
    image_shape: tuple[int, ...] = ()
    validation_nats_per_pixel: tuple[float, ...] = field(default=(), repr=False)
    n_samples: int = 0
    held_out_bias_nats: float = math.nan
    converged: bool = False

    def __post_init__(self) -> None:
        least_values = {"n_splines": 0, "hidden": 1, "bins": 2, "max_passes": 1, "n_draws": 1, "seed": 0}
        for name, least in least_values.items():
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral):
                raise TypeError(f"{name}: need a whole number, got {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name}: need at least {least}, got {value}")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: need a positive number, got {self.learning_rate}")
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(f"validation_fraction: need a share between 0 and 1, got {self.validation_fraction}")

    def fit(self, measured: Tensor, *, generator: torch.Generator | None = None) -> Self:
        """The flow of `measured`, (n, [[channel,] row,] column), on a random split into training and validation.

        `generator` gives split, weights and dequantisation; None takes a new one with `seed`. One seed gives one fit,
        bit for bit, on one number of threads.

        Raises:
            ModuleNotFoundError: zuko is not installed.
            TypeError: `generator` is not a torch.Generator.
            ValueError: fewer than 10 images, another number of axes, constant images, NaN or infinity, or whole
                numbers without `dequantize` and other numbers with it.
        """
        if generator is None:
            generator = torch.Generator().manual_seed(self.seed)
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: need a torch.Generator or None, got {type(generator).__name__}")
        images = as_images(measured, minimum_samples=_LEAST_IMAGES)
        self._check_whole(images, is_fit=True)
        if images.ndim > 4:
            raise ValueError(f"measured: need shape (n, [[channel,] row,] column), got {tuple(images.shape)}")
        fitted = dataclasses.replace(self, image_shape=tuple(images.shape[1:]))
        images = images.reshape(-1, *fitted._shape)
        order = torch.randperm(len(images), generator=generator)
        n_validation = min(max(1, round(self.validation_fraction * len(images))), len(images) - 4)
        with torch.no_grad():
            dequantized = images + self._noise(images.shape, generator).to(images.device)
            validation, training = dequantized[order[:n_validation]], dequantized[order[n_validation:]]
            linear = fit_linear(training, validation)
        values = in_order(images[order[n_validation:]])
        held_out = _whiten(linear, in_order(validation))
        flow = _LogProb(fitted._flow())
        _initialize(flow, generator)
        flow.to(images.device)

        def loss(current: dict[str, Tensor], chosen: Tensor) -> Tensor:
            rows = values[chosen]
            latent, _ = _whiten(linear, rows + self._noise(rows.shape, generator).to(rows.device))
            log_prob: Tensor = torch.func.functional_call(flow, current, (latent.float(),))
            return -log_prob.mean() / latent.shape[1]

        @torch.no_grad()
        def validate(current: dict[str, Tensor]) -> float:
            log_prob = torch.func.functional_call(flow, current, (held_out[0].float(),))
            return -float((log_prob.double() - held_out[1]).mean()) / held_out[0].shape[1]

        trained = train(
            {name: value.detach() for name, value in flow.named_parameters()},
            loss,
            validate,
            n_samples=len(values),
            batch=_IMAGES_PER_STEP,
            max_passes=self.max_passes,
            learning_rate=self.learning_rate,
            generator=generator,
        )
        history = trained.validation
        return dataclasses.replace(
            fitted,
            parameters={**linear, **{_PREFIX + name: value.double() for name, value in trained.parameters.items()}},
            validation_nats_per_pixel=history,
            n_samples=len(images),
            converged=trained.stopped_early or history[-2] - history[-1] < _CONVERGED_NATS_PER_VALUE,
        )

    @torch.no_grad()
    def log_prob(self, measured: Tensor) -> Tensor:
        """Log density of each image, with `dequantize` log probability from below, (n, ...) -> (n,) nats."""
        parameters, flow = self._fitted()
        images = as_images(measured, torch.Size(self.image_shape))
        self._check_whole(images, is_fit=False)
        values = in_order(images.reshape(-1, *self._shape))
        if not self.dequantize:
            return _log_prob(parameters, flow, values)
        # One set of offsets for all images: log q of an image does not depend on what else is asked for.
        offsets = self._noise(torch.Size((self.n_draws, values.shape[1])), torch.Generator().manual_seed(self.seed))
        draws = torch.stack([_log_prob(parameters, flow, values + offset) for offset in offsets.to(values.device)])
        return draws.logsumexp(0) - math.log(self.n_draws)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images from the inverse of f, rounded with `dequantize`, (n, ...) float64."""
        parameters, flow = self._fitted()
        mean = parameters["mean"]
        normal = torch.randn(n, len(mean), dtype=torch.float64, generator=generator).to(mean.device)
        residual = flow.flow().transform.inv(normal)
        values = mean.expand(n, -1).clone()
        for place in range(len(mean)):
            prediction = predict_one(parameters, values, place)
            values[:, place] = prediction.location + prediction.scale * residual[:, place]
        images = from_order(values.round() if self.dequantize else values, self._shape)
        return images.reshape(n, *self.image_shape)

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Uniform on [-1/2, 1/2), or nothing."""
        if not self.dequantize:
            return torch.zeros((), dtype=torch.float64)
        return torch.rand(shape, dtype=torch.float64, generator=generator) - 0.5

    def _check_whole(self, images: Tensor, is_fit: bool) -> None:
        whole = bool((images == images.round()).all())
        if self.dequantize and not whole:
            raise ValueError("measured: need whole numbers with dequantize=True, got fractions")
        if is_fit and whole and not self.dequantize:
            raise ValueError(
                "measured: got whole numbers only, which have no density; dequantize=True fits one to "
                "measured + U[-1/2, 1/2), and AutoregressiveDensity gives their probabilities exactly"
            )

    @property
    def _shape(self) -> tuple[int, ...]:
        """(channel, row, column)."""
        return (1, 1, 1, *self.image_shape)[-3:]

    def _flow(self) -> Any:
        """The transformations as a zuko flow, from the identity on.

        Raises:
            ModuleNotFoundError: zuko is not installed.
        """
        try:
            zuko = importlib.import_module("zuko")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("FlowDensity needs zuko, which is not installed: pip install zuko") from error
        n_values = math.prod(self._shape)
        order = torch.arange(n_values)
        spline: dict[str, Any] = {
            "univariate": zuko.transforms.MonotonicRQSTransform,
            "shapes": [(self.bins,), (self.bins,), (self.bins - 1,)],
        }
        kinds = [{}, *[spline] * self.n_splines]
        # zuko draws its first weights from torch's global generator; they are replaced.
        with torch.random.fork_rng(devices=[]):
            transforms = [
                zuko.flows.MaskedAutoregressiveTransform(
                    n_values, order=order if layer % 2 == 0 else order.flip(0), hidden_features=(self.hidden,), **kind
                )
                for layer, kind in enumerate(kinds)
            ]
        base = zuko.lazy.UnconditionalDistribution(
            zuko.distributions.DiagNormal, torch.zeros(n_values), torch.ones(n_values), buffer=True
        )
        return zuko.flows.Flow(transforms, base)

    def _fitted(self) -> tuple[dict[str, Tensor], _LogProb]:
        if self.parameters is None:
            raise RuntimeError(f"{type(self).__name__}: call fit first; it returns the fitted density")
        flow = _LogProb(self._flow()).double()
        for name, value in flow.named_parameters():
            value.data.copy_(self.parameters[_PREFIX + name])
        return self.parameters, flow.to(self.parameters["mean"].device)


class _LogProb(nn.Module):
    """Log density under the flow alone; a module, so that parameters can be put in its place."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, latent: Tensor) -> Tensor:
        log_prob: Tensor = self.flow().log_prob(latent)
        return log_prob


@torch.no_grad()
def _initialize(flow: _LogProb, generator: torch.Generator) -> None:
    """Weights from `generator`; last layers 0, where both kinds of map are the identity."""
    for value in flow.parameters():
        bound = 1.0 / math.sqrt(value.shape[-1])
        value.uniform_(-bound, bound, generator=generator)
    for transform in flow.flow.transform.transforms:
        last = transform.hyper[-1] if hasattr(transform, "hyper") else transform
        for value in last.parameters():
            value.zero_()


def _whiten(linear: dict[str, Tensor], values: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals over their scale, (n, D), and minus the log determinant of that map, (n,)."""
    prediction = predict(linear, values)
    return (values - prediction.location) / prediction.scale, prediction.scale.log().sum(1)


def _log_prob(parameters: dict[str, Tensor], flow: _LogProb, values: Tensor) -> Tensor:
    parts = []
    for part in values.split(_IMAGES_PER_PART):
        latent, log_scale = _whiten(parameters, part)
        parts.append(flow(latent) - log_scale)
    return torch.cat(parts)
