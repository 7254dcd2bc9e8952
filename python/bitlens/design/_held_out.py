"""The judge of a design: an estimate on scenes that no step sees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bitlens.design.objectives import FLOOR_SHARE
from bitlens.design.result import Encoder
from bitlens.estimators import _known_channel
from bitlens.estimators._judge import Judged, judge
from bitlens.estimators._seeds import derived_seed
from bitlens.estimators.result import StandardErrorParts
from bitlens.kernels import _backend
from bitlens.noise import NoiseModel

_ENCODE_BATCH = 256
_TO_BITS = 1.0 / math.log(2.0)

Labels = Sequence[object] | NDArray[Any] | Tensor | None


@torch.no_grad()
def judge_means(mean: Tensor, noise: NoiseModel, groups: Labels, seed: int, method: str = "auto") -> Judged:
    """What measurements of `mean` carry; one seed gives every design the same noise draws and splits."""
    splits = torch.Generator().manual_seed(derived_seed(seed, "splits"))
    return judge(_measured(mean, noise, seed), noise, mean=mean, method=method, groups=groups, generator=splits)


@final
@dataclass(frozen=True)
class HeldOut:
    """Scenes that no step sees, and the seed that both ends of a design share."""

    scenes: Tensor
    groups: Labels
    seed: int
    method: str = "auto"

    @torch.no_grad()
    def means(self, encoder: Encoder) -> Tensor:
        """The scenes, encoded: (n, ...) float64."""
        return torch.cat([encoder(part) for part in self.scenes.split(_ENCODE_BATCH)]).to(torch.float64)

    def judge(self, mean: Tensor, noise: NoiseModel) -> Judged:
        """What the measurements of these means carry; a floor where nothing else is known of it (see `floor`).

        The scenes themselves as a density are an upper bound that grows without end where a measurement is closer to
        its own scene than to any other: at the ceiling of the lower bound it says nothing, and is not used.
        """
        found = judge_means(mean, noise, self.groups, self.seed, self.method)
        estimate = found.estimate
        loose = estimate.bound == "upper" and estimate.method.endswith("upper: leave-one-out scenes")
        return self.floor(found, mean, noise) if loose else found

    @torch.no_grad()
    def floor(
        self,
        judged: Judged,
        mean: Tensor,
        noise: NoiseModel,
        why: str = "the upper bound that they give on their own is too loose to use",
    ) -> Judged:
        """`judged` with the known-channel lower bound, which never passes log2 of the number of scenes, as its bits."""
        with _backend.reproducible():
            measured = _measured(mean, noise, self.seed)
            channel = _known_channel.known_channel(measured, mean, noise, judged.groups)
            if channel is None:
                return judged
            lower = _known_channel.lower_bound(channel, judged.groups)
            influence = lower.terms.influence(channel) * _TO_BITS
            stderr = judged.groups.standard_error(influence)
        estimate = judged.estimate
        assert estimate.confidence_interval_bits is not None
        bits, ceiling = float(lower.terms.rows.mean()) * _TO_BITS, lower.ceiling * _TO_BITS
        half = float(stats.t.ppf(0.975, judged.groups.count - 1)) * stderr
        note = (
            f"the bits are a floor: {judged.groups.count} independent scenes show at most {ceiling:.2f} bits, and "
            f"{why}; judge with more scenes, or a density's name"
        )
        floor = dataclasses.replace(
            estimate,
            bits=bits,
            bits_per_pixel=bits / mean[0].numel(),
            bound="lower",
            lower_bits=bits,
            ceiling_bits=ceiling,
            stderr_bits=stderr,
            confidence_interval_bits=(bits - half, bits + half),
            method="lower: known channel",
            warnings=(note, *(w for w in estimate.warnings if "the lower bound of " not in w)),
            stderr_parts_bits=StandardErrorParts(stderr, None, None),
        )
        return Judged(floor, influence, judged.groups)


@final
@dataclass(frozen=True)
class End:
    """One of two designs that are compared: what was judged, of which means (n, ...) under which noise."""

    judged: Judged
    mean: Tensor
    noise: NoiseModel


def of_one_kind(held_out: HeldOut, before: End, after: End) -> tuple[Judged, Judged, list[str]]:
    """Both judged as floors where one is, and what to say where their scenes cannot tell them apart.

    A floor is no more to be compared with a middle of two bounds than with an upper one.
    """
    ends = [before.judged, after.judged]
    if not any(end.estimate.bound == "lower" for end in ends):
        return before.judged, after.judged, []
    for place, end in enumerate((before, after)):
        if end.judged.estimate.bound != "lower":
            why = "the other design has no more than a floor to compare with"
            ends[place] = held_out.floor(end.judged, end.mean, end.noise, why)
    first, second = (end.estimate for end in ends)
    ceiling = second.ceiling_bits
    notes = []
    if first.bound == "lower" and ceiling is not None and min(first.bits, second.bits) >= FLOOR_SHARE * ceiling:
        notes.append(
            f"before and after are floors near their ceiling of {ceiling:.2f} bits: the scenes that judge are too few "
            "to show what was gained; pass more judge_scenes or the name of a density as judge_method"
        )
    return ends[0], ends[1], notes


def few_scenes_notes(mean: Tensor, method: str) -> list[str]:
    """That fewer scenes judge than a measurement has values, where densities are fitted to them."""
    if method == "known_channel" or len(mean) >= mean[0].numel():
        return []
    return [
        f"before and after are judged on {len(mean)} scenes of {mean[0].numel()} measured values: densities "
        "fitted to so few are poor, and may order designs wrongly; pass more judge_scenes"
    ]


def _measured(mean: Tensor, noise: NoiseModel, seed: int) -> Tensor:
    draws = torch.Generator(device=mean.device).manual_seed(derived_seed(seed, "noise"))
    return noise.sample(mean, draws)
