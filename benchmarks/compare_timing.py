"""Timings of the same call on several builds, side by side, and the decision whether one is slower."""

from __future__ import annotations

import functools
import gc
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from peers.pair_ratios import PairRatio, pair_ratio

if TYPE_CHECKING:
    from compare_cases import Case

BASE, HEAD, CONTROL = "base", "head", "control"  # control: the base's build a second time
SLOWER = 1.05
CONFIDENCE = 0.99
# Each look at a case is on fresh builds and longer than the last; only a case that is slower in all of them fails.
LOOKS = (1.0, 2.5, 4.0)
FEWEST_ROUNDS, MOST_ROUNDS = 40, 400
# A look at a busy machine goes on until its interval is as narrow as this, or its time is up that many times over.
NARROW = 0.06
MOST_EXTENSIONS = 5

Timer = Callable[[], float]
Times = Mapping[str, list[float]]


class NotComparable(RuntimeError):
    """A case that one of the builds cannot run."""


class Comparison(NamedTuple):
    """What one look at one case said: ratios to the base's times, and seconds a call."""

    head: PairRatio
    control: PairRatio
    base_seconds: float
    head_seconds: float
    rounds: int

    @property
    def slower(self) -> bool:
        """Whether the head is slower by more than 5 % for sure, and by more than the base differs from itself."""
        return self.head.low > max(SLOWER, self.control.high)


def compared(times: Times) -> Comparison:
    """The comparison of timings of base, head and control in the same rounds; none is left out."""
    return Comparison(
        head=pair_ratio(times[HEAD], times[BASE], CONFIDENCE),
        control=pair_ratio(times[CONTROL], times[BASE], CONFIDENCE),
        base_seconds=statistics.median(times[BASE]),
        head_seconds=statistics.median(times[HEAD]),
        rounds=len(times[BASE]),
    )


def looks_until_settled(look: Callable[[float], Comparison]) -> list[Comparison]:
    """`look(seconds)` until a look says that the head is not slower, or all looks are used up.

    The case is slower if the last of them is.
    """
    results: list[Comparison] = []
    for seconds in LOOKS:
        results.append(look(seconds))
        if not results[-1].slower:
            break
    return results


def timed(timers: Mapping[str, Timer], seconds: float, seed: int) -> dict[str, list[float]]:
    """Times of rounds until the interval is narrow: about `seconds` on a quiet machine, longer on a busy one.

    How wide the interval is says nothing about where it lies, so that stopping by it favours no outcome.
    """
    times = rounds(timers, seconds, seed)
    for extension in range(MOST_EXTENSIONS):
        head = compared(times).head
        if head.high - head.low <= NARROW:
            break
        for name, more in rounds(timers, seconds, seed + 1000 * (extension + 1)).items():
            times[name] += more
    return times


def rounds(timers: Mapping[str, Timer], seconds: float, seed: int) -> dict[str, list[float]]:
    """Times of every timer in about `seconds`, each round in an order of its own."""
    names = list(timers)
    # Threads, pages and tables first; then how long a round takes.
    for name in names:
        timers[name]()
    one_round = sum(statistics.median(timers[name]() for _ in range(3)) for name in names)
    count = min(MOST_ROUNDS, max(FEWEST_ROUNDS, math.ceil(seconds / one_round)))
    generator = np.random.default_rng(seed)
    times: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(count):
            for i in generator.permutation(len(names)):
                times[names[i]].append(timers[names[i]]())
    finally:
        if collecting:
            gc.enable()
    return times


def let_threads_sleep() -> None:
    """Before torch is imported: threads of this process and of those it starts sleep while they wait.

    Threads that wait busily hold the core that another process, whose turn it is, or one that has nothing to do with
    this waits for; a slow-down of 15 % then drowns as soon as the machine has one core of other work.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def load_extension(path: Path, name: str) -> ModuleType:
    """The extension module in a file, under the name of a build; `_native` is the name it was built with."""
    spec = importlib.util.spec_from_file_location(f"{name}._native", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class OneProcess:
    """Calls with the working tree's Python code on the extension of each build, all loaded here.

    Copies of the files are loaded: the loader would give one file that is loaded twice the same memory.
    """

    how = "one process"

    def __init__(self, extensions: Mapping[str, Path], scratch: Path) -> None:
        self._modules = {}
        for name, path in extensions.items():
            copy = scratch / name / path.name
            copy.parent.mkdir(parents=True)
            shutil.copy2(path, copy)
            self._modules[name] = load_extension(copy, name)

    def timers(self, case: Case) -> dict[str, Timer]:
        """A timer for each build.

        Raises:
            NotComparable: a build lacks the binding, or it takes other arguments.
        """
        from bitlens.kernels import _compiled  # only now is it settled which tree's package it is

        def timer(module: ModuleType, call: Callable[[], object]) -> float:
            _compiled._native = module
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin

        before = _compiled._native
        name = HEAD
        try:
            _compiled._native = self._modules[HEAD]
            # One set of operands for all, so that they are in the same memory; made by the code that fits them.
            call = case.prepare()
            for name in self._modules:
                # The first call shows whether the binding fits.
                timer(self._modules[name], call)
        except Exception as error:  # most likely TypeError or AttributeError: a changed binding
            raise NotComparable(f"{name}: {type(error).__name__}: {error}") from error
        finally:
            _compiled._native = before
        return {name: functools.partial(timer, module, call) for name, module in self._modules.items()}

    def close(self) -> None:
        """Nothing: an extension stays loaded."""


class TwoProcesses:
    """Calls with each build's own Python code in a process of its own, one call at a time."""

    how = "two processes"

    def __init__(self, builds: Mapping[str, tuple[Path, Path]], threads: int, scratch: Path) -> None:
        """`builds` gives the source tree and the extension of each."""
        self._workers: dict[str, subprocess.Popen[str]] = {}
        self._logs: dict[str, Path] = {}
        self._files: list[IO[str]] = []
        for name, (tree, extension) in builds.items():
            self._logs[name] = scratch / f"{name}.log"
            self._files.append(self._logs[name].open("w"))
            self._workers[name] = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("compare_worker.py")), tree, extension, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._files[-1],
                text=True,
            )

    def timers(self, case: Case) -> dict[str, Timer]:
        """A timer for each build.

        Raises:
            NotComparable: a build cannot make or run the case.
        """
        for name in self._workers:
            self._ask(name, {"prepare": case.name})
        return {name: lambda name=name: float(self._ask(name, {"time": True})["seconds"]) for name in self._workers}

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers.values():
            worker.stdin.close()
        for worker in self._workers.values():
            try:
                worker.wait(timeout=10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            worker.stdout.close()
        for file in self._files:
            file.close()

    def _ask(self, name: str, question: dict[str, object]) -> dict[str, object]:
        worker = self._workers[name]
        try:
            worker.stdin.write(json.dumps(question) + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = self._logs[name].read_text().strip().splitlines() or ["no message"]
            raise NotComparable(f"{name}: the process ended with {worker.wait()}: {lines[-1]}")
        result = json.loads(answer)
        if "error" in result:
            raise NotComparable(f"{name}: {result['error']}")
        return result
