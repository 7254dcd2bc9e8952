"""`estimate_information` against channels whose information is known."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats
from sklearn.datasets import load_digits
from torch import Tensor

from bitlens import (
    GaussianNoise,
    InformationEstimate,
    PoissonGaussianNoise,
    PoissonNoise,
    estimate_information,
)
from bitlens.estimators import _known_channel

pytestmark = pytest.mark.usefixtures("one_thread")

LN2 = math.log(2.0)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def power_law_field(size: int, anisotropy: float) -> Tensor:
    """Covariance of a block of a periodic field whose slow axis lies at 45 degrees."""
    period = 4 * size
    frequency = torch.fft.fftfreq(period, dtype=torch.float64)
    along = (frequency[:, None] + frequency) / math.sqrt(2.0)
    across = (frequency[:, None] - frequency) / math.sqrt(2.0)
    spectrum = 1.0 / (along**2 + (anisotropy * across) ** 2 + period**-2.0)
    correlation = torch.fft.ifft2(spectrum * (4.0 / spectrum.mean())).real
    row, column = torch.arange(size).repeat_interleave(size), torch.arange(size).repeat(size)
    return correlation[(row[:, None] - row) % period, (column[:, None] - column) % period]


def in_bracket(result: InformationEstimate, truth_bits: float, z: float = 4.0) -> None:
    assert result.lower_bits is not None
    assert result.upper_bits is not None
    assert result.stderr_bits is not None
    assert result.lower_bits - z * result.stderr_bits < truth_bits < result.upper_bits + z * result.stderr_bits


def levels(values: list[float], n: int, rng: torch.Generator) -> Tensor:
    index = torch.randint(len(values), (n, 1), generator=rng)
    return torch.tensor(values, dtype=torch.float64)[index]


def poisson_levels_truth(values: list[float]) -> float:
    counts = np.arange(0, 400)
    conditional = np.stack([stats.poisson(value).pmf(counts) for value in values])
    entropy = special.entr(conditional).sum(1).mean()
    return float((special.entr(conditional.mean(0)).sum() - entropy) / LN2)


def gamma_poisson_truth(shape: float, mean: float) -> float:
    """H(negative binomial) + E[Z log Y - Y - log Z!], every term a sum or a closed form."""
    counts = np.arange(0, 20_000)
    marginal = stats.nbinom(shape, shape / (shape + mean)).pmf(counts)
    mean_y_log_y = mean * (special.digamma(shape + 1) + math.log(mean / shape))
    negative_conditional = mean_y_log_y - mean - (marginal * special.gammaln(counts + 1)).sum()
    return float((special.entr(marginal).sum() + negative_conditional) / LN2)


@pytest.mark.parametrize(("anisotropy", "stationary_margin"), [(1.0, 0.01), (3.0, 0.015)])
@pytest.mark.parametrize("seed", [0, 1])
def test_linear_gaussian_field(anisotropy: float, stationary_margin: float, seed: int) -> None:
    covariance = power_law_field(16, anisotropy)
    truth = float(torch.logdet(torch.eye(256, dtype=torch.float64) + covariance)) / 2 / 256 / LN2
    rng = generator(seed)
    white = torch.randn(2000, 256, generator=rng, dtype=torch.float64)
    mean = (white @ torch.linalg.cholesky(covariance).mT).reshape(2000, 16, 16)
    noise = GaussianNoise(1.0)
    measured = noise.sample(mean, rng)
    for method, margin in (("stationary_gaussian", stationary_margin), ("gaussian", 0.02)):
        start = time.process_time()
        result = estimate_information(measured, noise, method=method, generator=generator(seed))
        assert time.process_time() - start < 1.0
        assert abs(result.bits_per_pixel - truth) < margin
        assert result.bound == "estimate"
        assert result.stderr_bits is not None
        assert abs(result.bits - 256 * truth) < 4 * result.stderr_bits
        assert result.upper_bits is not None
        assert result.upper_bits > result.bits
        assert result.lower_bits is result.ceiling_bits is None
        assert result.converged
        assert result.warnings == ()


def test_full_gaussian_correction_carries_the_estimate_to_truth_when_images_are_few() -> None:
    # 60 images fit 16 pixels: without the correction the mean over the seeds is far outside its own error.
    truth = 16 / 2 * math.log2(5.0)
    errors, corrections = [], []
    for seed in range(60):
        rng = generator(seed)
        mean = 2.0 * torch.randn(75, 4, 4, generator=rng, dtype=torch.float64)
        noise = GaussianNoise(1.0)
        result = estimate_information(noise.sample(mean, rng), noise, method="gaussian", generator=rng)
        assert result.upper_bits is not None
        errors.append(result.bits - truth)
        corrections.append(result.upper_bits - result.bits)
    standard_error = np.std(errors) / math.sqrt(len(errors))
    assert abs(np.mean(errors)) < 4 * standard_error
    assert np.mean(corrections) > 10 * standard_error


def linear_gaussian_channel(information_nats: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """8 latent dimensions of unequal strength in images of 4 x 4 pixels, noise of standard deviation 0.5."""
    rng = generator(seed)
    basis = torch.linalg.qr(torch.randn(16, 8, generator=generator(99), dtype=torch.float64))[0]
    share = torch.linspace(0.5, 1.5, 8, dtype=torch.float64) / 8
    strength = 0.5 * torch.sqrt(torch.exp(2 * information_nats * share) - 1)
    latent = torch.randn(n, 8, generator=rng, dtype=torch.float64) * strength
    mean = (latent @ basis.mT).reshape(n, 4, 4)
    return mean, GaussianNoise(0.5).sample(mean, rng)


@pytest.mark.parametrize("information_nats", [2.0, 5.0])
def test_two_sided_bounds_of_a_known_channel(information_nats: float) -> None:
    truth = information_nats / LN2
    lower, upper = [], []
    for seed in range(20):
        mean, measured = linear_gaussian_channel(information_nats, 2048, seed)
        result = estimate_information(
            measured, GaussianNoise(0.5), mean=mean, method="known_channel", generator=generator(seed)
        )
        in_bracket(result, truth)
        assert result.bound == "two-sided"
        assert result.lower_bits is not None
        assert result.upper_bits is not None
        assert result.ceiling_bits == pytest.approx(11.0)
        assert result.lower_bits < result.bits < result.upper_bits
        lower.append(result.lower_bits)
        upper.append(result.upper_bits)
    assert np.mean(lower) <= truth + 4 * np.std(lower) / math.sqrt(20)
    assert np.mean(upper) >= truth - 4 * np.std(upper) / math.sqrt(20)
    # At K = 4096 the width is 0.02 nats at I = 2 and 0.4 at I = 5; it falls like 1 / K.
    assert (np.mean(upper) - np.mean(lower)) * LN2 < (0.04 if information_nats == 2.0 else 0.8)


def test_mixture_with_a_density_keeps_the_upper_bound_near_truth_past_the_ceiling() -> None:
    mean, measured = linear_gaussian_channel(12.0, 1024, 0)
    noise = GaussianNoise(0.5)
    result = estimate_information(measured, noise, mean=mean, generator=generator(0))
    scores_only = estimate_information(measured, noise, mean=mean, method="known_channel", generator=generator(0))
    truth = 12.0 / LN2
    in_bracket(result, truth)
    # The upper bound less what the finite sample is known to cost, as without the noiseless images.
    assert result.bound == "estimate"
    assert result.upper_bits is not None
    assert scores_only.upper_bits is not None
    assert result.bits < result.upper_bits < truth + 1.0 < scores_only.upper_bits
    assert abs(result.bits - truth) < 4.0 * (result.stderr_bits or 0.0)
    assert any("ceiling" in warning for warning in result.warnings)
    # A density takes the lower bound past log2 K = 10, and not past the truth.
    assert scores_only.ceiling_bits == pytest.approx(10.0)
    assert scores_only.lower_bits is not None
    assert result.lower_bits is not None
    assert result.ceiling_bits is not None
    assert 10.0 < result.lower_bits < truth + 4.0 * (result.stderr_bits or 0.0)
    assert result.lower_bits < result.ceiling_bits


@pytest.mark.parametrize("method", ["auto", "known_channel"])
@pytest.mark.parametrize("values", [[0.3, 4.0], [1.0, 5.0, 20.0, 60.0]])
def test_one_pixel_poisson_on_a_few_levels(values: list[float], method: str) -> None:
    rng = generator(0)
    mean = levels(values, 2000, rng).reshape(-1, 1, 1)
    noise = PoissonNoise()
    result = estimate_information(noise.sample(mean, rng), noise, mean=mean, method=method, generator=rng)
    in_bracket(result, poisson_levels_truth(values))
    assert result.bound == "two-sided"


@pytest.mark.parametrize("photons", [1.0, 30.0])
def test_one_pixel_poisson_of_gamma_distributed_level(photons: float) -> None:
    rng = generator(1)
    gamma = torch.from_numpy(np.random.default_rng(0).gamma(4.0, photons / 4.0, (2000, 1)))
    noise = PoissonNoise()
    measured = noise.sample(gamma, rng)
    truth = gamma_poisson_truth(4.0, photons)
    in_bracket(estimate_information(measured, noise, mean=gamma, generator=rng), truth)
    noisy_only = estimate_information(measured, noise, generator=rng)
    assert noisy_only.upper_bits is not None
    assert noisy_only.stderr_bits is not None
    assert noisy_only.upper_bits > truth - 4 * noisy_only.stderr_bits


def poisson_gaussian_truth(values: list[float], gain: float, offset: float, read_std: float) -> float:
    z = np.linspace(-12 * read_std, gain * 80 + 12 * read_std, 60_001) + offset
    counts = np.arange(0, 120)
    peaks = stats.norm(gain * counts + offset, read_std).pdf(z[:, None])
    densities = [peaks @ stats.poisson(value).pmf(counts) for value in values]

    def entropy(density: NDArray[np.float64]) -> float:
        return float(np.trapezoid(special.entr(density), z))

    return (entropy(np.mean(densities, axis=0)) - float(np.mean([entropy(d) for d in densities]))) / LN2


def test_one_pixel_poisson_gaussian_exact_and_with_a_surrogate_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.5, 4.0, 15.0]
    noise = PoissonGaussianNoise(gain=2.0, offset=10.0, read_std=1.5)
    rng = generator(3)
    mean = levels(values, 1200, rng)
    measured = noise.sample(mean, rng)
    truth = poisson_gaussian_truth(values, 2.0, 10.0, 1.5)
    exact = estimate_information(measured, noise, mean=mean, generator=generator(0))
    in_bracket(exact, truth)
    assert exact.lower_bits is not None
    assert exact.upper_bits is not None
    assert exact.upper_bits - exact.lower_bits < 0.05
    monkeypatch.setattr(_known_channel, "_MAX_PAIR_EVALUATIONS", 0)
    surrogate = estimate_information(measured, noise, mean=mean, generator=generator(0))
    in_bracket(surrogate, truth)
    assert "leave-one-out" not in surrogate.method
    lower_only = estimate_information(measured, noise, mean=mean, method="known_channel", generator=generator(0))
    assert lower_only.bound == "lower"
    assert lower_only.upper_bits is None
    assert lower_only.bits == lower_only.lower_bits
    assert truth - 0.3 < lower_only.bits < truth + 4 * (lower_only.stderr_bits or math.nan)


def test_equiprobable_scenes_in_gaussian_noise() -> None:
    # Two pixels, each +-1 with noise of 0.8: twice the information of one binary channel, at most 2 bits.
    rng = generator(4)
    mean = 2.0 * torch.randint(2, (1500, 2), generator=rng).to(torch.float64) - 1.0
    noise = GaussianNoise(0.8)
    z = np.linspace(-8, 8, 20_001)
    marginal = 0.5 * (stats.norm(1, 0.8).pdf(z) + stats.norm(-1, 0.8).pdf(z))
    one = (np.trapezoid(special.entr(marginal), z) - 0.5 * math.log(2 * math.pi * math.e * 0.64)) / LN2
    result = estimate_information(noise.sample(mean, rng), noise, mean=mean, generator=rng)
    in_bracket(result, 2 * float(one))
    assert result.lower_bits is not None
    assert result.lower_bits <= 2.0


@pytest.mark.parametrize(
    ("noise", "level"), [(GaussianNoise(2.0), 5.0), (PoissonNoise(), 30.0), (PoissonGaussianNoise(read_std=2.0), 8.0)]
)
def test_a_scene_that_never_changes_carries_nothing(
    noise: GaussianNoise | PoissonNoise | PoissonGaussianNoise, level: float
) -> None:
    rng = generator(5)
    mean = torch.full((400, 3, 3), level, dtype=torch.float64)
    measured = noise.sample(mean, rng)
    both = estimate_information(measured, noise, mean=mean, generator=rng)
    assert both.bits == pytest.approx(0.0, abs=0.02)
    noisy_only = estimate_information(measured, noise, generator=rng)
    assert noisy_only.stderr_bits is not None
    assert noisy_only.upper_bits is not None
    assert noisy_only.upper_bits > -4 * noisy_only.stderr_bits
    # A Gaussian is not quite the law of 8 photo-electrons: 0.005 bits per pixel.
    assert abs(noisy_only.bits) < 4 * noisy_only.stderr_bits + 9 * 0.005


def test_data_processing_adding_pixels_up_loses_bits() -> None:
    rng = generator(6)
    mean = torch.from_numpy(np.random.default_rng(1).gamma(2.0, 2.0, (1500, 2)))
    noise = PoissonNoise()
    measured = noise.sample(mean, rng)
    fine = estimate_information(measured, noise, mean=mean, generator=rng)
    coarse = estimate_information(measured.sum(1, keepdim=True), noise, mean=mean.sum(1, keepdim=True), generator=rng)
    assert coarse.upper_bits is not None
    assert fine.lower_bits is not None
    assert coarse.upper_bits < fine.lower_bits


def test_bits_of_independent_blocks_add_up() -> None:
    rng = generator(7)
    scales = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    mean = scales * torch.randn(3000, 4, generator=rng, dtype=torch.float64)
    noise = GaussianNoise(1.0)
    measured = noise.sample(mean, rng)
    whole, left, right = (
        estimate_information(measured[:, part], noise, method="gaussian", generator=generator(1))
        for part in (slice(None), slice(0, 2), slice(2, 4))
    )
    # The same images and folds: only sampled correlations between the blocks, about 4 / (2 n) nats, remain.
    assert whole.bits == pytest.approx(left.bits + right.bits, abs=0.01)
    truth = float(torch.log2(1 + scales**2).sum() / 2)
    assert abs(whole.bits - truth) < 4 * (whole.stderr_bits or math.nan)


@pytest.mark.parametrize("method", ["auto", "stationary_gaussian", "known_channel"])
def test_scaling_measurement_and_noise_together_changes_nothing(method: str) -> None:
    mean, measured = linear_gaussian_channel(3.0, 300, 0)
    plain = estimate_information(measured, GaussianNoise(0.5), mean=mean, method=method, generator=generator(0))
    scaled = estimate_information(
        7.0 * measured, GaussianNoise(3.5), mean=7.0 * mean, method=method, generator=generator(0)
    )
    assert scaled.bits == pytest.approx(plain.bits, rel=1e-6)
    assert scaled.stderr_bits == pytest.approx(plain.stderr_bits, rel=1e-6)


def test_high_dynamic_range_never_gives_an_absurd_number_in_silence() -> None:
    scenes = torch.from_numpy(load_digits().images)
    mean = scenes * (100.0 / scenes.mean())
    noise = PoissonNoise()
    measured = noise.sample(mean, generator(0))
    # There are 1797 scenes: at most 10.8 bits. A Gaussian says far more; it must say how far to trust it.
    for method in ("auto", "gaussian", "stationary_gaussian"):
        result = estimate_information(measured, noise, method=method, generator=generator(0))
        assert 10.8 < result.bits < 64 * 6
        assert any("far above the truth" in warning for warning in result.warnings)
    both = estimate_information(measured, noise, mean=mean, generator=generator(0))
    # Of draws from all digits that people write, which these scenes are as well, it may pass log2 of their number.
    assert both.lower_bits is not None
    assert both.upper_bits is not None
    assert math.log2(1797) - 0.05 < both.lower_bits < both.upper_bits
    assert any("ceiling" in warning for warning in both.warnings)


@pytest.mark.parametrize(("method", "n_extrapolate"), [("gaussian", 1), ("gaussian", 2), ("stationary_gaussian", 1)])
def test_extrapolation_over_the_training_size_reaches_truth(method: str, n_extrapolate: int) -> None:
    """Data on which a full covariance of few images costs 1.5 bits per image."""
    side, n = 4, 400
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*(torch.arange(side).double(),) * 2, indexing="ij"))
    distance = ((rows[:, None] - rows).square() + (columns[:, None] - columns).square()).sqrt()
    covariance = 4.0 * torch.exp(-distance / 2.0)
    factor = torch.linalg.cholesky(covariance)
    truth = 0.5 * float(torch.logdet(torch.eye(side**2).double() + covariance)) / math.log(2)
    found = []
    for seed in range(12):
        normal = torch.randn(n, side**2, dtype=torch.float64, generator=generator(seed))
        mean = (normal @ factor.mT).reshape(n, side, side)
        measured = GaussianNoise(1.0).sample(mean, generator(100 + seed))
        result = estimate_information(
            measured, GaussianNoise(1.0), method=method, n_extrapolate=n_extrapolate, generator=generator(0)
        )
        assert result.bound == "estimate"
        assert result.method == f"{method} extrapolated"
        assert result.upper_bits is not None
        assert result.upper_bits > result.bits
        found.append((result.bits, result.upper_bits, result.stderr_bits))
    bits, upper, stderr = (torch.tensor(column) for column in zip(*found, strict=True))
    error = float(bits.std()) / math.sqrt(len(bits))
    # What is left is of second order in pixels over images.
    assert abs(float(bits.mean()) - truth) < 4 * error + 0.15 * float(upper.mean() - bits.mean())
    assert float(stderr.mean()) == pytest.approx(float(bits.std()), rel=0.5)


def test_extrapolation_says_what_it_needs() -> None:
    measured = torch.randn(120, 30, generator=generator(0))
    with pytest.raises(ValueError, match="n_extrapolate: a fit to"):
        estimate_information(measured, GaussianNoise(0.5), method="gaussian", n_extrapolate=3)
    for bad in (-1, 7, 1.5, True):
        with pytest.raises(ValueError, match="n_extrapolate: need a whole number"):
            estimate_information(measured, GaussianNoise(0.5), n_extrapolate=bad)  # type: ignore[arg-type]


def test_natural_like_contrasts_are_better_served_by_a_mixture() -> None:
    """A field whose contrast varies from image to image: the mixture's bound is the tighter one, and says no more."""
    rng = generator(5)
    contrast = torch.exp(0.8 * torch.randn(1500, 1, 1, dtype=torch.float64, generator=rng))
    mean = contrast * torch.randn(1500, 5, 5, dtype=torch.float64, generator=rng).cumsum(2)
    measured = GaussianNoise(0.5).sample(mean, rng)
    found = {
        method: estimate_information(measured, GaussianNoise(0.5), method=method, generator=generator(0))
        for method in ("gaussian", "gaussian_mixture")
    }
    assert found["gaussian_mixture"].bound == "upper"
    assert found["gaussian_mixture"].upper_bits is not None
    assert found["gaussian"].upper_bits is not None
    assert found["gaussian_mixture"].upper_bits < found["gaussian"].upper_bits - 2.0
