"""Imaging systems in small, whose order is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitlens.noise import GaussianNoise
from bitlens.systems import ImagingSystem


class Gain(nn.Module):
    """gain x scene."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, scene: Tensor) -> Tensor:
        return self.gain * scene


def textures(n: int, size: int = 8, seed: int = 0) -> Tensor:
    """Smooth Gaussian fields (n, 1, size, size) around 3."""
    white = torch.randn(n, 1, size + 2, size + 2, generator=torch.Generator().manual_seed(seed))
    return 3 + nn.functional.avg_pool2d(white, 3, stride=1) * 3


def gains(scenes: Tensor, values: tuple[float, ...]) -> dict[str, ImagingSystem]:
    """The same noise for every gain: more gain is more information and a better reconstruction."""
    return {f"gain {value:g}": ImagingSystem(Gain(value), GaussianNoise(1.0), scenes) for value in values}
