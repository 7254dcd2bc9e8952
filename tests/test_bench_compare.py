"""The comparison of two builds: its statistics on synthetic timings, its errors, and calls on real extensions."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of benchmarks/ by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def timings(random: np.random.Generator, slowdown: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of a busy machine: slow drift, jitter, calls that wait for a time slice, luck of a build with memory."""
    drift = np.exp(np.cumsum(0.01 * random.standard_normal(rounds)))
    times = {}
    for name, factor in (("base", 1.0), ("head", slowdown), ("control", 1.0)):
        luck = np.exp(0.01 * random.standard_normal())
        jitter = np.exp(0.04 * random.standard_normal(rounds))
        waiting = np.where(random.random(rounds) < 0.08, random.uniform(1.2, 10, rounds), 1.0)
        times[name] = list(0.005 * factor * luck * drift * jitter * waiting)
    return times


def is_slower(timing: ModuleType, random: np.random.Generator, slowdown: float) -> bool:
    def look(seconds: float) -> object:
        return timing.compared(timings(random, slowdown, int(40 * seconds)))

    return timing.looks_until_settled(look)[-1].slower


def test_slowdown_of_15_percent_is_found(module: Any) -> None:
    timing, random = module("compare_timing"), np.random.default_rng(0)
    assert sum(is_slower(timing, random, 1.15) for _ in range(10)) >= 9


def test_equal_builds_are_never_reported(module: Any) -> None:
    """Ten runs of forty cases."""
    timing, random = module("compare_timing"), np.random.default_rng(1)
    assert not any(is_slower(timing, random, 1.0) for _ in range(400))


def test_control_that_is_off_holds_a_report_back(module: Any) -> None:
    timing, random = module("compare_timing"), np.random.default_rng(2)
    times = timings(random, 1.12, 60)
    assert timing.compared(times).slower
    times["control"] = list(1.2 * np.asarray(times["control"]))
    assert not timing.compared(times).slower


def test_one_look_that_is_not_slower_settles_it(module: Any) -> None:
    timing, random = module("compare_timing"), np.random.default_rng(3)
    slowdowns = iter((1.15, 1.0, 1.15))
    looks = timing.looks_until_settled(lambda _: timing.compared(timings(random, next(slowdowns), 60)))
    assert [look.slower for look in looks] == [True, False]


def test_interval_holds_the_median_ratio_and_repeats(module: Any) -> None:
    ratios, random = module("peers.pair_ratios"), np.random.default_rng(4)
    held = []
    for _ in range(300):
        times = timings(random, 1.0, 60)
        # Against itself with another noise: the median ratio is 1.1 by symmetry.
        head = 1.1 * np.asarray(times["base"]) * np.exp(0.1 * random.standard_t(3, 60))
        interval = ratios.pair_ratio(list(head), times["base"], 0.99)
        held.append(interval.low <= 1.1 <= interval.high)
        assert interval.low <= interval.median <= interval.high
    # 99 % less what a bootstrap of 60 medians and 300 draws lose.
    assert np.mean(held) >= 0.965
    assert interval == ratios.pair_ratio(list(head), times["base"], 0.99)


def test_rounds_drop_nothing_and_mix_the_order(module: Any) -> None:
    timing = module("compare_timing")
    calls: list[str] = []

    def timer(name: str) -> float:
        calls.append(name)
        return 0.01

    names = ("base", "head", "control")
    times = timing.rounds({name: lambda name=name: timer(name) for name in names}, seconds=1.5, seed=0)
    assert [len(times[name]) for name in names] == [50] * 3
    orders = {tuple(calls[i : i + 3]) for i in range(len(calls) - 150, len(calls), 3)}
    assert len(orders) == 6
    assert all(sorted(order) == sorted(names) for order in orders)


def test_noise_makes_a_look_longer_and_leaves_it_unsure(module: Any) -> None:
    timing, compare, random = module("compare_timing"), module("compare"), np.random.default_rng(6)
    names = ("base", "head", "control")

    def look(spread: float) -> Any:
        timers = {name: lambda: 0.005 * float(np.exp(spread * random.standard_normal())) for name in names}
        return timing.compared(timing.timed(timers, seconds=0.01, seed=0))

    quiet, busy = look(0.01), look(1.0)
    assert (quiet.rounds, busy.rounds) == (40, 40 * (1 + timing.MOST_EXTENSIONS))
    assert not compare.Outcome("a case", "one process", [quiet]).unsure
    assert compare.Outcome("a case", "one process", [busy]).unsure


