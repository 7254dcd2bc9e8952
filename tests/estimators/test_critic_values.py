"""Held-out values of critics and the influence of a pair, against the full matrix of scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens.estimators._critic_models import JointCritics, JointScores, SeparableCritic, SeparableScores
from bitlens.estimators._critic_models import fit_gaussian_ratio as fit_ratio
from bitlens.estimators._critic_values import BOUND, METHODS, OF_MAPS, Setting, ceiling, held_out, held_out_value

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def separable_scores(n: int, seed: int = 0) -> SeparableScores:
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, 3))
    z = x + 0.7 * random.standard_normal((n, 3))
    parts = (1.2 * x, z, -0.6 * np.square(x).sum(1), -0.6 * np.square(z).sum(1) + 0.3)
    return SeparableScores(*map(torch.from_numpy, parts), row_shift=torch.from_numpy(0.2 * random.standard_normal(n)))


def joint_scores(n: int, seed: int = 0) -> JointScores:
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, 4))
    z = -x + 0.5 * random.standard_normal((n, 4))
    parts = (x, z, random.standard_normal((5, 4)), random.standard_normal(5), -random.random(5), np.asarray(0.4))
    return JointScores(*map(torch.from_numpy, parts), row_shift=torch.from_numpy(0.2 * random.standard_normal(n)))


def full_matrix(scorer: SeparableScores | JointScores) -> Tensor:
    if isinstance(scorer, SeparableScores):
        return scorer.query @ scorer.key.mT + scorer.query_bias[:, None] + scorer.key_bias
    first = torch.relu(scorer.query_hidden[:, None] + scorer.key_hidden)
    second = torch.relu(first @ scorer.hidden_weight.mT + scorer.hidden_bias)
    return second @ scorer.output_weight + scorer.output_bias


@pytest.mark.parametrize("make", [separable_scores, joint_scores])
def test_values_are_those_of_the_full_matrix(make: Callable[[int], SeparableScores | JointScores]) -> None:
    n = 40
    scorer, setting = make(n), Setting(0.37, 0.05)
    scores = full_matrix(scorer)
    own, outside = scores.diagonal(), ~torch.eye(n, dtype=torch.bool)
    mean_of_rows = scores.exp().masked_fill(~outside, 0.0).sum(1) / (n - 1)
    normalised = math.exp(-setting.log_normaliser)
    nwj = float(1 + own.mean() - setting.log_normaliser - normalised * mean_of_rows.mean())
    assert scorer.row_shift is not None
    u = setting.log_normaliser + scorer.row_shift - own
    expected = {
        "infonce": float((own - scores.logsumexp(1)).mean() + math.log(n)),
        "nwj": nwj,
        "donsker_varadhan": nwj,
        "jensen_shannon": nwj,
        "flo": float(1 - (u + torch.exp(-u - own) * mean_of_rows).mean()),
    }
    if isinstance(scorer, SeparableScores):
        clipped = scores.clamp(-5, 5).exp()[outside].mean()
        expected["smile"] = float(own.mean() - torch.log(clipped))
    for method, value in expected.items():
        assert held_out_value(method, scorer, setting) == pytest.approx(value, abs=1e-9), method
        assert held_out(method, scorer, setting).value == pytest.approx(value, abs=1e-9), method
    alpha, normaliser = setting.alpha, math.exp(setting.log_normaliser)
    mean_with_own = (own.exp() + (n - 2) * mean_of_rows) / (n - 1)
    mixed = [alpha * mean + (1 - alpha) * normaliser for mean in (mean_with_own, mean_of_rows)]
    between = float(1 + (own - mixed[0].log()).mean() - (mean_of_rows / mixed[1]).mean())
    assert held_out_value("interpolated", scorer, setting) == pytest.approx(between, abs=1e-9)
    assert held_out_value("interpolated", scorer, Setting(0.37, 1e-9)) == pytest.approx(nwj, abs=1e-5)


@pytest.mark.parametrize("make", [separable_scores, joint_scores])
@pytest.mark.parametrize("method", METHODS)
def test_influence_is_what_the_value_loses_without_a_pair(
    method: str, make: Callable[[int], SeparableScores | JointScores]
) -> None:
    if make is joint_scores and method in OF_MAPS:
        return
    n = 240
    scorer, setting = make(n), Setting(0.1, 0.1)
    held = held_out(method, scorer, setting)
    rows = torch.arange(n)
    without = [held_out_value(method, scorer.take(rows[rows != row]), setting) for row in range(n)]
    if method == "infonce":  # its log K changes with the number of pairs
        without = [value - math.log((n - 1) / n) for value in without]
    jackknife = (n - 1) * (np.mean(without) - np.asarray(without))
    assert float(held.influence.mean()) == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(held.influence.numpy(), jackknife, rtol=0.05, atol=0.05 * jackknife.std())


def scores_on_correlated_normals(n: int, slope: float, random: np.random.Generator) -> SeparableScores:
    """S = slope x z + 0.3 x - 0.2 z of pairs with correlation 0.8; far from the log ratio, and not normalised."""
    x = random.standard_normal((n, 1))
    z = 0.8 * x + 0.6 * random.standard_normal((n, 1))
    parts = (slope * x, z, 0.3 * x[:, 0], -0.2 * z[:, 0])
    return SeparableScores(*map(torch.from_numpy, parts), row_shift=torch.from_numpy(0.1 * x[:, 0]))


@pytest.mark.parametrize("method", [method for method in METHODS if BOUND[method] == "lower"])
def test_lower_bounds_stay_below_in_the_mean_whatever_the_critic(method: str) -> None:
    truth, repeats = -math.log(0.6), 400
    for slope, setting in ((0.5, Setting(0.4, 0.2)), (0.8, Setting(-0.3, 0.02)), (-0.3, Setting(0.0, 1.0))):
        random = np.random.default_rng(0)
        values = [
            held_out_value(method, scores_on_correlated_normals(12, slope, random), setting) for _ in range(repeats)
        ]
        assert np.mean(values) < truth + 4 * np.std(values) / math.sqrt(repeats)


def test_clipping_bounds_from_neither_side() -> None:
    # All of a critic above the clip costs nothing in the second term: the value is as large as one likes.
    scorer = scores_on_correlated_normals(2000, 0.8, np.random.default_rng(0))
    above = SeparableScores(scorer.query, scorer.key, scorer.query_bias + 50.0, scorer.key_bias)
    assert BOUND["smile"] == "estimate"
    assert held_out_value("smile", above, Setting(0.0, 1.0)) > 40.0 > -math.log(0.6)


def test_ceilings() -> None:
    assert ceiling("infonce", 100, Setting(0.0, 0.1)) == pytest.approx(math.log(100))
    assert ceiling("interpolated", 101, Setting(0.0, 0.01)) == pytest.approx(math.log(100 / 0.01) + 1)
    for method in ("nwj", "flo", "smile", "donsker_varadhan", "jensen_shannon"):
        assert ceiling(method, 100, Setting(0.0, 0.1)) is None


def test_mean_critic_scores_are_means_of_scores() -> None:
    x, z = torch.randn(20, 3, generator=generator(1)), torch.randn(20, 2, generator=generator(2))
    critics = (
        SeparableCritic(
            3, fit_ratio(x, z), (3, 2), (3, 2), hidden=8, features=4, generator=generator(), with_row_shift=True
        ),
        JointCritics(3, 3, 2, hidden=8, generator=generator(), with_row_shift=True),
    )
    for critic in critics:
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(3)))
            each = torch.stack([full_matrix(member) for member in critic.members(x, z)])
            torch.testing.assert_close(full_matrix(critic.mean(x, z)), each.mean(0), rtol=0, atol=1e-6)
        assert float(each.std(0).min()) > 0
    with torch.no_grad():
        scores, _ = critics[1].train_scores(x.expand(3, 20, 3), z.expand(3, 20, 2))
        torch.testing.assert_close(scores.row_logsumexp.double(), each.logsumexp(2), rtol=0, atol=1e-5)
