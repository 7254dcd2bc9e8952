"""`estimate_information`: bits about the scene in a measurement, with bounds, error and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from bitlens.estimators._judge import judge
from bitlens.estimators.result import InformationEstimate
from bitlens.noise import NoiseModel


def estimate_information(
    measured: Tensor | NDArray[Any],
    noise: NoiseModel,
    *,
    mean: Tensor | NDArray[Any] | None = None,
    method: str = "auto",
    groups: Sequence[object] | NDArray[Any] | Tensor | None = None,
    repeats: Tensor | NDArray[Any] | None = None,
    confidence: float = 0.95,
    n_extrapolate: int = 0,
    generator: torch.Generator | None = None,
) -> InformationEstimate:
    """I(scene; measured) = h(measured) - h(measured | scene) in bits per image, from images and their noise.

    Args:
        measured: images (n, ...), n >= 10, in the noise model's unit of measurement.
        mean: noiseless images like `measured`, independent draws of the scene; adds the known-channel bounds.
        method: "auto", the best on validation rows; one density alone: "gaussian", "stationary_gaussian",
            "gaussian_mixture", "gaussian_copula", "independent_pixels", "scale_mixture", "shift_mixture",
            "scene_mixture", which "auto" tries, and "factor_mixture", "flow", "autoregressive" (a network, a minute);
            "known_channel": scores alone.
        groups: one label per image (its source), whole in splits, errors and leave-one-out marginals.
        repeats: exposures of one still scene (n_repeats, ...), or of several (n_scenes, n_repeats, ...), to check
            `noise` by.
        confidence: of the interval, between 0 and 1.
        n_extrapolate: fit to a half, a quarter, ... of the training images too, so many times, and report the limit of
            infinitely many; "estimate", whatever the density.
        generator: gives the seed of splits and dither and moves on by one draw; None draws a seed.
            `torch.Generator().manual_seed(result.seed)` repeats any result bit for bit on one backend.

    Raises:
        TypeError, ValueError: an argument that cannot be used, named with what it needs and what came.

    Reference: Pinkard et al. 2024, arXiv 2405.20559; Poole et al. 2019, arXiv 1905.06922, section 2.5.
    """
    return judge(
        measured,
        noise,
        mean=mean,
        method=method,
        groups=groups,
        repeats=repeats,
        confidence=confidence,
        n_extrapolate=n_extrapolate,
        generator=generator,
    ).estimate
