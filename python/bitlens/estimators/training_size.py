"""The upper bound against the number of images that its density is fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from bitlens.estimators import _density
from bitlens.estimators._candidates import METHODS as DENSITY_METHODS
from bitlens.estimators._candidates import candidates
from bitlens.estimators._inputs import check_samples, images, make_groups
from bitlens.estimators._seeds import take_seed
from bitlens.kernels import _backend
from bitlens.noise import NoiseModel, conditional_entropy_per_sample

_TO_BITS = 1.0 / math.log(2.0)


@dataclass(frozen=True)
class TrainingSizes:
    """Upper bounds in bits per image by number of training images, largest first, and the line's end at infinity.

    `stderr_bits` is that of each bound; one set of images reports them all, so differences are known better.
    """

    n_training: tuple[int, ...]
    upper_bits: tuple[float, ...]
    stderr_bits: tuple[float, ...]
    limit_bits: float
    limit_stderr_bits: float
    n_pixels: int
    method: str


def bits_by_training_size(
    measured: Tensor | NDArray[Any],
    noise: NoiseModel,
    *,
    method: str = "auto",
    n_sizes: int = 4,
    groups: Sequence[object] | NDArray[Any] | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> TrainingSizes:
    """Upper bounds from a density fitted to all, a half, a quarter, ... of the training images: has it enough?

    The bound falls like one over the number of images; `limit_bits` is the straight line's value at infinity.

    Args:
        measured, noise, groups, generator: as in `estimate_information`.
        method: a density, or "auto".
        n_sizes: how many sizes, from 2.

    Raises:
        TypeError, ValueError: as `estimate_information`, or too few images for the smallest size.
    """
    if type(n_sizes) is not int or not 2 <= n_sizes <= 7:
        raise ValueError(f"n_sizes: need a whole number from 2 to 7, got {n_sizes!r}")
    if method not in ("auto", *DENSITY_METHODS):
        raise ValueError(f"method: need one of 'auto', {', '.join(map(repr, DENSITY_METHODS))}, got {method!r}")
    if not isinstance(noise, NoiseModel):
        raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise, got {type(noise).__name__}")
    values = images("measured", measured)
    check_samples(values, None, noise)
    draws = torch.Generator().manual_seed(take_seed(generator))
    with torch.no_grad(), _backend.reproducible():
        partition = make_groups(groups, values, draws)
        smallest = values.shape[0] - int(torch.bincount(partition.folds).max())
        densities = candidates(method, values, noise, smallest)
        if not densities:
            raise ValueError(f"measured: need more images to fit a density, got shape {tuple(values.shape)}")
        dithered = values
        if noise.discrete:
            dithered = values + torch.rand(values.shape, generator=draws, dtype=values.dtype).to(values.device)
        densities = _density.promising(values, dithered, densities, partition)
        conditional = conditional_entropy_per_sample(noise, values)
        table = values.new_empty(n_sizes, values.shape[0])
        costs = torch.zeros_like(table)
        counts = torch.zeros(n_sizes, dtype=torch.float64)
        names = set()
        for fold in range(partition.n_folds):
            training, reported = partition.folds != fold, partition.folds == fold
            name, start, _ = _density.select(values, dithered, densities, partition, fold)
            seen = values if start.takes_counts else dithered
            parts, sizes = _density.fits_of_parts(start, seen, training, partition, n_sizes - 1, "n_sizes")
            fits = [start.fit(seen[training]), *parts]
            for power, (fitted, size) in enumerate(zip(fits, [int(training.sum()), *sizes], strict=True)):
                counts[power] += size / partition.n_folds
                table[power, reported] = fitted.log_prob(seen[reported])
                if math.isfinite(fitted.held_out_bias_nats):
                    costs[power, reported] = fitted.held_out_bias_nats
            names.add(name)
        bits = (-table - conditional) * _TO_BITS
        line = torch.stack([torch.ones_like(counts), 1.0 / counts], 1)
        # A cost that the density knows is no straight line where images are few.
        limit = torch.linalg.pinv(line)[0].to(bits) @ (bits - costs * _TO_BITS)
        return TrainingSizes(
            n_training=tuple(round(float(count)) for count in counts),
            upper_bits=tuple(float(row.mean()) for row in bits),
            stderr_bits=tuple(partition.standard_error(row) for row in bits),
            limit_bits=float(limit.mean()),
            limit_stderr_bits=partition.standard_error(limit),
            n_pixels=values[0].numel(),
            method=" or ".join(sorted(names)),
        )
