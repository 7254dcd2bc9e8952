"""Entropy of every noise model and its derivative in the mean, from no light to a million photo-electrons."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise

Array = NDArray[np.float64]
MEANS = np.array(
    [0, 1e-5, 1e-3, 0.02, 0.1, 0.4, 1, 2.3, 5, 11, 28, 60, 95, 99.9, 100.1, 107, 140, 400, 2e3, 1.5e4, 1.2e5, 1e6]
)
# Read noise in electrons: between and beyond the tables.
SIGMAS = (0.05, 0.069, 0.071, 0.15, 0.33, 0.5, 1.0, 1.7, 4.0, 9.9, 10.1, 40.0)


def exact(mean: float, sigma: float) -> tuple[float, float]:
    """h and dh/dy by the sum or the trapezoidal rule, the density from its definition.

    dp(z|y)/dy = p(z - 1|y) - p(z|y), and probabilities keep summing to one, so dh/dy = -sum dp/dy log p.
    """
    low = max(0, math.floor(mean - 11 * math.sqrt(mean) - 5))
    k = np.arange(low, math.ceil(mean + 11 * math.sqrt(mean) + 25) + 1.0)
    pmf = np.exp((k * math.log(mean) if mean > 0 else np.where(k == 0, 0.0, -np.inf)) - mean - gammaln(k + 1))
    pmf /= pmf.sum()  # lgamma has 9 digits of a probability at 1e6
    per_electron = 1 if sigma == 0 else max(1, math.ceil(6 / sigma))
    comb = np.zeros((k.size + 1) * per_electron)
    comb[: k.size * per_electron : per_electron] = pmf
    density = comb
    if sigma > 0:
        reach = math.ceil(9 * sigma * per_electron)
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (per_electron * sigma)) ** 2)
        density = np.convolve(comb, kernel) / (sigma * math.sqrt(2 * math.pi))
    # One photon more for certain: everything one electron up.
    shifted = np.concatenate([np.zeros(per_electron), density[:-per_electron]])
    log_p = np.log(np.maximum(density, 1e-300))
    return -float((density * log_p).sum()) / per_electron, -float(((shifted - density) * log_p).sum()) / per_electron


def check(noise: NoiseModel, sigma: float, means: Array) -> None:
    y = torch.from_numpy(means).requires_grad_()
    value = noise.entropy(y)
    (slope,) = torch.autograd.grad(value.sum(), y)
    truth = np.array([exact(float(mean), sigma) for mean in means])
    lit = means > 0  # in the dark the slope of counts is infinite
    error = np.abs(slope.numpy() - truth[:, 1])[lit]
    assert np.abs(value.detach().numpy() - truth[:, 0]).max() <= 1e-4
    # The slope goes from -log y without read noise to 1 / (2 y) in bright light.
    assert (error * np.maximum(means[lit], 1))[means[lit] >= 1e-3].max() <= 1e-3
    assert (error / np.maximum(np.abs(truth[lit, 1]), 1)).max() <= 2e-3


@pytest.mark.parametrize("sigma", SIGMAS)
def test_real_sensor(sigma: float) -> None:
    """Its read noise one number, and a map."""
    means = MEANS if sigma >= 0.3 else MEANS[MEANS < 1e5]
    check(PoissonGaussianNoise(read_std=sigma), sigma, means)
    check(PoissonGaussianNoise(read_std=torch.full((means.size,), sigma, dtype=torch.float64)), sigma, means)


def test_poisson() -> None:
    check(PoissonNoise(), 0.0, MEANS)


@pytest.mark.parametrize(("gain", "offset"), [(0.25, 100.0), (7.5, -3.0)])
def test_in_adu_the_entropy_is_that_in_electrons_and_log_gain(gain: float, offset: float) -> None:
    truth = np.array([exact(float(mean), 1.3)[0] for mean in MEANS]) + math.log(gain)
    noise = PoissonGaussianNoise(gain, offset, read_std=1.3 * gain)
    assert np.abs(noise.entropy(torch.from_numpy(MEANS)).numpy() - truth).max() <= 1e-4


def test_gaussian_noise_has_one_entropy() -> None:
    y = torch.from_numpy(MEANS).requires_grad_()
    value = GaussianNoise(1.7).entropy(y)
    truth = torch.full_like(value, 0.5 * math.log(2 * math.pi * math.e * 1.7**2))
    torch.testing.assert_close(value.detach(), truth.detach(), rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad((value + 0 * y).sum(), y)
    assert bool((slope == 0).all())
