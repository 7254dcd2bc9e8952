"""`estimate_mutual_information` against samples of known information, and its parts against direct definitions."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate, special, stats
from torch import Tensor

from bitlens import InformationEstimate, __version__
from bitlens.estimators import _critic_training
from bitlens.estimators._critic_inputs import fit_input_map
from bitlens.estimators._critic_models import JointCritics, JointScores, SeparableCritic, SeparableScores
from bitlens.estimators._critic_models import fit_gaussian_ratio as fit_ratio
from bitlens.estimators._critic_values import METHODS, OF_MAPS, Setting, ceiling, held_out, held_out_value
from bitlens.estimators._inputs import make_groups
from bitlens.estimators.mutual_information import _held_back, _layers, estimate_mutual_information

pytestmark = pytest.mark.usefixtures("one_thread")

LN2 = math.log(2.0)
Array = NDArray[np.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def known() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "studies" / "known_mutual_information.py"
    spec = importlib.util.spec_from_file_location("known_mutual_information", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the start, which is the Gaussian log ratio, is all that it takes."""
    monkeypatch.setattr(_critic_training, "MOST_STEPS", 40)
    monkeypatch.setattr(_critic_training, "_MOST_STEPS_OF_SUMMARIES", 20)
    monkeypatch.setattr(_critic_training, "BATCH", 128)


# ---- The truths ----


def test_truths_of_gaussian_and_student_are_means_of_log_ratios(known: ModuleType) -> None:
    covariance = known.paired(2, 0.8, 0.3)
    assert known.gaussian_nats(covariance, 2) == pytest.approx(-0.5 * math.log(0.36 * 0.91))
    for freedom in (1.0, 3.0):
        x, z = known.student(covariance, 2, freedom).sample(200_000, np.random.default_rng(0))
        log_ratio = (
            stats.multivariate_t(shape=covariance, df=freedom).logpdf(np.concatenate([x, z], 1))
            - stats.multivariate_t(shape=np.eye(2), df=freedom).logpdf(x)
            - stats.multivariate_t(shape=np.eye(2), df=freedom).logpdf(z)
        )
        error = log_ratio.std() / math.sqrt(len(x))
        assert abs(log_ratio.mean() - known.student_nats(covariance, 2, freedom)) < 4 * error


@pytest.mark.parametrize("half_width", [0.1, 0.5, 0.75])
def test_truth_of_additive_uniform_is_the_entropy_of_the_sum(known: ModuleType, half_width: float) -> None:
    def density(z: float) -> float:
        return max(0.0, min(1.0, z + half_width) - max(0.0, z - half_width)) / (2 * half_width)

    corners = sorted({-half_width, half_width, 1 - half_width, 1 + half_width})
    entropy = sum(
        integrate.quad(lambda z: float(special.entr(density(z))), low, high)[0] for low, high in pairwise(corners)
    )
    assert known.additive_uniform_nats(half_width) == pytest.approx(entropy - math.log(2 * half_width), abs=1e-9)


def test_tasks_have_the_information_that_they_name(known: ModuleType) -> None:
    tasks = known.tasks()
    assert len(tasks) > 35
    for nats in (5, 8):
        assert tasks[f"{nats} nats 5x5"].truth_nats == pytest.approx(nats)
    assert tasks["independent 20x20"].truth_nats == 0.0
    for name, task in tasks.items():
        x, z = task.sample(50, np.random.default_rng(0))
        assert len(x) == len(z) == 50, name
        assert np.isfinite(x).all(), name
        assert np.isfinite(z).all(), name
        assert task.truth_nats >= 0.0, name


# ---- What critics see ----