def test_unknown_revision(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", "--base", "no-such-revision"])
    assert module("compare").main() == 2
    assert "unknown revision 'no-such-revision'" in capsys.readouterr().err


@pytest.mark.parametrize(("base", "kernels", "message"), [("", None, "BASE="), ("HEAD", " ", "KERNELS is empty")])
def test_missing_arguments(
    module: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    repository: Path,
    base: str,
    kernels: str | None,
    message: str,
) -> None:
    compare = module("compare")
    monkeypatch.setattr(compare, "ROOT", repository)
    options = [] if kernels is None else ["--kernels", kernels]
    monkeypatch.setattr(sys, "argv", ["compare", "--base", base, *options])
    assert compare.main() == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A commit whose build fails."""
    root = tmp_path / "repository"
    root.mkdir()
    (root / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(planted LANGUAGES NONE)\n"
        'set(BITLENS_KERNELS one\n  two)\nmessage(FATAL_ERROR "planted error")\n'
    )
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    for arguments in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "planted"]):
        subprocess.run(["git", "-C", root, *arguments], check=True)
    return root


def test_base_that_does_not_build(module: Any, repository: Path) -> None:
    builds = module("compare_builds")
    commit = builds.commit_of(repository, "HEAD")
    for _ in range(2):  # a failure is not kept as a build
        with pytest.raises(builds.CompareError, match=f"base {commit[:10]} does not build"):
            builds.base_build(repository, commit)


def test_kernels_are_those_of_the_build(module: Any, repository: Path) -> None:
    builds = module("compare_builds")
    assert builds.kernels_of(repository) == ["one", "two"]
    assert builds.chosen_kernels(None, ["one", "two"]) == ["one", "two"]
    assert builds.chosen_kernels("two, one", ["one", "two"]) == ["two", "one"]
    with pytest.raises(builds.CompareError, match="no kernel three; there are one, two"):
        builds.chosen_kernels("one three", ["one", "two"])


def test_every_kernel_has_cases_that_run(module: Any) -> None:
    kernels, cases = module("compare_builds").kernels_of(ROOT), module("compare_cases").CASES
    assert {case.kernel for case in cases} == set(kernels)
    assert len({case.name for case in cases}) == len(cases)
    for kernel in kernels:
        kinds = {(str(case.dtype), case.backward) for case in cases if case.kernel == kernel}
        assert len(kinds) == 4, kernel  # two precisions, with and without gradients
    for case in cases:
        case.prepare()()


def test_comments_do_not_make_another_binding(module: Any, tmp_path: Path) -> None:
    builds = module("compare_builds")
    texts = {"first": "int a;  // one\n", "second": "/* two\n */ int  a;\n", "third": "int a, b;\n"}
    for name, text in texts.items():
        folder = tmp_path / name / "csrc" / "kernels" / "kernel"
        folder.mkdir(parents=True)
        (folder / "bind.cpp").write_text(text)
    first, second, third = (tmp_path / name for name in texts)
    assert builds.same_bindings("kernel", first, second)
    assert not builds.same_bindings("kernel", first, third)
    assert not builds.same_bindings("kernel", first, tmp_path / "none")


@pytest.fixture
def extension() -> Path:
    native = importlib.import_module("bitlens._native")
    assert native.__file__ is not None
    return Path(native.__file__)


def test_three_copies_in_one_process(module: Any, extension: Path, tmp_path: Path) -> None:
    from bitlens.kernels import _compiled

    timing, before = module("compare_timing"), _compiled._native
    contestants = timing.OneProcess(dict.fromkeys(("base", "head", "control"), extension), tmp_path)
    used = []

    def call() -> None:
        used.append(_compiled._native)

    timers = contestants.timers(SimpleNamespace(prepare=lambda: call))
    used.clear()
    assert all(timers[name]() >= 0 for name in ("base", "head", "control"))
    assert len({id(native) for native in used}) == 3
    # A timer leaves its module in place, since the next one sets its own.
    _compiled._native = before

    def changed_binding() -> None:
        if _compiled._native is used[0]:
            raise TypeError("incompatible function arguments")

    with pytest.raises(timing.NotComparable, match="base: TypeError: incompatible"):
        contestants.timers(SimpleNamespace(prepare=lambda: changed_binding))
    assert _compiled._native is before


def test_a_process_for_each_build(module: Any, extension: Path, tmp_path: Path) -> None:
    timing, case = module("compare_timing"), module("compare_cases").CASES[0]
    contestants = timing.TwoProcesses(dict.fromkeys(("base", "head"), (ROOT, extension)), 2, tmp_path)
    try:
        timers = contestants.timers(case)
        assert all(0 < timer() < 10 for timer in timers.values())
        with pytest.raises(timing.NotComparable, match="base: KeyError"):
            contestants.timers(SimpleNamespace(name="no such case"))
        contestants._workers["head"].kill()
        with pytest.raises(timing.NotComparable, match="head: the process ended with -9"):
            timers["head"]()
    finally:
        contestants.close()


def test_json_is_whole_or_as_before(module: Any, tmp_path: Path) -> None:
    compare, path = module("compare"), tmp_path / "new" / "report.json"
    compare.write_json(path, {"slower": []})
    with pytest.raises(TypeError):
        compare.write_json(path, {"slower": object()})
    assert json.loads(path.read_text()) == {"slower": []}
    assert list(path.parent.iterdir()) == [path]


def test_report_of_an_outcome(module: Any) -> None:
    compare, timing = module("compare"), module("compare_timing")
    slow = timing.compared(timings(np.random.default_rng(5), 1.3, 60))
    outcome = compare.Outcome("a case", "one process", [slow] * 3)
    assert outcome.slower
    assert "SLOWER look 3" in compare.line_of(outcome)
    assert json.loads(json.dumps(compare.as_data(outcome)))["looks"][0]["head"]["median"] == slow.head.median
    absent = compare.Outcome("a case", "two processes", [], "base: no such binding")
    assert not absent.slower
    assert "not comparable: base: no such binding" in compare.line_of(absent)
