"""The lower bound that passes log K: formula, influence, validity and tightness against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens import GaussianNoise
from bitlens.densities import GaussianDensity
from bitlens.estimators import _interpolated, _known_channel
from bitlens.estimators._density import DensityRows, cross_fit
from bitlens.estimators._inputs import Groups, make_groups

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = GaussianNoise(0.5)


def density_with(log_prob: Tensor) -> DensityRows:
    return DensityRows(log_prob, torch.zeros_like(log_prob), "made", True, ())


def channel(information_nats: float, n: int, seed: int, side: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Means, images and their true log density: 8 latent dimensions of unequal strength in white noise."""
    rng = torch.Generator().manual_seed(seed)
    pixels = side * side
    fixed = torch.Generator().manual_seed(99)
    basis = torch.linalg.qr(torch.randn(pixels, 8, generator=fixed, dtype=torch.float64))[0]
    share = torch.linspace(0.5, 1.5, 8, dtype=torch.float64) / 8
    strength = 0.5 * torch.sqrt(torch.exp(2 * information_nats * share) - 1)
    mean = (torch.randn(n, 8, generator=rng, dtype=torch.float64) * strength) @ basis.mT
    noise = 0.5 * torch.randn(n, pixels, generator=rng, dtype=torch.float64)
    measured = mean + noise
    latent = measured @ basis
    variance = strength**2 + 0.25
    outside = noise.square().sum(1) - (noise @ basis).square().sum(1)
    rest = outside / 0.25 + (pixels - 8) * math.log(0.25)
    log_density = -0.5 * ((latent.square() / variance + variance.log()).sum(1) + rest + pixels * math.log(2 * math.pi))
    return mean.reshape(n, side, side), measured.reshape(n, side, side), log_density


def known(mean: Tensor, measured: Tensor, groups: Groups) -> _known_channel.KnownChannel:
    found = _known_channel.known_channel(measured, mean, NOISE, groups)
    assert found is not None
    return found


def ungrouped(measured: Tensor, seed: int = 0) -> Groups:
    return make_groups(None, measured, torch.Generator().manual_seed(seed))


def plain_rows(
    scores: Tensor, log_density: Tensor, share: float, parts: Tensor, labels: Tensor, counts: Tensor, weight: Tensor
) -> Tensor:
    """I_w written out with a weight per scene, rows in the order of the samples."""
    outside = (parts[:, None] == parts) & (labels[:, None] != labels)
    likelihood = torch.exp(scores)
    marginal = (likelihood * outside * weight).sum(1) / (outside * weight).sum(1)
    density = torch.exp(log_density)
    joint = share * (likelihood.diagonal() + (counts - 1) * marginal) / counts + (1 - share) * density
    return 1 + scores.diagonal() - torch.log(joint) - marginal / (share * marginal + (1 - share) * density)


