"""What an optimised design holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from bitlens.estimators import InformationEstimate
from bitlens.noise import NoiseModel

Encoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DesignStep:
    """One step: the objective on its scenes before it was taken; gradient norm in bits per unit.

    `learning_rate` is the largest among the parameters.
    """

    step: int
    objective_bits: float
    objective_bits_per_pixel: float
    gradient_norm: float
    learning_rate: float


@dataclass(frozen=True)
class DesignResult:
    """An optimised copy of encoder and noise, the way there, and what the start and the end carry.

    `before` and `after` are held-out estimates on the same scenes, with the same noise draws; `history` is what was
    climbed, by another estimator on other scenes. `seed` repeats the result bit for bit on one backend.
    """

    encoder: Encoder
    noise: NoiseModel
    history: tuple[DesignStep, ...]
    before: InformationEstimate
    after: InformationEstimate
    warnings: tuple[str, ...]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    seed: int = 0

    @property
    def gain_bits_per_pixel(self) -> float:
        """after - before, in bits per pixel."""
        return self.after.bits_per_pixel - self.before.bits_per_pixel

    def to_dict(self) -> dict[str, Any]:
        """Everything but encoder and noise as plain Python values; a parameter map is nested lists."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "gain_bits_per_pixel": self.gain_bits_per_pixel,
            "history": [asdict(step) for step in self.history],
            "parameters": {name: value.tolist() for name, value in self.parameters.items()},
            "warnings": list(self.warnings),
            "seed": self.seed,
        }
