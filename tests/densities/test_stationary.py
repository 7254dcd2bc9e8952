"""Stationary Gaussian: truth recovered with its predicted excess, all quadrants free, robust to any data."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlens.densities import GaussianDensity, StationaryGaussianDensity

pytestmark = pytest.mark.usefixtures("one_thread")


def field_covariance(size: int, anisotropy: float = 1.0, signal_to_noise: float = 10.0) -> torch.Tensor:
    """Block of a periodic power-law field, its slow axis at 45 degrees, plus white noise of variance 1."""
    period = 4 * size
    frequency = torch.fft.fftfreq(period, dtype=torch.float64)
    along = (frequency[:, None] + frequency) / math.sqrt(2.0)
    across = (frequency[:, None] - frequency) / math.sqrt(2.0)
    spectrum = 1.0 / (along**2 + (anisotropy * across) ** 2 + period**-2.0)
    correlation = torch.fft.ifft2(spectrum * (signal_to_noise / spectrum.mean())).real
    row, column = torch.arange(size).repeat_interleave(size), torch.arange(size).repeat(size)
    field = correlation[(row[:, None] - row) % period, (column[:, None] - column) % period]
    return field + torch.eye(size**2, dtype=torch.float64)


def draw(n: int, covariance: torch.Tensor, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(n, len(covariance), generator=generator, dtype=torch.float64)
    return (white @ torch.linalg.cholesky(covariance).mT).reshape(n, *shape)


def divergence_nats(truth: torch.Tensor, fitted: StationaryGaussianDensity) -> float:
    """Kullback-Leibler divergence from N(0, truth): the exact expected held-out excess of this fit."""
    assert fitted.mean is not None
    assert fitted.cholesky is not None
    inverse = torch.cholesky_inverse(fitted.cholesky)
    mean = fitted.mean.flatten()
    spread = (inverse @ truth).trace() - len(truth) + mean @ inverse @ mean
    return 0.5 * float(spread + 2 * fitted.cholesky.diagonal().log().sum() - torch.logdet(truth))


@pytest.mark.parametrize("anisotropy", [1.0, 3.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_excess_over_truth_is_the_number_of_parameters_over_twice_the_images(anisotropy: float, channels: int) -> None:
    size, n = 8, 1000
    truth = field_covariance(size, anisotropy)
    shape: tuple[int, ...] = (size, size)
    if channels == 2:
        between = torch.tensor([[1.0, 0.8], [0.8, 1.5]], dtype=torch.float64)
        truth = torch.kron(between, truth)
        shape = (2, size, size)
    excess, predicted = [], 0.0
    for seed in range(5):
        fitted = StationaryGaussianDensity().fit(draw(n, truth, shape, seed))
        assert fitted.converged
        predicted = fitted.held_out_bias_nats
        excess.append(divergence_nats(truth, fitted))
    mean_excess = sum(excess) / len(excess)
    # Leading order, and an iteration that stops a little early: a fifth, where a symmetric-quadrant model
    # of the anisotropic field is off by more than a hundred times the prediction.
    assert 0.8 * predicted < mean_excess < 1.2 * predicted


def test_quadrants_are_not_mirrored() -> None:
    truth = field_covariance(8, anisotropy=3.0)
    fitted = StationaryGaussianDensity().fit(draw(4000, truth, (8, 8), 0))
    assert fitted.cholesky is not None
    covariance = fitted.cholesky @ fitted.cholesky.mT
    centre, down_right, down_left = 3 * 8 + 3, 4 * 8 + 4, 4 * 8 + 2
    along, across = float(covariance[centre, down_right]), float(covariance[centre, down_left])
    assert along == pytest.approx(float(truth[centre, down_right]), rel=0.1)
    assert across == pytest.approx(float(truth[centre, down_left]), rel=0.1)
    assert abs(along - across) > 0.5


def test_covariance_depends_on_the_displacement_only() -> None:
    fitted = StationaryGaussianDensity().fit(draw(50, field_covariance(5), (5, 5), 0))
    assert fitted.cholesky is not None
    covariance = (fitted.cholesky @ fitted.cholesky.mT).reshape(5, 5, 5, 5)
    torch.testing.assert_close(covariance[:4, :4, :4, :4], covariance[1:, 1:, 1:, 1:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(covariance[:4, 1:, :4, 1:], covariance[1:, :4, 1:, :4], rtol=1e-9, atol=1e-9)


def test_log_prob_is_that_of_its_own_gaussian_and_samples_follow_it() -> None:
    fitted = StationaryGaussianDensity().fit(draw(300, field_covariance(4), (4, 4), 0))
    assert fitted.mean is not None
    assert fitted.cholesky is not None
    images = fitted.sample(5000, torch.Generator().manual_seed(2))
    oracle = torch.distributions.MultivariateNormal(fitted.mean.flatten(), scale_tril=fitted.cholesky)
    torch.testing.assert_close(fitted.log_prob(images), oracle.log_prob(images.flatten(1)))
    entropy = float(oracle.entropy())
    assert abs(float(-fitted.log_prob(images).mean()) - entropy) < 4 * math.sqrt(16 / 2 / 5000)


def test_starting_from_an_earlier_fit_ends_in_the_same_place_sooner() -> None:
    images = draw(400, field_covariance(8), (8, 8), 0)
    first = StationaryGaussianDensity().fit(images)
    second = first.fit(images)
    assert second.n_iterations < first.n_iterations
    assert float((second.log_prob(images) - first.log_prob(images)).mean()) == pytest.approx(0.0, abs=0.01)


def test_few_images_of_strongly_correlated_pixels_stay_positive_definite() -> None:
    # Averages over pairs are indefinite here: their smallest eigenvalue is below zero.
    truth = field_covariance(8, signal_to_noise=1e4)
    images = draw(6, truth, (8, 8), 0)
    deviation = (images - images.mean(0)).flatten(1)
    sample = deviation.mT @ deviation / 5
    row, column = torch.arange(8).repeat_interleave(8), torch.arange(8).repeat(8)
    place = (row[:, None] - row) % 16 * 16 + (column[:, None] - column) % 16
    sums = torch.zeros(256, dtype=torch.float64).index_add_(0, place.flatten(), sample.flatten())
    counts = torch.bincount(place.flatten(), minlength=256).clamp_min(1)
    assert float(torch.linalg.eigvalsh((sums / counts)[place])[0]) < 0
    fitted = StationaryGaussianDensity().fit(images)
    held_out = draw(500, truth, (8, 8), 1)
    assert fitted.cholesky is not None
    # An excess of a few nats per pixel at most, for 6 images; a clipped matrix costs thousands.
    oracle = torch.distributions.MultivariateNormal(torch.zeros(64, dtype=torch.float64), truth)
    excess = float((oracle.log_prob(held_out.flatten(1)) - fitted.log_prob(held_out)).mean())
    assert 0 < excess < 4 * 64


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(4, 30), st.integers(1, 5), st.integers(1, 5), st.sampled_from([None, 1, 2, 3])
)
def test_any_image_size_gives_finite_log_densities(
    seed: int, n: int, rows: int, columns: int, channels: int | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, columns) if channels is None else (channels, rows, columns)
    counts = torch.poisson(torch.rand(n, *shape, generator=generator, dtype=torch.float64) * 3, generator=generator)
    images = counts + torch.rand(counts.shape, generator=generator, dtype=torch.float64)
    fitted = StationaryGaussianDensity().fit(images)
    assert torch.isfinite(fitted.log_prob(images)).all()
    assert math.isfinite(fitted.held_out_bias_nats)


def test_one_pixel_is_the_plain_gaussian() -> None:
    images = draw(40, torch.tensor([[4.0]], dtype=torch.float64), (1, 1), 0)
    stationary, full = StationaryGaussianDensity().fit(images), GaussianDensity().fit(images)
    torch.testing.assert_close(stationary.log_prob(images), full.log_prob(images))


@pytest.mark.parametrize(
    ("measured", "match"),
    [
        (torch.zeros(20, 4), "row, column"),
        (torch.zeros(3, 4, 4), "at least 4 images"),
        (torch.ones(20, 4, 4), "vary"),
        (torch.full((20, 4, 4), math.inf), "finite"),
        (1e200 * torch.randn(20, 4, 4, dtype=torch.float64), "float64 can hold"),
    ],
)
def test_bad_input_is_named(measured: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        StationaryGaussianDensity().fit(measured)