def test_ranks_do_not_see_increasing_maps_and_stand_in_the_order_of_the_samples() -> None:
    random = np.random.default_rng(0)
    training, other = random.standard_normal((400, 1)), random.standard_normal((50, 1))
    plain = fit_input_map(torch.from_numpy(training), "rank")
    cubed = fit_input_map(torch.from_numpy(np.sinh(3 * training)), "rank")
    assert torch.equal(plain(torch.from_numpy(training)), cubed(torch.from_numpy(np.sinh(3 * training))))
    mapped = plain(torch.from_numpy(training))[:, 0]
    assert torch.equal(torch.argsort(mapped), torch.from_numpy(np.argsort(training[:, 0])))
    expected = special.ndtri(np.arange(1, 401) / 401)
    torch.testing.assert_close(mapped.sort().values, torch.from_numpy(expected).float())
    inside = np.sort(other[np.abs(other) < np.abs(training).max()])
    assert (np.diff(plain(torch.from_numpy(inside[:, None]))[:, 0].numpy()) > 0).all()
    # Rows outside the training range are clamped to it: the map does not look at them.
    assert float(plain(torch.tensor([[1e300]], dtype=torch.float64))[0, 0]) == pytest.approx(expected[-1], rel=1e-6)


def test_maps_of_discrete_constant_and_heavy_tailed_coordinates_stay_finite() -> None:
    random = np.random.default_rng(0)
    values = np.stack([random.poisson(0.3, 300), np.full(300, 7.0), random.standard_cauchy(300) * 1e200], axis=1)
    for preprocess in ("rank", "standardize"):
        mapped = fit_input_map(torch.from_numpy(values), preprocess)(torch.from_numpy(values))
        assert mapped.shape == (300, 4)
        assert bool(torch.isfinite(mapped).all())
        assert float(mapped.abs().max()) < 10
        zeros = values[:, 0] == 0
        assert len(mapped[torch.from_numpy(zeros), 0].unique()) == 1
        assert float(mapped[:, 1].abs().max()) == pytest.approx(0.0, abs=1e-6)


def test_common_size_is_the_last_column() -> None:
    random = np.random.default_rng(0)
    size = np.exp(3 * random.standard_normal(2000))
    values = random.standard_normal((2000, 30)) * size[:, None]
    mapped = fit_input_map(torch.from_numpy(values), "auto")(torch.from_numpy(values))
    assert stats.spearmanr(mapped[:, -1].numpy(), size).statistic > 0.99


# ---- The Gaussian log ratio ----


def test_critic_starts_at_the_gaussian_log_ratio(known: ModuleType) -> None:
    covariance = known.dense(3)
    x, z = (
        torch.from_numpy(part).float()
        for part in known.gaussian(covariance, 3).sample(50_000, np.random.default_rng(1))
    )
    critic = SeparableCritic(
        2, fit_ratio(x, z), (3, 3), (3, 3), hidden=8, features=4, generator=generator(), with_row_shift=False
    )
    assert len(critic.correlation) == 1
    assert float(critic.correlation[0]) == pytest.approx(3 / 4, abs=0.01)
    found = critic.mean(x[:40], z[:40]).scores().positive.detach().numpy()
    both = np.concatenate([x[:40], z[:40]], axis=1)
    true = (
        stats.multivariate_normal(np.zeros(6), covariance).logpdf(both)
        - stats.multivariate_normal(np.zeros(3), covariance[:3, :3]).logpdf(both[:, :3])
        - stats.multivariate_normal(np.zeros(3), covariance[:3, :3]).logpdf(both[:, 3:])
    )
    np.testing.assert_allclose(found, true, atol=0.08)


def test_correlations_are_freed_of_what_many_coordinates_add() -> None:
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.standard_normal((1000, 40)))
    z = torch.from_numpy(random.standard_normal((1000, 40)))
    # The largest sample correlation of independent samples is near 2 sqrt(0.04 0.96) = 0.39 here.
    centred = [torch.linalg.qr(side - side.mean(0)).Q for side in (x, z)]
    assert float(torch.linalg.svdvals(centred[0].mT @ centred[1])[0]) > 0.33
    independent = fit_ratio(x, z).correlation
    assert float(independent.square().sum()) < 0.1
    z[:, 0] = 0.8 * x[:, 0] + 0.6 * z[:, 0]
    # Sampling deviation of a correlation of 0.8 from 1000 pairs: 0.0114.
    assert float(fit_ratio(x, z).correlation[0]) == pytest.approx(0.8, abs=0.04)


# ---- Held-out values ----


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


