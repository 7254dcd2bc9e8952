"""Peak memory of one call in a process of its own (Linux)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch


def _resident_megabytes(field: str) -> float:
    """VmRSS, the memory held now, or VmHWM, the most held since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _measure(prepare: Callable[..., Callable[[], object]], arguments: tuple[object, ...], threads: int) -> float:
    torch.set_num_threads(threads)
    call = prepare(*arguments)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_megabytes("VmRSS")
    call()
    return _resident_megabytes("VmHWM") - before


def extra_megabytes(
    prepare: Callable[..., Callable[[], object]], arguments: tuple[object, ...], *, threads: int
) -> float:
    """Megabytes that the call which `prepare(*arguments)` returns needs beyond what the process held before.

    `prepare` makes the inputs and runs the call once on a few of them, so that libraries and threads are there.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (prepare, arguments, threads))
