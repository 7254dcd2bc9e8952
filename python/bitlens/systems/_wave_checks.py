"""What the systems of wave optics check alike: choices, numbers, Zernike terms and the sizes of scenes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from bitlens.encoders.detector import Values, as_values, within


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """ValueError unless `value` is among `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: need one of {tuple(choices)}, got {value!r}")


def real_values(name: str, value: object, shapes: str, n_axes: Sequence[int]) -> Tensor:
    """`as_values` in float64, which answers what is no array of real numbers by the name of the argument.

    Raises:
        TypeError: complex values, text, or anything else that is no array.
        ValueError: as in `as_values`.
    """
    if isinstance(value, Tensor):
        real = not value.is_complex()
    else:
        try:
            real = np.asarray(value).dtype.kind in "biuf"
        except ValueError:  # rows of unequal length
            real = False
    if not real:
        raise TypeError(f"{name}: need real numbers, {shapes}, got {value!r:.60}")
    return as_values(name, cast(Values, value), shapes, n_axes).double()


def numbers_within(ranges: Mapping[str, tuple[object, float, float]]) -> dict[str, Tensor]:
    """Each name's number in float64, if it lies within its range: name -> (number, lowest, highest).

    Raises:
        TypeError: not a number.
        ValueError: NaN, or out of range.
    """
    found = {}
    for name, (value, lowest, highest) in ranges.items():
        if isinstance(value, bool) or not isinstance(value, (float, int, np.ndarray, np.generic, Tensor)):
            raise TypeError(f"{name}: need a number, got {value!r}")
        found[name] = within(name, real_values(name, value, "a number", (0,)), lowest, highest)
    return found


def zernike_terms(waves: object, neutral: Sequence[int]) -> tuple[tuple[int, ...], Tensor]:
    """Noll indices and coefficients (float64) of {index: waves rms}; without any, zeros of the `neutral` indices.

    Raises:
        TypeError: not a mapping.
        ValueError: an index below 1, or a coefficient that is not finite.
    """
    if not (waves is None or isinstance(waves, Mapping)):
        raise TypeError(f"zernike_waves: need {{Noll index: waves rms}}, got {waves!r}")
    terms: dict[object, float] = dict(waves) if waves else dict.fromkeys(neutral, 0.0)
    indices = []
    for index in terms:
        if isinstance(index, bool) or not isinstance(index, numbers.Integral) or index < 1:
            raise ValueError(f"zernike_waves: need Noll indices, whole numbers of at least 1, got {index!r}")
        indices.append(int(index))
    return tuple(indices), real_values("zernike_waves", list(terms.values()), "one number per index", (1,))


def check_window(name: str, planes: Tensor, *, least: int, multiple: int = 1) -> Tensor:
    """`planes`, if rows and columns are at least `least` and multiples of `multiple`; otherwise ValueError."""
    if min(planes.shape[-2:]) < least or any(size % multiple for size in planes.shape[-2:]):
        of = f" that are multiples of {multiple}" if multiple > 1 else ""
        raise ValueError(f"{name}: need at least {least} rows and columns{of}, got {tuple(planes.shape)}")
    return planes


def check_pupil_step(step: float, margin_pixels: int) -> float:
    """How many times wider the PSF may become, or narrower its window, until the window holds 4 wavelength f-number.

    `step` is the pupil's sample over its radius, 2 wavelength f-number / window.

    Raises:
        ValueError: the window is smaller than that already.
    """
    if step > 0.5:
        least = math.ceil(margin_pixels * step / 0.5)
        raise ValueError(f"margin_pixels: need at least {least} for a window that holds the PSF, got {margin_pixels}")
    return min(2.0, 0.5 / step)


def map_within(
    name: str, value: Values | None, size: int, *, fill: float, lowest: float = -math.inf, highest: float = math.inf
) -> Tensor:
    """A map (size, size) in float64, one of `fill` where none is given.

    Raises:
        ValueError: another shape, or a value out of range.
    """
    shape = (size, size)
    if value is None:
        return torch.full(shape, fill, dtype=torch.float64)
    values = real_values(name, value, f"shape {shape}", (2,))
    if values.shape != shape:
        raise ValueError(f"{name}: need shape {shape}, got {tuple(values.shape)}")
    return within(name, values, lowest, highest)


def share_of(value: float, share: float) -> float:
    """`share` of a number, or of 1 where that is 0: a scale must not vanish."""
    return share * (abs(value) or 1.0)
