"""Bits of a camera in shot noise by a density of stabilised values: what a Gaussian of the counts bounds too high.

The noise of a bright pixel is larger than that of a dark one. A density of few Gaussians has one variance for a pixel,
bright or dark, and so takes the quiet noise of dark pixels for something that they tell. The root of the counts has
nearly the same noise everywhere. The map is one to one: the bits are the same, and the density of the counts follows
from that of the roots by its derivative, so that the bound stays a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from bitlens.densities import Density, GaussianMixtureDensity
from bitlens.estimators._seeds import derived_seed
from bitlens.noise import NoiseModel, PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.validation import ValidationResult
from bitlens.validation.compare import mean_of

METHOD = "gaussian_mixture of stabilised values"
_FOLDS = 4


def stabilized(measured: Tensor, read_electrons: float) -> tuple[Tensor, Tensor]:
    """2 sqrt(z + 3/8 + read^2), below 0 its tangent, and the log of its derivative; float64, shaped as `measured`.

    Reference: Anscombe 1948, doi:10.1093/biomet/35.3-4.246; Murtagh, Starck and Bijaoui 1995, for read noise.
    """
    z, dark = measured.double(), 0.375 + read_electrons**2
    lit = z.clamp(min=0) + dark
    return 2 * lit.sqrt() + z.clamp(max=0) / math.sqrt(dark), -0.5 * lit.log()


def image_bits(
    measured: Tensor, mean: Tensor, noise: PoissonGaussianNoise, groups: Tensor, density: Density | None = None
) -> Tensor:
    """-log2 q(z) - h(z|y) of each image (n,), whose mean bounds the information; q is fitted to other groups.

    `measured`, `mean` (n, ...) in electrons; `groups` (n,) whole numbers.
    """
    density = GaussianMixtureDensity() if density is None else density
    values, slope = stabilized(measured, float(noise.read_std))
    fold = torch.unique(groups, return_inverse=True)[1] % _FOLDS
    nats = -slope.flatten(1).sum(1) - noise.entropy(mean.double()).flatten(1).sum(1)
    for each in range(_FOLDS):
        nats[fold == each] -= density.fit(values[fold != each]).log_prob(values[fold == each])
    return nats / math.log(2)


def group_error(values: Tensor, groups: Tensor) -> float:
    """Standard error of the mean of `values`, of which those of one group may vary together."""
    index = torch.unique(groups, return_inverse=True)[1]
    count = int(index.max()) + 1
    sums = torch.zeros(count, dtype=values.dtype).index_add(0, index, values - values.mean())
    return float(sums.square().sum().sqrt()) / len(values) * math.sqrt(count / (count - 1))


def with_stabilized_bits(
    result: ValidationResult, systems: Mapping[str, ImagingSystem], groups: Tensor
) -> ValidationResult:
    """The same scores beside these bits, on the noise that the decoders saw."""
    rows = []
    for name, system in systems.items():
        mean, noise = mean_of(system, name), cast(NoiseModel, system.noise)
        assert isinstance(noise, PoissonGaussianNoise)
        for row in result.rows:
            if row.design != name:
                continue
            with torch.no_grad():
                drawn = torch.Generator().manual_seed(derived_seed(result.seed, f"noise {row.seed}"))
                found = image_bits(noise.sample(mean, drawn), mean, noise, groups)
            bits = float(found.mean())
            rows.append(
                replace(
                    row,
                    bits=bits,
                    stderr_bits=group_error(found, groups),
                    lower_bits=None,
                    upper_bits=bits,
                    bound="upper",
                    method=METHOD,
                )
            )
    return replace(result, rows=tuple(rows))
