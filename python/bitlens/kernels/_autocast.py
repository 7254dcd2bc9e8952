"""What runs in full precision under `torch.autocast`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_HALF = (torch.float16, torch.bfloat16)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """`function` with autocast off, and half-precision tensors among its arguments as float32, where autocast is on.

    Without autocast nothing changes, so that half precision meets the checks of the function.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device_type = _device_type((*args, *kwargs.values()))
        if device_type in (None, "meta") or not torch.is_autocast_enabled(device_type):
            return function(*args, **kwargs)
        widened: Any = [_widened(value) for value in args]
        named: Any = {name: _widened(value) for name, value in kwargs.items()}
        with torch.autocast(device_type, enabled=False):
            return function(*widened, **named)

    return wrapped


def _device_type(values: Iterable[object]) -> str | None:
    """That of the first tensor; tuples of tensors are looked into."""
    for value in values:
        found = value.device.type if isinstance(value, Tensor) else None
        if isinstance(value, tuple | list):
            found = _device_type(value)
        if found is not None:
            return found
    return None


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_widened(part) for part in value))
    return value
