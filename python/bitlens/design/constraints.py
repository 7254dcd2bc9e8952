"""What a parameter may be: sets that a step is projected onto."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor


class Constraint(ABC):
    """A set of allowed values of one parameter; `couples` says whether elements limit each other."""

    couples: ClassVar[bool] = True

    @abstractmethod
    def project(self, value: Tensor) -> Tensor:
        """The allowed value nearest to `value`, as a new tensor of its shape."""

    def realize(self, free: Tensor, progress: float) -> Tensor:
        """What the encoder gets for the free numbers that are climbed, at this share of the steps; differentiable."""
        return free


@final
@dataclass(frozen=True)
class Box(Constraint):
    """lower <= value <= upper, elementwise; None leaves a side open.

    Raises:
        ValueError: both sides open, a bound that is NaN, or lower above upper.
    """

    couples = False

    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        if self.lower is None and self.upper is None:
            raise ValueError("Box: need lower, upper or both, got neither")
        bounds = [bound for bound in (self.lower, self.upper) if bound is not None]
        if any(math.isnan(bound) for bound in bounds) or bounds != sorted(bounds):
            raise ValueError(f"Box: need lower <= upper, got lower={self.lower}, upper={self.upper}")

    def project(self, value: Tensor) -> Tensor:
        """min(max(value, lower), upper)."""
        return value.clamp(self.lower, self.upper)


@final
@dataclass(frozen=True)
class Energy(Constraint):
    """A budget: "mean": value >= 0 with mean(value) <= limit; "rms": sqrt(mean(value^2)) <= limit.

    "mean" is for a transmission map, which can only absorb; "rms" for a map of either sign, such as a phase.

    Raises:
        ValueError: the limit is not a positive number, or the measure is neither.

    Reference: Duchi et al. 2008, Efficient projections onto the l1-ball, doi:10.1145/1390156.1390191.
    """

    limit: float
    measure: Literal["mean", "rms"] = "mean"

    def __post_init__(self) -> None:
        _positive("Energy", "limit", self.limit)
        if self.measure not in ("mean", "rms"):
            raise ValueError(f'Energy: need measure "mean" or "rms", got {self.measure!r}')

    def project(self, value: Tensor) -> Tensor:
        """The nearest value within the budget: a common amount taken off ("mean"), or a scaling ("rms")."""
        if self.measure == "rms":
            rms = value.square().mean().sqrt()
            return value * (self.limit / rms).clamp(max=1.0) if bool(rms > 0) else value.clone()
        positive = value.clamp(min=0.0)
        if bool(positive.mean() <= self.limit):
            return positive
        return _onto_simplex(value, self.limit * value.numel())


@final
@dataclass(frozen=True)
class Simplex(Constraint):
    """value >= 0 with sum(value) = total: shares of an exposure, a dose or a scan time that are all spent.

    Raises:
        ValueError: the total is not a positive number.

    Reference: Duchi et al. 2008, doi:10.1145/1390156.1390191, figure 1.
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        _positive("Simplex", "total", self.total)

    def project(self, value: Tensor) -> Tensor:
        """A common amount off, and what falls below zero at zero."""
        return _onto_simplex(value, self.total)


@final
@dataclass(frozen=True)
class Total(Constraint):
    """value >= 0 with sum(value) <= limit: a dose, a time or a power that need not all be spent.

    Raises:
        ValueError: the limit is not a positive number.

    Reference: Duchi et al. 2008, doi:10.1145/1390156.1390191.
    """

    limit: float

    def __post_init__(self) -> None:
        _positive("Total", "limit", self.limit)

    def project(self, value: Tensor) -> Tensor:
        """Negative values at zero, and a common amount off where the sum is beyond the limit."""
        positive = value.clamp(min=0.0)
        return positive if bool(positive.sum() <= self.limit) else _onto_simplex(value, self.limit)


@final
@dataclass(frozen=True)
class Monotone(Constraint):
    """Values along the last axis that never fall ("increasing") or never rise ("decreasing").

    Raises:
        ValueError: neither direction.

    Reference: Barlow et al. 1972, Statistical Inference under Order Restrictions (pool adjacent violators).
    """

    direction: Literal["increasing", "decreasing"] = "increasing"

    def __post_init__(self) -> None:
        if self.direction not in ("increasing", "decreasing"):
            raise ValueError(f'Monotone: need "increasing" or "decreasing", got {self.direction!r}')

    def project(self, value: Tensor) -> Tensor:
        """Isotonic regression of each row.

        Raises:
            ValueError: one number alone.
        """
        if value.ndim == 0:
            raise ValueError("Monotone: need values along an axis, got one number")
        rows = value.detach().to("cpu", torch.float64).reshape(-1, value.shape[-1]).numpy()
        increasing = self.direction == "increasing"
        found = np.stack([isotonic_regression(row, increasing=increasing).x for row in rows])
        return torch.from_numpy(found).reshape(value.shape).to(value)