@pytest.mark.parametrize("own_fold", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_rows_are_the_formula_and_influence_is_its_derivative_by_the_weight_of_a_scene(
    share: float, grouped: bool, own_fold: bool
) -> None:
    mean, measured, log_density = channel(3.0, 60, 0)
    labels = torch.randint(25, (60,), generator=torch.Generator().manual_seed(4)) if grouped else None
    groups = make_groups(labels, measured, torch.Generator().manual_seed(0))
    everything = known(mean, measured, groups)
    scenes = _interpolated.all_scenes(everything, groups)
    if own_fold:
        found = _interpolated.scenes_of_own_fold(measured, mean, NOISE, groups)
        assert found is not None
        scenes = found
    terms = _interpolated.interpolated_bound(scenes, log_density, torch.full((60,), share).double(), groups)
    scores = NOISE.log_prob(measured[:, None], mean[None]).flatten(2).sum(2)
    parts = groups.folds if own_fold else torch.zeros_like(groups.folds)
    arguments = (scores, log_density, share, parts, groups.labels, scenes.n_scenes)
    weight = torch.ones(60, dtype=torch.float64, requires_grad=True)
    rows = plain_rows(*arguments, weight)
    torch.testing.assert_close(terms.rows, rows.detach(), rtol=0, atol=1e-7)
    bound = (weight * rows).sum() / weight.sum()
    (derivative,) = torch.autograd.grad(bound, weight)
    influence = terms.influence(scenes.channel)
    torch.testing.assert_close(influence, bound.detach() + 60 * derivative, rtol=0, atol=1e-6)
    assert float(influence.mean()) == pytest.approx(bound.item(), abs=1e-7)
    # The rows alone are far from it: the test sees the part of the columns.
    assert float((terms.rows - influence).abs().max()) > 0.1


def test_standard_error_is_the_spread_over_repetitions_and_that_of_a_bootstrap() -> None:
    """Scenes drawn again with their rows and columns, a scene's own likelihood staying one of K."""
    values, errors = [], []
    for seed in range(200):
        mean, measured, log_density = channel(5.0, 256, seed)
        groups = ungrouped(measured, seed)
        scenes = _interpolated.all_scenes(known(mean, measured, groups), groups)
        terms = _interpolated.interpolated_bound(scenes, log_density, torch.full((256,), 0.3).double(), groups)
        values.append(float(terms.rows.mean()))
        errors.append(groups.standard_error(terms.influence(scenes.channel)))
    # sd of 200: 5 %.
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)

    scores = NOISE.log_prob(measured[:, None], mean[None]).flatten(2).sum(2)
    draws = torch.Generator().manual_seed(1)
    single = torch.zeros(256, dtype=torch.int64)
    again = []
    for _ in range(400):
        chosen = torch.randint(256, (256,), generator=draws)
        weight = torch.bincount(chosen, minlength=256).double()
        rows = plain_rows(scores, log_density, 0.3, single, torch.arange(256), scenes.n_scenes, weight)
        again.append(float((weight * rows).sum() / 256))
    assert errors[-1] == pytest.approx(np.std(again), rel=0.2)


def bounds(
    information_nats: float, n: int, seed: int
) -> tuple[float, _interpolated.BestLower, _interpolated.BestLower]:
    """L_K, and the best lower bound with the true marginal and with a fitted Gaussian."""
    mean, measured, log_density = channel(information_nats, n, seed)
    groups = ungrouped(measured, seed)
    everything = known(mean, measured, groups)
    scenes = _interpolated.all_scenes(everything, groups)
    fitted = cross_fit(measured, measured, {"gaussian": GaussianDensity()}, groups)
    unseen = _interpolated.scenes_of_own_fold(measured, mean, NOISE, groups)
    return (
        float(_known_channel.lower_bound(everything, groups).terms.rows.mean()),
        _interpolated.best_lower(everything, density_with(log_density), groups, scenes),
        _interpolated.best_lower(everything, fitted, groups, unseen),
    )


def value(found: _interpolated.BestLower) -> float:
    return float(found.terms.rows.mean())


@pytest.mark.parametrize("information_nats", [2.0, 5.0, 8.0, 12.0])
def test_stays_below_truth_on_average_and_passes_log_k(information_nats: float) -> None:
    n, repetitions = 512, 32
    found = [bounds(information_nats, n, seed) for seed in range(repetitions)]
    for index in (1, 2):
        values = [value(each[index]) for each in found]
        assert np.mean(values) <= information_nats + 4 * np.std(values) / math.sqrt(repetitions)
        for each in found:
            assert value(each[index]) <= each[index].ceiling + 1e-9
    plain = np.mean([each[0] for each in found])
    exact, fitted = (np.mean([value(each[index]) for each in found]) for index in (1, 2))
    if information_nats >= 8.0:
        assert plain < math.log(n)
        assert exact > math.log(n) + 1.0
        assert fitted > math.log(n) + 0.5
    # Where L_K is near the truth nothing is lost.
    assert min(exact, fitted) > min(plain, information_nats) - 0.05


def test_many_scenes_carry_it_close_to_twelve_nats() -> None:
    plain, exact, fitted = bounds(12.0, 4096, 0)
    assert plain < math.log(4096)
    assert value(exact) > 11.0
    assert value(fitted) > 10.5


