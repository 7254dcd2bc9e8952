"""Gaussian copula: a normalised density, known laws met within a stated excess, shrinkage, awkward data."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from bitlens.densities._smooth_marginals import fitted_marginals
from bitlens.densities.copula import GaussianCopulaDensity
from bitlens.densities.gaussian import GaussianDensity

pytestmark = pytest.mark.usefixtures("one_thread")

NATS_PER_BIT = math.log(2.0)


def ar_correlation(n_pixels: int, correlation: float) -> np.ndarray:
    place = np.arange(n_pixels)
    return correlation ** np.abs(place[:, None] - place)


def drawn(law: stats.rv_continuous, n: int, n_pixels: int, seed: int, correlation: float = 0.0) -> Tensor:
    """Pixels of one law under a Gaussian copula."""
    root = np.linalg.cholesky(ar_correlation(n_pixels, correlation))
    scores = np.random.default_rng(seed).standard_normal((n, n_pixels)) @ root.T
    return torch.from_numpy(np.where(scores < 0, law.ppf(stats.norm.cdf(scores)), law.isf(stats.norm.sf(scores))))


def true_log_prob(law: stats.rv_continuous, images: Tensor, correlation: float = 0.0) -> np.ndarray:
    values = images.numpy()
    scores = np.where(
        law.cdf(values) < 0.5, special.ndtri(law.cdf(values)), -special.ndtri(law.sf(values).clip(1e-300))
    )
    copula = stats.multivariate_normal(np.zeros(values.shape[1]), ar_correlation(values.shape[1], correlation))
    return law.logpdf(values).sum(1) + copula.logpdf(scores) - stats.norm.logpdf(scores).sum(1)


def excess_bits_per_pixel(density: GaussianCopulaDensity | GaussianDensity, held_out: Tensor, truth: object) -> float:
    difference = np.asarray(truth) - density.log_prob(held_out).numpy()
    return float(difference.mean()) / held_out[0].numel() / NATS_PER_BIT


def gamma_counts(n: int, mean: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.poisson(random.gamma(4.0, mean / 4.0, (n, 8, 8)))


def dithered(counts: np.ndarray, seed: int) -> Tensor:
    return torch.from_numpy(counts + np.random.default_rng(seed).random(counts.shape))


def quadrature(knots: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights over the real line: Gauss-Legendre between knots, exponentially spaced beyond them."""
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(6))
    width = knots.diff()[:, None]
    inner = (knots[:-1, None] + 0.5 * width * (nodes + 1.0)).flatten()
    inner_weights = (0.5 * width * weights).flatten()
    log_excess = torch.linspace(-40.0, 80.0, 481, dtype=torch.float64)
    excess = log_excess.exp()
    tail_weights = excess * (log_excess[1] - log_excess[0])
    places = torch.cat([knots[0] - excess, inner, knots[-1] + excess])
    return places, torch.cat([tail_weights, inner_weights, tail_weights])


@pytest.mark.parametrize("law", [stats.norm(), stats.gamma(0.7), stats.t(1.5)])
@pytest.mark.parametrize("n_samples", [20, 300, 3000])
def test_density_of_a_pixel_integrates_to_one(law: stats.rv_continuous, n_samples: int) -> None:
    fitted = GaussianCopulaDensity().fit(drawn(law, n_samples, 1, 0))
    assert fitted.knots is not None
    places, weights = quadrature(fitted.knots[:, 0])
    assert float(fitted.log_prob(places[:, None]).exp() @ weights) == pytest.approx(1.0, abs=1e-6)


def test_density_of_two_correlated_pixels_integrates_to_one() -> None:
    fitted = GaussianCopulaDensity().fit(drawn(stats.gamma(2.0), 1000, 2, 0, correlation=0.7))
    assert fitted.knots is not None
    assert fitted.independence < 0.1
    (first, first_weights), (second, second_weights) = (quadrature(fitted.knots[:, pixel]) for pixel in range(2))
    pairs = torch.cartesian_prod(first, second)
    weights = torch.outer(first_weights, second_weights).flatten()
    assert float(fitted.log_prob(pairs).exp() @ weights) == pytest.approx(1.0, abs=1e-6)


def test_scores_are_those_of_the_integrated_density_and_are_inverted() -> None:
    pixels = drawn(stats.lognorm(0.8), 2000, 3, 0).mT.contiguous()
    marginals, converged = fitted_marginals(pixels)
    assert converged
    places, weights = quadrature(marginals.knots[0])
    _, log_density = marginals.scores(places.expand(3, -1).contiguous())
    inside = torch.linspace(0.0, 12.0, 25, dtype=torch.float64)
    at = marginals.knots[0, 1::4]
    scores, _ = marginals.scores(at.expand(3, -1).contiguous())
    probability = torch.stack([(log_density[0].exp() * weights)[places < place].sum() for place in at])
    torch.testing.assert_close(torch.special.ndtr(scores[0]), probability, rtol=0.0, atol=1e-6)
    everywhere = torch.cat(
        [pixels[:, :200], inside.expand(3, -1), -inside.expand(3, -1), 100.0 * inside.expand(3, -1)], 1
    )
    scores, _ = marginals.scores(everywhere.contiguous())
    torch.testing.assert_close(marginals.values(scores), everywhere, rtol=1e-6, atol=1e-6)


