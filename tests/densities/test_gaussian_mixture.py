"""Mixture on common axes: its own law exactly, known mixtures recovered, Gaussians at no cost, awkward data."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from bitlens.datasets import FITTING_SCENES, REPORTING_SCENES, scene_patches
from bitlens.densities.gaussian import GaussianDensity
from bitlens.densities.gaussian_mixture import GaussianMixtureDensity
from bitlens.densities.stationary import StationaryGaussianDensity

pytestmark = pytest.mark.usefixtures("one_thread")


def covariance(n_pixels: int) -> torch.Tensor:
    place = torch.arange(n_pixels, dtype=torch.float64)
    return torch.exp(-(place[:, None] - place).abs() / 5.0) + 0.1 * torch.eye(n_pixels, dtype=torch.float64)


def three(n_pixels: int) -> MixtureSameFamily:
    """Three brightnesses and contrasts, each with white noise in proportion to its brightness."""
    scale = torch.tensor([0.5, 2.0, 6.0], dtype=torch.float64)
    brightness = torch.tensor([10.0, 20.0, 40.0], dtype=torch.float64)
    white = torch.eye(n_pixels, dtype=torch.float64)
    covariances = scale[:, None, None].square() * covariance(n_pixels) + 0.02 * brightness[:, None, None] * white
    law = MultivariateNormal(brightness[:, None].expand(3, n_pixels), covariances)
    return MixtureSameFamily(Categorical(probs=torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)), law)


def draw(law: MixtureSameFamily | MultivariateNormal, n: int, seed: int) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        images: torch.Tensor = law.sample((n,))
    return images


def own_law(fitted: GaussianMixtureDensity) -> MixtureSameFamily:
    assert fitted.log_weights is not None
    assert fitted.means is not None
    assert fitted.variances is not None
    assert fitted.basis is not None
    covariances = fitted.basis @ torch.diag_embed(fitted.variances) @ fitted.basis.mT
    law = MultivariateNormal(fitted.means.flatten(1), covariances)
    return MixtureSameFamily(Categorical(logits=fitted.log_weights), law)


def test_log_prob_is_that_of_the_mixture_of_its_fields() -> None:
    images = draw(three(16), 1000, 0)
    fitted = GaussianMixtureDensity().fit(images.reshape(-1, 4, 4))
    assert fitted.log_weights is not None
    assert len(fitted.log_weights) > 1
    assert float(fitted.log_weights.logsumexp(0)) == pytest.approx(0.0, abs=1e-12)
    other = draw(three(16), 500, 1)
    expected = own_law(fitted).log_prob(other)
    torch.testing.assert_close(fitted.log_prob(other.reshape(-1, 4, 4)), expected, rtol=1e-9, atol=1e-9)


def test_samples_have_the_moments_of_the_mixture_of_its_fields() -> None:
    fitted = GaussianMixtureDensity().fit(draw(three(4), 1000, 0).reshape(-1, 2, 2))
    law = own_law(fitted)
    n = 100_000
    sampled = fitted.sample(n, torch.Generator().manual_seed(1))
    assert sampled.shape == (n, 2, 2)
    flat = sampled.flatten(1)
    error = (flat.mean(0) - law.mean) / (law.variance / n).sqrt()
    assert float(error.abs().max()) < 5.0
    squares = (flat - law.mean).square()
    error = (squares.mean(0) - law.variance) / (squares.std(0) / math.sqrt(n))
    assert float(error.abs().max()) < 5.0
    # Products between pixels too: E log q of its own samples is that of the law's.
    other = draw(law, n, 2)
    own, expected = fitted.log_prob(sampled), law.log_prob(other)
    deviation = math.sqrt(float(own.var() + expected.var()) / n)
    assert abs(float(own.mean() - expected.mean())) < 5.0 * deviation


def test_a_known_mixture_of_three_is_recovered() -> None:
    law = three(64)
    images, held_out = draw(law, 4000, 0), draw(law, 4000, 1)
    truth = law.log_prob(held_out)
    excess = float((truth - GaussianMixtureDensity().fit(images).log_prob(held_out)).mean()) / 64
    gaussian = float((truth - GaussianDensity().fit(images).log_prob(held_out)).mean()) / 64
    # The common axes are those of one 64 x 64 covariance: D^2 / (4 n) = 0.26 nats of 64 pixels, and 3 x 128 means
    # and variances: 0.05 nats. Twice that in all, where one Gaussian is off by a hundred times as much.
    assert 0.0 < excess < 0.01
    assert gaussian > 0.3


def test_a_single_gaussian_costs_what_the_full_gaussian_does() -> None:
    law = MultivariateNormal(torch.full((64,), 5.0, dtype=torch.float64), covariance(64))
    images, held_out = draw(law, 2000, 0), draw(law, 4000, 1)
    fitted, full = GaussianMixtureDensity().fit(images), GaussianDensity().fit(images)
    assert float((full.log_prob(held_out) - fitted.log_prob(held_out)).mean()) / 64 < 0.05
    assert fitted.converged


def test_patches_of_photographs_are_far_better_described_than_by_a_stationary_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for names in (FITTING_SCENES, REPORTING_SCENES):
        scenes = scene_patches(1000, 8, names=names, mean=200.0, generator=generator).scenes[:, 0].double()
        counts = torch.poisson(scenes, generator=generator)
        parts.append(counts + torch.rand(counts.shape, generator=generator, dtype=torch.float64))
    mixture, stationary = GaussianMixtureDensity().fit(parts[0]), StationaryGaussianDensity().fit(parts[0])
    gain = float((mixture.log_prob(parts[1]) - stationary.log_prob(parts[1])).mean()) / 64 / math.log(2)
    assert gain > 0.8


def test_fewer_images_than_pixels_cost_less_than_independent_pixels() -> None:
    law = MultivariateNormal(torch.zeros(256, dtype=torch.float64), covariance(256))
    images, held_out = draw(law, 200, 0), draw(law, 1000, 1)
    fitted = GaussianMixtureDensity().fit(images.reshape(-1, 16, 16)).log_prob(held_out.reshape(-1, 16, 16))
    independent = torch.distributions.Normal(images.mean(0), images.std(0)).log_prob(held_out).sum(1)
    assert float((law.log_prob(held_out) - fitted).mean()) > 0.0
    assert float(fitted.mean()) > float(independent.mean())


@pytest.mark.parametrize("shape", [(10, 1), (10, 3), (12, 5, 5), (40, 2, 3, 3), (200, 8, 8)])
def test_any_size_and_constant_pixels_give_finite_log_densities(shape: tuple[int, ...]) -> None:
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant = images.clone()
    constant.flatten(1)[:, 1:2] = 7.0
    repeated = images.clone()
    repeated[: len(images) // 2] = repeated[0]
    for measured in (images, constant, repeated):
        fitted = GaussianMixtureDensity().fit(measured)
        assert torch.isfinite(fitted.log_prob(measured)).all()
        assert torch.isfinite(fitted.log_prob(100.0 + images)).all()
        assert math.isnan(fitted.held_out_bias_nats)


def test_fits_and_samples_repeat_bit_for_bit_whatever_the_global_generator() -> None:
    images = draw(three(9), 300, 0)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = GaussianMixtureDensity().fit(images)
        torch.manual_seed(4)
        second = GaussianMixtureDensity().fit(images.numpy())  # type: ignore[arg-type]
    assert torch.equal(first.log_prob(images), second.log_prob(images))
    one, two = (first.sample(10, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)


def test_scaling_the_images_changes_log_prob_by_the_jacobian() -> None:
    images = draw(three(9), 400, 0)
    plain = GaussianMixtureDensity().fit(images).log_prob(images)
    for scale in (1000.0, 1e-20, 1e90):
        scaled = GaussianMixtureDensity().fit(scale * images).log_prob(scale * images)
        torch.testing.assert_close(scaled, plain - 9 * math.log(scale), rtol=1e-6, atol=1e-6)


def test_fit_leaves_the_density_it_is_called_on_alone() -> None:
    empty = GaussianMixtureDensity()
    fitted = empty.fit(draw(three(4), 50, 0))
    assert empty.means is None
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
        (torch.randn(9, 4), "at least 10 images"),
        (torch.ones(20, 4), "images that vary"),
        (torch.full((20, 4), math.nan), "finite"),
        (1e200 * torch.randn(20, 4, dtype=torch.float64), "range of float64"),
        (1e-150 * torch.randn(20, 4, dtype=torch.float64), "range of float64"),
    ],
)
def test_bad_input_is_named(measured: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GaussianMixtureDensity().fit(measured)


def test_complex_images_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="measured: need real numbers"):
        GaussianMixtureDensity().fit(torch.zeros(20, 2, dtype=torch.complex64))
