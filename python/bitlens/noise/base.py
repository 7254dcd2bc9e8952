"""What every noise model offers, and what its parameters have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class NoiseModel(nn.Module, ABC):
    """p(measured | mean) of one sensor, every pixel independent of the others."""

    discrete = False  # whether `measured` takes integer values and log_prob is of a probability mass

    @abstractmethod
    def sample(self, mean: Tensor | np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        """One measurement drawn for each element of `mean` (photo-electrons)."""

    @abstractmethod
    def log_prob(self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray) -> Tensor:
        """log p(measured | mean) in nats, elementwise with broadcasting."""

    @abstractmethod
    def entropy(self, mean: Tensor | np.ndarray) -> Tensor:
        """Entropy of a pixel with this mean, in nats, elementwise; in the unit of `measured`."""


class ScoreFeatures(NamedTuple):
    """S_ij = query_i . key_j + query_bias_i + key_bias_j: all log p(measured_i | mean_j), summed over pixels.

    `exact` is False when S is a surrogate of the likelihood: then it serves as a critic, for lower bounds only.
    """

    query: Tensor
    key: Tensor
    query_bias: Tensor
    key_bias: Tensor
    exact: bool


def set_parameter(module: nn.Module, name: str, value: object, *, positive: bool) -> None:
    """Keep a number or per-pixel map as a float64 buffer; an nn.Parameter stays one and can be optimised.

    Raises:
        TypeError: not a number, array or tensor of real numbers.
        ValueError: not finite, or not above zero where that is needed.
    """
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
        checked: Tensor = value.detach()
    else:
        if isinstance(value, bool | str) or value is None:
            raise TypeError(f"{name}: need a number or a per-pixel map, got {type(value).__name__}")
        try:
            checked = torch.as_tensor(
                np.asarray(value) if not isinstance(value, Tensor) else value, dtype=torch.float64
            ).clone()
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name}: need a number or a per-pixel map, got {type(value).__name__}") from error
        module.register_buffer(name, checked)
    if checked.numel() == 0:
        raise ValueError(f"{name}: need at least one element, got shape {tuple(checked.shape)}")
    if not bool(torch.isfinite(checked).all()):
        raise ValueError(f"{name}: need finite values, got NaN or infinity")
    if positive and not bool((checked > 0).all()):
        raise ValueError(f"{name}: need values above 0, got a minimum of {checked.min().item():g}")


def operand(parameter: Tensor, like: Tensor) -> Tensor:
    """A parameter for a kernel on images of this dtype and device: maps are cast, one number keeps its precision."""
    dtype = like.dtype if parameter.ndim else torch.promote_types(parameter.dtype, like.dtype)
    return parameter.to(like.device, dtype)


def check_mean(mean: Tensor) -> None:
    """ValueError unless every mean is finite and not negative."""
    if not bool(torch.isfinite(mean).all()):
        raise ValueError("mean: need finite values, got NaN or infinity")
    if bool((mean < 0).any()):
        raise ValueError(f"mean: need values of at least 0 photo-electrons, got {mean.min().item():g}")


def check_finite(name: str, value: Tensor) -> None:
    """ValueError unless every value is finite."""
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name}: need finite values, got NaN or infinity")


def flat_float64(value: Tensor) -> Tensor:
    """(n, ...) as float64 (n, pixels)."""
    return value.detach().to(torch.float64).reshape(value.shape[0], -1)


def flat_map(name: str, parameter: Tensor, sample_shape: torch.Size) -> Tensor:
    """A scalar or per-pixel map as a float64 row of pixels for samples of this shape.

    Raises:
        ValueError: the map does not fit the samples.
    """
    check_map(name, parameter, sample_shape)
    return parameter.detach().to(torch.float64).expand(sample_shape).reshape(-1)


def check_map(name: str, parameter: Tensor, shape: torch.Size) -> None:
    """ValueError unless a scalar or per-pixel map broadcasts to images of this shape."""
    sizes = zip(reversed(parameter.shape), reversed(shape), strict=False)
    if parameter.ndim > len(shape) or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(
            f"{name}: need a number or a map that fits images {tuple(shape)}, got {tuple(parameter.shape)}"
        )


def as_mean(value: Tensor | np.ndarray) -> Tensor:
    """A floating-point tensor; NumPy arrays and whole numbers are converted."""
    tensor = torch.as_tensor(value)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


LOG_TWO_PI_E = math.log(2 * math.pi * math.e)
