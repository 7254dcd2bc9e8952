"""What a parameter may be: sets that a step is projected onto."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn


class Constraint(ABC):
    """A set of allowed values of one parameter."""

    @abstractmethod
    def project(self, value: Tensor) -> Tensor:
        """The allowed value nearest to `value`, as a new tensor of its shape."""


@final
@dataclass(frozen=True)
class Box(Constraint):
    """lower <= value <= upper, elementwise; None leaves a side open.

    Raises:
        ValueError: both sides open, a bound that is NaN, or lower above upper.
    """

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
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"Energy: need limit > 0, got {self.limit}")
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
        descending = value.flatten().sort(descending=True).values
        count = torch.arange(1, descending.numel() + 1, dtype=value.dtype, device=value.device)
        excess = (descending.cumsum(0) - self.limit * value.numel()) / count
        n_kept = int((descending > excess).sum())
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
                raise TypeError(f"constraints[{name!r}]: need Box or Energy, got {type(constraint).__name__}")
        checked[name] = several
    return checked


_MOST_SWEEPS, _CLOSE = 500, 1e-10


@torch.no_grad()
def project_(name: str, parameter: nn.Parameter, constraints: Sequence[Constraint]) -> None:
    """Replace the value of `parameter` by the nearest one that meets every constraint.

    Several sets are met together by Dykstra's alternating projections, and the last sweep leaves the value inside
    every set to a relative 1e-9.

    Raises:
        ValueError: no value meets all of them.

    Reference: Boyle and Dykstra 1986, doi:10.1007/978-1-4613-9940-7_3.
    """
    if len(constraints) == 1:
        parameter.copy_(constraints[0].project(parameter))
        return
    value = parameter.detach().clone()
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
    parameter.copy_(value)


def _distance(constraint: Constraint, value: Tensor) -> float:
    return float((constraint.project(value) - value).abs().max()) if value.numel() else 0.0
