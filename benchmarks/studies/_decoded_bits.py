"""A score in bits: how much of a scene an estimate of it shows to hold, every component on its own scale.

The squared error of an image adds up the errors of its components, so it is that of the few strong ones. Bits add up
logarithms: to recover a Gaussian component of variance v with the error d takes log2(v / d) / 2 bits at least, weak or
strong, and the unit of a component does not alter the sum. `decoded_bits` is that sum for the estimates of a decoder on
scenes that it was not fitted to, d being the error that the best gain leaves.

For a Gaussian scene in Gaussian noise bits and the sum for the best estimate would agree by definition. What it tests
is the estimate of the bits, on scenes that are not Gaussian, and whether a decoder gets at them; whether a user wants
all components alike, it does not tell. `oracle` says what remains of the squared error's ranking if the decoder is as
good as it can be. Errors that hang together between components make the sum less than log det(C_x C_e^-1) / 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bitlens import plots, report
from bitlens._files import replace_file
from bitlens.densities import StationaryGaussianDensity
from bitlens.estimators._seeds import derived_seed
from bitlens.noise import NoiseModel
from bitlens.systems import ImagingSystem
from bitlens.validation import Decoder, FittedDecoder, ValidationResult
from bitlens.validation.compare import mean_of
from bitlens.validation.decoder import GroupLabels, checked_pairs, group_codes, split_rows
from bitlens.validation.linear import LinearMap

SCORE = "decoded_bits"
TEST_SHARE = 0.25
# A component whose variance is a smaller part of the largest one is none: the mean of images that have none.
_LEAST_VARIANCE = 1e-9


def components(target: Tensor) -> Tensor:
    """(value, component): orthonormal axes along which targets (n, channel, row, column) are uncorrelated.

    Those of a covariance that depends on the displacement only: that of the sample has more numbers than few regions
    can give, and its axes mix places and colours by chance.
    """
    fitted = StationaryGaussianDensity().fit(target.double() / target.double().std())
    assert fitted.cholesky is not None
    return torch.linalg.eigh(fitted.cholesky @ fitted.cholesky.mT)[1]


def decoded_bits(estimate: Tensor, target: Tensor, axes: Tensor) -> float:
    """Sum over components of -log2(1 - r^2) / 2, r the correlation of estimate and target over the images.

    Reference: Borst and Theunissen 1999, Information theory and neural coding, doi:10.1038/14731.
    """
    found, truth = (value.flatten(1).double() @ axes for value in (estimate, target))
    found, truth = found - found.mean(0), truth - truth.mean(0)
    power = truth.square().mean(0)
    both = (found.square().mean(0) * power).sqrt().clamp(min=1e-300)
    correlation = ((found * truth).mean(0) / both).clamp(0.0, 1.0 - 1e-12)
    return float(-0.5 * torch.log2(1 - correlation.square())[power > _LEAST_VARIANCE * power.max()].sum())


@final
@dataclass(frozen=True)
class StationaryDecoder(Decoder):
    """The conditional mean of the target under one stationary Gaussian of measurement and target, of one grid.

    It treats all places alike, as `WienerDecoder` does, and knows where the image ends.
    """

    def fit(
        self,
        measured: Tensor | NDArray[Any],
        target: Tensor | NDArray[Any],
        *,
        groups: GroupLabels | None = None,
        generator: torch.Generator | None = None,
    ) -> FittedDecoder:
        """Fitted to images (n, channel, row, column) of as many rows and columns; nothing is chosen or drawn."""
        inputs, outputs = (value.double() for value in checked_pairs(measured, target))
        covariance = joint_covariance(inputs, outputs)
        n = inputs[0].numel()
        weights = torch.linalg.solve(covariance[:n, :n], covariance[:n, n:])
        center, offset = inputs.mean(0).flatten(), outputs.mean(0).flatten()
        return FittedDecoder(LinearMap(center, weights, None, offset, outputs.shape[1:]).eval())


def joint_covariance(measured: Tensor, target: Tensor) -> Tensor:
    """Covariance of measurement and target, images of one grid: (value, value), the measurement's values first."""
    images = (measured.double(), target.double())
    units = [value.std((0, 2, 3), keepdim=True).clamp(min=1e-30) for value in images]
    fitted = StationaryGaussianDensity().fit(
        torch.cat([value / unit for value, unit in zip(images, units, strict=True)], 1)
    )
    assert fitted.cholesky is not None
    scale = torch.cat([unit.expand_as(value[:1]).flatten() for value, unit in zip(images, units, strict=True)])
    return fitted.cholesky @ fitted.cholesky.mT * scale * scale[:, None]


