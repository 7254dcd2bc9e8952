"""Scores outside a group, through the kernel and one by one, against the plain matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise, estimate_information, ops
from bitlens.estimators import _known_channel
from bitlens.estimators._inputs import Groups, independent_scenes, make_groups
from bitlens.noise import NoiseModel

pytestmark = pytest.mark.usefixtures("one_thread")


def example(grouped: bool) -> tuple[Tensor, Tensor, Groups]:
    rng = torch.Generator().manual_seed(0)
    mean = 5.0 + 3.0 * torch.rand(23, 2, 3, generator=rng, dtype=torch.float64)
    measured = torch.poisson(mean, generator=rng)
    labels = torch.randint(6, (23,), generator=rng) if grouped else None
    return mean, measured, make_groups(labels, measured, rng)


def matrix(
    noise: GaussianNoise | PoissonNoise | PoissonGaussianNoise, mean: Tensor, measured: Tensor, groups: Groups
) -> tuple[Tensor, Tensor]:
    scores = noise.log_prob(measured[:, None], mean[None]).flatten(2).sum(2)
    return scores, scores.masked_fill(groups.labels[:, None] == groups.labels, -math.inf)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("noise", [GaussianNoise(2.0), PoissonNoise(), PoissonGaussianNoise(read_std=1.0)])
def test_channel_is_that_of_the_plain_matrix(
    noise: GaussianNoise | PoissonNoise | PoissonGaussianNoise, grouped: bool
) -> None:
    mean, measured, groups = example(grouped)
    scores, outside = matrix(noise, mean, measured, groups)
    channel = _known_channel.known_channel(measured, mean, noise, groups)
    assert channel is not None
    assert channel.exact
    torch.testing.assert_close(channel.positive, scores.diagonal())
    n_outside = torch.isfinite(outside).sum(1).to(torch.float64)
    torch.testing.assert_close(channel.log_marginal, torch.logsumexp(outside, 1) - n_outside.log())
    weight = torch.rand(23, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = (weight[:, None] * torch.softmax(outside, 1)).sum(0)
    torch.testing.assert_close(channel.column_shares(weight), expected)


@pytest.mark.parametrize("grouped", [False, True])
def test_influence_is_the_derivative_by_the_weight_of_a_scene(grouped: bool) -> None:
    # Numerical oracle: raise the weight of one scene among rows and columns, keep the lower bound's K.
    noise = GaussianNoise(2.0)
    mean, measured, groups = example(grouped)
    channel = _known_channel.known_channel(measured, mean, noise, groups)
    assert channel is not None
    bound = _known_channel.lower_bound(channel, groups)
    scores, outside = matrix(noise, mean, measured, groups)
    n_outside = torch.isfinite(outside).sum(1).to(torch.float64)
    # Groups of unequal size count as fewer scenes.
    count = independent_scenes(groups.labels) + 1
    assert count == (groups.count if not grouped else min(count, groups.count - 1))
    share = math.log(count - 1) - n_outside.log()

    def value(weight: Tensor) -> Tensor:
        columns = torch.logaddexp(scores.diagonal() + weight.log(), torch.logsumexp(outside + weight.log(), 1) + share)
        rows = scores.diagonal() - columns + weight.mean().log() + math.log(count)
        return (weight * rows).sum() / weight.sum()

    ones = torch.ones(23, dtype=torch.float64, requires_grad=True)
    at_ones = value(ones)
    (gradient,) = torch.autograd.grad(at_ones, ones)
    assert float(bound.terms.rows.mean()) == pytest.approx(at_ones.item(), rel=1e-12)
    influence = bound.terms.influence(channel)
    torch.testing.assert_close((influence - influence.mean()) / 23, gradient)


def test_a_surrogate_is_used_only_where_the_likelihood_is_too_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, measured, groups = example(False)
    noise = PoissonGaussianNoise(read_std=1.0)
    monkeypatch.setattr(_known_channel, "_MAX_PAIR_EVALUATIONS", 23 * 23 * 6 - 1)
    channel = _known_channel.known_channel(measured, mean, noise, groups)
    assert channel is not None
    assert not channel.exact
    gaussian = _known_channel.known_channel(measured, mean, GaussianNoise(1.0), groups)
    assert gaussian is not None
    assert gaussian.exact


def test_chunks_of_the_likelihood_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, measured, groups = example(True)
    noise = PoissonGaussianNoise(read_std=1.0)
    whole = _known_channel.known_channel(measured, mean, noise, groups)
    monkeypatch.setattr(_known_channel, "_CHUNK_PAIRS", 23 * 4)
    pieces = _known_channel.known_channel(measured, mean, noise, groups)
    assert whole is not None
    assert pieces is not None
    torch.testing.assert_close(pieces.positive, whole.positive)
    torch.testing.assert_close(pieces.log_marginal, whole.log_marginal)
    weight = torch.ones(23, dtype=torch.float64)
    torch.testing.assert_close(pieces.column_shares(weight), whole.column_shares(weight))


class LaplaceNoise(NoiseModel):
    """A model of the user's own, with the three methods and nothing else."""

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        uniform = torch.rand(mean.shape, generator=generator, dtype=mean.dtype) - 0.5
        return mean - uniform.sign() * torch.log1p(-2 * uniform.abs())

    def log_prob(self, measured: Tensor, mean: Tensor) -> Tensor:
        return -(measured - mean).abs() - math.log(2.0)

    def entropy(self, mean: Tensor) -> Tensor:
        return torch.full_like(mean, 1.0 + math.log(2.0))