# ---- Groups ----


def test_no_group_is_split_or_meets_itself() -> None:
    labels = torch.arange(300) % 37
    partition = make_groups(labels, torch.zeros(300, 1), generator())
    for fold in range(partition.n_folds):
        tested, held_back = partition.folds == fold, _held_back(partition, fold, generator(fold))
        assert not bool((tested & held_back).any())
        assert 0.05 < float(held_back.sum()) / float((~tested).sum()) < 0.3
        parts = [set(labels[rows].tolist()) for rows in (tested, held_back, ~tested & ~held_back)]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    layers = _layers(labels, generator())
    assert sorted(torch.cat(layers).tolist()) == list(range(300))
    assert all(len(labels[layer].unique()) == len(layer) for layer in layers)
    assert [len(layer) for layer in layers] == sorted((len(layer) for layer in layers), reverse=True)


def test_copies_of_a_pair_do_not_pass_for_independent_ones(few_steps: None) -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(150), 4)
    x = random.standard_normal((150, 2))
    z = 0.8 * x + 0.6 * random.standard_normal((150, 2))
    copied = estimate_mutual_information(x[labels], z[labels], method="infonce", groups=labels, generator=generator())
    assert copied.stderr_bits is not None
    assert copied.ceiling_bits == pytest.approx(math.log2(30))
    assert abs(copied.bits - math.log2(1 / 0.36)) < 4 * copied.stderr_bits
    # The error is that of 150 pairs, not of 600.
    single = estimate_mutual_information(x, z, method="infonce", generator=generator())
    assert single.stderr_bits is not None
    assert copied.stderr_bits > 0.7 * single.stderr_bits


def test_twenty_groups_of_any_size_are_enough(few_steps: None) -> None:
    random = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(19), 5), np.full(100, 19)])
    x = random.standard_normal((195, 1))
    result = estimate_mutual_information(x, x + random.standard_normal((195, 1)), groups=labels, generator=generator())
    assert math.isfinite(result.bits)
    assert any("20 groups are few" in note for note in result.warnings)
    assert any("pairs of large groups" in note for note in result.warnings)


# ---- The whole ----


def nats(result: InformationEstimate) -> tuple[float, float]:
    assert result.stderr_bits is not None
    return result.bits * LN2, result.stderr_bits * LN2


def test_result_has_every_field(known: ModuleType, few_steps: None) -> None:
    x, z = known.gaussian(known.paired(2, 0.9), 2).sample(400, np.random.default_rng(0))
    result = estimate_mutual_information(x, z.reshape(400, 2, 1), method="infonce", generator=generator(5))
    assert result.bound == "lower"
    assert result.lower_bits == result.bits
    assert result.upper_bits is None
    assert result.ceiling_bits == pytest.approx(math.log2(80))
    assert result.bits_per_pixel == pytest.approx(result.bits / 2)
    assert result.confidence_interval_bits is not None
    assert result.stderr_bits is not None
    low, high = result.confidence_interval_bits
    assert 0.5 * (low + high) == pytest.approx(result.bits)
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 399) * result.stderr_bits)
    assert (result.method, result.n_samples, result.seed) == ("infonce", 400, 5)
    assert result.version == __version__
    assert result.backend in ("cpu", "numba")
    assert not result.converged
    assert any("before the validation value stopped rising" in note for note in result.warnings)
    smile = estimate_mutual_information(x, z, method="smile", generator=generator())
    assert (smile.bound, smile.lower_bits, smile.ceiling_bits) == ("estimate", None, None)
    assert any("from neither side" in note for note in smile.warnings)


