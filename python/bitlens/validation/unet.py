"""A small U-Net that refines a linear estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bitlens.estimators._seeds import derived_seed, take_seed
from bitlens.validation import linear
from bitlens.validation._training import Schedule, train
from bitlens.validation.decoder import (
    FittedDecoder,
    GroupLabels,
    TrainableDecoder,
    checked_pairs,
    need_images,
    validation_split,
)

Initial = Literal["auto", "linear", "wiener", "none"]
_MOST_RAW_CHANNELS = 64


def _block(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(n_out, n_out, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Two levels of halved resolution with skips; images of any size from 4 pixels on, continued at their edges.

    Reference: Ronneberger et al. 2015, arXiv 1505.04597.
    """

    def __init__(self, n_in: int, n_out: int, channels: int) -> None:
        super().__init__()
        self.first = _block(n_in, channels)
        self.second = _block(channels, 2 * channels)
        self.middle = _block(2 * channels, 2 * channels)
        self.up_second = _block(4 * channels, channels)
        self.up_first = _block(2 * channels, channels)
        self.last = nn.Conv2d(channels, n_out, 1)
        # Training starts at the estimate that is refined.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """(n, n_in, row, column) -> (n, n_out, row, column)."""
        rows, columns = image.shape[-2:]
        image = functional.pad(image, (0, -columns % 4, 0, -rows % 4), mode="replicate")
        image = image.contiguous(memory_format=torch.channels_last)
        first = self.first(image)
        second = self.second(functional.avg_pool2d(first, 2))
        middle = self.middle(functional.avg_pool2d(second, 2))
        up = self.up_second(torch.cat([functional.interpolate(middle, scale_factor=2.0), second], 1))
        up = self.up_first(torch.cat([functional.interpolate(up, scale_factor=2.0), first], 1))
        return self.last(up)[..., :rows, :columns]


class Refinement(nn.Module):
    """estimate = initial(measured) + scale UNet(initial(measured), measured where its grid fits)."""

    def __init__(self, initial: nn.Module | None, network: UNet, scales: Scales, size: tuple[int, int]) -> None:
        super().__init__()
        self.initial, self.network, self.scales, self.size = initial, network, scales, size

    def forward(self, measured: Tensor) -> Tensor:
        """Estimates (n, channel, row, column)."""
        return self.refined(None if self.initial is None else self.initial(measured), measured)

    def refined(self, estimate: Tensor | None, measured: Tensor) -> Tensor:
        """The refinement of estimates at hand."""
        scales = self.scales
        inputs = [] if estimate is None else [(estimate - scales.target_mean) / scales.target_std]
        raw = on_grid(measured, self.size)
        if raw is not None:
            inputs.append((raw - scales.measured_mean) / scales.measured_std)
        start = scales.target_mean if estimate is None else estimate
        return start + scales.residual_std * self.network(torch.cat(inputs, 1))


class Scales(NamedTuple):
    """Means and deviations that bring inputs and outputs of the network to about 1."""

    measured_mean: float
    measured_std: float
    target_mean: float
    target_std: float
    residual_std: float