def test_a_noise_model_of_the_users_own_has_both_bounds_when_means_are_known() -> None:
    rng = torch.Generator().manual_seed(0)
    mean = 12.0 * torch.randint(2, (600, 1), generator=rng).to(torch.float64)
    noise = LaplaceNoise()
    measured = noise.sample(mean, rng)
    result = estimate_information(measured, noise, mean=mean, generator=rng)
    # Two levels 12 apart in noise of scale 1: one bit less about 0.01.
    assert result.bound == "two-sided"
    assert result.bits == pytest.approx(1.0, abs=0.03)
    with pytest.raises(ValueError, match="mean="):
        estimate_information(measured, noise, generator=rng)


class CheckedLaplaceNoise(LaplaceNoise):
    """One that says which measurements are possible, and nothing about means."""

    def check_measured(self, measured: Tensor) -> None:
        if bool((measured > 100.0).any()):
            raise ValueError("measured: above full well")


def test_a_check_of_the_users_own_model_is_made_without_its_twin() -> None:
    mean = torch.full((20, 2), 200.0, dtype=torch.float64)
    with pytest.raises(ValueError, match="full well"):
        estimate_information(mean, CheckedLaplaceNoise(), mean=mean)


def bright_example(n: int, pixels: int, signal: float) -> tuple[Tensor, Tensor]:
    """Means that spread by `signal` on every pixel about 100, and unit noise."""
    rng = torch.Generator().manual_seed(3)
    mean = 100.0 + signal * torch.randn(n, pixels, generator=rng, dtype=torch.float64)
    return mean + torch.randn(n, pixels, generator=rng, dtype=torch.float64), mean


@pytest.mark.parametrize(("noise", "pixels", "signal"), [(GaussianNoise(1.0), 64, 0.4), (PoissonNoise(), 300, 10.0)])
def test_single_precision_errs_by_less_than_the_bound_says(noise: NoiseModel, pixels: int, signal: float) -> None:
    measured, mean = bright_example(1500, pixels, signal)
    if noise.discrete:
        measured = torch.poisson(mean.clamp_min_(1.0), generator=torch.Generator().manual_seed(4))
    features = noise.score_features(measured, mean)
    bound = _known_channel.single_precision_error_nats(features)
    query, key, key_bias = features.query, features.key, features.key_bias - features.key_bias.mean()
    single = ops.infonce_scores(query.float(), key.float(), key_bias=key_bias.float()).row_logsumexp_negatives
    scores = (query @ key.T + key_bias).fill_diagonal_(-torch.inf)
    error = abs(float((single.double() - torch.logsumexp(scores, 1)).mean()))
    assert error <= bound