def test_repeats_bit_for_bit_whatever_the_threads_and_the_kind_of_array(known: ModuleType, few_steps: None) -> None:
    x, z = known.gaussian(known.paired(2, 0.9), 2).sample(300, np.random.default_rng(0))
    source = torch.Generator().manual_seed(3)
    torch.rand(2, generator=source)
    first = estimate_mutual_information(x, z, generator=source)
    state = torch.random.get_rng_state()
    torch.set_num_threads(2)
    again = estimate_mutual_information(
        torch.from_numpy(x), torch.from_numpy(z), generator=torch.Generator().manual_seed(first.seed)
    )
    assert again == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert estimate_mutual_information(x, z, generator=source) != first


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_information_of_gaussians(known: ModuleType, few_steps: None, method: str) -> None:
    task = known.gaussian(known.paired(2, 0.8, 0.8), 2)
    x, z = task.sample(1000, np.random.default_rng(0))
    value, error = nats(estimate_mutual_information(x, z, method=method, generator=generator()))
    assert abs(value - task.truth_nats) < 4 * error
    assert error < 0.1


@pytest.mark.parametrize("kind", ["separable", "joint"])
def test_critics_learn_what_no_correlation_shows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_critic_training, "MOST_STEPS", 150)
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.standard_normal((3500, 1))).float()
    z = x.abs() + 0.3 * torch.from_numpy(random.standard_normal((3500, 1))).float()
    training, validation, tested = slice(0, 2000), slice(2000, 2500), slice(2500, 3500)
    with torch.no_grad():
        fit = _critic_training.fit_critic(
            "infonce",
            kind,
            (x[training], z[training]),
            (x[validation], z[validation]),
            (torch.arange(500),),
            n_coordinates=(1, 1),
            n_members=1,
            generator=generator(),
        )
        held = held_out("infonce", _critic_training.scorers_of(fit, x[tested], z[tested])[0], fit.setting)
    error = float(held.influence.std()) / math.sqrt(1000)
    truth = _folded_nats(0.3)
    assert truth - 0.1 - 4 * error < held.value < truth + 4 * error


def _folded_nats(noise: float) -> float:
    """I(x; |x| + noise e) = h(z) - h(e)."""
    grid = np.linspace(-4, 9, 6001)
    magnitude = np.linspace(0, 8, 4001)
    weights = 2 * stats.norm.pdf(magnitude) * (magnitude[1] - magnitude[0])
    weights[[0, -1]] *= 0.5
    density = stats.norm.pdf(grid[:, None], magnitude[None, :], noise) @ weights
    entropy = float(np.sum(special.entr(density)) * (grid[1] - grid[0]))
    return entropy - 0.5 * math.log(2 * math.pi * math.e * noise**2)


def test_value_near_the_ceiling_is_said_to_be(known: ModuleType, few_steps: None) -> None:
    x, z = known.gaussian(known.equal_pairs(3, 8.0), 3).sample(500, np.random.default_rng(0))
    infonce = estimate_mutual_information(x, z, method="infonce", generator=generator())
    assert infonce.ceiling_bits == pytest.approx(math.log2(100))
    assert infonce.bits < infonce.ceiling_bits
    assert any("of its ceiling of 6.64 bits" in note for note in infonce.warnings)
    interpolated = estimate_mutual_information(x, z, generator=generator())
    assert interpolated.ceiling_bits is not None
    assert interpolated.ceiling_bits > 8 / LN2
    assert interpolated.bits > infonce.bits + 1


def test_independent_heavy_tails_share_nothing(few_steps: None) -> None:
    random = np.random.default_rng(0)
    x, z = random.standard_cauchy((2000, 2)), random.standard_cauchy((2000, 2))
    value, error = nats(estimate_mutual_information(x, z, generator=generator()))
    assert abs(value) < 0.01
    assert value < 4 * error + 1e-9


def test_processing_loses_and_invertible_maps_keep_information(known: ModuleType, few_steps: None) -> None:
    task = known.gaussian(known.paired(2, 0.9, 0.9), 2)
    x, z = task.sample(2000, np.random.default_rng(0))
    plain, error = nats(estimate_mutual_information(x, z, generator=generator()))
    bent, _ = nats(estimate_mutual_information(np.sinh(3 * x), -np.exp(z), generator=generator()))
    assert bent == pytest.approx(plain, rel=0.05)
    coarse, coarse_error = nats(estimate_mutual_information(x, np.sign(z), generator=generator()))
    assert coarse < plain - 4 * math.hypot(error, coarse_error)
    # A sign of z keeps 2 [ln 2 - E h(probability)] of it.
    grid = np.linspace(-9, 9, 20001)
    up = special.ndtr(0.9 / math.sqrt(0.19) * grid)
    entropy = np.sum((special.entr(up) + special.entr(1 - up)) * stats.norm.pdf(grid)) * (grid[1] - grid[0])
    truth = 2 * (LN2 - entropy)
    assert 0.7 * truth - 4 * coarse_error < coarse < truth + 4 * coarse_error


