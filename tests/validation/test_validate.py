"""`validate`: designs of a known order, what all designs share, and runs that are interrupted."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from bitlens.noise import GaussianNoise, PoissonNoise
from bitlens.systems import ImagingSystem
from bitlens.validation import (
    Classification,
    LinearDecoder,
    LogisticDecoder,
    Reconstruction,
    ValidationResult,
    ValidationRow,
    validate,
)
from bitlens.validation._ranking import interval_over_seeds, spearman

_specification = importlib.util.spec_from_file_location("small_systems", Path(__file__).parent / "small_systems.py")
assert _specification is not None
assert _specification.loader is not None
small_systems = importlib.util.module_from_spec(_specification)
sys.modules["small_systems"] = small_systems
_specification.loader.exec_module(small_systems)

pytestmark = pytest.mark.usefixtures("one_thread")
SCENES = small_systems.textures(240)
GAINS = (0.3, 3.0, 1.0, 0.1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(systems: dict[str, ImagingSystem] | None = None, **changes) -> ValidationResult:
    settings = {"decoder": LinearDecoder(), "method": "gaussian", "n_seeds": 2, "generator": seeded()} | changes
    task = settings.pop("task", Reconstruction())
    return validate(small_systems.gains(SCENES, GAINS) if systems is None else systems, task, **settings)


def without_time(result: ValidationResult) -> list[ValidationRow]:
    return [dataclasses.replace(row, seconds=0.0) for row in result.rows]


def test_more_signal_is_more_bits_and_a_better_score() -> None:
    result = run(metrics={"gain": lambda s: s.encoder.gain.item(), "same": lambda s: 1.0})
    assert result.designs == ("gain 0.3", "gain 3", "gain 1", "gain 0.1")
    for score in ("psnr", "ssim", "mse"):
        assert result.rank_correlation(score).spearman == pytest.approx(1.0)
    by_gain = result.rank_correlation(by="gain")
    assert by_gain.spearman == pytest.approx(1.0)
    assert (by_gain.n_designs, by_gain.n_seeds, by_gain.score) == (4, 2, "psnr")
    assert result.rank_correlation(by="same").spearman is None
    assert result.advantage("gain").spearman == pytest.approx(0.0)
    assert result.advantage("same").spearman == pytest.approx(1.0)
    assert "gain 0.3" in result.table()
    assert "one value" in result.table()
    json.dumps(result.to_dict(), allow_nan=False)


def test_metrics_of_which_less_is_better() -> None:
    result = run(metrics={"loss": lambda s: 1 / s.encoder.gain.item()}, lower_is_better=("loss",))
    assert result.rank_correlation(by="loss").spearman == pytest.approx(1.0)


def test_score_and_bits_against_the_closed_form() -> None:
    """White Gaussian scenes of deviation s, z = g x + n: the least error is s^2 / (1 + g^2 s^2)."""
    scenes = 2 * torch.randn(4000, 1, 4, 4, generator=seeded(3)) + 10
    result = run(small_systems.gains(scenes, (0.5, 2.0, 1.0)), n_seeds=1)
    for gain, row in zip((0.5, 2.0, 1.0), result.rows, strict=True):
        truth = 4 / (1 + 4 * gain**2)
        # The decoder pays for 17 numbers a pixel from 3000 images.
        assert row.scores["mse"] == pytest.approx(truth * (1 + 17 / 2400), rel=0.02)
        assert row.bits == pytest.approx(8 * math.log2(1 + 4 * gain**2), abs=4 * row.stderr_bits)


def test_all_designs_share_scenes_splits_and_noise() -> None:
    """Two designs that are one have the same rows to the last bit; the seeds differ."""
    systems = small_systems.gains(SCENES, (1.0,))
    twice = {"a": systems["gain 1"], "b": systems["gain 1"]}
    a0, a1, b0, b1 = without_time(run(twice))
    assert dataclasses.replace(b0, design="a") == a0
    assert dataclasses.replace(b1, design="a") == a1
    assert a0.scores != a1.scores


def test_groups_stand_on_one_side_of_a_split() -> None:
    """Each scene ten times: without groups a decoder meets test scenes in training, with groups it does not."""
    scenes = small_systems.textures(40).repeat_interleave(10, 0)
    labels = torch.arange(40).repeat_interleave(10)
    systems = small_systems.gains(scenes, (1.0, 2.0))
    with_groups, without = run(systems, groups=labels), run(systems)
    assert with_groups.mean("psnr")["gain 2"] < without.mean("psnr")["gain 2"] - 1
    assert any("no groups were given" in note for note in without.warnings)
    assert not any("no groups" in note for note in with_groups.warnings)


def test_classification() -> None:
    labels = torch.arange(240) % 3
    scenes = SCENES + labels[:, None, None, None]
    result = run(small_systems.gains(scenes, (0.05, 2.0, 0.4)), task=Classification(labels), decoder=LogisticDecoder())
    assert result.score_names == ("accuracy", "cross_entropy_bits")
    assert result.rank_correlation().spearman == pytest.approx(1.0)
    assert result.mean("accuracy")["gain 2"] > 0.8
    assert result.mean("accuracy")["gain 0.05"] < 0.6
    with pytest.raises(ValueError, match="need every class on both sides"):
        run(task=Classification(labels), decoder=LogisticDecoder(), groups=labels)


def test_unequal_light_is_said() -> None:
    photons = SCENES.clamp(min=0.1)
    systems = {
        name: ImagingSystem(small_systems.Gain(gain), PoissonNoise(), photons)
        for name, gain in (("dim", 1.0), ("same", 1.04), ("bright", 1.2))
    }
    notes = run(systems).warnings
    assert any("unequal light" in note and "'dim'" in note and "'bright'" in note for note in notes)
    del systems["bright"]
    assert not any("unequal light" in note for note in run(systems).warnings)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    whole = run()
    done: list[int] = []

    class Stops(nn.Module):
        """The third design, which fails the first time that all scenes are asked for."""

        def forward(self, scene: Tensor) -> Tensor:
            if len(scene) > 2 and not done:
                done.append(1)
                raise Interrupted
            return scene

    systems = small_systems.gains(SCENES, GAINS)
    systems["gain 1"] = ImagingSystem(Stops(), GaussianNoise(1.0), SCENES)
    with pytest.raises(Interrupted):
        run(systems, checkpoint=file)
    kept = json.loads(file.read_text())
    assert [row["design"] for row in kept["rows"]] == ["gain 0.3", "gain 0.3", "gain 3", "gain 3"]
    # Without a generator the seed is that of the file.
    result = run(systems, checkpoint=file, generator=None)
    assert [row.seconds for row in result.rows[:4]] == [row["seconds"] for row in kept["rows"]]
    assert without_time(result) == without_time(whole)
    assert result.seed == whole.seed
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_foreign_and_damaged_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    with pytest.raises(ValueError, match="checkpoint: need a file in a folder that exists"):
        run(checkpoint=tmp_path / "absent" / "file")
    with pytest.raises(ValueError, match="checkpoint: need a file in a folder that exists"):
        run(checkpoint=tmp_path)
    run(checkpoint=file)
    good = file.read_text()
    for changes in (
        {"method": "stationary_gaussian"},
        {"decoder": LinearDecoder(ridges=(0.1,))},
        {"task": Reconstruction(SCENES + 1)},
    ):
        with pytest.raises(ValueError, match="checkpoint: need the file of these designs"):
            run(checkpoint=file, **changes)
    with pytest.raises(ValueError, match="checkpoint: need the file of these designs"):
        run(small_systems.gains(SCENES, (0.3, 3.0, 1.0, 0.2)), checkpoint=file)
    with pytest.raises(ValueError, match="generator: need the seed of the checkpoint, 0, got 9"):
        run(checkpoint=file, generator=seeded(9))
    assert file.read_text() == good
    content = json.loads(good)
    content["rows"][0]["bits"] += 1
    for damaged in (good[:-20], "", "[]", "{}", json.dumps(content), '{"format": "something else"}', "\x00"):
        file.write_text(damaged)
        with pytest.raises(ValueError, match="checkpoint: need"):
            run(checkpoint=file)
        assert file.read_text() == damaged
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="damaged"):
        run(checkpoint=file)


def test_a_file_is_extended_by_more_seeds(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    first = run(checkpoint=file, n_seeds=1)
    more = run(checkpoint=file, n_seeds=2)
    assert [row for row in more.rows if row.seed == 0] == list(first.rows)
    assert without_time(more) == without_time(run(n_seeds=2))


def made_up(bits: np.ndarray, score: np.ndarray) -> ValidationResult:
    """A result with these values (design, seed)."""
    rows = tuple(
        ValidationRow(
            f"d{i}", j, float(bits[i, j]), None, None, None, "upper", "m", {"psnr": float(score[i, j])}, 1.0, 0
        )
        for i in range(bits.shape[0])
        for j in range(bits.shape[1])
    )
    return ValidationResult(rows, {}, ("psnr",), (), "LinearDecoder()", 10, 5, 1, "0", ())


def test_rank_correlation_and_interval_against_scipy() -> None:
    random = np.random.default_rng(0)
    bits = random.normal(size=(12, 3))
    score = bits.mean(1, keepdims=True) + random.normal(size=(12, 3))
    result = made_up(bits, score)
    found = result.rank_correlation()
    assert found.spearman == pytest.approx(stats.spearmanr(bits.mean(1), score.mean(1)).statistic, abs=1e-12)
    assert found.interval is not None
    low, high = found.interval
    assert low < found.spearman < high
    seeds = result.rank_correlation(over="seeds").interval
    assert seeds is not None
    assert low <= seeds[0] < found.spearman < seeds[1] <= high
    assert result.rank_correlation() == found


def test_interval_over_designs_covers_the_truth() -> None:
    """Normal pairs of correlation 0.7 have Spearman (6 / pi) asin(0.35) = 0.683; 30 designs, 200 repeats."""
    random = np.random.default_rng(1)
    truth = 6 / math.pi * math.asin(0.35)
    covered = 0
    for _ in range(200):
        x = random.normal(size=(30, 1))
        y = 0.7 * x + math.sqrt(1 - 0.49) * random.normal(size=(30, 1))
        interval = made_up(x, y).rank_correlation(over="designs").interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    # Percentile intervals of 30 points are somewhat short: 0.90 to 0.97.
    assert 172 <= covered <= 198


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
@pytest.mark.parametrize("truth", [-0.9, 0.5, 0.95, 1.0])
def test_interval_over_seeds_covers_what_endless_seeds_would_give(truth: float, n_seeds: int) -> None:
    """Twelve designs, whose score has a third of their spread as noise of a seed, of unequal size."""
    random = np.random.default_rng(2)
    n_repeats, covered, old = 60, 0, 0
    for _ in range(n_repeats):
        bits = random.normal(size=(12, 1))
        score = truth * bits + math.sqrt(1 - truth**2) * random.normal(size=(12, 1))
        endless = stats.spearmanr(bits[:, 0], score[:, 0]).statistic
        deviation = 0.3 * np.exp(0.3 * random.normal(size=(12, 1)))
        common = 0.5 * random.normal(size=(1, n_seeds))
        noisy_bits = bits + 0.1 * random.normal(size=(12, n_seeds))
        noisy_score = score + common + deviation * random.normal(size=(12, n_seeds))
        low, high = interval_over_seeds(noisy_bits, noisy_score, 0.95, random)
        covered += low - 1e-9 <= endless <= high + 1e-9
        chosen = random.integers(n_seeds, size=(200, n_seeds))
        drawn = [value[:, chosen].mean(2).T for value in (noisy_bits, noisy_score)]
        ends = np.quantile(spearman(*drawn), [0.025, 0.975])
        old += ends[0] - 1e-9 <= endless <= ends[1] + 1e-9
    # 95 % less three standard deviations of 60 repeats is 52.
    assert covered >= 52
    # Resamples of so few seeds, in contrast, are too much alike.
    assert n_seeds > 3 or old < 52


def test_an_interval_over_seeds_is_no_longer_than_it_need_be() -> None:
    """Noise of 2 % of the spread leaves a ranking of ten designs almost as it is."""
    random = np.random.default_rng(0)
    bits = np.arange(10.0)[:, None] + 0.05 * random.normal(size=(10, 3))
    score = np.array([0.0, 2, 1, 4, 3, 5, 6, 9, 8, 7])[:, None] + 0.05 * random.normal(size=(10, 3))
    low, high = interval_over_seeds(bits, score, 0.95, random)
    truth = stats.spearmanr(bits.mean(1), score.mean(1)).statistic
    assert low == pytest.approx(truth)
    assert high == pytest.approx(truth)
    reversed_low, reversed_high = interval_over_seeds(bits, -score, 0.95, random)
    assert (reversed_low, reversed_high) == pytest.approx((-high, -low))


def test_advantage_over_seeds_keeps_the_designs() -> None:
    """A metric that is the true order against bits that noise disturbs: at most 0, and by about as much as truly."""
    random = np.random.default_rng(0)
    truth = np.arange(12.0)[:, None]
    result = made_up(truth + 2 * random.normal(size=(12, 3)), truth + 0.1 * random.normal(size=(12, 3)))
    metric = {f"design {i}": float(i) for i in range(12)}
    result = dataclasses.replace(result, metrics={"order": dict(zip(result.designs, metric.values(), strict=True))})
    found = result.advantage("order", over="seeds")
    assert found.spearman is not None
    assert found.interval is not None
    assert found.interval[0] < found.spearman < 0 <= found.interval[1] < 0.1
    one = dataclasses.replace(result, rows=tuple(row for row in result.rows if row.seed == 0))
    assert one.advantage("order", over="seeds").interval is None


def test_bits_of_scenes_alone_are_said_to_be_loose() -> None:
    """240 scenes of 64 values: each measurement is closest to its own."""
    notes = run(small_systems.gains(SCENES, (3.0, 0.01)), method="known_channel").warnings
    assert any(note.startswith("the bits of 'gain 3' are an upper bound") for note in notes)


def test_seeds_common_to_all_designs_do_not_widen_the_interval() -> None:
    """What a seed changes for all designs alike leaves every ranking as it is."""
    base = np.arange(8.0)[:, None]
    common = np.array([[0.0, 50.0, -30.0]])
    result = made_up(base + 0 * common, base + common)
    assert result.rank_correlation(over="seeds").interval == pytest.approx((1.0, 1.0))
    assert max(result.deviation("psnr").values()) > 30
    assert max(result.deviation("psnr", paired=True).values()) == pytest.approx(0.0, abs=1e-9)
    one = made_up(base, base)
    assert one.rank_correlation(over="seeds").interval is None


def test_wrong_arguments() -> None:
    systems = small_systems.gains(SCENES, (1.0, 2.0))
    with pytest.raises(TypeError, match="systems: need a mapping"):
        validate([], Reconstruction())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"systems\['b'\]: need 240 scenes as the first system has, got 30"):
        run(systems | {"b": systems["gain 1"]._replace(scenes=SCENES[:30])})
    with pytest.raises(ValueError, match="target: need one for all designs where their scenes differ"):
        run(systems | {"b": systems["gain 1"]._replace(scenes=SCENES + 1)})
    with pytest.raises(TypeError, match="task: need a Reconstruction or a Classification"):
        run(task="psnr")
    with pytest.raises(TypeError, match="decoder: need a decoder"):
        run(decoder="unet")
    with pytest.raises(ValueError, match="method: need one of"):
        run(method="guess")
    with pytest.raises(ValueError, match="n_seeds: need a whole number"):
        run(n_seeds=0)
    with pytest.raises(ValueError, match="n_test: need a share"):
        run(n_test=240)
    with pytest.raises(TypeError, match=r"metrics\['x'\]: need a function"):
        run(metrics={"x": 3})
    with pytest.raises(ValueError, match="metrics: need names that no score has, got 'psnr'"):
        run(metrics={"psnr": lambda s: 1.0})
    with pytest.raises(ValueError, match="at least 3 designs to rank, got 2"):
        run(systems).rank_correlation()
    with pytest.raises(ValueError, match="name: need one of bits"):
        run(systems).mean("snr")
    with pytest.raises(TypeError, match="need a noise model"):
        run({"a": ImagingSystem(nn.Identity(), nn.Identity(), SCENES)})
