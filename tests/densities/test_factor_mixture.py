"""Mixture of factor analysers: its own law exactly, known ones recovered, likelihoods that never fall, few images."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from bitlens.datasets import FITTING_SCENES, scene_patches
from bitlens.densities._factor_models import FULL, Prior, expectation_maximisation
from bitlens.densities.factor_mixture import FactorMixtureDensity
from bitlens.densities.gaussian import GaussianDensity
from bitlens.densities.gaussian_mixture import GaussianMixtureDensity
from bitlens.densities.stationary import StationaryGaussianDensity

pytestmark = pytest.mark.usefixtures("one_thread")

Covariance = Literal["low_rank", "full"]
both = pytest.mark.parametrize("covariance", ["low_rank", "full"])
CASES: dict[str, FactorMixtureDensity] = {
    "low rank, chosen": FactorMixtureDensity(),
    "low rank, given": FactorMixtureDensity(n_components=3, rank=2),
    "low rank, no factors": FactorMixtureDensity(n_components=2, rank=0),
    "full, chosen": FactorMixtureDensity("full"),
    "full, given": FactorMixtureDensity("full", n_components=3),
}
every_case = pytest.mark.parametrize("case", CASES)


def three(n_pixels: int, rank: int = 3) -> MixtureSameFamily:
    """Three factor analysers whose loadings have nothing in common."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    loadings = torch.tensor([1.0, 2.0, 0.7], dtype=torch.float64)[:, None, None] * normal(3, n_pixels, rank)
    variances = 0.3 + torch.rand(3, n_pixels, generator=generator, dtype=torch.float64)
    law = MultivariateNormal(0.7 * normal(3, n_pixels), loadings @ loadings.mT + torch.diag_embed(variances))
    return MixtureSameFamily(Categorical(probs=torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)), law)


