"""Which implementation runs: the device of the tensors decides, then a fixed order; one switch overrides it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from bitlens.kernels import _compiled

BACKENDS = ("cuda", "cpu", "numba", "reference")


class _Settings(threading.local):
    """What the two `with` blocks of this module set, for this thread (torch.compile cannot trace a ContextVar)."""

    backend: str | None = None
    kernel_threads: int | None = None


_settings = _Settings()


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot run here."""


def available_backends() -> tuple[str, ...]:
    """The backends that can run on this machine, fastest first: of "cuda", "cpu", "numba", "reference"."""
    usable = {
        "cuda": _compiled.has_cuda() and torch.cuda.is_available(),
        "cpu": _compiled.has_cpu(),
        "numba": True,
        "reference": True,
    }
    return tuple(name for name in BACKENDS if usable[name])


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every kernel of the `with` block on one backend, without falling back.

    Args:
        name: "cuda", "cpu", "numba" or "reference".

    Raises:
        ValueError: the name is not one of these.
        BackendUnavailable: that backend cannot run on this machine.
    """
    if name not in BACKENDS:
        raise ValueError(f"name: need one of {', '.join(BACKENDS)}, got {name!r}")
    if name not in available_backends():
        raise BackendUnavailable(f"backend {name!r} is not available here; available: {available_backends()}")
    before = _settings.backend
    _settings.backend = name
    try:
        yield
    finally:
        _settings.backend = before


def select(kernel: str, device: torch.device, implemented: tuple[str, ...]) -> str:
    """The backend that runs `kernel` for tensors on `device`.

    Raises:
        BackendUnavailable: a forced backend cannot take tensors of this device, or lacks the kernel.
    """
    forced = _settings.backend
    if forced is not None:
        device_type = {"cuda": "cuda", "cpu": "cpu", "numba": "cpu"}.get(forced, device.type)
        if device.type not in (device_type, "meta"):
            raise BackendUnavailable(f"{kernel}: backend {forced!r} cannot take tensors on {device}")
        if forced not in implemented:
            raise BackendUnavailable(f"{kernel}: backend {forced!r} has no such kernel")
        return forced
    installed = {
        "cuda": device.type == "cuda" and _compiled.has_cuda(),
        "cpu": device.type in ("cpu", "meta") and _compiled.has_cpu(),
        "numba": device.type in ("cpu", "meta"),
        "reference": True,
    }
    return next(name for name in BACKENDS if installed[name] and name in implemented)


def forced() -> bool:
    """Whether a `use_backend` block chooses."""
    return _settings.backend is not None


def threads() -> int:
    """Threads a kernel may use: torch's number, or the one a reproducible block set aside for kernels."""
    return _settings.kernel_threads or torch.get_num_threads()


_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Results inside do not depend on the number of threads.

    torch splits a full reduction, a matrix product and a factorisation by thread, which changes their rounding.
    Inside this block torch runs on one thread; the kernels, whose reductions have a fixed order, keep all of them.
    torch's number of threads belongs partly to the process and partly to the Python thread, so one block runs at a
    time: another Python thread waits for its turn.
    """
    with _one_at_a_time:
        before, n_threads = _settings.kernel_threads, torch.get_num_threads()
        _settings.kernel_threads = threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)
            _settings.kernel_threads = before


def sum_to_shape(value: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`value.sum_to_size(shape)` in an order that does not depend on the number of threads."""
    if value.shape == shape:
        return value
    if shape.numel() != 1:
        return value.sum_to_size(shape)
    # torch splits only reductions to a single element by thread: sum rows first, then the few row sums.
    flat = value.reshape(-1)
    rows = flat.numel() // 4096
    total = flat[rows * 4096 :].sum()
    if rows:
        partial = flat[: rows * 4096].reshape(rows, 4096).sum(dim=1)
        total = total + (partial.sum() if rows <= 4096 else sum_to_shape(partial, torch.Size([])))
    return total.reshape(shape)
