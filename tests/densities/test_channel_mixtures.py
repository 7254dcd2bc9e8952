"""Densities made of a noise model: probabilities that sum to one, and what they lose against the true density."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import gammaln
from torch import Tensor

from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise
from bitlens.densities import (
    Density,
    IndependentPixelsDensity,
    ScaleMixtureDensity,
    SceneMixtureDensity,
    ShiftMixtureDensity,
)
from bitlens.densities._channel_mixture import ChannelMixture
from bitlens.noise import NoiseModel

SENSOR = PoissonGaussianNoise(gain=2.0, offset=100.0, read_std=3.0)
ALL = (IndependentPixelsDensity, ScaleMixtureDensity, SceneMixtureDensity, ShiftMixtureDensity)
every_density = pytest.mark.parametrize("kind", ALL)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(noise: NoiseModel, mean: Tensor, seed: int = 1) -> Tensor:
    return noise.sample(mean, generator(seed)).to(torch.float64)


def gamma_levels(n: int, shape: tuple[int, ...], mean: float) -> Tensor:
    levels = np.random.default_rng(0).gamma(4.0, mean / 4.0, (n, *shape))
    return torch.from_numpy(levels)


def excess(density: Density, held_out: Tensor, true_log_prob: Tensor) -> float:
    """Cross-entropy above the entropy, nats per image."""
    return float((true_log_prob - density.log_prob(held_out)).mean())


@every_density
def test_probabilities_of_counts_sum_to_one(kind: Callable[[NoiseModel], Density]) -> None:
    measured = drawn(PoissonNoise(), gamma_levels(300, (1, 2), 1.5))
    density = kind(PoissonNoise()).fit(measured)
    every = torch.tensor(list(itertools.product(range(100), repeat=2)), dtype=torch.float64).reshape(-1, 1, 2)
    assert float(density.log_prob(every).exp().sum()) == pytest.approx(1.0, abs=1e-5)


@every_density
def test_densities_of_values_integrate_to_one(kind: Callable[[NoiseModel], Density]) -> None:
    measured = drawn(SENSOR, gamma_levels(300, (1, 1), 5.0))
    density = kind(SENSOR).fit(measured)
    z = torch.linspace(60.0, 400.0, 34_001, dtype=torch.float64)
    assert float(density.log_prob(z.reshape(-1, 1, 1)).exp().sum() * (z[1] - z[0])) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("mean", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("side", [4, 12])
def test_scale_mixture_is_the_negative_multinomial(side: int, mean: float) -> None:
    level = gamma_levels(3000, (1, 1), mean).expand(3000, side, side)
    measured = drawn(PoissonNoise(), level)
    density = ScaleMixtureDensity(PoissonNoise()).fit(measured[:2400])
    counts = measured[2400:].flatten(1).numpy()
    total, pixels = counts.sum(1), side**2
    truth = stats.nbinom.logpmf(total, 4, 4 / (4 + mean * pixels)) + gammaln(total + 1) - total * math.log(pixels)
    truth -= gammaln(counts + 1).sum(1)
    assert -0.02 < excess(density, measured[2400:], torch.from_numpy(truth)) < 0.1


def test_scale_mixture_takes_a_pattern_and_a_sensor() -> None:
    pattern = torch.rand(9, 9, generator=generator(3), dtype=torch.float64) + 0.2
    level = gamma_levels(3000, (1, 1), 40.0)
    measured = drawn(SENSOR, level * pattern)
    density = ScaleMixtureDensity(SENSOR).fit(measured[:2400])
    grid = torch.from_numpy(stats.gamma.ppf((np.arange(4000) + 0.5) / 4000, 4, scale=10.0))
    exact = ChannelMixture(SENSOR, grid.reshape(-1, 1, 1) * pattern, torch.full((4000,), -math.log(4000.0)).double())
    assert -0.02 < excess(density, measured[2400:], exact.log_prob(measured[2400:])) < 0.1


@pytest.mark.parametrize("mean", [0.3, 3.0, 100.0])
def test_independent_pixels_are_negative_binomial(mean: float) -> None:
    measured = drawn(PoissonNoise(), gamma_levels(3000, (6, 6), mean))
    density = IndependentPixelsDensity(PoissonNoise()).fit(measured[:2400])
    truth = stats.nbinom.logpmf(measured[2400:].flatten(1).numpy(), 4, 4 / (4 + mean)).sum(1)
    assert -0.05 < excess(density, measured[2400:], torch.from_numpy(truth)) < 0.005 * 36


def test_independent_pixels_on_few_levels() -> None:
    levels = torch.tensor([0.0, 5.0, 60.0, 200.0], dtype=torch.float64)
    mean = levels[torch.randint(4, (3000, 6, 6), generator=generator(4))]
    measured = drawn(SENSOR, mean)
    density = IndependentPixelsDensity(SENSOR).fit(measured[:2400])
    truth = torch.logsumexp(SENSOR.log_prob(measured[2400:, ..., None], levels), -1) - math.log(4.0)
    assert -0.05 < excess(density, measured[2400:], truth.flatten(1).sum(1)) < 0.003 * 36


@pytest.mark.parametrize("noise", [PoissonNoise(), SENSOR, GaussianNoise(1.0)])
def test_shift_mixture_finds_the_pattern(noise: NoiseModel) -> None:
    place = torch.arange(8, dtype=torch.float64)
    profile = torch.exp(-0.5 * (place[:, None] - place).square())
    spots = 2.0 + 60.0 * torch.einsum("ir,jc->ijrc", profile, profile).reshape(-1, 8, 8) / (2 * math.pi)
    chosen = torch.randint(64, (3000,), generator=generator(5))
    measured = drawn(noise, spots[chosen])
    density = ShiftMixtureDensity(noise).fit(measured[:2400])
    exact = ChannelMixture(noise, spots, torch.full((64,), -math.log(64.0)).double())
    assert -0.02 < excess(density, measured[2400:], exact.log_prob(measured[2400:])) < 0.15
    means = density.means
    assert means is not None
    # The pattern in the middle of the image is the spot, to the noise of a mean of some 40 images.
    assert float((means[27] - spots[27]).abs().max()) < 3.0


@pytest.mark.parametrize(("noise", "mean"), [(PoissonNoise(), 1.0), (PoissonNoise(), 50.0), (SENSOR, 20.0)])
@pytest.mark.parametrize("count", [3, 16])
def test_scene_mixture_finds_the_scenes(noise: NoiseModel, mean: float, count: int) -> None:
    scenes = -mean * torch.rand(count, 6, 6, generator=generator(6), dtype=torch.float64).clamp_min(1e-3).log()
    chosen = torch.randint(count, (3000,), generator=generator(7))
    measured = drawn(noise, scenes[chosen])
    density = SceneMixtureDensity(noise).fit(measured[:2400])
    assert density.means is not None
    assert len(density.means) == count
    exact = ChannelMixture(noise, scenes, torch.full((count,), -math.log(count)).double())
    found = excess(density, measured[2400:], exact.log_prob(measured[2400:]))
    # What each scene's mean costs, half a nat for each of its pixels over the images.
    assert found == pytest.approx(density.held_out_bias_nats, abs=0.08)


def test_scene_mixture_under_gaussian_noise_takes_negative_means() -> None:
    scenes = torch.randn(16, 6, 6, generator=generator(8), dtype=torch.float64)
    measured = drawn(GaussianNoise(1.0), scenes[torch.randint(16, (3000,), generator=generator(9))])
    density = SceneMixtureDensity(GaussianNoise(1.0)).fit(measured[:2400])
    exact = ChannelMixture(GaussianNoise(1.0), scenes, torch.full((16,), -math.log(16.0)).double())
    found = excess(density, measured[2400:], exact.log_prob(measured[2400:]))
    assert found == pytest.approx(density.held_out_bias_nats, abs=0.08)


@every_density
def test_pixels_without_light_are_no_trouble(kind: Callable[[NoiseModel], Density]) -> None:
    mean = gamma_levels(400, (5, 5), 20.0)
    mean[:, 0] = 0.0
    measured = drawn(PoissonNoise(), mean)
    density = kind(PoissonNoise()).fit(measured[:300])
    assert bool(torch.isfinite(density.log_prob(measured[300:])).all())


@pytest.mark.parametrize("kind", [IndependentPixelsDensity, ScaleMixtureDensity, SceneMixtureDensity])
def test_samples_are_like_the_data(kind: Callable[[NoiseModel], Density]) -> None:
    measured = drawn(PoissonNoise(), gamma_levels(2000, (1, 1), 30.0).expand(2000, 3, 3))
    density = kind(PoissonNoise()).fit(measured)
    samples = density.sample(4000, generator(2))
    assert samples.shape == (4000, 3, 3)
    torch.testing.assert_close(samples.mean(0), measured.mean(0), rtol=0.06, atol=0.0)
    assert torch.equal(samples, density.sample(4000, generator(2)))


@every_density
def test_a_fit_repeats_and_leaves_the_density_alone(kind: Callable[[NoiseModel], Density]) -> None:
    measured = drawn(PoissonNoise(), gamma_levels(300, (4, 4), 5.0))
    empty = kind(PoissonNoise())
    first, second = empty.fit(measured), empty.fit(measured)
    assert torch.equal(first.log_prob(measured), second.log_prob(measured))
    for call in (lambda: empty.log_prob(measured), lambda: empty.sample(2)):
        with pytest.raises(RuntimeError, match="call fit first"):
            call()


@every_density
def test_bad_images_are_named(kind: Callable[[NoiseModel], Density]) -> None:
    density = kind(PoissonNoise())
    images = torch.ones(20, 3, 3)
    for bad, words in (
        (images[:3], "at least"),
        (images * math.nan, "finite"),
        (images[:, 0, 0], r"shape \(n, \.\.\.\)"),
    ):
        with pytest.raises(ValueError, match=words):
            density.fit(bad)
    fitted = density.fit(drawn(PoissonNoise(), 5.0 * images))
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        fitted.log_prob(torch.ones(4, 3, 2))


@pytest.mark.parametrize("kind", [IndependentPixelsDensity, ScaleMixtureDensity])
def test_images_without_light_are_refused(kind: Callable[[NoiseModel], Density]) -> None:
    with pytest.raises(ValueError, match="need images with light"):
        kind(PoissonNoise()).fit(torch.zeros(20, 3, 3))


def test_shifts_need_image_axes() -> None:
    with pytest.raises(ValueError, match=r"shape \(n, row, column\)"):
        ShiftMixtureDensity(PoissonNoise()).fit(torch.ones(20, 2, 3, 3))


@pytest.mark.parametrize("kind", [SceneMixtureDensity, ShiftMixtureDensity])
def test_maps_of_gaussian_noise(kind: Callable[[NoiseModel], Density]) -> None:
    noise = GaussianNoise(torch.linspace(0.5, 2.0, 16).reshape(4, 4))
    measured = drawn(noise, torch.zeros(200, 4, 4, dtype=torch.float64))
    assert bool(torch.isfinite(kind(noise).fit(measured).log_prob(measured)).all())


@every_density
def test_parameters_of_the_noise_get_no_gradient(kind: Callable[[NoiseModel], Density]) -> None:
    noise = PoissonGaussianNoise(gain=torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64)), read_std=1.0)
    measured = drawn(noise, gamma_levels(100, (3, 3), 20.0)).detach()
    assert not kind(noise).fit(measured).log_prob(measured).requires_grad


def test_shifts_take_one_channel() -> None:
    measured = drawn(PoissonNoise(), gamma_levels(200, (4, 4), 20.0))
    plain = ShiftMixtureDensity(PoissonNoise()).fit(measured).log_prob(measured)
    channel = ShiftMixtureDensity(PoissonNoise()).fit(measured[:, None]).log_prob(measured[:, None])
    torch.testing.assert_close(channel, plain)


def test_conditional_entropy_of_a_scale_mixture_is_that_of_its_components() -> None:
    """Posteriors over its own draws have the weights for their mean, so that the entropies do too."""
    level = torch.from_numpy(np.random.default_rng(0).gamma(4.0, 0.5, 800))
    images = PoissonNoise().sample(level[:, None, None].expand(800, 4, 4), generator(0)).double()
    fitted = ScaleMixtureDensity(PoissonNoise()).fit(images)
    assert fitted.log_weights is not None
    assert fitted.means is not None
    expected = float(fitted.log_weights.exp() @ PoissonNoise().entropy(fitted.means).flatten(1).sum(1))
    rows = fitted.conditional_entropy(fitted.sample(20_000, generator(1)))
    assert abs(float(rows.mean()) - expected) < 4.0 * float(rows.std()) / math.sqrt(len(rows))
    # And of the scenes that made the images, a hundredth of a nat of 16 pixels off.
    truth = float(PoissonNoise().entropy(level).mean()) * 16
    seen = fitted.conditional_entropy(images)
    assert abs(float(seen.mean()) - truth) < 4.0 * float(seen.std()) / math.sqrt(len(seen)) + 0.02 * truth


def test_a_scale_mixture_reaches_beyond_the_brightnesses_seen() -> None:
    """And says what a finite sample costs it: held out at 1000 photons, where single images pin their brightness."""
    noise, side, n = PoissonNoise(), 6, 640
    excess, said = [], []
    for seed in range(4):
        drawn = np.random.default_rng(seed).gamma(4.0, 250.0, n + 4000)
        images = noise.sample(torch.from_numpy(drawn)[:, None, None].expand(-1, side, side), generator(seed)).double()
        fitted = ScaleMixtureDensity(noise).fit(images[:n])
        counts = images[n:].flatten(1)
        total = counts.sum(1)
        share = 1.0 / (1.0 + 250.0 * side**2)
        negative_binomial = torch.lgamma(total + 4.0) - math.lgamma(4.0) + 4.0 * math.log(share)
        truth = negative_binomial + total * math.log1p(-share) - torch.lgamma(counts + 1.0).sum(1)
        truth = truth - total * math.log(side**2)
        excess.append(float((truth - fitted.log_prob(images[n:])).mean()))
        said.append(fitted.held_out_bias_nats)
    assert 0.0 < sum(excess) / 4 < 0.05
    assert sum(said) / 4 == pytest.approx(sum(excess) / 4, abs=0.015)
