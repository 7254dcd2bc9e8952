"""What callers pass in, checked and made into float64 tensors, groups and folds."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitlens.densities._samples import samples
from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise
from bitlens.noise._abilities import ChecksMean, ChecksMeasured
from bitlens.noise.base import check_map

MINIMUM_SAMPLES = 10
N_FOLDS = 5
# Pixels that a message lists.
_MOST_LISTED = 5


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


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """`value` as an int; NumPy's integers are whole numbers too, truth values are not.

    Raises:
        ValueError: not a whole number, or below `least` or above `most`.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or int(value) < least or (most is not None and int(value) > most):  # type: ignore[call-overload]
        need = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}: need a whole number {need}, got {value!r}")
    return int(value)  # type: ignore[call-overload]


def open_share(name: str, value: object) -> float:
    """`value` as a float between 0 and 1, both excluded.

    Raises:
        TypeError: not a number.
        ValueError: not between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: need a number between 0 and 1, got {value!r} ({type(value).__name__})")
    if not 0.0 < float(value) < 1.0:
        raise ValueError(f"{name}: need a value between 0 and 1, got {value!r}")
    return float(value)


def check_noise_maps(noise: NoiseModel, shape: torch.Size) -> None:
    """ValueError unless the per-pixel maps of a noise model fit images of this shape; a user's own is let pass."""
    if isinstance(noise, GaussianNoise | PoissonGaussianNoise):
        for name, parameter in noise.state_dict().items():
            check_map(name, parameter, shape)


def check_varying(constant: Tensor, n_samples: int, noise: NoiseModel) -> None:
    """ValueError where pixels of the bool image `constant` have one value in all images and the noise excludes that."""
    if noise.discrete or not bool(constant.any()):
        return
    places = [tuple(place) for place in torch.nonzero(constant).tolist()]
    listed = ", ".join(map(str, places[:_MOST_LISTED])) + (", ..." if len(places) > _MOST_LISTED else "")
    what = "pixel" if len(places) == 1 else f"{len(places)} pixels,"
    raise ValueError(
        f"measured: need pixels that vary (a covariance of full rank), as {type(noise).__name__} makes them, "
        f"got {what} {listed} with one value in all {n_samples} images: leave dead pixels out, or name the ADC whose "
        "codes hide the noise (adc_bits)"
    )


def check_samples(measured: Tensor, mean: Tensor | None, noise: NoiseModel) -> None:
    """Shapes that agree, enough samples, and the domain of the noise model: maps that fit, pixels that vary.

    Raises:
        ValueError: any of these fails.
    """
    if measured.shape[0] < MINIMUM_SAMPLES:
        raise ValueError(f"measured: need at least {MINIMUM_SAMPLES} images, got {measured.shape[0]}")
    if isinstance(noise, ChecksMeasured):
        noise.check_measured(measured)
    check_noise_maps(noise, measured.shape[1:])
    check_varying((measured == measured[0]).all(dim=0), measured.shape[0], noise)
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
        TypeError: labels that have no order among each other.
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
        try:
            unique, inverse = np.unique(array, return_inverse=True)
        except TypeError as error:
            kinds = " and ".join(sorted({type(label).__name__ for label in array.tolist()}))
            raise TypeError(f"groups: need labels of one type that can be sorted, got {kinds}") from error
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