def on_grid(measured: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Measurements on the target's grid if they are images of as many rows and columns, or a whole multiple or part."""
    if measured.ndim != 4:
        return None
    rows, columns = measured.shape[-2:]
    if rows % size[0] == 0 and columns % size[1] == 0 and rows // size[0] == columns // size[1]:
        factor = rows // size[0]
        found = measured if factor == 1 else functional.pixel_unshuffle(measured, factor)
    elif size[0] % rows == 0 and size[1] % columns == 0 and size[0] // rows == size[1] // columns:
        found = functional.interpolate(measured, size=size, mode="nearest")
    else:
        return None
    return found if found.shape[1] <= _MOST_RAW_CHANNELS else None


@final
@dataclass(frozen=True)
class UNetDecoder(TrainableDecoder):
    """A linear estimate refined by a U-Net of two levels, trained on the squared error.

    `initial`: "linear" the ridge estimate of `LinearDecoder`, for measurements of any shape; "wiener" that of
    `WienerDecoder`; "auto" the better of those that fit, on the validation rows; "none" the measurement alone. In
    training each row's linear estimate comes from a fit to other rows. The network also sees the measurement where its
    grid is that of the target or a whole multiple. It keeps its best look, the linear estimate itself included.

    Args:
        channels: of the first level. n_steps, batch_size, learning_rate: Adam, a short rise, then half a cosine.
    """

    channels: int = 16
    n_steps: int = 500
    batch_size: int = 32
    learning_rate: float = 3e-3
    initial: Initial = "auto"

    def __post_init__(self) -> None:
        if self.initial not in get_args(Initial):
            raise ValueError(f"initial: need one of {get_args(Initial)}, got {self.initial!r}")
        check_schedule(self.channels, self.n_steps, self.batch_size, self.learning_rate)

    def fit(
        self,
        measured: Tensor | NDArray[Any],
        target: Tensor | NDArray[Any],
        *,
        groups: GroupLabels | None = None,
        generator: torch.Generator | None = None,
    ) -> FittedDecoder:
        """Fitted to measurements (n, ...) and images (n, channel, row, column)."""
        inputs, outputs = checked_pairs(measured, target)
        need_images(outputs, self)
        seed = take_seed(generator)
        module, estimates, choice = self._start(inputs, outputs, groups, seed)
        if module.initial is not None:
            module.initial.requires_grad_(False)

        def loss(rows: Tensor) -> Tensor:
            estimate = None if estimates is None else estimates[rows]
            return self.loss(module.refined(estimate, inputs[rows]), outputs[rows]) / module.scales.residual_std**2

        schedule = Schedule(self.n_steps, self.batch_size, self.learning_rate)
        history = train(module, loss, validation_split(groups, len(inputs), seed), schedule, seed)
        return FittedDecoder(module, history, choice)

    def build(
        self,
        measured: Tensor,
        target: Tensor,
        *,
        groups: GroupLabels | None = None,
        generator: torch.Generator | None = None,
    ) -> nn.Module:
        """The untrained network; its linear estimate is fitted to these pairs and may be trained on."""
        inputs, outputs = checked_pairs(measured, target)
        need_images(outputs, self)
        return self._start(inputs, outputs, groups, take_seed(generator))[0]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error."""
        return functional.mse_loss(output, target)

    def _start(
        self, measured: Tensor, target: Tensor, groups: GroupLabels | None, seed: int
    ) -> tuple[Refinement, Tensor | None, str]:
        size = (int(target.shape[-2]), int(target.shape[-1]))
        found, choice = self._initial(measured, target, groups, seed)
        raw = on_grid(measured[:1], size)
        if found is None and raw is None:
            raise ValueError(
                f'measured: need images on the grid of the target, {size}, for initial="none", '
                f"got {tuple(measured.shape)}"
            )
        estimates = None
        if found is not None:
            estimates = found.cross_fitted
            if estimates is None:
                with torch.no_grad():
                    estimates = torch.cat([found.module(part) for part in measured.split(256)])
        residual = target - (target.mean() if estimates is None else estimates)
        scales = Scales(
            float(measured.mean()),
            _deviation(measured),
            float(target.mean()),
            _deviation(target),
            max(float(residual.square().mean().sqrt()), 1e-6 * _deviation(target)),
        )
        n_in = (0 if found is None else target.shape[1]) + (0 if raw is None else raw.shape[1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "weights"))
            network = UNet(n_in, target.shape[1], self.channels).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network = network.to(target.device)
        return Refinement(None if found is None else found.module, network, scales, size), estimates, choice

    def _initial(
        self, measured: Tensor, target: Tensor, groups: GroupLabels | None, seed: int
    ) -> tuple[linear.LinearFit | None, str]:
        if self.initial == "none":
            return None, "no linear estimate"
        found: linear.LinearFit | None = None
        choice = ""
        fits = linear.fits_frequencies(measured, target)
        if self.initial == "wiener" and not fits:
            raise ValueError(
                f'measured: need images on the grid of the target for initial="wiener", got {tuple(measured.shape)}'
            )
        if self.initial != "linear" and fits:
            found = linear.fit_wiener(measured, target, groups, linear.WienerDecoder().ridges, seed)
            choice = f"wiener, ridge {found.ridge:g}"
        if self.initial != "wiener":
            other = linear.fit_linear(measured, target, groups, linear.LinearDecoder().ridges, seed, cross_fit=True)
            if found is None or other.validation_mse < found.validation_mse:
                found, choice = other, f"linear, ridge {other.ridge:g}"
        return found, choice


def check_schedule(channels: int, n_steps: int, batch_size: int, learning_rate: float) -> None:
    """ValueError unless the numbers of a network's training make sense."""
    for name, value in (("channels", channels), ("n_steps", n_steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: need at least 1, got {value}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate: need a positive number, got {learning_rate}")


def _deviation(value: Tensor) -> float:
    return max(float(value.std()), 1e-30)
