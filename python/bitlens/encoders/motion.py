"""Motion during the exposure: smear along a line, and lines of charge that follow a moving image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor

from bitlens import ops
from bitlens.encoders.convolution import ConvolutionMode, adjoint_convolution, never_below_zero
from bitlens.encoders.detector import Values, as_planes, as_values, hold, within
from bitlens.encoders.linear import LinearEncoder

Boundary = Literal["crop", "zero", "circular"]


def path_psf(starts: Tensor, ends: Tensor, weights: Tensor, reach_pixels: int) -> Tensor:
    """sum_s weights[s] of the mean of a bilinearly interpolated point over the line from starts[s] to ends[s].

    Exact, by Gauss-Legendre quadrature between the crossings of pixel centres, and differentiable in all three; its sum
    is that of the weights.

    Args:
        starts, ends: (segment, 2), displacement along rows and columns in pixels, at most `reach_pixels`.
        weights: (segment,).
        reach_pixels: the PSF has 2 reach_pixels + 1 rows and columns; a wider path loses light.
    """
    lattice = torch.arange(-reach_pixels, reach_pixels + 1, dtype=starts.dtype, device=starts.device)
    travel = ends - starts
    # A component that stays put crosses nothing; the guard also keeps its gradient from becoming 0 times infinity.
    moving = travel.abs() > 1e-12
    crossing = (lattice - starts[..., None]) / torch.where(moving, travel, 1.0)[..., None]
    crossing = torch.where(moving[..., None], crossing, 0.0).clamp(0.0, 1.0).flatten(1)
    ends_of = torch.zeros_like(crossing[:, :1])
    edges = torch.cat((ends_of, crossing, ends_of + 1), dim=1).sort(dim=1).values
    middle, half = 0.5 * (edges[:, 1:] + edges[:, :-1]), 0.5 * (edges[:, 1:] - edges[:, :-1])
    # Two nodes are exact for the cubic that a product of two linear interpolations is.
    node = half / math.sqrt(3)
    position = torch.cat((middle - node, middle + node), dim=1)
    share = weights[:, None] * torch.cat((half, half), dim=1)
    where = starts[:, None] + travel[:, None] * position[..., None]
    row, column = ((1 - (where[..., axis, None] - lattice).abs()).clamp(min=0).flatten(0, 1) for axis in (0, 1))
    return (row * share.flatten()[:, None]).T @ column


@final
class MotionSmear(LinearEncoder):
    """y = psf * scene, psf the uniform distribution over a line of `length_pixels` in `direction_degrees`.

    Bilinear interpolation along the line, centred on the origin, integrated exactly: differentiable in length,
    direction and shutter, the transmission in equal parts of the exposure, whose mean is the flux.

    Shapes: (batch, channel, row, column) -> the same; "crop" keeps pixels that see no boundary, 2 reach fewer each way.

    Args:
        length_pixels, direction_degrees: 0 along the columns, 90 along the rows (downwards).
        shutter: (part,) 0 to 1 in order of time, from the line's start; None for open.
        reach_pixels: from the PSF's middle to its edge; default what the length takes, which can then only shrink.
        boundary: "crop", "zero" (dark around) or "circular".
        learn: names of the first three to optimise.

    Reference: Raskar et al. 2006, Coded exposure photography, doi:10.1145/1141911.1141957.
    """

    parameter_scale: ClassVar[Mapping[str, float]] = {
        "length_pixels": 3.0,
        "direction_degrees": 30.0,
        "shutter": 1.0,
    }

    length_pixels: Tensor
    direction_degrees: Tensor
    shutter: Tensor

    def __init__(
        self,
        length_pixels: float,
        *,
        direction_degrees: float = 0.0,
        shutter: Values | None = None,
        reach_pixels: int | None = None,
        boundary: Boundary = "crop",
        learn: Sequence[str] = (),
    ) -> None:
        super().__init__()
        length = within("length_pixels", as_values("length_pixels", length_pixels, "a number", (0,)), 0.0)
        direction = as_values("direction_degrees", direction_degrees, "a number", (0,))
        opening = as_values("shutter", 1.0 if shutter is None else shutter, "a number for each part", (0, 1))
        self.reach_pixels = _reach(0.5 * float(length), reach_pixels)
        self.boundary: Boundary = check_boundary(boundary)
        values = {
            "length_pixels": length,
            "direction_degrees": direction,
            "shutter": within("shutter", opening.reshape(-1), 0.0, 1.0),
        }
        hold(self, values, learn)

    @property
    def parameter_domain(self) -> Mapping[str, tuple[float | None, float | None]]:
        """What an optimiser may reach: a line within the PSF."""
        return {"length_pixels": (0.0, 2.0 * (self.reach_pixels - 1)), "shutter": (0.0, 1.0)}

    def psf(self) -> Tensor:
        """(2 reach_pixels + 1, 2 reach_pixels + 1), whose sum is the mean of the shutter."""
        n_parts = len(self.shutter)
        radians = torch.deg2rad(self.direction_degrees)
        line = self.length_pixels * torch.stack((radians.sin(), radians.cos()))
        time = torch.arange(n_parts + 1, dtype=line.dtype, device=line.device) / n_parts - 0.5
        place = time[:, None] * line
        return path_psf(place[:-1], place[1:], self.shutter.to(line.dtype) / n_parts, self.reach_pixels)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """The smeared scene."""
        return _smeared(scene, self.psf(), self.boundary)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The correlation with the PSF."""
        return blurred_back(measured, self.psf(), self.boundary)


