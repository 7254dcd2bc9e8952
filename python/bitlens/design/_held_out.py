"""The judge of a design: an estimate on scenes that no step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import Tensor

from bitlens.design.result import Encoder
from bitlens.estimators._judge import Judged, judge
from bitlens.estimators._seeds import derived_seed
from bitlens.noise import NoiseModel

_ENCODE_BATCH = 256

Labels = Sequence[object] | NDArray[Any] | Tensor | None


@torch.no_grad()
def judge_means(mean: Tensor, noise: NoiseModel, groups: Labels, seed: int, method: str = "auto") -> Judged:
    """What measurements of `mean` carry; one seed gives every design the same noise draws and splits."""
    draws = torch.Generator(device=mean.device).manual_seed(derived_seed(seed, "noise"))
    measured = noise.sample(mean, draws)
    splits = torch.Generator().manual_seed(derived_seed(seed, "splits"))
    return judge(measured, noise, mean=mean, method=method, groups=groups, generator=splits)


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

    def judge(self, encoder: Encoder, noise: NoiseModel) -> Judged:
        """What the measurements of these scenes carry."""
        return judge_means(self.means(encoder), noise, self.groups, self.seed, self.method)
