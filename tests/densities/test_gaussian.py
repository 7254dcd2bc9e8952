"""Full Gaussian: the density itself, and what a finite sample costs it, against independent oracles."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy import stats as scipy_stats

from bitlens.densities import GaussianDensity, held_out_bias_nats, plug_in_bias_nats

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(n: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    n_pixels = math.prod(shape)
    mixing = torch.randn(n_pixels, n_pixels, generator=generator, dtype=torch.float64)
    white = torch.randn(n, n_pixels, generator=generator, dtype=torch.float64)
    return (white @ mixing + 3.0).reshape(n, *shape)


def test_log_prob_is_that_of_scipy_at_the_sample_moments() -> None:
    measured = draw(200, (2, 3))
    flat = measured.flatten(1).numpy()
    expected = scipy_stats.multivariate_normal(flat.mean(0), np.cov(flat.T)).logpdf(flat)
    fitted = GaussianDensity().fit(measured)
    np.testing.assert_allclose(fitted.log_prob(measured).numpy(), expected, rtol=1e-12)


def test_samples_have_the_fitted_moments() -> None:
    fitted = GaussianDensity().fit(draw(500, (3,)))
    sampled = fitted.sample(200_000, torch.Generator().manual_seed(1))
    again = GaussianDensity().fit(sampled)
    assert fitted.mean is not None
    assert fitted.cholesky is not None
    assert again.mean is not None
    assert again.cholesky is not None
    covariance = fitted.cholesky @ fitted.cholesky.mT
    scale = covariance.diagonal().sqrt()
    assert float(((again.mean - fitted.mean) / scale).abs().max()) < 5 / math.sqrt(200_000)
    difference = (again.cholesky @ again.cholesky.mT - covariance) / torch.outer(scale, scale)
    assert float(difference.abs().max()) < 5 * math.sqrt(2 / 200_000)


@pytest.mark.parametrize(("n_samples", "n_pixels"), [(12, 4), (40, 16), (300, 16)])
def test_biases_are_those_of_simulated_gaussian_images(n_samples: int, n_pixels: int) -> None:
    # The bias does not depend on the truth, so white images stand for all; E over the unseen image is exact.
    entropy = 0.5 * n_pixels * math.log(2 * math.pi * math.e)
    plug_in, held_out = [], []
    for seed in range(400):
        white = torch.randn(n_samples, n_pixels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        fitted = GaussianDensity().fit(white)
        assert fitted.mean is not None
        assert fitted.cholesky is not None
        log_determinant = 2.0 * float(fitted.cholesky.diagonal().log().sum())
        inverse = torch.cholesky_inverse(fitted.cholesky)
        spread = float(inverse.trace() + fitted.mean @ inverse @ fitted.mean)
        constant = n_pixels * math.log(2 * math.pi)
        plug_in.append(0.5 * (log_determinant + constant + n_pixels) - entropy)
        held_out.append(0.5 * (log_determinant + constant + spread) - entropy)
    for values, formula in (
        (plug_in, plug_in_bias_nats(n_samples, n_pixels)),
        (held_out, held_out_bias_nats(n_samples, n_pixels)),
    ):
        assert abs(np.mean(values) - formula) < 4 * np.std(values) / math.sqrt(len(values))


@given(st.integers(1, 40), st.integers(3, 400))
def test_plug_in_bias_is_the_sum_of_digammas(n_pixels: int, extra: int) -> None:
    n_samples = n_pixels + extra
    degrees = n_samples - 1
    expected = 0.5 * sum(special.digamma((degrees - i) / 2) - math.log(degrees / 2) for i in range(n_pixels))
    assert plug_in_bias_nats(n_samples, n_pixels) == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert plug_in_bias_nats(n_samples, n_pixels) < 0 < held_out_bias_nats(n_samples, n_pixels)


def test_known_value_of_the_bias_at_a_thousand_pixels() -> None:
    # 2000 images of 1024 pixels: +0.53 bits per pixel.
    assert held_out_bias_nats(2000, 1024) / 1024 / math.log(2) == pytest.approx(0.53, abs=0.005)


def test_fit_leaves_the_density_it_is_called_on_alone() -> None:
    empty = GaussianDensity()
    fitted = empty.fit(draw(50, (2,)))
    assert empty.mean is None
    assert fitted.mean is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        fitted.n_samples = 1  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="fit"):
        empty.log_prob(draw(5, (2,)))


@pytest.mark.parametrize(
    ("measured", "match"),
    [
        (torch.zeros(0, 4), "measured"),
        (torch.zeros(5), "shape"),
        (torch.zeros(6, 4), "at least 7 images"),
        (torch.ones(20, 4), "full rank"),
        (torch.full((20, 4), math.nan), "finite"),
        (1e200 * torch.randn(20, 4, dtype=torch.float64), "full rank"),
    ],
)
def test_bad_input_is_named(measured: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GaussianDensity().fit(measured)


@pytest.mark.parametrize("measured", [torch.zeros(20, 2, dtype=torch.complex64), [["a", "b"]] * 20])
def test_what_is_no_array_of_real_numbers_is_a_type_error(measured: object) -> None:
    with pytest.raises(TypeError, match="measured: need"):
        GaussianDensity().fit(measured)  # type: ignore[arg-type]


def test_other_image_shape_is_an_error() -> None:
    fitted = GaussianDensity().fit(draw(50, (2, 2)))
    with pytest.raises(ValueError, match=r"images of shape \(2, 2\)"):
        fitted.log_prob(torch.zeros(3, 4))


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_scaling_and_shifting_the_images_changes_log_prob_by_the_jacobian(scale: float, shift: float) -> None:
    measured = draw(60, (5,))
    plain = GaussianDensity().fit(measured).log_prob(measured)
    moved = GaussianDensity().fit(scale * measured + shift).log_prob(scale * measured + shift)
    torch.testing.assert_close(moved, plain - 5 * math.log(scale), rtol=1e-6, atol=1e-6)
