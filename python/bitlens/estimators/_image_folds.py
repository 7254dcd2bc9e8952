"""Which parts of images fit and which are reported, never both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitlens.estimators._image_tiles import Tiles
from bitlens.estimators._inputs import N_FOLDS, make_groups

# Times that windows to fit to cover an image's pixels, and the numbers of them to keep to.
_COVERAGE, _LEAST_WINDOWS, _MOST_WINDOWS = 4, 30, 6000


class Folds(NamedTuple):
    """The fold of each tile, (image, row tile, column tile), and the label of each image's group."""

    of_tile: Tensor
    n_folds: int
    group: Tensor
    n_groups: int


def make_folds(
    seen: Tensor,
    tiles: Tiles,
    labels: Sequence[object] | NDArray[Any] | Tensor | None,
    draws: torch.Generator,
) -> Folds:
    """Whole groups of images, or for a single group parts of them, the same in all its images.

    Raises:
        ValueError: not one label per image, or a single image of a single patch.
    """
    n_images = len(seen)
    if not _is_single(labels, n_images):
        groups = make_groups(labels, seen, draws)
        of_tile = groups.folds.cpu()[:, None, None].expand(n_images, *tiles.shape)
        return Folds(of_tile, groups.n_folds, groups.labels.cpu(), groups.count)
    counts = tiles.fold_parts()
    n_parts = counts[0] * counts[1]
    if n_parts < 2:
        raise ValueError(f"measured: need at least 2 patches to hold one out, got images {tuple(seen.shape[1:])}")
    n_folds = min(N_FOLDS, n_parts)
    fold_of_part = torch.randperm(n_parts, generator=draws) % n_folds
    of_tile = fold_of_part[tiles.parts(counts)].expand(n_images, *tiles.shape)
    return Folds(of_tile, n_folds, torch.zeros(n_images, dtype=torch.int64), 1)


def _is_single(labels: Sequence[object] | NDArray[Any] | Tensor | None, n_images: int) -> bool:
    if labels is None:
        return n_images == 1
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    return array.shape == (n_images,) and len(np.unique(array)) == 1


class Places(NamedTuple):
    """Image, row and column where windows start, (k,) each."""

    image: Tensor
    row: Tensor
    column: Tensor


def training_places(folds: Folds, tiles: Tiles, fold: int, patch: int, draws: torch.Generator) -> Places:
    """Random windows that see no pixel that this fold's windows see; within an image half a patch further away.

    Raises:
        ValueError: fewer than `_LEAST_WINDOWS`.
    """
    n_images = len(folds.of_tile)
    whole = folds.n_groups > 1
    shape = (tiles.rows.size - tiles.rows.window + 1, tiles.columns.size - tiles.columns.window + 1)
    clear = torch.ones(shape, dtype=torch.bool)
    if not whole:
        clear = tiles.clear(tiles.near(folds.of_tile[0] == fold, max(1, patch // 2)))
    usable = torch.nonzero((folds.of_tile[:, 0, 0] != fold) if whole else torch.ones(n_images))[:, 0]
    starts = torch.nonzero(clear)
    available = len(usable) * len(starts)
    if available < _LEAST_WINDOWS:
        raise ValueError(
            f"measured: need more or larger images, or a smaller patch: {available} windows of {tiles.rows.window} x "
            f"{tiles.columns.window} pixels lie apart from a fold's patches, at least {_LEAST_WINDOWS} are needed"
        )
    pixels = available * tiles.rows.size * tiles.columns.size / (shape[0] * shape[1])
    wanted = round(_COVERAGE * pixels / (tiles.rows.window * tiles.columns.window))
    count = min(available, max(_LEAST_WINDOWS, min(wanted, _MOST_WINDOWS)))
    chosen = torch.randperm(available, generator=draws)[:count]
    start = starts[chosen % len(starts)]
    return Places(usable[chosen // len(starts)], start[:, 0], start[:, 1])
