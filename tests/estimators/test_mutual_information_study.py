"""The study of known information: its truths against its log ratios, its bars, and what an interruption leaves."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import integrate, special, stats

Row = dict[str, Any]


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


# ---- Truths and log ratios ----


def test_truths_are_means_of_log_ratios(known: ModuleType) -> None:
    for name, task in known.tasks().items():
        drawn = task.draw(10_000, np.random.default_rng(7))
        assert len(drawn.x) == len(drawn.z) == len(drawn.log_ratio) == 10_000, name
        error = float(drawn.log_ratio.std()) / 100.0
        # Some forty tasks, a few on the same underlying samples.
        assert abs(float(drawn.log_ratio.mean()) - task.truth_nats) <= 4.5 * error + 1e-12, name


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


def test_log_ratios_are_those_of_the_densities(known: ModuleType) -> None:
    covariance = known.paired(3, 0.8, 0.3)
    assert known.gaussian_nats(covariance, 3) == pytest.approx(-0.5 * math.log(0.36 * 0.91))
    gaussian = known.gaussian(covariance, 3).draw(50, np.random.default_rng(0))
    both = np.concatenate([gaussian.x, gaussian.z], axis=1)
    normal = stats.multivariate_normal
    expected = normal(np.zeros(6), covariance).logpdf(both) - normal(np.zeros(6), np.eye(6)).logpdf(both)
    np.testing.assert_allclose(gaussian.log_ratio, expected, atol=1e-10)
    for freedom in (1.0, 2.5):
        student = known.student(covariance, 3, freedom).draw(50, np.random.default_rng(1))
        both = np.concatenate([student.x, student.z], axis=1)
        expected = (
            stats.multivariate_t(shape=covariance, df=freedom).logpdf(both)
            - stats.multivariate_t(shape=np.eye(3), df=freedom).logpdf(student.x)
            - stats.multivariate_t(shape=np.eye(3), df=freedom).logpdf(student.z)
        )
        np.testing.assert_allclose(student.log_ratio, expected, atol=1e-9)
    for half_width in (0.1, 0.75):
        uniform = known.additive_uniform(half_width).draw(50, np.random.default_rng(2))
        grid = (np.arange(200_000) + 0.5) / 200_000
        density = [float((np.abs(grid - z) < half_width).mean()) / (2 * half_width) for z in uniform.z[:, 0]]
        np.testing.assert_allclose(uniform.log_ratio, -np.log(2 * half_width) - np.log(density), atol=1e-2)


def test_spirals_keep_the_length_and_so_the_information(known: ModuleType) -> None:
    values = np.random.default_rng(0).standard_normal((100, 4))
    turned = known.spiral(1, 3)(values)
    np.testing.assert_allclose(np.square(turned).sum(1), np.square(values).sum(1))
    np.testing.assert_array_equal(turned[:, [0, 2]], values[:, [0, 2]])
    angle = np.angle((turned[:, 1] + 1j * turned[:, 3]) / (values[:, 1] + 1j * values[:, 3]))
    expected = np.square(values).sum(1) / 3.0
    np.testing.assert_allclose(np.exp(1j * angle), np.exp(1j * expected), atol=1e-12)


# ---- Bars ----


def rows_with(**changes: float) -> list[Row]:
    """Rows that keep every bar, but for the changes: errors by task, and `cpu_s`."""
    rows = []
    for name, truth, error in (
        ("normal 1x1", 0.4, 0.02),
        ("sparse 2x2", 1.0, -0.01),
        ("dense 2x2", 0.3, 0.03),
        ("spiral uniform 5x5", 1.0, -0.29),
        ("student 2x2, 1 dof", 0.4, -0.079),
        ("independent 3x3", 0.0, -0.009),
    ):
        found = changes.get(name, error)
        rows.append(
            {
                "task": name,
                "seed": 0,
                "truth_nats": truth,
                "estimate_nats": truth * (1.0 + found) if truth else found,
                "relative_error": found if truth else None,
                "cpu_s": changes.get("cpu_s", 49.0),
            }
        )
    return rows


def missed(known: ModuleType, rows: list[Row]) -> list[str]:
    return [bar.what for bar in known.bars(rows) if "MISSED" in str(bar)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"sparse 2x2": 0.04, "dense 2x2": 0.04}, ["median |relative error|"]),
        ({"spiral uniform 5x5": -0.31}, ["largest |relative error|"]),
        ({"student 2x2, 1 dof": 0.081}, ["largest |relative error| of heavy tails"]),
        ({"independent 3x3": 0.011}, ["largest |estimate| of independent samples"]),
        ({"cpu_s": 51.0}, ["most CPU time of a fit, the mean of its folds"]),
        ({"cpu_s": 61.0}, ["most CPU time of an estimate", "most CPU time of a fit, the mean of its folds"]),
    ],
)
def test_each_bar_is_held_against_what_was_found(
    known: ModuleType, changes: dict[str, float], expected: list[str]
) -> None:
    assert missed(known, rows_with(**changes)) == expected


def test_bars_of_nothing_measured_are_left_out(known: ModuleType) -> None:
    rows = rows_with()
    assert len(known.bars(rows)) == 6
    assert known.bars(rows[-1:])[0].what == "largest |estimate| of independent samples"
    assert not any("heavy" in bar.what or "independent" in bar.what for bar in known.bars(rows[:2]))


# ---- Interruptions ----


def stand_in(asked: list[tuple[str, int]], fails_at: int | None) -> Any:
    def run(name: str, task: Any, n: int, seed: int, method: str | None, critic: str) -> Row:
        if len(asked) == fails_at:
            raise KeyboardInterrupt
        asked.append((name, seed))
        numbers = dict.fromkeys(("stderr_nats", "known_relative_error", "cpu_s"), 0.01)
        estimate = task.truth_nats + 0.001 * seed
        return {
            "task": name,
            "seed": seed,
            "truth_nats": task.truth_nats,
            "estimate_nats": estimate,
            "relative_error": 0.01,
            **numbers,
        }

    return run


def test_interrupted_study_goes_on_where_it_was(
    known: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study.json"
    arguments = ["dense 2", "dense 3", "--first-seed", "7", "--seeds", "2", "--out", str(out)]
    before: list[tuple[str, int]] = []
    monkeypatch.setattr(known, "run", stand_in(before, 3))
    with pytest.raises(KeyboardInterrupt):
        known.main(arguments)
    assert before == [("dense 2x2", 7), ("dense 3x3", 7), ("dense 25x25", 7)]
    assert [row["task"] for row in json.loads(out.read_text())["rows"]] == [name for name, _ in before]
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
    after: list[tuple[str, int]] = []
    monkeypatch.setattr(known, "run", stand_in(after, None))
    known.main(arguments)
    assert not set(before) & set(after)
    assert sorted(before + after) == sorted(
        (name, seed) for name in ("dense 2x2", "dense 3x3", "dense 25x25") for seed in (7, 8)
    )
    assert len(json.loads(out.read_text())["rows"]) == 6
    printed = capsys.readouterr().out
    assert printed.count("dense 25x25") >= 2
    assert "median |relative error|" in printed
    assert "kept" in printed


def test_file_of_other_settings_is_refused(
    known: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study.json"
    monkeypatch.setattr(known, "run", stand_in([], None))
    known.main(["dense 3", "--out", str(out)])
    kept = out.read_text()
    for arguments in (["--samples", "500"], ["--method", "infonce"]):
        with pytest.raises(SystemExit):
            known.main(["dense 3", "--out", str(out), *arguments])
        assert "out: need a new file or one of the settings" in capsys.readouterr().err
    monkeypatch.setattr(known, "recipe", lambda: "another")
    with pytest.raises(SystemExit):
        known.main(["dense 3", "--out", str(out)])
    assert out.read_text() == kept


def test_failed_write_leaves_the_file_before(
    known: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, settings = tmp_path / "study.json", {"samples": 1}
    known.write_rows(out, settings, [{"task": "a"}])

    def fails(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(known.os, "replace", fails)
    with pytest.raises(OSError):
        known.write_rows(out, settings, [{"task": "a"}, {"task": "b"}])
    assert known.read_rows(out, settings) == [{"task": "a"}]


def test_whole_run_says_what_the_pairs_themselves_allow(known: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    task, asked = known.tasks()["dense 2x2"], {}

    class Found:
        bits, stderr_bits = 0.5 / np.log(2.0), 0.01 / np.log(2.0)

    def estimate(x: Any, z: Any, **options: Any) -> Found:
        asked.update(options, shapes=(x.shape, z.shape))
        return Found()

    monkeypatch.setattr(known, "estimate_mutual_information", estimate)
    row = known.run("dense 2x2", task, 4000, 3, None, "separable")
    assert asked["shapes"] == ((4000, 2), (4000, 2))
    assert "method" not in asked
    assert row["estimate_nats"] == pytest.approx(0.5)
    assert row["relative_error"] == pytest.approx(0.5 / task.truth_nats - 1.0)
    drawn = task.draw(4000, np.random.default_rng([3, 11]))
    assert row["known_nats"] == pytest.approx(float(drawn.log_ratio.mean()))
    assert row["z_score"] == pytest.approx((0.5 - task.truth_nats) / 0.01)
