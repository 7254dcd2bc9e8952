"""Encoders that sample Fourier transforms and projections: time forward, and adjoint."""

from __future__ import annotations

import abc
import math

import torch

from bitlens.encoders.fourier_sampling import CartesianSampling, birdcage_sensitivities
from bitlens.encoders.linear import LinearEncoder
from bitlens.encoders.nonuniform_fourier import NonuniformSampling, radial_trajectory
from bitlens.encoders.tomography import FanProjection, ParallelProjection


class Encoder(abc.ABC):
    """One encoder at one size of scene; abstract, so that asv collects only the encoders."""

    params = ([64, 256],)
    param_names = ("size",)
    timeout = 300

    @abc.abstractmethod
    def make(self, size: int) -> LinearEncoder:
        """The encoder of scenes of size x size pixels."""

    def setup(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.encoder = self.make(size)
        self.scene = torch.rand(1, 1, size, size, generator=generator)
        with torch.no_grad():
            self.measured = self.encoder.A(self.scene)
            self.encoder.A_adjoint(self.measured)

    def time_forward(self, size: int) -> None:
        with torch.no_grad():
            self.encoder.A(self.scene)

    def time_adjoint(self, size: int) -> None:
        with torch.no_grad():
            self.encoder.A_adjoint(self.measured)


class Parallel(Encoder):
    """180 views."""

    def make(self, size: int) -> LinearEncoder:
        return ParallelProjection(torch.arange(180) * math.pi / 180, (size, size), bins=size)


class Fan(Encoder):
    """180 views of a fan of 43 degrees."""

    def make(self, size: int) -> LinearEncoder:
        return FanProjection(
            torch.arange(180) * math.pi / 90, (size, size), bins=2 * size, source_mm=2 * size, detector_mm=size,
            bin_mm=1.2,
        )  # fmt: skip


class Cartesian(Encoder):
    """A quarter of the lines, eight coils."""

    def make(self, size: int) -> LinearEncoder:
        lines = torch.arange(size) % 4 == 0
        return CartesianSampling(lines, sensitivities=birdcage_sensitivities(8, (size, size)), compact=True)


class Radial(Encoder):
    """As many samples as pixels, eight coils."""

    def make(self, size: int) -> LinearEncoder:
        trajectory = radial_trajectory(size, size, maximum_cycles=size / 2, order="golden")
        return NonuniformSampling(trajectory, (size, size), sensitivities=birdcage_sensitivities(8, (size, size)))