def test_scenes_that_the_density_is_made_of_break_the_bound() -> None:
    """Why scenes come from the own fold: a density of all other scenes has not seen z, and still lies above the truth.

    Oracle: the same density made of the scenes of the other folds, with scenes of the own fold.
    """
    found: dict[str, list[float]] = {"seen": [], "unseen": []}
    for seed in range(12):
        mean, measured, _ = channel(5.0, 512, seed)
        groups = ungrouped(measured, seed)
        everything = known(mean, measured, groups)
        scores = NOISE.log_prob(measured[:, None], mean[None]).flatten(2).sum(2)
        outside = scores.masked_fill(groups.folds[:, None] == groups.folds, -math.inf)
        other_folds = torch.logsumexp(outside, 1) - torch.isfinite(outside).sum(1).double().log()
        every = _interpolated.all_scenes(everything, groups)
        own = _interpolated.scenes_of_own_fold(measured, mean, NOISE, groups)
        for name, density, scenes in (("seen", everything.log_marginal, every), ("unseen", other_folds, own)):
            found[name].append(value(_interpolated.best_lower(everything, density_with(density), groups, scenes)))
    assert np.mean(found["seen"]) > 5.0 + 4 * np.std(found["seen"]) / math.sqrt(12)
    assert np.mean(found["unseen"]) <= 5.0 + 4 * np.std(found["unseen"]) / math.sqrt(12)


def test_poor_density_leaves_the_scenes_alone() -> None:
    mean, measured, _ = channel(5.0, 512, 0)
    groups = ungrouped(measured)
    everything = known(mean, measured, groups)
    plain = _known_channel.lower_bound(everything, groups)
    poor = -0.5 * ((measured - 30.0) / 2.0).square().flatten(1).sum(1)
    scenes = _interpolated.all_scenes(everything, groups)
    for weight in _interpolated.weight_grid(groups):
        terms = _interpolated.interpolated_bound(scenes, poor, weight.expand(512), groups)
        assert float(terms.rows.mean()) < float(plain.terms.rows.mean())
    found = _interpolated.best_lower(everything, density_with(poor), groups, scenes)
    assert found.name == "known channel"
    assert found.ceiling == plain.ceiling
    torch.testing.assert_close(found.terms.rows, plain.terms.rows, rtol=0, atol=0)
    torch.testing.assert_close(found.terms.own, plain.terms.own, rtol=0, atol=0)


def test_choice_for_a_fold_does_not_look_at_it() -> None:
    """A density that serves in one fold only is chosen by the others, not by that fold itself."""
    mean, measured, log_density = channel(9.0, 400, 0)
    groups = ungrouped(measured)
    everything = known(mean, measured, groups)
    scenes = _interpolated.all_scenes(everything, groups)
    good = groups.folds == 2
    mixed = torch.where(good, log_density, log_density - 1e4)
    found = _interpolated.best_lower(everything, density_with(mixed), groups, scenes)
    plain = _known_channel.lower_bound(everything, groups)
    # The good fold sees four poor ones.
    torch.testing.assert_close(found.terms.rows[good], plain.terms.rows[good])


def test_influence_of_a_choice_that_differs_over_folds_is_that_of_its_rows() -> None:
    mean, measured, log_density = channel(9.0, 400, 0)
    groups = ungrouped(measured)
    everything = known(mean, measured, groups)
    scenes = _interpolated.all_scenes(everything, groups)
    mixed = torch.where(groups.folds == 2, log_density - 1e4, log_density)
    found = _interpolated.best_lower(everything, density_with(mixed), groups, scenes)
    influence = found.terms.influence(everything)
    assert float(influence.mean()) == pytest.approx(value(found), abs=1e-9)
    best = _interpolated.best_lower(everything, density_with(log_density), groups, scenes)
    assert best.terms.weight is None
    assert best.name == "known channel and made"
    assert float(best.terms.influence(everything).mean()) == pytest.approx(value(best), abs=1e-9)