def with_decoded_bits(
    result: ValidationResult,
    systems: Mapping[str, ImagingSystem],
    target: Tensor,
    decoder: Decoder,
    groups: GroupLabels | None = None,
    n_seeds: int | None = None,
) -> ValidationResult:
    """The same bits and metrics with `SCORE` as the score, on the splits and noise of `validate`."""
    axes = components(target)
    labels = group_codes(groups, len(target))
    target = target.float()
    rows = []
    for name, system in systems.items():
        mean = mean_of(system, name)
        noise = cast(NoiseModel, system.noise)
        for row in [row for row in result.rows if row.design == name][:n_seeds]:
            drawn = torch.Generator().manual_seed(derived_seed(result.seed, f"noise {row.seed}"))
            training, test = split_rows(labels, TEST_SHARE, derived_seed(result.seed, f"test scenes {row.seed}"))
            with torch.no_grad():
                measured = noise.sample(mean, drawn)
            fitted = decoder.fit(
                measured[training],
                target[training],
                groups=labels[training],
                generator=torch.Generator().manual_seed(derived_seed(result.seed, f"decoder {row.seed}")),
            )
            rows.append(replace(row, scores={SCORE: decoded_bits(fitted(measured[test]), target[test], axes)}))
    return replace(result, rows=tuple(rows), score_names=(SCORE,), decoder=repr(decoder))


class Limits(NamedTuple):
    """Of the best linear estimate: bits of the measurement, bits of the target in them, and the error in dB."""

    measured_bits: float
    target_bits: float
    signal_to_error_db: float


def oracle(system: ImagingSystem, target: Tensor, *, read_electrons: float) -> Limits:
    """What a linear decoder that knows the covariances of these very scenes and targets reaches; no noise is drawn.

    log det(C_z N^-1) / 2, log det(C_x C_(x given z)^-1) / 2 and trace C_x / trace C_(x given z), N the mean variance of
    the noise. Of more different scenes than values in the measurement.
    """
    mean = mean_of(system, "").flatten(1).double()
    noise = (mean.mean(0) + read_electrons**2).sqrt()
    mean = (mean - mean.mean(0)) / noise
    wanted = target.flatten(1).double()
    wanted = wanted - wanted.mean(0)
    n = len(wanted)
    seen = mean.mT @ mean / n + torch.eye(mean.shape[1], dtype=mean.dtype)
    prior = wanted.mT @ wanted / n
    # The mean in view may be none of the target.
    values, vectors = torch.linalg.eigh(prior)
    kept = vectors[:, values > _LEAST_VARIANCE * values.max()]
    prior, cross = kept.mT @ prior @ kept, kept.mT @ wanted.mT @ mean / n
    left = prior - cross @ torch.linalg.solve(seen, cross.mT)
    halves = [0.5 * float(torch.linalg.slogdet(matrix)[1]) / math.log(2) for matrix in (seen, prior, left)]
    return Limits(halves[0], halves[1] - halves[2], 10 * math.log10(float(prior.trace() / left.trace())))


def write(
    name: str, result: ValidationResult, limits: Mapping[str, Limits], out: Path, extra: Mapping[str, Any] | None = None
) -> None:
    """Print the table and the limits; `name`.txt, .png and .json in `out`."""
    lines = [f"{name}", "", result.table(), ""]
    ranks: dict[str, float] = {}
    if limits:
        heads = ("design", "bits of the measurement", "bits of the target", "signal to error, dB")
        rows = tuple((each, *(f"{value:.4g}" for value in limits[each])) for each in result.designs)
        values = np.array([limits[each] for each in result.designs])
        found = stats.spearmanr(values)[0]
        ranks = {
            "target bits": float(found[0, 1]),
            "error": float(found[0, 2]),
            "target bits, error": float(found[1, 2]),
        }
        lines += [
            "the best linear decoder, its covariances known:",
            "",
            report.to_text(report.Table("", heads, rows)),
            f"Spearman of the measurement's bits with the target's {ranks['target bits']:.3f}, with the error "
            f"{ranks['error']:.3f}; of the target's bits with the error {ranks['target bits, error']:.3f}",
            "",
        ]
    text = "\n".join(lines)
    print(text)
    found = result.to_dict() | {
        "advantages": [asdict(result.advantage(metric)) for metric in result.metrics],
        "limits": {each: value._asdict() for each, value in limits.items()},
        "limits_spearman": ranks,
        "extra": dict(extra or {}),
    }
    replace_file(out / f"{name}.txt", text.encode())
    replace_file(out / f"{name}.png", report.to_png(plots.validation(result, title=name)))
    replace_file(out / f"{name}.json", json.dumps(found, indent=2).encode())
