"""`estimate_information`: bits about the scene in a measurement, with bounds, error and warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bitlens import __version__
from bitlens.estimators._bounds import Found, estimate
from bitlens.estimators._inputs import check_samples, images, make_generator, make_groups
from bitlens.estimators.result import InformationEstimate
from bitlens.kernels import _backend
from bitlens.kernels.infonce_scores.op import IMPLEMENTED
from bitlens.noise import NoiseModel

METHODS = ("auto", "gaussian", "stationary_gaussian", "known_channel")
MINIMUM_GROUPS = 20
# Standard errors beyond which a result that no channel can give is said to be one.
_IMPOSSIBLE_SIGMAS = 4.0


def estimate_information(
    measured: Tensor | NDArray[Any],
    noise: NoiseModel,
    *,
    mean: Tensor | NDArray[Any] | None = None,
    method: str = "auto",
    groups: Sequence[object] | NDArray[Any] | Tensor | None = None,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> InformationEstimate:
    """I(scene; measured) = h(measured) - h(measured | scene) in bits per image, from images and their noise.

    Args:
        measured: images (n, ...), n >= 10, in the noise model's unit of measurement.
        noise: p(measured | mean).
        mean: noiseless images like `measured`, independent draws of the scene; adds the known-channel bounds.
        method: "auto"; "gaussian", "stationary_gaussian": that density alone; "known_channel": scores alone.
        groups: one label per image (its source), whole in splits, errors and leave-one-out marginals.
        confidence: of the interval, between 0 and 1.
        generator: splits and dither; None draws a seed, which the result records.

    Raises:
        TypeError, ValueError: an argument that cannot be used, named with what it needs and what came.

    Reference: Pinkard et al. 2024, arXiv 2405.20559; Poole et al. 2019, arXiv 1905.06922, section 2.5.
    """
    if method not in METHODS:
        raise ValueError(f"method: need one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if not isinstance(noise, NoiseModel):
        raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise, got {type(noise).__name__}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: need a value between 0 and 1, got {confidence!r}")
    if method == "known_channel" and mean is None:
        raise ValueError("mean: method 'known_channel' needs the noiseless images, got None")
    measured_images = images("measured", measured)
    mean_images = None if mean is None else images("mean", mean)
    check_samples(measured_images, mean_images, noise)
    generator, seed = make_generator(generator)
    with torch.no_grad(), _backend.reproducible():
        partition = make_groups(groups, measured_images, generator)
        found = estimate(measured_images, mean_images, noise, method, partition, generator)
        stderr_nats = partition.standard_error(found.influence)
    notes = list(found.warnings)
    if partition.count < MINIMUM_GROUPS:
        what = "groups" if partition.given else "images"
        notes.insert(0, f"{partition.count} {what} are few: the standard error needs at least {MINIMUM_GROUPS}")
    to_bits = 1.0 / math.log(2.0)
    bits = found.nats * to_bits
    stderr = stderr_nats * to_bits
    notes = [*_impossible(found, stderr / to_bits), *notes]
    half = float(stats.t.ppf(0.5 + 0.5 * confidence, partition.count - 1)) * stderr
    return InformationEstimate(
        bits=bits,
        bits_per_pixel=bits / measured_images[0].numel(),
        bound=found.bound,
        lower_bits=None if found.lower is None else found.lower * to_bits,
        upper_bits=None if found.upper is None else found.upper * to_bits,
        ceiling_bits=None if found.ceiling is None else found.ceiling * to_bits,
        stderr_bits=stderr,
        confidence_interval_bits=(bits - half, bits + half),
        method=found.method,
        n_samples=measured_images.shape[0],
        seed=seed,
        version=__version__,
        backend=_backend.select("infonce_scores", measured_images.device, IMPLEMENTED),
        converged=found.converged,
        warnings=tuple(notes),
    )


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