def test_single_precision_is_used_where_it_moves_no_bound_by_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = make_groups(None, torch.zeros(400, 1), torch.Generator().manual_seed(0))
    dtypes = []
    for signal in (0.4, 300.0):
        measured, mean = bright_example(400, 64, signal)
        exact = _known_channel.known_channel(measured, mean, GaussianNoise(1.0), groups)
        with monkeypatch.context() as patch:
            patch.setattr(_known_channel, "_FEW_PRODUCTS", 0)
            scores = _known_channel._bilinear(GaussianNoise(1.0), measured, mean, groups)
            channel = _known_channel._from_bilinear(scores, groups)
        dtypes.append(scores.query.dtype)
        assert exact is not None
        torch.testing.assert_close(channel.positive, exact.positive, rtol=1e-12, atol=0)
        assert abs(float((channel.log_marginal - exact.log_marginal).mean())) <= 1e-3
        weight = torch.rand(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        weight[:3] = 0.0
        torch.testing.assert_close(channel.column_shares(weight), exact.column_shares(weight), rtol=1e-3, atol=1e-6)
    assert dtypes == [torch.float32, torch.float64]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("limited", [False, True])
def test_exact_sensor_keeps_its_sums_whatever_computes_them(grouped: bool, limited: bool) -> None:
    mean, measured, groups = example(grouped)
    # A well that no pixel comes near leaves the likelihood as it is, but not the kernel of its pairs.
    noise = PoissonGaussianNoise(read_std=1.0, full_well_electrons=1e6 if limited else None)
    scores, outside = matrix(PoissonGaussianNoise(read_std=1.0), mean, measured, groups)
    channel = _known_channel.known_channel(measured, mean, noise, groups)
    assert channel is not None
    torch.testing.assert_close(channel.positive, scores.diagonal())
    weight = torch.linspace(0.0, 1.0, 23, dtype=torch.float64)
    expected = (weight[:, None] * torch.softmax(outside, 1)).sum(0)
    torch.testing.assert_close(channel.column_shares(weight), expected)


def test_linear_gaussian_bounds_of_many_scenes_enclose_the_truth_closely() -> None:
    # Large enough for single precision; I = 0.5 sum log(1 + signal^2) = 2 nats.
    rng = torch.Generator().manual_seed(5)
    pixels, n = 8, 4096
    mean = math.sqrt(math.expm1(0.5)) * torch.randn(n, pixels, generator=rng, dtype=torch.float64)
    measured = mean + torch.randn(n, pixels, generator=rng, dtype=torch.float64)
    result = estimate_information(measured, GaussianNoise(1.0), mean=mean, generator=rng)
    assert result.lower_bits is not None
    assert result.upper_bits is not None
    lower, upper = result.lower_bits * math.log(2.0), result.upper_bits * math.log(2.0)
    margin = 4 * result.stderr_bits * math.log(2.0)
    assert upper - lower <= 0.02
    assert lower - margin <= 2.0 <= upper + margin


@pytest.mark.parametrize("grouped", [False, True])
def test_number_of_threads_does_not_change_a_bit_of_many_scenes(grouped: bool) -> None:
    measured, mean = bright_example(1300, 64, 0.4)
    labels = torch.arange(1300) // 50 if grouped else None
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            generator = torch.Generator().manual_seed(0)
            results.append(
                estimate_information(measured, GaussianNoise(1.0), mean=mean, groups=labels, generator=generator)
            )
        finally:
            torch.set_num_threads(before)
    assert results[0] == results[1]
