"""Argument checks with one wording: the argument, what it needs, what came."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch

FLOATING = (torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)


def tensor(name: str, value: object, dtypes: tuple[torch.dtype, ...] = FLOATING) -> torch.Tensor:
    """`value` when it is a tensor of one of `dtypes`; TypeError otherwise."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: need a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name}: need {wanted}, got {str(value.dtype).removeprefix('torch.')}")
    return value


def like(name: str, value: object, other: torch.Tensor, other_name: str) -> torch.Tensor:
    """A tensor of the dtype and device of `other`; a Python number is taken as a zero-dimensional one."""
    if isinstance(value, numbers.Real):
        return torch.tensor(float(value), dtype=other.dtype, device=other.device)
    checked = tensor(name, value, (other.dtype,))
    if checked.device != other.device:
        raise ValueError(f"{name}: need the device of {other_name}, {other.device}, got {checked.device}")
    return checked


def like_or_constant(name: str, value: object, other: torch.Tensor, other_name: str) -> torch.Tensor:
    """As `like`, but one number stays in float64: a Python number, or a zero-dimensional float64 tensor."""
    if isinstance(value, numbers.Real):
        return torch.tensor(float(value), dtype=torch.float64, device=other.device)
    if isinstance(value, torch.Tensor) and value.ndim == 0 and value.dtype == torch.float64:
        return like(name, value, value if value.device == other.device else other.double(), other_name)
    return like(name, value, other, other_name)


def at_least_dims(name: str, value: torch.Tensor, count: int, shape_text: str) -> None:
    """ValueError unless `value` has at least `count` dimensions."""
    if value.ndim < count:
        raise ValueError(f"{name}: need shape {shape_text}, got {tuple(value.shape)}")


def broadcast_shape(names: Sequence[str], shapes: Sequence[torch.Size]) -> torch.Size:
    """The common broadcast shape; ValueError that names every argument and its shape otherwise."""
    longest = max(shapes, key=len)
    if all(len(shape) == 0 or shape == longest for shape in shapes):
        return longest  # many times faster than asking torch
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        listing = ", ".join(f"{name} {tuple(shape)}" for name, shape in zip(names, shapes, strict=True))
        raise ValueError(f"{', '.join(names)}: need shapes that broadcast together, got {listing}") from None


def choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value` when it is one of `allowed`; ValueError otherwise."""
    if value not in allowed:
        raise ValueError(f"{name}: need one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value
