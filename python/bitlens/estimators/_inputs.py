"""What callers pass in, checked and made into float64 tensors, groups and folds."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitlens.densities._samples import samples
from bitlens.noise import NoiseModel
from bitlens.noise._abilities import ChecksMean, ChecksMeasured

MINIMUM_SAMPLES = 10
N_FOLDS = 5


@dataclass(frozen=True)
class Groups:
    """One integer label 0..count-1 per sample, and the fold, 0..n_folds-1, its whole group belongs to."""

    labels: Tensor
    count: int
    folds: Tensor
    n_folds: int
    given: bool

    def standard_error(self, rows: Tensor) -> float:
        """Standard error of the mean of `rows` (n,), whole groups varying together."""
        totals = rows.new_zeros(self.count).index_add_(0, self.labels, rows - rows.mean())
        return math.sqrt(float(totals.square().sum()) * self.count / (self.count - 1)) / rows.numel()


def images(name: str, value: object) -> Tensor:
    """`value`, an array or tensor (n, ...) of real numbers, as a detached float64 tensor.

    Raises:
        TypeError: not an array of real numbers.
        ValueError: no sample axis, empty, or values that are not finite.
    """
    return samples(name, value).to(torch.float64).contiguous()


def check_samples(measured: Tensor, mean: Tensor | None, noise: NoiseModel) -> None:
    """Shapes that agree, enough samples, and the domain of the noise model.

    Raises:
        ValueError: any of these fails.
    """
    if measured.shape[0] < MINIMUM_SAMPLES:
        raise ValueError(f"measured: need at least {MINIMUM_SAMPLES} images, got {measured.shape[0]}")
    if isinstance(noise, ChecksMeasured):
        noise.check_measured(measured)
    if mean is None:
        return
    if mean.shape != measured.shape:
        raise ValueError(f"mean: need the shape of measured, {tuple(measured.shape)}, got {tuple(mean.shape)}")
    if isinstance(noise, ChecksMean):
        noise.check_mean(mean)


def make_groups(
    labels: Sequence[object] | NDArray[Any] | Tensor | None, measured: Tensor, generator: torch.Generator
) -> Groups:
    """Integer labels on the device of `measured`; folds of whole groups with about equal numbers of samples.

    Raises:
        ValueError: not one label per sample, or fewer than two groups.
    """
    n_samples = measured.shape[0]
    if labels is None:
        codes = torch.arange(n_samples)
        count = n_samples
    else:
        array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        if array.shape != (n_samples,):
            raise ValueError(f"groups: need one label per sample, shape ({n_samples},), got {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError("groups: need finite labels, got NaN or infinity")
        unique, inverse = np.unique(array, return_inverse=True)
        codes, count = torch.from_numpy(inverse.astype(np.int64)), len(unique)
        if count < 2:
            raise ValueError(f"groups: need at least 2 groups to hold one out, got {count}")
    n_folds = min(N_FOLDS, count)
    order = torch.randperm(count, generator=generator, device=generator.device).cpu()
    sizes = torch.bincount(codes, minlength=count)
    order = order[torch.argsort(sizes[order], descending=True, stable=True)]
    heap = [(0, fold) for fold in range(n_folds)]
    fold_of_group = torch.empty(count, dtype=torch.int64)
    for group in order.tolist():
        filled, fold = heapq.heappop(heap)
        fold_of_group[group] = fold
        heapq.heappush(heap, (filled + int(sizes[group]), fold))
    folds = fold_of_group[codes].to(measured.device)
    return Groups(codes.to(measured.device), count, folds, n_folds, labels is not None)


def independent_scenes(labels: Tensor) -> int:
    """For how many independent scenes those outside a group count, at least, whichever the group: others / largest.

    A mean over samples is one over K groups drawn without repetition, and a member of each, while no group has more
    than one K-th of the samples; K equal groups of other scenes count as K.
    """
    sizes = torch.sort(torch.unique(labels, return_counts=True)[1], descending=True).values
    if len(sizes) < 2:
        return 0
    total, first, second = int(sizes.sum()), int(sizes[0]), int(sizes[1])
    return min((total - first) // second, (total - second) // first)
