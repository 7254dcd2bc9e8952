"""Valid inputs at the ends of their ranges: a number wherever the truth is one, and about the right number."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
sys.path.insert(0, str(Path(__file__).parent))
import poisson_gaussian as oracle
import poisson_gaussian_calls as calls
from contract import running

BACKENDS = ("cpu", "numba", "cuda_on_cpu")
N_POINTS = 600
# Chosen: measured, mean, gain, offset, read_std.
CORNERS = [
    # A dark pixel far from its offset, on either side, a photon within and beyond the read noise.
    (-992.83319, 0.0, 2.074168, 0.0, 8.647419),
    (-18.804335, 0.0, 0.037239004, -18.702351, 0.011468557),
    (882.15686, 0.0, 4.5523906, 0.0, 0.45901173),
    (410.80801, 0.0, 0.041414216, 410.76837, 0.0049077459),
    (-4150.2305, 0.0, 1571.3351, 0.0, 411.92175),
    (1e6, 0.0, 1.0, 0.0, 1.0),
    # Next to dark.
    (-210721.44, 3.4454378e-29, 3.0029776, -16.603041, 140.23016),
    (3.0, 1e-38, 1.0, 0.0, 0.5),
    # Far above what the mean allows.
    (969.01459, 90.402611, 0.013359016, -61.928806, 0.026331348),
    (47940.426, 26.186308, 4.7456408, 103.20101, 13.080581),
    (364070.5, 0.013703043, 88.661422, 578.63269, 911.74164),
    (0.39264351, 0.0631648, 2.3689263e-05, -0.70241451, 0.001125248),
    # Bright and quiet: the counts between which the value lies are known to less than one.
    (9.1057056e13, 9.9999999e14, 0.09105666, 0.0018820519, 2.8992297e-05),
    (6.9122087e15, 1e15, 6.9117764, -10.364174, 3.7337775e-05),
    (3e12, 3e12, 1.0, 0.0, 0.01),
    # One electron between two counts, little read noise.
    (5154.6333, 61.111984, 37.256405, 837.77337, 3.3034332),
    (3.5, 3.0, 1.0, 0.0, 0.02),
]


@functools.cache
def points_and_truth(dtype: torch.dtype) -> tuple[oracle.Points, oracle.Points]:
    """Mean 1e-30 to 1e15 and 0, gain 1e-6 to 1e6, read noise 1e-8 to 1e8 electrons, up to 1e7 sigma out."""
    random = np.random.default_rng(3)

    def log_uniform(low: float, high: float) -> np.ndarray:
        return 10 ** random.uniform(low, high, N_POINTS)

    mean = np.where(random.random(N_POINTS) < 0.15, 0.0, log_uniform(-30, 15))
    mean[random.random(N_POINTS) < 0.04] = torch.finfo(dtype).smallest_normal / 8
    gain, electrons = log_uniform(-6, 6), log_uniform(-8, 8)
    offset = np.where(random.random(N_POINTS) < 0.3, 0.0, random.choice([-1, 1], N_POINTS) * log_uniform(-3, 9))
    sigmas = random.choice([-1, 1], N_POINTS) * log_uniform(-2, 7 if dtype == torch.float64 else 5)
    measured = gain * mean + offset + sigmas * gain * np.sqrt(mean + electrons**2)
    points = np.concatenate([np.array(CORNERS).T, np.stack([measured, mean, gain, offset, gain * electrons])], axis=1)
    points = oracle.rounded(points, calls.NUMPY[dtype], "tensors")
    # The oracle adds up every count: sums of more than some thousand are left out.
    largest = np.maximum(np.maximum(points[1], np.abs(points[0] - points[3]) / points[2]), 1)
    width = 1 / np.sqrt(1 / largest + (points[2] / points[4]) ** 2)
    points = points[:, width < 200]
    return points, oracle.truths(points)


@pytest.mark.parametrize("operands", ["tensors", "scalars"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_where_the_truth_is_one(backend: str, dtype: torch.dtype, operands: str) -> None:
    points, truth = points_and_truth(dtype)
    assert points.shape[1] > 400
    with running(backend):
        found = calls.outputs(points, dtype, operands, gradients=True)
    error = oracle.relative_error(found, truth[..., None]).max(axis=2)
    tolerances = (1e-9, 1e-5) if dtype == torch.float64 else (4 * torch.finfo(dtype).eps, 0.01)
    for quantity, errors in zip(("value", "measured", "mean", "gain", "offset", "read_std"), error, strict=True):
        index = int(errors.argmax())
        where = ", ".join(repr(float(part)) for part in points[:, index])
        allowed = tolerances[0] if quantity == "value" else tolerances[1]
        assert errors[index] <= allowed, f"{quantity}: {found[:, index, 0]}, not {truth[:, index]} at {where}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_sums_are_gaussian(backend: str, dtype: torch.dtype) -> None:
    """With 1e4 to 1e8 electrons of read noise a photon is nothing: the sum is the normal density of total variance."""
    random = np.random.default_rng(4)
    mean = 10 ** random.uniform(0, 15, 300)
    gain = 10 ** random.uniform(-6, 6, 300)
    read_std = gain * 10 ** random.uniform(4, 8, 300)
    measured = gain * mean + 2 * random.standard_normal(300) * np.sqrt(gain**2 * mean + read_std**2)
    points = oracle.rounded(np.stack([measured, mean, gain, np.zeros(300), read_std]), calls.NUMPY[dtype], "tensors")
    z, y, g, _, s = points
    variance = g**2 * y + s**2
    normal = -0.5 * ((z - g * y) ** 2 / variance + np.log(2 * math.pi * variance))
    skewness = g**3 * y / variance**1.5
    with running(backend):
        found = calls.outputs(points, dtype, "tensors", gradients=True)[..., 0]
    assert np.isfinite(found).all()
    # Hermite's third polynomial at 8 standard deviations at most, a sixth of the skewness.
    assert (np.abs(found[0] - normal) <= 100 * skewness + 1e-5 * np.maximum(1, np.abs(normal))).all()
