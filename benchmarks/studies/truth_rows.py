"""Channels whose information is known, with samples of each: the rows of the truth table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from scipy.special import gammaln
from torch import Tensor

from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise
from bitlens.noise._pairs import log_prob_pairs

TO_BITS = 1.0 / math.log(2.0)


class Row(NamedTuple):
    """A channel: images with their means, the truth in bits per image with its standard error (of a Monte Carlo).

    `criterion` says what the difference is judged by: "pixel", 0.03 bits per pixel, or "image", 1 bit per image and two
    standard errors.
    """

    name: str
    noise: NoiseModel
    mean: Tensor
    measured: Tensor
    truth_bits: float
    truth_stderr: float
    criterion: str


def _draw(name: str, noise: NoiseModel, mean: Tensor, truth: tuple[float, float], criterion: str, seed: int) -> Row:
    measured = noise.sample(mean, torch.Generator().manual_seed(seed)).to(torch.float64)
    return Row(name, noise, mean, measured, truth[0] * TO_BITS, truth[1] * TO_BITS, criterion)


# ---- closed forms ----


def gaussian_field(n: int, side: int, angle: bool, seed: int) -> Row:
    """A stationary field in white noise: half the log determinant of I + C / s^2."""
    rows, columns = (
        axis.flatten() for axis in torch.meshgrid(*(torch.arange(side, dtype=torch.float64),) * 2, indexing="ij")
    )
    dy, dx = rows[:, None] - rows, columns[:, None] - columns
    if angle:
        along, across = (dy + dx) / math.sqrt(2.0), (dy - dx) / math.sqrt(2.0)
        covariance = torch.exp(-torch.sqrt((along / 6.0).square() + (across / 1.0).square() + 1e-12))
    else:
        covariance = torch.exp(-torch.sqrt(dy.square() + dx.square() + 1e-12) / 3.0)
    covariance = 25.0 * covariance
    std = 2.0
    factor = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(side**2, dtype=torch.float64))
    normal = torch.randn(n, side**2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mean = 100.0 + (normal @ factor.mT).reshape(n, side, side)
    truth = 0.5 * float(torch.logdet(torch.eye(side**2, dtype=torch.float64) + covariance / std**2))
    name = f"linear-Gaussian {side}^2, N = {n}{', 45 degrees' if angle else ''}"
    return _draw(name, GaussianNoise(std), mean, (truth, 0.0), "pixel", seed + 1)


def poisson_entropies(mean: np.ndarray) -> np.ndarray:
    """H of Poisson counts in nats, by summation."""
    result = np.empty_like(mean)
    for i, y in enumerate(mean):
        reach = 12.0 * math.sqrt(y) + 30.0
        k = np.arange(max(0, math.floor(y - reach)), math.ceil(y + reach))
        log_p = k * math.log(y) - y - gammaln(k + 1)
        result[i] = -(np.exp(log_p) * log_p).sum()
    return result


def gamma_counts_nats(mean: float, shape: float) -> float:
    """I(y; Poisson(y)), y ~ gamma: the entropy of the negative binomial less the mean entropy, by quadrature."""
    reach = int(mean * 20.0 + 60.0 * math.sqrt(mean) + 200.0)
    k = np.arange(reach)
    log_p = stats.nbinom.logpmf(k, shape, shape / (shape + mean))
    marginal = -(np.exp(log_p) * log_p).sum()
    # Gauss-Legendre in the cube root of y, where gamma's density is nearly a bell.
    nodes, weights = np.polynomial.legendre.leggauss(400)
    top = stats.gamma.ppf(1 - 1e-13, shape, scale=mean / shape) ** (1 / 3)
    root = 0.5 * top * (nodes + 1)
    density = stats.gamma.pdf(root**3, shape, scale=mean / shape) * 3 * root**2 * 0.5 * top * weights
    return float(marginal - (density * poisson_entropies(root**3)).sum())


def constant_images(n: int, side: int, mean: float, seed: int) -> Row:
    """One gamma-distributed level for all pixels: the total count holds all there is to know."""
    level = torch.from_numpy(np.random.default_rng(seed).gamma(4.0, mean / 4.0, n))
    images = level[:, None, None].expand(n, side, side).clone()
    truth = gamma_counts_nats(mean * side**2, 4.0)
    return _draw(f"constant intensity {side}^2 at {mean:g}", PoissonNoise(), images, (truth, 0.0), "image", seed + 1)


def independent_gamma(n: int, side: int, mean: float, seed: int) -> Row:
    """Every pixel gamma-distributed by itself."""
    images = torch.from_numpy(np.random.default_rng(seed).gamma(4.0, mean / 4.0, (n, side, side)))
    truth = side**2 * gamma_counts_nats(mean, 4.0)
    return _draw(f"independent gamma {side}^2 at {mean:g}", PoissonNoise(), images, (truth, 0.0), "pixel", seed + 1)


def levels_nats(noise: PoissonGaussianNoise, levels: list[float]) -> float:
    """I of one pixel on equiprobable levels, by the trapezoidal rule over the measurement."""
    mean = torch.tensor(levels, dtype=torch.float64)
    centre = noise.expected(mean)
    width = noise.variance(mean).sqrt()
    low, high = float((centre - 14 * width).min()), float((centre + 14 * width).max())
    z = torch.linspace(low, high, 400_001, dtype=torch.float64)
    p = noise.log_prob(z[:, None], mean).exp()
    marginal = p.mean(1)
    step = float(z[1] - z[0])
    entropy = -torch.special.xlogy(marginal, marginal).sum() * step
    conditional = -torch.special.xlogy(p, p).sum(0).mean() * step
    return float(entropy - conditional)


def level_pixels(n: int, side: int, levels: list[float], seed: int) -> Row:
    """Pixels on a few levels under shot and read noise."""
    noise = PoissonGaussianNoise(gain=2.0, offset=100.0, read_std=3.0)
    drawn = torch.randint(len(levels), (n, side, side), generator=torch.Generator().manual_seed(seed))
    mean = torch.tensor(levels, dtype=torch.float64)[drawn]
    truth = side**2 * levels_nats(noise, levels)
    return _draw(f"{len(levels)} levels {side}^2, read noise", noise, mean, (truth, 0.0), "pixel", seed + 1)


# ---- a list of scenes, by Monte Carlo over all of them ----


def scenes_nats(noise: NoiseModel, scenes: Tensor, seed: int, n: int = 60_000) -> tuple[float, float]:
    """I of equiprobable scenes and its standard error: E[log p(z|y_k) - log mean_j p(z|y_j)]."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n // 2000):
        drawn = torch.randint(len(scenes), (2000,), generator=generator)
        scores = log_prob_pairs(noise, noise.sample(scenes[drawn], generator).to(torch.float64), scenes)
        own = scores.gather(1, drawn[:, None])[:, 0]
        rows.append(own - torch.logsumexp(scores, 1) + math.log(len(scenes)))
    values = torch.cat(rows)
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def equiprobable(name: str, noise: NoiseModel, scenes: Tensor, n: int, seed: int) -> Row:
    drawn = torch.randint(len(scenes), (n,), generator=torch.Generator().manual_seed(seed))
    return _draw(name, noise, scenes[drawn], scenes_nats(noise, scenes, seed + 2), "image", seed + 1)


