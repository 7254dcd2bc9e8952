"""`estimate_mutual_information` against samples of known information, and its parts against direct definitions."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

from bitlens import InformationEstimate, __version__
from bitlens.estimators import _critic_training
from bitlens.estimators._critic_values import METHODS, held_out
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
def test_defaults_on_ten_thousand_samples(known: ModuleType, name: str, largest: float) -> None:
    row = known.run(name, known.tasks()[name], 10_000, 0, None, "separable")
    assert abs(row["estimate_nats"] - row["truth_nats"]) < largest * (row["truth_nats"] or 1.0)
    assert row["cpu_s"] < 60
