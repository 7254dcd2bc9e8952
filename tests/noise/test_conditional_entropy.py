"""The entropy from noisy data alone against exact entropies, on a fine grid of means across the stitch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from bitlens import PoissonGaussianNoise, PoissonNoise, conditional_entropy
from bitlens.noise import NoiseModel, conditional_entropy_per_sample

Array = NDArray[np.float64]
# Where the solved part of g meets its asymptotic form, means lie close; dark pixels and 1e4 electrons at the ends.
MEANS = np.unique(np.concatenate([[0.0], np.geomspace(1e-4, 1e4, 320), np.linspace(25, 80, 150)]))
SENSORS = {
    "counts": (0.0, 1.0, 0.0),
    "0.05 electrons": (0.05, 1.0, 0.0),  # the nearest integer is the count
    "0.13 electrons": (0.13, 1.0, 0.0),  # some are not: where the functions of the count end
    "0.5 electrons": (0.5, 1.0, 0.0),
    "1 electron": (1.0, 1.0, 0.0),
    "3 electrons": (3.0, 1.0, 0.0),
    "10.01 electrons": (10.01, 1.0, 0.0),  # where the asymptotic form serves at every mean
    "1 electron, 0.47 ADU each": (1.0, 0.47, 100.0),
    "3 electrons, 2.2 ADU each": (3.0, 2.2, -5.0),
}


def distribution(mean: float, sigma: float) -> tuple[Array, Array, float]:
    """Values in electrons, the probability (density) there, and the step between them: the definition, by itself."""
    low, high = max(0, math.floor(mean - 13 * math.sqrt(mean) - 5)), math.ceil(mean + 13 * math.sqrt(mean) + 30)
    k = np.arange(low, high + 1.0)
    log_pmf = (k * math.log(mean) if mean > 0 else np.where(k == 0, 0.0, -np.inf)) - mean - gammaln(k + 1)
    pmf = np.exp(log_pmf)
    if sigma == 0:
        return k, pmf, 1.0
    per_electron = math.ceil(8 / sigma)
    reach = math.ceil(11 * sigma * per_electron)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (per_electron * sigma)) ** 2)
    comb = np.zeros((k.size - 1) * per_electron + 1)
    comb[::per_electron] = pmf
    density = np.convolve(comb, kernel) / (sigma * math.sqrt(2 * math.pi))
    z = low + (np.arange(density.size) - reach) / per_electron
    return z, density, 1 / per_electron


def bias_and_spread(noise: NoiseModel, means: Array, sigma: float, gain: float, offset: float) -> tuple[Array, Array]:
    """Of g at every mean, nats; of a sensor with a map, which has two pixels, their sum over two."""
    parts = [distribution(float(mean), sigma) for mean in means]
    measured = torch.from_numpy(gain * np.concatenate([values for values, _, _ in parts]) + offset)
    n_pixels = 2 if isinstance(noise, PoissonGaussianNoise) and noise.read_std.ndim else 1
    g = conditional_entropy_per_sample(noise, measured[:, None].expand(-1, n_pixels)).numpy() / n_pixels
    g = g - math.log(gain)
    bias, spread = np.empty(means.size), np.empty(means.size)
    begin = 0
    for index, (values, density, step) in enumerate(parts):
        here = g[begin : begin + values.size]
        begin += values.size
        weight = density * step
        assert weight.sum() == pytest.approx(1, abs=1e-9)
        exact = -float((weight * np.log(np.maximum(density, 1e-300))).sum())
        expected = float((weight * here).sum())
        bias[index] = expected - exact
        spread[index] = math.sqrt(max(float((weight * (here - expected) ** 2).sum()), 0.0))
    return bias, spread


def check(bias: Array, spread: Array, means: Array) -> None:
    size = np.abs(bias)
    assert size[means >= 0.1].max() <= 0.02
    assert size[means >= 5].max() <= 0.002
    assert size[means < 0.1].max() <= 0.07
    assert spread.max() <= 2.0


@pytest.mark.parametrize("name", SENSORS)
def test_bias_and_spread(name: str) -> None:
    sigma, gain, offset = SENSORS[name]
    noise: NoiseModel = PoissonNoise() if sigma == 0 else PoissonGaussianNoise(gain, offset, read_std=gain * sigma)
    # A peak per electron takes many points, and nothing but the counts depends on the mean then.
    means = MEANS if sigma == 0 or sigma > 0.2 else MEANS[(MEANS < 300) & (np.arange(MEANS.size) % 4 == 0)]
    check(*bias_and_spread(noise, means, sigma, gain, offset), means)


@pytest.mark.parametrize("sigma", [0.14, 0.31, 0.72, 1.7, 4.4, 9.3])
def test_bias_and_spread_of_a_map(sigma: float) -> None:
    """Read noises between the nodes of the table, whose functions are interpolated."""
    means = np.concatenate([[0.0], np.geomspace(1e-3, 100, 50)])
    noise = PoissonGaussianNoise(read_std=torch.tensor([sigma, sigma * (1 + 1e-9)], dtype=torch.float64))
    check(*bias_and_spread(noise, means, sigma, 1.0, 0.0), means)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0, 10.01, 30.0])
def test_a_value_far_below_the_offset_does_not_run_away(sigma: float) -> None:
    """A dead pixel reads what no photon explains: its estimate stays within a few nats of that of the dark."""
    noise = PoissonGaussianNoise(read_std=sigma)
    z = torch.tensor([[0.0], [-10 * sigma], [-100 * sigma], [-1e4 * sigma]], dtype=torch.float64)
    g = conditional_entropy_per_sample(noise, z)
    assert float((g - g[0]).abs().max()) < 3


def test_images_of_many_means() -> None:
    """Averaged over a gamma-distributed scene: within 5 standard errors and the bias of the exact average."""
    random = np.random.default_rng(0)
    electrons = random.gamma(0.8, 15 / 0.8, (1000, 8, 8))
    counts = random.poisson(electrons)
    for noise, measured in (
        (PoissonNoise(), counts.astype(float)),
        (PoissonGaussianNoise(1.7, 40.0, read_std=2.0), 1.7 * counts + 40 + 2 * random.standard_normal(counts.shape)),
    ):
        estimate = conditional_entropy(noise, measured)
        exact = float(noise.entropy(electrons).mean())
        assert abs(estimate.nats_per_pixel - exact) < 5 * estimate.stderr + 0.005
        assert estimate.stderr < 0.015