def test_samples_follow_the_law_of_the_images() -> None:
    law = stats.gamma(2.0)
    fitted = GaussianCopulaDensity().fit(drawn(law, 20_000, 4, 0, correlation=0.6).reshape(-1, 2, 2))
    sampled = fitted.sample(20_000, torch.Generator().manual_seed(1))
    assert sampled.shape == (20_000, 2, 2)
    flat = sampled.flatten(1).numpy()
    for pixel in range(4):
        # 1.6 / sqrt(n) from each of the two samples.
        assert stats.kstest(flat[:, pixel], law.cdf).statistic < 3.2 / math.sqrt(20_000)
    expected = 6.0 / math.pi * np.arcsin(ar_correlation(4, 0.6) / 2.0)
    np.testing.assert_allclose(stats.spearmanr(flat).statistic, expected, atol=0.03)


@pytest.mark.parametrize("mean", [1.0, 10.0, 100.0])
def test_independent_gamma_pixels_under_poisson_noise_cost_a_hundredth_of_a_bit(mean: float) -> None:
    images, counts = dithered(gamma_counts(4000, mean, 0), 1), gamma_counts(4000, mean, 2)
    fitted = GaussianCopulaDensity().fit(images)
    truth = stats.nbinom.logpmf(counts, 4, 4 / (4 + mean)).reshape(len(counts), -1).sum(1)
    excess = excess_bits_per_pixel(fitted, dithered(counts, 3), truth)
    assert 0.0 < excess < 0.012
    assert excess_bits_per_pixel(GaussianDensity().fit(images), dithered(counts, 3), truth) > 0.1
    assert fitted.converged
    assert fitted.independence == 1.0


@pytest.mark.parametrize("law", [stats.gamma(2.0), stats.lognorm(1.0), stats.t(3.0), stats.expon()])
def test_a_known_copula_is_recovered(law: stats.rv_continuous) -> None:
    images, held_out = drawn(law, 4000, 16, 0, 0.7), drawn(law, 4000, 16, 1, 0.7)
    truth = true_log_prob(law, held_out, 0.7)
    fitted = GaussianCopulaDensity().fit(images)
    # Correlations cost 15 / (4 n) nats of a pixel and ten parameters of a marginal 10 / (2 n): 0.003 bits in all.
    assert 0.0 < excess_bits_per_pixel(fitted, held_out, truth) < 0.008
    assert excess_bits_per_pixel(GaussianDensity().fit(images), held_out, truth) > 0.04


@pytest.mark.parametrize("n_pixels", [16, 64])
def test_gaussian_images_cost_little_more_than_the_gaussian(n_pixels: int) -> None:
    law = stats.norm(5.0, 2.0)
    images, held_out = drawn(law, 4000, n_pixels, 0, 0.8), drawn(law, 4000, n_pixels, 1, 0.8)
    copula, gaussian = GaussianCopulaDensity().fit(images), GaussianDensity().fit(images)
    assert float((gaussian.log_prob(held_out) - copula.log_prob(held_out)).mean()) / n_pixels / NATS_PER_BIT < 0.003


def test_shrunk_correlations_beat_those_of_the_sample_where_images_are_few() -> None:
    images, held_out = (drawn(stats.norm(), n, 256, seed, 0.6) for seed, n in ((0, 800), (1, 2000)))
    copula, gaussian = GaussianCopulaDensity().fit(images), GaussianDensity().fit(images)
    assert float((copula.log_prob(held_out) - gaussian.log_prob(held_out)).mean()) / 256 / NATS_PER_BIT > 0.1
    assert 0.05 < copula.independence < 0.6
    few = GaussianCopulaDensity().fit(images[:100]).log_prob(held_out)
    independent = torch.distributions.Normal(images[:100].mean(0), images[:100].std(0)).log_prob(held_out).sum(1)
    assert float(few.mean()) > float(independent.mean())


