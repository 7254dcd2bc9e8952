"""A small causal network: from the values before a pixel to a correction of its conditional law."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bitlens.densities._autoregressive_linear import Prediction, from_order

# Rows above and columns to either side that the first layer sees.
REACH = 3


class Features(NamedTuple):
    """What the network sees.

    `past` (n, 3 channel + 1, row, column): values, residuals and their sizes, and ones that mark the image. A pixel
    sees those of pixels before it. `present` (n, channel, row, column, 4): predicted mean and log scale of each
    value, row and column; `earlier` (n, channel, row, column, 2): value and residual, seen by later channels.
    """

    past: Tensor
    present: Tensor
    earlier: Tensor

    def rows(self, chosen: Tensor | slice) -> Features:
        """Some of the images."""
        return Features(*(part[chosen] for part in self))


def compress(values: Tensor) -> Tensor:
    """sign(v) log(1 + |v|): outliers stay within the range that a network handles."""
    return values.sign() * values.abs().log1p()


def per_value(parameters: dict[str, Tensor], values: Tensor, prediction: Prediction) -> tuple[Tensor, ...]:
    """Value, residual, predicted mean and log scale as the network sees them, each of the shape of `values`."""
    center, spread = parameters["center"], parameters["spread"]
    value = compress((values - center) / spread)
    residual = compress((values - prediction.location) / prediction.scale)
    location = compress((prediction.location - center) / spread)
    return value, residual, location, (prediction.scale / spread).log()


def features(
    parameters: dict[str, Tensor], values: Tensor, prediction: Prediction, shape: tuple[int, ...], dtype: torch.dtype
) -> Features:
    """Of values in causal order, (n, D), with their predictions; (channel, row, column) is `shape`."""
    parts = per_value(parameters, values, prediction)
    value, residual, location, log_scale = (from_order(part.to(dtype), shape) for part in parts)
    _, rows, columns = shape
    row = torch.linspace(-1.0, 1.0, rows, dtype=dtype, device=value.device)[:, None].expand_as(value)
    column = torch.linspace(-1.0, 1.0, columns, dtype=dtype, device=value.device).expand_as(value)
    past = torch.cat([value, residual, residual.abs(), torch.ones_like(value[:, :1])], 1)
    present = torch.stack([location, log_scale, row, column], -1)
    return Features(past, present, torch.stack([value, residual], -1))


def write(seen: Features, place: tuple[int, int, int], parts: tuple[Tensor, ...]) -> None:
    """Puts the four features of one value, (n,) each, at its (channel, row, column) into `seen`."""
    channel, row, column = place
    channels = seen.present.shape[1]
    value, residual, location, log_scale = parts
    for block, part in enumerate((value, residual, residual.abs())):
        seen.past[:, block * channels + channel, row, column] = part
    seen.present[:, channel, row, column, 0] = location
    seen.present[:, channel, row, column, 1] = log_scale
    seen.earlier[:, channel, row, column, 0] = value
    seen.earlier[:, channel, row, column, 1] = residual


def initial_parameters(
    channels: int, width: int, n_blocks: int, mixture: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weights whose output is `mixture` (3 K,) everywhere: the network starts as the plain Gaussian with its noise."""
    n_outputs = len(mixture)

    def normal(*shape: int, inputs: int, gain: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * (gain / math.sqrt(inputs))

    taps = REACH * (2 * REACH + 1) + REACH
    parameters = {
        "first.weight": normal(width, 3 * channels + 1, REACH + 1, 2 * REACH + 1, inputs=taps * (3 * channels + 1)),
        "first.present": normal(width, 4, inputs=4),
        "first.bias": torch.zeros(width),
    }
    for block in range(n_blocks):
        parameters[f"block{block}.weight"] = normal(width, width, 2, 3, inputs=5 * width, gain=math.sqrt(2.0))
        parameters[f"block{block}.bias"] = torch.zeros(width)
        parameters[f"block{block}.gate_weight"] = normal(2 * width, width, inputs=width, gain=0.3)
        parameters[f"block{block}.gate_bias"] = torch.zeros(2 * width)
    for channel in range(channels):
        n_inputs = width + 4 + 2 * channel
        parameters[f"head{channel}.weight"] = normal(width, n_inputs, inputs=n_inputs, gain=math.sqrt(2.0))
        parameters[f"head{channel}.bias"] = torch.zeros(width)
        parameters[f"head{channel}.out_weight"] = torch.zeros(n_outputs, width)
        parameters[f"head{channel}.out_bias"] = mixture.clone().float()
    return parameters


def trunk(parameters: dict[str, Tensor], past: Tensor, present: Tensor) -> Tensor:
    """(n, row, column, width) of what precedes each pixel and the prediction of its first channel.

    Kernels cover the rows above and the pixels to the left: they are half as large as masked square ones.
    """
    weight = parameters["first.weight"] * _before(parameters["first.weight"])
    hidden = functional.conv2d(functional.pad(past, (REACH, REACH, REACH, 0)), weight, parameters["first.bias"])
    hidden = hidden.permute(0, 2, 3, 1) + functional.linear(present, parameters["first.present"])
    block = 0
    while f"block{block}.weight" in parameters:
        weight = parameters[f"block{block}.weight"]
        weight = weight * _before(weight, itself=True)
        inner = functional.pad(functional.relu(hidden), (0, 0, 1, 1, 1, 0)).permute(0, 3, 1, 2)
        inner = functional.conv2d(inner, weight, parameters[f"block{block}.bias"]).permute(0, 2, 3, 1)
        gated = functional.linear(
            functional.relu(inner), parameters[f"block{block}.gate_weight"], parameters[f"block{block}.gate_bias"]
        )
        hidden = hidden + functional.glu(gated, -1)
        block += 1
    return hidden


def head(parameters: dict[str, Tensor], channel: int, hidden: Tensor, present: Tensor, earlier: Tensor) -> Tensor:
    """Mixture (..., 3 K) of `channel` from the trunk (..., width), its present (..., 4) and earlier channels'.

    earlier: (..., 2 channel), value and residual of each channel before this one at the same pixel.
    """
    name = f"head{channel}"
    inputs = torch.cat([hidden, present, earlier], -1)
    inner = functional.relu(functional.linear(inputs, parameters[f"{name}.weight"], parameters[f"{name}.bias"]))
    return functional.linear(inner, parameters[f"{name}.out_weight"], parameters[f"{name}.out_bias"])


def raw_mixtures(parameters: dict[str, Tensor], seen: Features) -> Tensor:
    """Mixtures of all values in causal order, (n, D, 3 K)."""
    channels = seen.present.shape[1]
    hidden = trunk(parameters, seen.past, seen.present[:, 0])
    outputs = [
        head(parameters, channel, hidden, seen.present[:, channel], earlier_channels(seen.earlier, channel))
        for channel in range(channels)
    ]
    return torch.stack(outputs, -2).flatten(1, 3)


def earlier_channels(earlier: Tensor, channel: int) -> Tensor:
    """(n, channel, row, column, 2) -> (n, row, column, 2 c), the `channel` = c first ones."""
    return earlier[:, :channel].movedim(1, -2).flatten(-2)


def _before(weight: Tensor, itself: bool = False) -> Tensor:
    """1 at the taps of a kernel that reach pixels before its own, or that one too; 0 at those after it."""
    rows, columns = weight.shape[-2:]
    mask = torch.ones(rows, columns, dtype=weight.dtype, device=weight.device)
    mask[-1, columns // 2 + int(itself) :] = 0.0
    return mask
