"""Interleaved timings of several calls, and what their pair ratios say."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np


class PairRatio(NamedTuple):
    """Median of the ratios of neighbouring timings, and a bootstrap interval of it."""

    median: float
    low: float
    high: float


def pair_ratio(numerator: list[float], denominator: list[float], confidence: float, draws: int = 2000) -> PairRatio:
    """Median of numerator[i] / denominator[i] with its percentile bootstrap interval, from a fixed seed."""
    ratios = np.asarray(numerator) / np.asarray(denominator)
    generator = np.random.default_rng(0)
    medians = np.median(ratios[generator.integers(len(ratios), size=(draws, len(ratios)))], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return PairRatio(float(np.median(ratios)), float(low), float(high))


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call in every round, each after an untimed one that fills the caches and wakes its threads.

    Each round has an order of its own, so that none always follows another.
    """
    generator = np.random.default_rng(0)
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for i in generator.permutation(len(names)):
            call = calls[names[i]]
            call()
            times[names[i]].append(seconds_of(call))
    return times


class OtherWork:
    """How busy other processes kept this machine since the object was made (Linux; 0 elsewhere).

    Threads that wait busily and share a core with other work wait for time slices of milliseconds: such timings say
    nothing, and their ratios not much.
    """

    def __init__(self) -> None:
        self._begin = time.monotonic(), self._seconds()

    def cores(self) -> float:
        """Cores that other processes used on average."""
        began, before = self._begin
        return max(0.0, self._seconds() - before) / max(time.monotonic() - began, 1e-9)

    @staticmethod
    def _seconds() -> float:
        statistics_file = Path("/proc/stat")
        if not statistics_file.exists():
            return 0.0
        user, nice, system, _, _, interrupt, soft, stolen = map(int, statistics_file.read_text().split()[1:9])
        busy = (user + nice + system + interrupt + soft + stolen) / os.sysconf("SC_CLK_TCK")
        return busy - sum(os.times()[:4])


def keep_freed_memory() -> None:
    """Let glibc's allocator keep what is freed, if it is there.

    Otherwise whether a call with large temporaries gets fresh pages from the system, and spends half its time on
    them, depends on what ran before.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def rounds_within(calls: Mapping[str, Callable[[], object]], seconds: float, least: int, most: int) -> int:
    """How many rounds fit into about `seconds`, between `least` and `most`."""
    one_round = 0.0
    for call in calls.values():
        call()
        one_round += 2 * statistics.median(seconds_of(call) for _ in range(3))
    return max(least, min(most, int(seconds / one_round)))
