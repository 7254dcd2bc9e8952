"""What an estimate of information holds."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, final


@final
@dataclass(frozen=True)
class StandardErrorParts:
    """Standard errors of the parts of an estimate, bits per image; None for a part that it does not have.

    `test_sampling_bits`: the entropy of the measurements, by which images were there to score. With
    `conditional_entropy_bits`, that of the noise, it shares the images: their squares do not add up to that of the
    difference. `training_bits`: from refits to fewer images, by which images the density was fitted to.
    """

    test_sampling_bits: float | None
    conditional_entropy_bits: float | None
    training_bits: float | None


@final
@dataclass(frozen=True)
class InformationEstimate:
    """I(scene; measured) in bits per image (the whole array of one sample), with its bounds and its error.

    `bound` says what `bits` is: "two-sided" the middle of both bounds, "upper" or "lower" that bound, "estimate" a
    held-out upper bound less its expected finite-sample excess. `lower_bits` and `upper_bits` are certified in
    expectation over the data (`upper_bits` is never corrected); `ceiling_bits` is the most that `lower_bits` can say:
    log2 K, or more with a density. `stderr_bits` and `confidence_interval_bits` are statistical, around `bits`: not the
    bracket of the bounds; `stderr_parts_bits` says where they come from. What does not exist for a method is None.
    `torch.Generator().manual_seed(seed)` repeats the result bit for bit on one backend.
    """

    bits: float
    bits_per_pixel: float
    bound: Literal["two-sided", "upper", "lower", "estimate"]
    lower_bits: float | None
    upper_bits: float | None
    ceiling_bits: float | None
    stderr_bits: float | None
    confidence_interval_bits: tuple[float, float] | None
    method: str
    n_samples: int
    seed: int
    version: str
    backend: str
    converged: bool
    warnings: tuple[str, ...]
    stderr_parts_bits: StandardErrorParts | None = None

    @property
    def n_pixels(self) -> int | None:
        """Pixels of one image, all channels; None where `bits` is 0 or not finite, which does not tell."""
        known = math.isfinite(self.bits) and math.isfinite(self.bits_per_pixel) and self.bits_per_pixel != 0.0
        return round(self.bits / self.bits_per_pixel) if known else None

    @property
    def confidence_interval_bits_per_pixel(self) -> tuple[float, float] | None:
        """The interval in bits per pixel; None without an interval or a number of pixels."""
        if self.confidence_interval_bits is None or self.n_pixels is None:
            return None
        low, high = self.confidence_interval_bits
        return low / self.n_pixels, high / self.n_pixels

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values; lists for tuples, None for a number that is not finite."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    def to_json(self, *, indent: int | None = None) -> str:
        """The fields as strict JSON: None is null, and NaN or infinity never appear."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
