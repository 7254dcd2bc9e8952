"""What an optimised design holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, final

from torch import Tensor

from bitlens.estimators import InformationEstimate
from bitlens.noise import NoiseModel

Encoder = Callable[[Tensor], Tensor]
_MAPPINGS = ("parameters", "initial_parameters")


@final
@dataclass(frozen=True)
class DesignStep:
    """One step: the objective on its scenes before it was taken; gradient norm in bits per unit.

    `learning_rate` is the largest among the parameters; `start` says which of several starts the step belongs to.
    """

    step: int
    objective_bits: float
    objective_bits_per_pixel: float
    gradient_norm: float
    learning_rate: float
    start: int = 0


@final
@dataclass(frozen=True)
class StartSummary:
    """One start: its number, its steps, the mean objective of its last tenth, and why it ended before its time."""

    start: int
    n_steps: int
    objective_bits: float
    converged: bool
    stopped: str


@final
@dataclass(frozen=True)
class DesignResult:
    """An optimised copy of encoder and noise, the way there, and what the start and the end carry.

    `before` and `after` are held-out estimates on the same scenes, with the same noise draws; `history` is what was
    climbed, by another estimator on other scenes. `gain_stderr_bits` is the standard error of after - before, from the
    gain of each scene (or group), so that what both ends share cancels. `parameters` are the new values by name,
    read-only, `initial_parameters` those before the first step. `history` and `converged` are of the start that was
    kept; `starts` has a line for each. `torch.Generator().manual_seed(seed)` repeats the result bit for bit on one
    backend.
    """

    encoder: Encoder
    noise: NoiseModel
    history: tuple[DesignStep, ...]
    before: InformationEstimate
    after: InformationEstimate
    warnings: tuple[str, ...]
    parameters: Mapping[str, Tensor]
    seed: int
    gain_stderr_bits: float
    initial_parameters: Mapping[str, Tensor]
    objective: str
    objective_reason: str
    converged: bool
    starts: tuple[StartSummary, ...]

    def __post_init__(self) -> None:
        for name in _MAPPINGS:
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[type[DesignResult], tuple[Any, ...]]:
        # Python neither copies nor pickles a read-only mapping.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self), tuple((values | {name: dict(values[name]) for name in _MAPPINGS}).values())

    @property
    def gain_bits_per_pixel(self) -> float:
        """after - before, in bits per pixel."""
        return self.after.bits_per_pixel - self.before.bits_per_pixel

    @property
    def gain_stderr_bits_per_pixel(self) -> float | None:
        """Standard error of the gain in bits per pixel; None where both ends carry 0 bits."""
        n_pixels = self.after.n_pixels or self.before.n_pixels
        return None if n_pixels is None else self.gain_stderr_bits / n_pixels

    def to_dict(self) -> dict[str, Any]:
        """Everything but encoder and noise as plain Python values; a parameter map is nested lists."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "gain_bits_per_pixel": self.gain_bits_per_pixel,
            "gain_stderr_bits": self.gain_stderr_bits,
            "history": [asdict(step) for step in self.history],
            "parameters": {name: value.tolist() for name, value in self.parameters.items()},
            "initial_parameters": {name: value.tolist() for name, value in self.initial_parameters.items()},
            "objective": self.objective,
            "objective_reason": self.objective_reason,
            "converged": self.converged,
            "starts": [asdict(start) for start in self.starts],
            "warnings": list(self.warnings),
            "seed": self.seed,
        }
