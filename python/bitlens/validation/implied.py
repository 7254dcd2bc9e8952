"""What the bits of each design allow a decoder at best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bitlens.densities import Density
from bitlens.validation.bounds import SourceEntropy, accuracy_bound, reconstruction_bound, source_entropy
from bitlens.validation.decoder import GroupLabels
from bitlens.validation.result import ValidationResult, ValidationRow
from bitlens.validation.tasks import Classification, Reconstruction, Task

BitsFrom = Literal["upper bound", "corrected estimate", "lower bound alone"]


@final
@dataclass(frozen=True)
class ImpliedBound:
    """Least mean squared error per value, or largest accuracy, that the bits of a design allow.

    `limit` is what no decoder passes: from `most_bits`, the upper end of the interval of the information, and the lower
    end of that of the target's entropy. `estimate` is the same from `bits` as they are, and may be passed by chance.
    `bits_from` says what `most_bits` is an interval's end of; a lower bound alone leaves everything open, so that
    `limit` is 0 (or accuracy 1) and `most_bits` None.
    """

    limit: float
    estimate: float
    bits: float
    most_bits: float | None
    bits_from: BitsFrom


@final
@dataclass(frozen=True)
class ImpliedBounds:
    """`designs`: name -> bound, for `score` ("mse" or "accuracy"); `source`, the entropy of a target of images."""

    designs: Mapping[str, ImpliedBound]
    score: Literal["mse", "accuracy"]
    source: SourceEntropy | None
    confidence: float


def implied_bounds(
    result: ValidationResult,
    task: Task,
    scenes: Tensor | NDArray[Any],
    *,
    groups: GroupLabels | None = None,
    densities: Sequence[Density] | None = None,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> ImpliedBounds:
    """Per design the least mean squared error, or the largest accuracy, that its bits allow.

    The information is at most the upper bound where `validate` has one that it used, else the estimate corrected for
    its finite sample: an uncorrected bound of few scenes is so loose that it allows anything. Ends are one-sided.

    Args:
        scenes: (n, channel, row, column) those of the designs; the target unless the task has its own.
        groups, densities, generator: of `source_entropy`, which leaves values out that never change.

    Raises:
        TypeError, ValueError: an argument that cannot be used, named with what it needs.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: need a value between 0 and 1, got {confidence}")
    if not isinstance(task, Reconstruction | Classification):
        raise TypeError(f"task: need a Reconstruction or a Classification, got {type(task).__name__}")
    sigmas = float(stats.norm.ppf(confidence))
    rows = {design: [row for row in result.rows if row.design == design] for design in result.designs}
    if isinstance(task, Classification):
        return ImpliedBounds(
            {
                design: _bound(several, sigmas, lambda bits, _: accuracy_bound(bits, task.labels), 1.0)
                for design, several in rows.items()
            },
            "accuracy",
            None,
            confidence,
        )
    target = task.targets(torch.as_tensor(scenes))
    source = source_entropy(target, densities=densities, groups=groups, generator=generator, drop_constant=True)

    def least(bits: float, sigmas: float) -> float:
        nats = source.nats - sigmas * source.stderr_nats
        return reconstruction_bound(bits, entropy_nats=nats, n_values=source.n_values, n_constant=source.n_constant)

    found = {design: _bound(several, sigmas, least, 0.0) for design, several in rows.items()}
    return ImpliedBounds(found, "mse", source, confidence)


def _bound(
    rows: Sequence[ValidationRow], sigmas: float, bound_at: Callable[[float, float], float], open_end: float
) -> ImpliedBound:
    bits = float(np.mean([row.bits for row in rows]))
    estimate = bound_at(bits, 0.0)
    kinds = [_bits_from(row) for row in rows]
    if "lower bound alone" in kinds:
        return ImpliedBound(open_end, estimate, bits, None, "lower bound alone")
    most = []
    for row, kind in zip(rows, kinds, strict=True):
        centre = row.bits if kind == "corrected estimate" or row.upper_bits is None else row.upper_bits
        most.append(centre + sigmas * (row.stderr_bits or 0.0))
    # Seeds share the scenes: their mean is hardly surer than one of them.
    most_bits = max(float(np.mean(most)), bits)
    source: BitsFrom = "corrected estimate" if "corrected estimate" in kinds else "upper bound"
    return ImpliedBound(bound_at(most_bits, sigmas), estimate, bits, most_bits, source)


def _bits_from(row: ValidationRow) -> BitsFrom:
    if row.bound == "lower":
        return "lower bound alone"
    return "corrected estimate" if row.bound == "estimate" else "upper bound"