def draw(law: MixtureSameFamily | MultivariateNormal, n: int, seed: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        images: Tensor = law.sample((n,))
    return images


def own_law(fitted: FactorMixtureDensity) -> MixtureSameFamily:
    assert fitted.log_weights is not None
    assert fitted.means is not None
    if fitted.cholesky is not None:
        covariances = fitted.cholesky @ fitted.cholesky.mT
    else:
        assert fitted.loadings is not None
        assert fitted.variances is not None
        covariances = fitted.loadings @ fitted.loadings.mT + torch.diag_embed(fitted.variances)
    if fitted.axes is not None:
        covariances = fitted.axes @ covariances @ fitted.axes.mT
    law = MultivariateNormal(fitted.means.flatten(1), 0.5 * (covariances + covariances.mT))
    return MixtureSameFamily(Categorical(logits=fitted.log_weights), law)


def excess(fitted: FactorMixtureDensity | GaussianMixtureDensity, law: MixtureSameFamily, held_out: Tensor) -> float:
    """Nats per image."""
    return float((law.log_prob(held_out) - fitted.log_prob(held_out)).mean())


@every_case
def test_log_prob_is_that_of_the_mixture_of_its_fields(case: str) -> None:
    fitted = CASES[case].fit(draw(three(16), 800, 0).reshape(-1, 4, 4))
    assert fitted.log_weights is not None
    assert float(fitted.log_weights.logsumexp(0)) == pytest.approx(0.0, abs=1e-12)
    other = draw(three(16), 300, 1)
    expected = own_law(fitted).log_prob(other)
    torch.testing.assert_close(fitted.log_prob(other.reshape(-1, 4, 4)), expected, rtol=1e-9, atol=1e-9)


@every_case
def test_samples_have_the_moments_of_the_mixture_of_its_fields(case: str) -> None:
    fitted = CASES[case].fit(draw(three(4, 1), 800, 0).reshape(-1, 2, 2))
    law = own_law(fitted)
    n = 100_000
    sampled = fitted.sample(n, torch.Generator().manual_seed(1))
    assert sampled.shape == (n, 2, 2)
    flat = sampled.flatten(1)
    assert float(((flat.mean(0) - law.mean) / (law.variance / n).sqrt()).abs().max()) < 5.0
    squares = (flat - law.mean).square()
    assert float(((squares.mean(0) - law.variance) / (squares.std(0) / math.sqrt(n))).abs().max()) < 5.0
    # Products between pixels too: E log q of its own samples is that of the law's.
    own, expected = fitted.log_prob(sampled), law.log_prob(draw(law, n, 2))
    assert abs(float(own.mean() - expected.mean())) < 5.0 * math.sqrt(float(own.var() + expected.var()) / n)


@both
def test_density_of_two_pixels_integrates_to_one(covariance: Covariance) -> None:
    fitted = FactorMixtureDensity(covariance).fit(draw(three(2, 1), 400, 0))
    line = torch.linspace(-40.0, 40.0, 1601, dtype=torch.float64)
    density = fitted.log_prob(torch.cartesian_prod(line, line)).exp()
    assert float(density.sum() * (line[1] - line[0]).square()) == pytest.approx(1.0, abs=1e-6)


def test_a_known_mixture_is_recovered() -> None:
    law = three(36)
    images, held_out = draw(law, 2000, 0), draw(law, 4000, 1)
    # 3 (36 + 36 + 105) parameters: 0.13 nats of an image. Twice that, for numbers that the fit chooses itself.
    given = FactorMixtureDensity(n_components=3, rank=3).fit(images)
    assert 0.0 < excess(given, law, held_out) < 0.18
    assert given.loadings is not None
    assert given.loadings.shape == (3, 36, 3)
    assert given.axes is None
    assert 0.0 < excess(FactorMixtureDensity().fit(images), law, held_out) < 0.3
    # 3 (36 + 666) parameters: 0.53 nats, a little less when shrunk.
    assert 0.0 < excess(FactorMixtureDensity("full").fit(images), law, held_out) < 0.6
    assert excess(GaussianMixtureDensity().fit(images), law, held_out) > 1.5


@both
def test_a_single_gaussian_costs_little_more_than_the_full_gaussian(covariance: Covariance) -> None:
    place = torch.arange(36, dtype=torch.float64)
    matrix = torch.exp(-(place[:, None] - place).abs() / 5.0) + 0.1 * torch.eye(36, dtype=torch.float64)
    law = MultivariateNormal(torch.full((36,), 5.0, dtype=torch.float64), matrix)
    images, held_out = draw(law, 2000, 0), draw(law, 4000, 1)
    fitted, full = FactorMixtureDensity(covariance).fit(images), GaussianDensity().fit(images)
    assert float((full.log_prob(held_out) - fitted.log_prob(held_out)).mean()) / 36 < 0.01


@pytest.mark.parametrize("rank", [0, 4, FULL])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("diagonal_images", [0.0, 30.0])
def test_no_step_lowers_the_penalised_likelihood(rank: int, turned: bool, diagonal_images: float) -> None:
    images = draw(three(12), 300, 0)
    images = images - images.mean(0)
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(300, 4, generator=generator, dtype=torch.float64).square()
    share = share / share.sum(1, keepdim=True)
    variances, axes = torch.linalg.eigh(images.mT @ images / 300)
    prior = Prior(
        variances.expand(4, -1), None if turned else axes, float(variances.mean()), 5.0, diagonal_images, True
    )
    values = images @ axes if turned else images
    fit = expectation_maximisation(values, share, prior, rank, 60, 0.0)
    gains = torch.tensor(fit.objectives, dtype=torch.float64).diff()
    # Rounding of sums of about 10^4 nats.
    assert float(gains.min()) > -1e-8
    assert float(gains[:5].sum()) > 10.0


def test_patches_of_photographs_are_far_better_described_than_by_a_stationary_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(2):
        scenes = scene_patches(4000, 16, names=FITTING_SCENES, mean=200.0, generator=generator).scenes[:, 0].double()
        counts = torch.poisson(scenes, generator=generator)
        parts.append(counts + torch.rand(counts.shape, generator=generator, dtype=torch.float64))

    def bits_per_pixel(density: FactorMixtureDensity | StationaryGaussianDensity) -> float:
        return -float(density.fit(parts[0]).log_prob(parts[1]).mean()) / 256 / math.log(2.0)

    assert bits_per_pixel(FactorMixtureDensity()) < bits_per_pixel(StationaryGaussianDensity()) - 0.5


@both
def test_fewer_images_than_pixels_cost_less_than_independent_pixels(covariance: Covariance) -> None:
    law = three(64)
    images, held_out = draw(law, 50, 0), draw(law, 500, 1)
    fitted = FactorMixtureDensity(covariance).fit(images.reshape(-1, 8, 8)).log_prob(held_out.reshape(-1, 8, 8))
    independent = torch.distributions.Normal(images.mean(0), images.std(0)).log_prob(held_out).sum(1)
    assert float((law.log_prob(held_out) - fitted).mean()) > 0.0
    assert float(fitted.mean()) > float(independent.mean())


@both
@pytest.mark.parametrize("shape", [(20, 1), (20, 3), (24, 5, 5), (40, 2, 3, 3), (150, 6, 6)])
def test_any_size_and_constant_pixels_give_finite_log_densities(covariance: Covariance, shape: tuple[int, ...]) -> None:
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant = images.clone()
    constant.flatten(1)[:, 1:2] = 7.0
    repeated = images.clone()
    repeated[: len(images) // 2] = repeated[0]
    for measured in (images, constant, repeated):
        for n_components in (None, 5):
            fitted = FactorMixtureDensity(covariance, n_components=n_components).fit(measured)
            assert torch.isfinite(fitted.log_prob(measured)).all()
            assert torch.isfinite(fitted.log_prob(100.0 + images)).all()
            assert math.isnan(fitted.held_out_bias_nats)


@both
def test_fits_and_samples_repeat_bit_for_bit_whatever_the_global_generator(covariance: Covariance) -> None:
    images = draw(three(9), 300, 0)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = FactorMixtureDensity(covariance, seed=2).fit(images)
        torch.manual_seed(4)
        second = FactorMixtureDensity(covariance, seed=2).fit(images.numpy())  # type: ignore[arg-type]
    assert torch.equal(first.log_prob(images), second.log_prob(images))
    one, two = (first.sample(10, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)


@both
def test_scaling_the_images_changes_log_prob_by_the_jacobian(covariance: Covariance) -> None:
    images = draw(three(9), 400, 0)
    plain = FactorMixtureDensity(covariance).fit(images).log_prob(images)
    for scale in (1024.0, 2.0**-66, 2.0**300):
        scaled = FactorMixtureDensity(covariance).fit(scale * images).log_prob(scale * images)
        torch.testing.assert_close(scaled, plain - 9 * math.log(scale), rtol=1e-6, atol=1e-6)


def test_fit_leaves_the_density_it_is_called_on_alone() -> None:
    empty = FactorMixtureDensity(n_components=2, rank=1, max_iterations=7, seed=3)
    fitted = empty.fit(draw(three(4, 1), 50, 0))
    assert empty.means is None
    assert (fitted.n_components, fitted.rank, fitted.max_iterations, fitted.seed) == (2, 1, 7, 3)
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
        (torch.ones(20, 4), "images that vary"),
        (torch.full((20, 4), math.nan), "finite"),
        (1e200 * torch.randn(20, 4, dtype=torch.float64), "range of float64"),
        (1e-150 * torch.randn(20, 4, dtype=torch.float64), "range of float64"),
    ],
)
def test_bad_input_is_named(measured: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FactorMixtureDensity().fit(measured)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match='covariance: need "low_rank" or "full"'):
        FactorMixtureDensity("diagonal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_components: need at least 1, got 0"):
        FactorMixtureDensity(n_components=0)
    with pytest.raises(ValueError, match="rank: need at least 0, got -1"):
        FactorMixtureDensity(rank=-1)
    with pytest.raises(ValueError, match="max_iterations: need at least 1"):
        FactorMixtureDensity(max_iterations=0)
    with pytest.raises(ValueError, match="rank: need less than the 4 pixels"):
        FactorMixtureDensity(rank=4).fit(torch.randn(30, 4))
    with pytest.raises(ValueError, match="at least 60 images"):
        FactorMixtureDensity(n_components=30).fit(torch.randn(40, 4))


def test_complex_images_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="measured: need real numbers"):
        FactorMixtureDensity().fit(torch.zeros(20, 2, dtype=torch.complex64))