@pytest.mark.parametrize("nats_per_pixel", [1.5, 6.0])
def test_hundreds_of_nats_stay_finite_and_reach_the_ceiling(nats_per_pixel: float) -> None:
    rng = torch.Generator().manual_seed(0)
    strength = 0.5 * math.sqrt(math.expm1(2 * nats_per_pixel))
    mean = strength * torch.randn(300, 16, 16, generator=rng, dtype=torch.float64)
    measured = NOISE.sample(mean, rng)
    variance = strength**2 + 0.25
    log_density = -0.5 * (measured.square() / variance + math.log(2 * math.pi * variance)).flatten(1).sum(1)
    groups = ungrouped(measured)
    everything = known(mean, measured, groups)
    scenes = _interpolated.scenes_of_own_fold(measured, mean, NOISE, groups)
    assert scenes is not None
    found = _interpolated.best_lower(everything, density_with(log_density), groups, scenes)
    assert bool(torch.isfinite(found.terms.influence(everything)).all())
    torch.testing.assert_close(found.terms.rows, torch.full((300,), found.ceiling).double())
    # 60 scenes in a fold, of which one is its own, and the least weight of 30 samples in 300.
    assert found.ceiling == pytest.approx(1 + math.log(59 / 0.1), abs=1e-9)


def test_impossible_images_and_scenes_make_no_nan() -> None:
    zeros = torch.tensor([0.0, -800.0, 5.0, -3.0, 2.0], dtype=torch.float64)
    log_marginal = torch.tensor([-math.inf, -900.0, -math.inf, 3.0, 1.0], dtype=torch.float64)
    log_density = torch.tensor([-math.inf, -math.inf, -700.0, 800.0, -800.0], dtype=torch.float64)
    groups = Groups(torch.arange(5), 5, torch.zeros(5, dtype=torch.int64), 1, False)
    made = _known_channel.KnownChannel(zeros, log_marginal, torch.zeros_like, True)
    scenes = _interpolated.UnseenScenes(made, groups.folds, torch.full((5,), 4.0, dtype=torch.float64))
    terms = _interpolated.interpolated_bound(scenes, log_density, torch.full((5,), 0.1).double(), groups)
    assert bool(torch.isfinite(terms.rows).all())
    assert bool(torch.isfinite(terms.own).all())
    assert terms.rows[0] == pytest.approx(1 + math.log(4 / 0.1))


@pytest.mark.parametrize(
    ("sizes", "count"), [([1] * 9, 8), ([3] * 5, 4), ([5, 1, 1, 1], 1), ([4, 4, 1], 1), ([2, 2, 1, 1], 2), ([7], 0)]
)
def test_independent_scenes_outside_a_group(sizes: list[int], count: int) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    assert _interpolated.independent_scenes(labels) == count


def test_exposures_of_few_scenes_stay_below_truth() -> None:
    """60 scenes of 6 nats, measured 1, 2 or 9 times: neither the samples nor the groups are independent scenes."""
    values = []
    labels = torch.arange(60).repeat_interleave(torch.tensor([1, 2, 9] * 20))
    for seed in range(60):
        mean, _, _ = channel(6.0, 60, seed)
        mean = mean[labels]
        measured = NOISE.sample(mean, torch.Generator().manual_seed(seed))
        groups = make_groups(labels, measured, torch.Generator().manual_seed(seed))
        everything = known(mean, measured, groups)
        fitted = cross_fit(measured, measured, {"gaussian": GaussianDensity()}, groups)
        scenes = _interpolated.scenes_of_own_fold(measured, mean, NOISE, groups)
        assert scenes is not None
        values.append(value(_interpolated.best_lower(everything, fitted, groups, scenes)))
    assert np.mean(values) <= 6.0 + 4 * np.std(values) / math.sqrt(60)


def test_folds_of_one_group_have_no_scenes_of_their_own() -> None:
    mean, measured, _ = channel(5.0, 60, 0)
    groups = make_groups(torch.arange(60) % 6, measured, torch.Generator().manual_seed(0))
    assert _interpolated.scenes_of_own_fold(measured, mean, NOISE, groups) is None
    everything = known(mean, measured, groups)
    found = _interpolated.best_lower(everything, density_with(torch.zeros(60).double()), groups, None)
    assert found.name == "known channel"
