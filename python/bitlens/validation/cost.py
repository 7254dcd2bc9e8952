"""What a computation costs: CPU time, wall time, and the memory it takes at its peak."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import pickle
import re
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, final

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@final
@dataclass(frozen=True)
class Cost:
    """CPU and wall seconds, and bytes of resident memory above those at the start, at the peak; `value`: the result."""

    cpu_seconds: float
    wall_seconds: float
    peak_memory_bytes: int
    value: Any = None


class PeakMemory:
    """Resident memory above that at the start: `start()`, then `bytes()`.

    Linux keeps the peak and lets it be reset; elsewhere the process's own maximum stands, which may be that of before.
    """

    def __init__(self) -> None:
        self._start = 0

    def start(self) -> None:
        """Forget the peak so far, and give back what is free but resident: to use it again would cost nothing."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
        if trim is not None:
            trim(0)
        # Where it cannot be reset the peak of before remains: it can only be too high.
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")
        self._start = _status_bytes("VmRSS") or _maximum_bytes()

    def bytes(self) -> int:
        """Peak since the start, less what there was then."""
        return max(0, (_status_bytes("VmHWM") or _maximum_bytes()) - self._start)


def measure_cost(
    function: Callable[[], Any],
    *,
    n_threads: int = 1,
    start: Literal["spawn", "fork"] = "spawn",
) -> Cost:
    """Cost of `function()` in a fresh process, whose start and imports do not count.

    Args:
        function: picklable, such as functools.partial of a function of a module, with "spawn"; any with "fork", which
            starts from this process's memory and must not follow work on several threads.
        n_threads: that torch may use there.

    Raises:
        TypeError: not callable, or not picklable.
        ValueError: no thread, or another way to start.
        RuntimeError: the function raised, with its traceback, or its process ended.
    """
    if not callable(function):
        raise TypeError(f"function: need a callable, got {type(function).__name__}")
    if n_threads < 1:
        raise ValueError(f"n_threads: need at least 1, got {n_threads}")
    if start not in ("spawn", "fork"):
        raise ValueError(f'start: need "spawn" or "fork", got {start!r}')
    context = multiprocessing.get_context(start)
    payload: Any = function
    # Pickled bytes go between this process and its own child alone, never to or from a file.
    if start == "spawn":
        try:
            payload = pickle.dumps(function)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(f'function: need one that can be pickled with start="spawn": {error}') from error
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(payload, n_threads, sender))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    try:
        found = pickle.loads(receiver.recv_bytes())
    except EOFError as error:
        process.join()
        raise RuntimeError(f"function: its process ended with exit code {process.exitcode}") from error
    finally:
        receiver.close()
    process.join()
    if isinstance(found, str):
        raise RuntimeError(f"function: it raised\n{found}")
    assert isinstance(found, Cost)
    return found


def _run(payload: Any, n_threads: int, sender: Connection) -> None:
    try:
        torch.set_num_threads(n_threads)
        function = pickle.loads(payload) if isinstance(payload, bytes) else payload
        _warm_up()
        memory = PeakMemory()
        memory.start()
        wall, cpu = time.perf_counter(), time.process_time()
        value = function()
        found: Any = Cost(time.process_time() - cpu, time.perf_counter() - wall, memory.bytes(), value)
        try:
            # Plain bytes: a tensor sent as such would live in memory that this process shares, and ends with it.
            content = pickle.dumps(found)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            content = pickle.dumps(f"its result cannot be pickled: {error}")
        sender.send_bytes(content)
    except BaseException:
        sender.send_bytes(pickle.dumps(traceback.format_exc()))
    finally:
        sender.close()


def _warm_up() -> None:
    """The libraries' own buffers, threads and late imports, which the first product and backward pass make."""
    weight = torch.ones(8, 8, requires_grad=True)
    (weight @ weight).sum().backward()
    image = torch.ones(1, 1, 8, 8, requires_grad=True)
    torch.nn.functional.conv2d(image, torch.ones(1, 1, 3, 3)).sum().backward()
    torch.fft.rfft2(torch.ones(8, 8))
    # Imported by the first optimiser and by the first broadcast of shapes: some 25 to 60 MiB.
    importlib.import_module("torch._dynamo")
    torch.broadcast_shapes((1,), (1,))


def _status_bytes(name: str) -> int | None:
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def _maximum_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
