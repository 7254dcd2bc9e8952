"""Checks of what every system is given: scenes, sizes, counts, numbers and names."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from bitlens.encoders.detector import as_planes


def check_scenes(
    scenes: Tensor | np.ndarray,
    *,
    channels: int | None = None,
    rows: int | None = None,
    columns: int | None = None,
    lower: float | None = 0.0,
) -> Tensor:
    """The caller's scenes as a tensor (n, channel, row, column), float32 unless they are float64.

    None leaves a size open. `lower` is the least value that a scene may have: 0 for light, None for any.

    Raises:
        TypeError: complex values, 8 bit photographs, or nothing that can be an array.
        ValueError: no scene, another number of axes or another size, NaN or infinity, a value below `lower`.
    """
    if not isinstance(scenes, (Tensor, np.ndarray)):
        raise TypeError(f"scenes: need a tensor or an array, got {type(scenes).__name__}")
    tensor = scenes if isinstance(scenes, Tensor) else torch.from_numpy(np.require(scenes, requirements="W"))
    if tensor.dtype == torch.uint8 and bool((tensor > 1).any()):
        raise TypeError(
            "scenes: need values in the unit of the system, got a photograph's 8 bit ones: "
            "bitlens.datasets.linearize_srgb(images / 255) is its light"
        )
    if not (tensor.is_complex() or tensor.dtype in (torch.float32, torch.float64)):
        tensor = tensor.to(torch.float32)
    planes = as_planes("scenes", tensor, channels=channels, rows=rows, columns=columns)
    if planes.numel() == 0:
        raise ValueError(f"scenes: need at least one scene with pixels, got shape {tuple(planes.shape)}")
    if not bool(planes.isfinite().all()):
        raise ValueError("scenes: need finite values, got NaN or infinity")
    if lower is not None and float(planes.min()) < lower:
        raise ValueError(f"scenes: need values of at least {lower:g}, got {float(planes.min()):g}")
    return planes


def check_shape(shape: Sequence[int], name: str = "shape", *, least: int = 1) -> tuple[int, int]:
    """(rows, columns), both whole numbers of at least `least`.

    Raises:
        TypeError: not two whole numbers.
        ValueError: one below `least`.
    """
    if isinstance(shape, (str, numbers.Number)) or len(tuple(shape)) != 2:
        raise TypeError(f"{name}: need (rows, columns), got {shape!r}")
    rows, columns = (check_count(name, size, least=least) for size in shape)
    return rows, columns


def check_count(name: str, value: object, *, least: int = 1) -> int:
    """`value`, a whole number of at least `least`.

    Raises:
        TypeError: not a whole number.
        ValueError: below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: need a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: need at least {least}, got {value}")
    return int(value)


def scenes_and_shape(
    scenes: Tensor | np.ndarray | None,
    shape: tuple[int, int] | None,
    n_scenes: int,
    *,
    default: tuple[int, int],
    channels: int | None = 1,
    lower: float | None = 0.0,
) -> tuple[Tensor | None, tuple[int, int]]:
    """Checked scenes, or None where `n_scenes` are to be made, and rows and columns: given, theirs or `default`.

    Raises:
        TypeError, ValueError: see `check_scenes`, `check_shape` and `check_count`.
    """
    size = default if shape is None else check_shape(shape)
    check_count("n_scenes", n_scenes)
    if scenes is None:
        return None, size
    rows, columns = (None, None) if shape is None else size
    tensor = check_scenes(scenes, channels=channels, rows=rows, columns=columns, lower=lower)
    return tensor, (tensor.shape[-2], tensor.shape[-1])


def check_names(learn: object) -> None:
    """TypeError for what is no sequence of names: one string, a number, None."""
    if isinstance(learn, str) or not isinstance(learn, Collection):
        raise TypeError(f"learn: need a sequence of names, got {learn!r}")


def check_number(name: str, value: object) -> float:
    """`value`, a number, which may be infinite; TypeError if it is none."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: need a number, got {value!r}")
    return float(value)


def check_positive(name: str, value: object) -> float:
    """`value`, a finite number above 0.

    Raises:
        TypeError: not a number.
        ValueError: not positive, or not finite.
    """
    number = check_number(name, value)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name}: need a positive number, got {value}")
    return number
