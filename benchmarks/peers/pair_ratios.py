"""Interleaved timings of several calls, and what their pair ratios say."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
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
    """Seconds of every call in every round; each round has an order of its own, so that none always follows another."""
    generator = np.random.default_rng(0)
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        calls[name]()
    for _ in range(rounds):
        for i in generator.permutation(len(names)):
            times[names[i]].append(seconds_of(calls[names[i]]))
    return times


def rounds_within(calls: Mapping[str, Callable[[], object]], seconds: float, least: int, most: int) -> int:
    """How many rounds fit into about `seconds`, between `least` and `most`."""
    one_round = 0.0
    for call in calls.values():
        call()
        one_round += statistics.median(seconds_of(call) for _ in range(3))
    return max(least, min(most, int(seconds / one_round)))