def test_independent_blocks_add(known: ModuleType, few_steps: None) -> None:
    random = np.random.default_rng(0)
    first = known.mapped(known.gaussian(known.paired(1, 0.7), 1), known.half_cube, known.wiggle).sample(2000, random)
    second = known.gaussian(known.dense(3), 3).sample(2000, random)
    parts = [nats(estimate_mutual_information(*pair, generator=generator()))[0] for pair in (first, second)]
    both = [np.concatenate(sides, axis=1) for sides in zip(first, second, strict=True)]
    together, _ = nats(estimate_mutual_information(both[0], both[1], generator=generator()))
    assert together == pytest.approx(sum(parts), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"method": "mine"}, ValueError, r"method: need one of 'infonce'.*got 'mine'"),
        ({"critic": "cosine"}, ValueError, r"critic: need one of 'separable', 'joint', got 'cosine'"),
        ({"critic": "joint", "method": "smile"}, ValueError, r"critic: need 'separable' for method 'smile'"),
        ({"preprocess": "pca"}, ValueError, r"preprocess: need one of 'auto'.*got 'pca'"),
        ({"confidence": 1.0}, ValueError, r"confidence: need a value between 0 and 1, got 1.0"),
        ({"n_refits": 0}, ValueError, r"n_refits: need at least 1, got 0"),
        ({"n_refits": 2.0}, TypeError, r"n_refits: need a whole number, got float"),
        ({"z": np.zeros((99, 1))}, ValueError, r"z: need one sample for each of x, 100, got 99"),
        ({"z": np.full((100, 1), math.nan)}, ValueError, r"z: need finite values"),
        ({"x": np.zeros((20, 1)), "z": np.zeros((20, 1))}, ValueError, r"x: need at least 60 samples, got 20"),
        ({"x": "images"}, TypeError, r"x: need an array of real numbers"),
        ({"groups": np.zeros(7)}, ValueError, r"groups: need one label per sample, shape \(100,\), got \(7,\)"),
        ({"groups": np.arange(100) % 5}, ValueError, r"groups: need at least 20 groups, got 5"),
        ({"generator": 3}, TypeError, r"generator: need a torch.Generator or None, got int"),
    ],
)
def test_arguments_that_cannot_be_used(changes: dict[str, object], kind: type[Exception], message: str) -> None:
    random = np.random.default_rng(0)
    arguments = {"x": random.random((100, 1)), "z": random.random((100, 1))} | changes
    with pytest.raises(kind, match=message):
        estimate_mutual_information(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("normal 1x1", 0.05),
        ("additive uniform 0.1", 0.1),
        ("dense 5x5", 0.05),
        ("dense 50x50", 0.05),
        ("sparse 25x25", 0.05),
        ("half-cube sparse 5x5", 0.05),
        ("spiral sparse 3x3", 0.05),
        ("spiral sparse 25x25", 0.3),
        ("student 1x1, 1 dof", 0.08),
        ("student 5x5, 2 dof", 0.08),
        ("student 5x5, 3 dof", 0.08),
        ("5 nats 5x5", 0.03),
        ("8 nats 5x5", 0.05),
        ("independent 3x3", 0.01),
    ],
)
def test_defaults_on_ten_thousand_samples(
    known: ModuleType, request: pytest.FixtureRequest, name: str, largest: float
) -> None:
    if "slow" not in request.config.getoption("markexpr"):
        pytest.skip("minutes; run with -m slow")
    row = known.run(name, known.tasks()[name], 10_000, 0, None, "separable")
    assert abs(row["estimate_nats"] - row["truth_nats"]) < largest * (row["truth_nats"] or 1.0)
    assert row["cpu_s"] < 60