def point_source(n: int, side: int, background: float, photons: float, noise: NoiseModel, label: str, seed: int) -> Row:
    """A spot of one pixel's standard deviation on any pixel of the image."""
    place = torch.arange(side, dtype=torch.float64)
    profile = torch.exp(-0.5 * (place[:, None] - place).square())
    spots = torch.einsum("ir,jc->ijrc", profile, profile).reshape(-1, side, side) / (2.0 * math.pi)
    return equiprobable(f"point source {side}^2{label}", noise, background + photons * spots, n, seed)


def scene_list(n: int, count: int, side: int, mean: float, noise: NoiseModel, label: str, seed: int) -> Row:
    uniform = torch.rand(count, side, side, generator=torch.Generator().manual_seed(seed + 9), dtype=torch.float64)
    scenes = -mean * uniform.clamp_min(1e-3).log()
    return equiprobable(f"{count} scenes {side}^2{label}", noise, scenes, n, seed)


def all_rows(n: int) -> Iterator[Callable[[], Row]]:
    """Every row, made when called."""
    sensor = PoissonGaussianNoise(gain=2.0, offset=100.0, read_std=3.0)
    yield lambda: gaussian_field(n // 2, 16, False, 1)
    yield lambda: gaussian_field(n, 16, False, 2)
    yield lambda: gaussian_field(n // 2, 32, False, 3)
    yield lambda: gaussian_field(n, 16, True, 4)
    for side in (8, 16):
        for mean in (1.0, 10.0, 100.0, 1000.0):
            yield lambda side=side, mean=mean: constant_images(n, side, mean, 10)  # type: ignore[misc]
    for mean in (0.3, 1.0, 10.0, 100.0, 1000.0):
        yield lambda mean=mean: independent_gamma(n, 8, mean, 20)  # type: ignore[misc]
    yield lambda: independent_gamma(n, 16, 10.0, 21)
    yield lambda: level_pixels(n, 8, [5.0, 40.0], 30)
    yield lambda: level_pixels(n, 8, [0.0, 5.0, 20.0, 60.0, 200.0], 31)
    yield lambda: point_source(n, 16, 1.0, 50.0, PoissonNoise(), " at 50 on 1", 40)
    yield lambda: point_source(n, 16, 5.0, 60.0, sensor, " at 60 on 5, read noise", 41)
    yield lambda: scene_list(n, 16, 8, 1.0, PoissonNoise(), " at 1", 50)
    yield lambda: scene_list(n, 50, 16, 10.0, PoissonNoise(), " at 10", 51)
    yield lambda: scene_list(n, 16, 8, 1.0, GaussianNoise(2.5), ", Gaussian noise", 52)