def test_two_peaks_and_the_gap_between_them_are_found() -> None:
    def pair(seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        shape = (4000, 16)
        return np.where(random.random(shape) < 0.3, random.normal(0.0, 0.1, shape), random.normal(5.0, 1.0, shape))

    held_out = pair(1)
    truth = np.log(0.3 * stats.norm.pdf(held_out, 0.0, 0.1) + 0.7 * stats.norm.pdf(held_out, 5.0, 1.0)).sum(1)
    fitted = GaussianCopulaDensity().fit(torch.from_numpy(pair(0)))
    assert 0.0 < excess_bits_per_pixel(fitted, torch.from_numpy(held_out), truth) < 0.02


def test_pixels_without_a_variance_are_described() -> None:
    images, held_out = drawn(stats.cauchy(), 4000, 64, 1), drawn(stats.cauchy(), 4000, 64, 2)
    fitted = GaussianCopulaDensity().fit(images)
    assert 0.0 < excess_bits_per_pixel(fitted, held_out, stats.cauchy.logpdf(held_out.numpy()).sum(1)) < 0.02


def test_outliers_cost_a_finite_and_growing_amount() -> None:
    images = drawn(stats.norm(), 1000, 4, 0)
    images[3, 1] = 1e8
    fitted = GaussianCopulaDensity().fit(images)
    far = torch.tensor([0.0, 10.0, 1e3, 1e6, 1e12, 1e100, 1e300], dtype=torch.float64)
    log_prob = fitted.log_prob(far[:, None] * torch.tensor([1.0, 0.0, 0.0, -1.0], dtype=torch.float64))
    assert torch.isfinite(log_prob).all()
    assert (log_prob.diff() < 0.0).all()
    # One hot pixel leaves the body of its law as it was: four normal pixels have 4 x 1.42 nats.
    assert float(fitted.log_prob(drawn(stats.norm(), 1000, 4, 1)).mean()) > -6.0


@pytest.mark.parametrize("shape", [(20, 1), (25, 3), (30, 5, 5), (200, 2, 3, 3)])
def test_any_size_and_repeated_values_give_finite_log_densities(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(*shape, generator=generator, dtype=torch.float64)
    rare = torch.zeros_like(images)
    rare[4] = 1.0
    for measured in (images, images.clamp_min(0.0), images.round(), rare, images[:, :1].expand(shape).clone()):
        if bool((measured == measured[0]).flatten(1).all(0).any()):
            continue
        fitted = GaussianCopulaDensity().fit(measured)
        assert torch.isfinite(fitted.log_prob(measured)).all()
        assert torch.isfinite(fitted.log_prob(images)).all()
        assert torch.isfinite(fitted.sample(10, generator)).all()
        assert math.isnan(fitted.held_out_bias_nats)


def test_scaling_and_shifting_the_images_changes_log_prob_by_the_jacobian() -> None:
    images = drawn(stats.gamma(2.0), 500, 9, 0, 0.5)
    plain = GaussianCopulaDensity().fit(images).log_prob(images)
    for scale, shift in ((1000.0, 7.0), (1e-20, 0.0), (1e90, 0.0)):
        moved = scale * images + shift
        log_prob = GaussianCopulaDensity().fit(moved).log_prob(moved)
        torch.testing.assert_close(log_prob, plain - 9 * math.log(scale), rtol=1e-6, atol=1e-6)


def test_fits_and_samples_repeat_bit_for_bit() -> None:
    images = drawn(stats.gamma(2.0), 300, 6, 0, 0.5)
    first, second = GaussianCopulaDensity().fit(images), GaussianCopulaDensity().fit(images.numpy())  # type: ignore[arg-type]
    assert torch.equal(first.log_prob(images), second.log_prob(images))
    one, two = (first.sample(10, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)


def test_fit_leaves_the_density_it_is_called_on_alone() -> None:
    empty = GaussianCopulaDensity()
    fitted = empty.fit(drawn(stats.norm(), 50, 4, 0))
    assert empty.knots is None
    assert fitted.n_samples == 50
    assert not empty.takes_counts
    with pytest.raises(dataclasses.FrozenInstanceError):
        fitted.n_samples = 1  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="fit"):
        empty.log_prob(torch.zeros(5, 4))
    with pytest.raises(RuntimeError, match="fit"):
        empty.sample(3)
    with pytest.raises(ValueError, match=r"images of shape \(4,\)"):
        fitted.log_prob(torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("measured", "match"),
    [
        (torch.zeros(0, 4), "measured"),
        (torch.zeros(5), "shape"),
        (torch.randn(19, 4), "at least 20 images"),
        (torch.ones(20, 4), "pixels that vary"),
        (torch.cat([torch.randn(20, 3), torch.ones(20, 1)], 1), "pixels that vary"),
        (torch.full((20, 4), math.nan), "finite"),
        (1e250 * torch.randn(20, 4, dtype=torch.float64), "range of float64"),
        (1e-250 * torch.randn(20, 4, dtype=torch.float64), "range of float64"),
    ],
)
def test_bad_input_is_named(measured: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GaussianCopulaDensity().fit(measured)


def test_complex_images_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="measured: need real numbers"):
        GaussianCopulaDensity().fit(torch.zeros(20, 2, dtype=torch.complex64))
