"""The work behind `estimate_information`, with what each sample contributes to the error of the estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bitlens import __version__
from bitlens.estimators._bounds import Found, estimate
from bitlens.estimators._candidates import METHODS as DENSITY_METHODS
from bitlens.estimators._guards import certificate_warnings, noise_warnings, sample_size_warnings, value_warnings
from bitlens.estimators._guards_scenes import scene_set_warnings
from bitlens.estimators._inputs import Groups, check_samples, images, make_groups, open_share, whole_number
from bitlens.estimators._seeds import take_seed
from bitlens.estimators.result import InformationEstimate, StandardErrorParts
from bitlens.kernels import _backend
from bitlens.kernels.infonce_scores.op import IMPLEMENTED
from bitlens.noise import NoiseModel
from bitlens.noise._abilities import HasLimits

METHODS = ("auto", *DENSITY_METHODS, "known_channel")
MINIMUM_GROUPS = 20
# Standard errors beyond which a result that no channel can give is said to be one.
_IMPOSSIBLE_SIGMAS = 4.0
_MOST_AT_LIMIT = 0.01  # share of values at an end of the scale that a Gaussian bears
_TO_BITS = 1.0 / math.log(2.0)


class Judged(NamedTuple):
    """An estimate, the influence of each sample on it (n,), bits, and the groups that vary together."""

    estimate: InformationEstimate
    influence_bits: Tensor
    groups: Groups


def judge(
    measured: Tensor | NDArray[Any],
    noise: NoiseModel,
    *,
    mean: Tensor | NDArray[Any] | None,
    method: str = "auto",
    groups: Sequence[object] | NDArray[Any] | Tensor | None = None,
    repeats: Tensor | NDArray[Any] | None = None,
    confidence: float = 0.95,
    n_extrapolate: int = 0,
    generator: torch.Generator | None = None,
) -> Judged:
    """What `estimate_information` gives for these arguments, and what it raises, with each sample's influence."""
    if method not in METHODS:
        raise ValueError(f"method: need one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if not isinstance(noise, NoiseModel):
        raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise, got {type(noise).__name__}")
    confidence = open_share("confidence", confidence)
    n_extrapolate = whole_number("n_extrapolate", n_extrapolate, 0, 6)
    if method == "known_channel" and n_extrapolate:
        raise ValueError(f"n_extrapolate: method 'known_channel' fits nothing, need 0, got {n_extrapolate}")
    if method == "known_channel" and mean is None:
        raise ValueError("mean: method 'known_channel' needs the noiseless images, got None")
    measured_images = images("measured", measured)
    mean_images = None if mean is None else images("mean", mean)
    check_samples(measured_images, mean_images, noise)
    backend = _backend.select("infonce_scores", measured_images.device, IMPLEMENTED)
    seed = take_seed(generator)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad(), _backend.reproducible():
        partition = make_groups(groups, measured_images, draws)
        found = estimate(measured_images, mean_images, noise, method, partition, draws, n_extrapolate)
        stderr = partition.standard_error(found.influence) * _TO_BITS
        if found.training is not None:
            stderr = math.hypot(stderr, found.training.beyond_rows * _TO_BITS)
        parts = _parts(found, partition)
    notes = list(found.warnings)
    if partition.count < MINIMUM_GROUPS:
        what = "groups" if partition.given else "images"
        notes.insert(0, f"{partition.count} {what} are few: the standard error needs at least {MINIMUM_GROUPS}")
    notes = [*_impossible(found, stderr / _TO_BITS), *_at_limit(measured_images, noise, found), *notes]
    bits = found.nats * _TO_BITS
    if repeats is not None:
        notes = [*noise_warnings(noise, images("repeats", repeats), measured_images.shape[1:]), *notes]
    notes = [*value_warnings(measured_images, noise), *notes]
    notes += scene_set_warnings(measured_images, mean_images, noise, partition, bits=bits, stderr_bits=stderr)
    if found.excess is not None and not any(" are few" in note for note in notes):
        n_training = measured_images.shape[0] - int(torch.bincount(partition.folds).max())
        n_pixels = measured_images[0].numel()
        notes += sample_size_warnings(n_training, n_pixels, found.method, found.excess * _TO_BITS, bits)
    if found.conditional is not None:
        notes += certificate_warnings(
            measured_images,
            found.conditional,
            noise.discrete,
            partition,
            bits=bits,
            stderr_bits=stderr,
            lower_bits=None if found.lower is None else found.lower * _TO_BITS,
            lower_name=found.lower_density,
        )
    half = float(stats.t.ppf(0.5 + 0.5 * confidence, partition.count - 1)) * stderr
    result = InformationEstimate(
        bits=bits,
        bits_per_pixel=bits / measured_images[0].numel(),
        bound=found.bound,
        lower_bits=None if found.lower is None else found.lower * _TO_BITS,
        upper_bits=None if found.upper is None else found.upper * _TO_BITS,
        ceiling_bits=None if found.ceiling is None else found.ceiling * _TO_BITS,
        stderr_bits=stderr,
        confidence_interval_bits=(bits - half, bits + half),
        method=found.method,
        n_samples=measured_images.shape[0],
        seed=seed,
        version=__version__,
        backend=backend,
        converged=found.converged,
        warnings=tuple(notes),
        stderr_parts_bits=parts,
    )
    return Judged(result, found.influence * _TO_BITS, partition)


def _parts(found: Found, partition: Groups) -> StandardErrorParts:
    entropy = found.influence if found.entropy is None else found.entropy
    conditional = found.conditional
    return StandardErrorParts(
        test_sampling_bits=partition.standard_error(entropy) * _TO_BITS,
        conditional_entropy_bits=None if conditional is None else partition.standard_error(conditional) * _TO_BITS,
        training_bits=None if found.training is None else found.training.stderr * _TO_BITS,
    )


def stderr_of_difference_bits(before: Judged, after: Judged) -> float:
    """Standard error of after - before, bits, for one set of scenes with one partition into groups."""
    with _backend.reproducible():
        return after.groups.standard_error(after.influence_bits - before.influence_bits)


def _at_limit(measured: Tensor, noise: NoiseModel, found: Found) -> list[str]:
    """That many values stand at an end of the scale, where the densities at hand are loose bounds."""
    if not isinstance(noise, HasLimits) or found.bound == "two-sided":
        return []
    share = float(noise.at_limit(measured).double().mean())
    if share <= _MOST_AT_LIMIT:
        return []
    return [
        f"{100 * share:.2g} % of the values stand at an end of the sensor's scale: the density does not know of the "
        "heap there, so that its upper bound may rise where the sensor clips. Do not compare designs by it; more "
        "scenes with `mean` bound the bits from both sides"
    ]


def _impossible(found: Found, stderr: float) -> list[str]:
    """What no channel can give, beyond `_IMPOSSIBLE_SIGMAS` standard errors, in words."""
    margin = _IMPOSSIBLE_SIGMAS * stderr + 1e-9
    notes = []
    if found.nats < -margin or (found.upper is not None and found.upper < -margin):
        notes.append(
            "the information comes out negative, which no channel allows: the noise model has more noise than "
            "the images show; check its parameters and units. The bits are not to be trusted"
        )
    if found.lower is not None and found.upper is not None and found.lower > found.upper + margin:
        notes.append(
            "the lower bound lies above the upper bound, which no channel allows: noise model, mean and measured "
            "do not belong together. The bits are not to be trusted"
        )
    return notes
