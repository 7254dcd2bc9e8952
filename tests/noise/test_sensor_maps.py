"""Digitised sensors of read noise far below a code, maps beside both ends of the scale, and codes beyond float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr, xlogy
from scipy.stats import poisson
from torch import Tensor

from bitlens.noise import PoissonGaussianNoise, conditional_entropy, conditional_entropy_per_sample

Array = NDArray[np.float64]
QUIET_MEANS = (0.0, 1e-9, 3e-7, 1e-4, 0.02, 0.7, 5.0, 14.6, 100.0, 240.0, 1e4)


def masses(mean: float, gain: float, offset: float, read_std: float, bits: int, well: float = math.inf) -> Array:
    """p(code) by summing the rounded, clipped normal over every count."""
    k = np.arange(int(mean + 14 * math.sqrt(mean) + 60), dtype=np.float64)
    signal = gain * np.minimum(k, well) + offset
    edges = np.arange(2**bits - 1) + 0.5
    # Over [codes, counts]: the side whose two masses are small, so that far tails keep their digits.
    below = np.concatenate([np.full((1, k.size), -np.inf), (edges[:, None] - signal) / read_std])
    above = np.concatenate([(edges[:, None] - signal) / read_std, np.full((1, k.size), np.inf)])
    flipped = below + above > 0
    near, far = np.where(flipped, -below, above), np.where(flipped, -above, below)
    mass = np.exp(log_ndtr(near)) - np.exp(log_ndtr(far))
    total: Array = (mass * poisson.pmf(k, mean)).sum(axis=1)
    return total


def entropy(p: Array) -> float:
    return float(-xlogy(p, p).sum())


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("read_std", [0.013, 0.01, 1e-3, 1e-12])
@pytest.mark.parametrize(("gain", "offset", "bits"), [(1.0, 0.0, 4), (1.0, 0.0, 8), (0.37, 1.2, 7), (2.6, 3.15, 9)])
def test_codes_of_hardly_any_read_noise(gain: float, offset: float, bits: int, read_std: float) -> None:
    """Codes are then counts, rounded; at most 1e-4 nats from the sum over counts, with scalars and with maps."""
    mean = double(QUIET_MEANS)
    code = np.arange(2.0**bits)
    p = [masses(y, gain, offset, read_std, bits) for y in QUIET_MEANS]
    truth = double([entropy(q) for q in p])
    expected = double([float(q @ code) for q in p])
    variance = double([float(q @ (code - q @ code) ** 2) for q in p])
    scalar = PoissonGaussianNoise(gain, offset, read_std=read_std, adc_bits=bits)
    maps = PoissonGaussianNoise(
        torch.full((len(p),), gain, dtype=torch.float64), offset, read_std=read_std, adc_bits=bits
    )
    for noise in (scalar, maps):
        assert float((noise.entropy(mean) - truth).abs().max()) < 1e-4
        deviation = torch.sqrt(variance) + 0.1
        assert float(((noise.expected(mean) - expected).abs() / deviation).max()) < 1e-4
        assert float(((noise.variance(mean) - variance).abs() / deviation**2).max()) < 1e-4


@pytest.mark.parametrize("read_std", [0.2, 0.05, 0.02, 0.013, 0.01, 1e-5])
def test_slopes_without_light(read_std: float) -> None:
    """-sum over codes of (p of one electron - p of none) log p of none, in closed form; log p cut off at -700."""
    edge = 0.5 / read_std
    log_dark, log_one = float(log_ndtr(edge)), float(log_ndtr(-edge))  # of codes 0 and 1 without light
    # One electron more swaps the codes 0 and 1 but for what reaches code 2 or more.
    lost = float(np.exp(log_ndtr(-edge)))
    two = float(log_ndtr(-3 * edge))
    p_dark = np.array([np.exp(log_dark), np.exp(log_one) - np.exp(two), np.exp(two)])
    p_lit = np.array([lost, 1 - 2 * lost, lost])
    log_p = np.maximum([log_dark, log_one, two], -700.0)
    truth = float(-((p_lit - p_dark) * log_p).sum())
    for gain in (double(1.0), torch.ones(2, dtype=torch.float64)):
        noise = PoissonGaussianNoise(gain, 0.0, read_std=read_std, adc_bits=6)
        y = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        for name, slope in (("entropy", truth), ("expected", float((p_lit - p_dark) @ np.arange(3.0)))):
            (found,) = torch.autograd.grad(getattr(noise, name)(y).sum(), y)
            assert found.tolist() == pytest.approx([slope, slope], rel=1e-3), (name, gain.shape)


def test_codes_beyond_single_precision() -> None:
    noise = PoissonGaussianNoise(1e4, 5e7, read_std=3e4, adc_bits=27)
    words = r"mean: need float64 for codes of more than 24 bits, got float32.*27"
    with pytest.raises(ValueError, match=words):
        noise.log_prob(double([50_000_001.0]), torch.tensor([3.0]))
    with pytest.raises(ValueError, match=words):
        noise.sample(torch.tensor([3.0]))
    assert bool(torch.isfinite(noise.log_prob(double([50_000_001.0]), double([3.0]))).all())


def sweep(gain: float, offset: float, read_std: float, bits: int, well: float, mean: Tensor) -> float:
    """Largest error of the entropy of a map with one sensor in every pixel, nats."""
    maps = PoissonGaussianNoise(
        torch.full((mean.numel(),), gain), offset, read_std=read_std, adc_bits=bits, full_well_electrons=well
    )
    truth = double([entropy(masses(float(y), gain, offset, read_std, bits, well)) for y in mean])
    return float((maps.entropy(mean) - truth).abs().max())


def test_maps_at_the_shoulder_of_the_last_code() -> None:
    """From far below the last code, in closed form, to where it is all that is left; 2e-4 nats throughout."""
    assert sweep(1.0, 20.0, 1.5, 9, 1e6, torch.linspace(250.0, 640.0, 40, dtype=torch.float64)) < 2e-4


def test_maps_at_the_shoulder_of_the_full_well() -> None:
    assert sweep(1.0, 20.0, 1.5, 10, 400.0, torch.linspace(150.0, 520.0, 38, dtype=torch.float64)) < 2e-4


def test_estimate_of_a_saturated_image_is_none() -> None:
    """Always the last code: its mean lies far beyond, where the entropy is 0."""
    noise = PoissonGaussianNoise(1.0, 5.0, read_std=1.2, adc_bits=6)
    assert abs(conditional_entropy(noise, torch.full((2, 3), 63.0)).nats_per_pixel) < 0.02


@pytest.mark.parametrize("read_std", [0.06, 0.25])
def test_estimate_where_single_electrons_stand_out(read_std: float) -> None:
    """sum over z of p(z | y) g(z) is h(y) within 0.03 nats for a well of 25 electrons without an ADC."""
    noise = PoissonGaussianNoise(1.0, 5.0, read_std=read_std, full_well_electrons=25.0)
    z = torch.arange(5 - 8 * read_std, 30 + 8 * read_std, read_std / 20, dtype=torch.float64)
    g = conditional_entropy_per_sample(noise, z[:, None])
    for y in (0.7, 3.0, 9.0, 18.0, 26.0):
        log_p = noise.log_prob(z, double(y))
        p = torch.exp(log_p) / torch.exp(log_p).sum()
        assert float((p * g).sum()) == pytest.approx(float(-(p * log_p).sum()), abs=0.03)
