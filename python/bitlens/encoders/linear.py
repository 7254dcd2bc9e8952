"""What linear encoders share: the map, its exact adjoint, and complex data as pairs of real channels."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class LinearEncoder(nn.Module, ABC):
    """A linear map from scenes to noiseless measurements that knows its adjoint, batched over the first axis.

    `A(scene)` maps (batch, channel, row, column) to (batch, ...); `A_adjoint(measured)` maps back, so that
    sum(A(x) * z) = sum(x * A_adjoint(z)). `forward` is `A`: what comes out is what a noise model takes. These are the
    names that deepinv gives its linear operators. Scenes and measurements are real; complex data are pairs of real
    channels (`complex_to_channels`), for which the sum above is the real part of the inner product.
    """

    @abstractmethod
    def A(self, scene: Tensor) -> Tensor:
        """The noiseless measurements (batch, ...) of scenes (batch, channel, row, column)."""

    @abstractmethod
    def A_adjoint(self, measured: Tensor) -> Tensor:
        """Back from measurements (batch, ...) to scenes (batch, channel, row, column)."""

    def forward(self, scene: Tensor) -> Tensor:
        """`A(scene)`."""
        return self.A(scene)


def complex_to_channels(field: Tensor) -> Tensor:
    """Real (..., 2 channel, row, column) of complex (..., channel, row, column): real, imaginary, real, ...

    Raises:
        TypeError: `field` is not complex.
    """
    if not field.is_complex():
        raise TypeError(f"field: need a complex tensor, got {field.dtype}")
    *leading, rows, columns = field.shape
    if not leading:
        raise ValueError(f"field: need shape (..., channel, row, column), got {tuple(field.shape)}")
    pairs = torch.view_as_real(field.resolve_conj()).movedim(-1, -3)
    return pairs.reshape(*leading[:-1], 2 * leading[-1], rows, columns)


def channels_to_complex(channels: Tensor) -> Tensor:
    """Complex (..., channel, row, column) of real (..., 2 channel, row, column), as `complex_to_channels` made them.

    Raises:
        ValueError: an odd number of channels.
    """
    if channels.ndim < 3 or channels.shape[-3] % 2:
        raise ValueError(f"channels: need shape (..., 2 n, row, column), got {tuple(channels.shape)}")
    *leading, count, rows, columns = channels.shape
    pairs = channels.reshape(*leading, count // 2, 2, rows, columns)
    return torch.complex(pairs[..., 0, :, :], pairs[..., 1, :, :])