@final
class TimeDelayIntegration(LinearEncoder):
    """y = psf * scene of a line sensor whose charge follows the image over `n_stages` rows, as one exposure.

    The charge jumps n_phases times a row while the image glides by 1 + mismatch_pixels rows a stage. The flux is 1: the
    scene counts the light of all stages together. Differentiable in mismatch and drift.

    Shapes: (batch, channel, row, column) -> the same; "crop" keeps pixels that see no boundary, 2 reach fewer each way.

    Args:
        n_stages: rows that add up.
        mismatch_pixels: rows that the image gains on the charge in a stage, either sign.
        drift_pixels: columns that it moves sideways in a stage.
        n_phases, reach_pixels, boundary: clock phases of a row; the others as in `MotionSmear`.
        learn: "mismatch_pixels", "drift_pixels", both or nothing.

    Reference: Wong, Yao and Schowengerdt 1992, TDI charge-coupled devices, doi:10.1147/rd.361.0083.
    """

    mismatch_pixels: Tensor
    drift_pixels: Tensor

    def __init__(
        self,
        n_stages: int,
        *,
        mismatch_pixels: float = 0.0,
        drift_pixels: float = 0.0,
        n_phases: int = 1,
        reach_pixels: int | None = None,
        boundary: Boundary = "crop",
        learn: Sequence[str] = (),
    ) -> None:
        super().__init__()
        for name, count in (("n_stages", n_stages), ("n_phases", n_phases)):
            if count < 1:
                raise ValueError(f"{name}: need at least 1, got {count}")
        values = {
            "mismatch_pixels": as_values("mismatch_pixels", mismatch_pixels, "a number", (0,)),
            "drift_pixels": as_values("drift_pixels", drift_pixels, "a number", (0,)),
        }
        self.n_stages, self.n_phases = n_stages, n_phases
        # A slip of some pixels over all stages: a blur grows with its square, and changes little where it starts.
        self.parameter_scale: Mapping[str, float] = dict.fromkeys(values, 8 / n_stages)
        slip = n_stages * max(abs(mismatch_pixels), abs(drift_pixels))
        self.reach_pixels = _reach(0.5 * (slip + 1 / n_phases), reach_pixels)
        self.boundary: Boundary = check_boundary(boundary)
        hold(self, values, learn)

    @property
    def parameter_domain(self) -> Mapping[str, tuple[float | None, float | None]]:
        """What an optimiser may reach: a path within the PSF."""
        largest = (2 * (self.reach_pixels - 1) - 1 / self.n_phases) / self.n_stages
        return {"mismatch_pixels": (-largest, largest), "drift_pixels": (-largest, largest)}

    def psf(self) -> Tensor:
        """(2 reach_pixels + 1, 2 reach_pixels + 1), whose sum is 1."""
        n_steps = self.n_stages * self.n_phases
        slip = torch.stack((self.mismatch_pixels, self.drift_pixels)) / self.n_phases
        jump = torch.tensor([1 / self.n_phases, 0.0], dtype=slip.dtype, device=slip.device)
        step = torch.arange(n_steps, dtype=slip.dtype, device=slip.device)[:, None]
        # Centred: the mean displacement over the exposure is zero.
        starts = (step - 0.5 * n_steps) * slip - 0.5 * jump
        weights = torch.full((n_steps,), 1 / n_steps, dtype=slip.dtype, device=slip.device)
        return path_psf(starts, starts + slip + jump, weights, self.reach_pixels)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """What the lines add up to."""
        return _smeared(scene, self.psf(), self.boundary)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The correlation with the PSF."""
        return blurred_back(measured, self.psf(), self.boundary)


def _reach(half_pixels: float, given: int | None) -> int:
    needed = math.ceil(half_pixels - 1e-9) + 1  # a point between two pixels reaches one further
    if given is not None and given < needed:
        raise ValueError(f"reach_pixels: need at least {needed} for this motion, got {given}")
    return needed if given is None else given


def check_boundary(boundary: Boundary) -> Boundary:
    """`boundary`, if it is one of the three; otherwise ValueError."""
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary: need one of {get_args(Boundary)}, got {boundary!r}")
    return boundary


def _mode(boundary: Boundary) -> tuple[ConvolutionMode, Literal["zero", "circular"]]:
    if boundary == "crop":
        return "valid", "zero"
    return "same", boundary


def blurred(scene: Tensor | np.ndarray, psf: Tensor, boundary: Boundary) -> Tensor:
    """psf * scene (batch, channel, row, column) as far as `boundary` lets it, with the rounding errors of its FFT."""
    scene = as_planes("scene", scene)
    mode, edge = _mode(boundary)
    return ops.psf_convolve(scene, psf.to(scene.dtype), mode=mode, boundary=edge)


def _smeared(scene: Tensor | np.ndarray, psf: Tensor, boundary: Boundary) -> Tensor:
    scene = as_planes("scene", scene)
    return never_below_zero(blurred(scene, psf, boundary), scene, psf)


def blurred_back(measured: Tensor | np.ndarray, psf: Tensor, boundary: Boundary) -> Tensor:
    """The adjoint of `blurred`."""
    measured = as_planes("measured", measured)
    mode, edge = _mode(boundary)
    return adjoint_convolution(measured, psf.to(measured.dtype), mode=mode, boundary=edge)
