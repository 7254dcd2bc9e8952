"""What every decoder offers: fit to measurements, then measurement in, estimate out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitlens.densities._samples import samples
from bitlens.estimators._seeds import derived_seed

VALIDATION_SHARE = 0.2
_ROWS_AT_ONCE = 256

GroupLabels = Sequence[object] | NDArray[Any] | Tensor


class FitStep(NamedTuple):
    """One look at a fit: steps done, mean training loss since the last look, loss on the validation rows."""

    step: int
    training_loss: float
    validation_loss: float


@final
@dataclass(frozen=True, eq=False)
class FittedDecoder:
    """A fitted decoder: `fitted(measured)` gives the estimates (n, channel, row, column) or log-probabilities.

    `history` holds the looks of a trained network, empty for closed forms; `choice` says what was chosen on the
    validation rows, such as a ridge.
    """

    module: nn.Module
    history: tuple[FitStep, ...] = ()
    choice: str = ""

    def __call__(self, measured: Tensor | NDArray[Any]) -> Tensor:
        """Estimates (n, ...) from measurements (n, ...), without gradients."""
        tensor = samples("measured", measured).to(torch.float32)
        with torch.no_grad():
            return torch.cat([self.module(part) for part in tensor.split(_ROWS_AT_ONCE)])


class Decoder(ABC):
    """How measurements are turned into estimates: a standard recipe with its numbers."""

    @abstractmethod
    def fit(
        self,
        measured: Tensor | NDArray[Any],
        target: Tensor | NDArray[Any],
        *,
        groups: GroupLabels | None = None,
        generator: torch.Generator | None = None,
    ) -> FittedDecoder:
        """Fitted to pairs; a share of them, whole groups, is the validation split that chooses and stops."""


class TrainableDecoder(Decoder):
    """A decoder that is one differentiable network, which can also be trained together with an encoder."""

    @abstractmethod
    def build(
        self,
        measured: Tensor,
        target: Tensor,
        *,
        groups: GroupLabels | None = None,
        generator: torch.Generator | None = None,
    ) -> nn.Module:
        """The untrained network for measurements and targets of these shapes, float32; its scales are fitted."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """What training lowers: a mean over rows."""


class Rows(NamedTuple):
    """Row numbers that fit and row numbers that validate."""

    training: Tensor
    validation: Tensor


def split_rows(labels: Tensor, share: float, seed: int) -> Rows:
    """About `share` of the rows, whole groups drawn at random, as the second part; rows alone if there is one group."""
    n_rows = len(labels)
    unique, codes = torch.unique(labels, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    if len(unique) < 2:
        codes = torch.arange(n_rows)
    sizes = torch.bincount(codes)
    order = torch.randperm(len(sizes), generator=generator)
    filled = sizes[order].cumsum(0)
    # The group that comes nearest to the share ends it; one group at least stays on either side.
    n_held = int((filled - share * n_rows).abs().argmin()) + 1
    held = torch.zeros(len(sizes), dtype=torch.bool)
    held[order[: min(n_held, len(sizes) - 1)]] = True
    is_held = held[codes]
    return Rows(torch.nonzero(~is_held)[:, 0], torch.nonzero(is_held)[:, 0])


def fold_rows(labels: Tensor, n_folds: int, seed: int) -> list[Tensor]:
    """Row numbers of at most `n_folds` folds of about equal size, whole groups in each; rows alone if one group."""
    unique, codes = torch.unique(labels, return_inverse=True)
    if len(unique) < 2:
        codes = torch.arange(len(labels))
    sizes = torch.bincount(codes)
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(sizes[order], descending=True, stable=True)]
    filled = [0] * min(n_folds, len(sizes))
    fold_of = torch.zeros(len(sizes), dtype=torch.int64)
    for group in order.tolist():
        fold = filled.index(min(filled))
        fold_of[group] = fold
        filled[fold] += int(sizes[group])
    return [torch.nonzero(fold_of[codes] == fold)[:, 0] for fold in range(len(filled))]


def group_codes(groups: GroupLabels | None, n_rows: int) -> Tensor:
    """One integer per row; each row is its own group without labels.

    Raises:
        ValueError: not one label per row.
    """
    if groups is None:
        return torch.arange(n_rows)
    array = groups.detach().cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if array.shape != (n_rows,):
        raise ValueError(f"groups: need one label per scene, shape ({n_rows},), got {array.shape}")
    return torch.from_numpy(np.unique(array, return_inverse=True)[1].astype(np.int64))


def checked_pairs(measured: object, target: object) -> tuple[Tensor, Tensor]:
    """Measurements (n, ...) float32 and targets: images (n, channel, row, column) float32 or classes (n,) int64.

    Raises:
        TypeError, ValueError: arrays that are not such, or of different numbers of rows.
    """
    inputs = samples("measured", measured).to(torch.float32)
    outputs = target.detach() if isinstance(target, Tensor) else torch.as_tensor(np.asarray(target))
    if outputs.ndim == 1:
        if outputs.is_floating_point():
            raise TypeError(f"target: need classes as whole numbers, got {outputs.dtype}")
        outputs = outputs.to(torch.int64)
        if len(outputs) and int(outputs.min()) < 0:
            raise ValueError(f"target: need classes numbered from 0, got {int(outputs.min())}")
    elif outputs.ndim == 4:
        outputs = samples("target", outputs).to(torch.float32)
    else:
        raise ValueError(f"target: need shape (n, channel, row, column) or (n,), got {tuple(outputs.shape)}")
    if len(inputs) != len(outputs):
        raise ValueError(f"target: need one per measurement, {len(inputs)}, got {len(outputs)}")
    if len(inputs) < 10:
        raise ValueError(f"measured: need at least 10 to fit, got {len(inputs)}")
    return inputs, outputs


def need_images(target: Tensor, decoder: Decoder) -> None:
    """ValueError unless the target is images."""
    if target.ndim != 4:
        raise ValueError(f"target: need images for {type(decoder).__name__}, got classes {tuple(target.shape)}")


def need_classes(target: Tensor, decoder: Decoder) -> int:
    """The number of classes; ValueError if the target is images."""
    if target.ndim != 1:
        raise ValueError(f"target: need classes for {type(decoder).__name__}, got shape {tuple(target.shape)}")
    return int(target.max()) + 1


def validation_split(groups: GroupLabels | None, n_rows: int, seed: int) -> Rows:
    """The split into fitting and validation rows that all decoders use."""
    return split_rows(group_codes(groups, n_rows), VALIDATION_SHARE, derived_seed(seed, "validation rows"))
