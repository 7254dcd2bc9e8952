"""Threads for the Numba kernels: Python threads around nogil functions, since Numba's own pool aborts after a fork."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def in_threads(run: Callable[[int, int], object], count: int, grain: int, threads: int) -> None:
    """Call run(begin, end) over [0, count) in pieces of at least `grain`, on at most `threads` threads."""
    pieces = min(threads, max(1, count // grain))
    if pieces == 1:
        run(0, count)
        return
    edges = [count * piece // pieces for piece in range(pieces + 1)]
    with ThreadPoolExecutor(pieces) as pool:
        for future in [pool.submit(run, edges[i], edges[i + 1]) for i in range(pieces)]:
            future.result()