@final
@dataclass(frozen=True)
class MinimumFeature(Constraint):
    """Constant on blocks of `pixels` x `pixels` of the last two axes, counted from the first row and column.

    No feature of the map, bright or dark, is then narrower than that: what a printer or a light modulator can make.

    Raises:
        ValueError: `pixels` is not a whole number of at least 1.
    """

    pixels: int

    def __post_init__(self) -> None:
        if isinstance(self.pixels, bool) or not isinstance(self.pixels, int) or self.pixels < 1:
            raise ValueError(f"MinimumFeature: need a whole number of pixels of at least 1, got {self.pixels!r}")

    def project(self, value: Tensor) -> Tensor:
        """The mean of each block; blocks at the last row and column may be cut."""
        if value.ndim < 2:
            raise ValueError(f"MinimumFeature: need a map (..., row, column), got shape {tuple(value.shape)}")
        rows, columns = (self._membership(size, value) for size in value.shape[-2:])
        summed = rows.mT @ value @ columns
        mean = summed / (rows.sum(0)[:, None] * columns.sum(0))
        return rows @ mean @ columns.mT

    def _membership(self, size: int, like: Tensor) -> Tensor:
        block = torch.arange(size, device=like.device) // self.pixels
        return torch.nn.functional.one_hot(block).to(like)


def _positive(name: str, argument: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: need {argument} > 0, got {value}")


def _onto_simplex(value: Tensor, total: float) -> Tensor:
    """The nearest value >= 0 of this sum: (value - t) where positive, t the level at which the sum is right."""
    descending = value.flatten().sort(descending=True).values
    count = torch.arange(1, descending.numel() + 1, dtype=value.dtype, device=value.device)
    excess = (descending.cumsum(0) - total) / count
    n_kept = max(1, int((descending > excess).sum()))
    return (value - excess[n_kept - 1]).clamp(min=0.0)


def check_constraints(
    constraints: Mapping[str, Constraint | Sequence[Constraint]] | None,
) -> dict[str, tuple[Constraint, ...]]:
    """Each name with its constraints in the order they are applied.

    Raises:
        TypeError: not a mapping of names to constraints.
    """
    if constraints is None:
        return {}
    if not isinstance(constraints, Mapping):
        raise TypeError(f"constraints: need a mapping of names to constraints, got {type(constraints).__name__}")
    checked: dict[str, tuple[Constraint, ...]] = {}
    for name, given in constraints.items():
        several = tuple(given) if isinstance(given, Sequence) else (given,)
        for constraint in several:
            if not isinstance(constraint, Constraint):
                raise TypeError(
                    f"constraints[{name!r}]: need a constraint such as Box or Energy, got {type(constraint).__name__}"
                )
        checked[name] = several
    return checked


_MOST_SWEEPS, _CLOSE = 500, 1e-10


@torch.no_grad()
def project(name: str, given: Tensor, constraints: Sequence[Constraint]) -> Tensor:
    """The value nearest to `given` that meets every constraint.

    Several sets are met together by Dykstra's alternating projections, and the last sweep leaves the value inside
    every set to a relative 1e-9.

    Raises:
        ValueError: no value meets all of them.

    Reference: Boyle and Dykstra 1986, doi:10.1007/978-1-4613-9940-7_3.
    """
    if not constraints:
        return given.detach().clone()
    if len(constraints) == 1:
        return constraints[0].project(given)
    value = given.detach().clone()
    corrections = [torch.zeros_like(value) for _ in constraints]
    scale = max(1.0, float(value.abs().max()))
    for _ in range(_MOST_SWEEPS):
        change = 0.0  # of the corrections: the value itself may stand still for sweeps before it moves on
        for index, constraint in enumerate(constraints):
            moved = value + corrections[index]
            value = constraint.project(moved)
            change = max(change, float((moved - value - corrections[index]).abs().max()))
            corrections[index] = moved - value
        if change <= _CLOSE * scale and all(_distance(c, value) <= _CLOSE * scale for c in constraints):
            break
    else:
        # Slow, or no common value: plain alternation decides, and ends on a common value if there is one.
        for _ in range(_MOST_SWEEPS):
            for constraint in constraints:
                value = constraint.project(value)
        if any(_distance(constraint, value) > 1e-6 * scale for constraint in constraints):
            raise ValueError(f"constraints[{name!r}]: no value meets all of {list(constraints)}")
    return value


def _distance(constraint: Constraint, value: Tensor) -> float:
    return float((constraint.project(value) - value).abs().max()) if value.numel() else 0.0
