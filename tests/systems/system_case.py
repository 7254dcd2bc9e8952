"""One ready-made system in small, for the contract that all of them pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bitlens.systems import ImagingSystem


class SystemCase(NamedTuple):
    """`make(shape, learn)` gives the system for a scene or measurement of about `shape` (rows, columns): small, fast.

    `shapes` are two of them, the second not square. `parameters` are all names that `learn` takes; `linear` says that
    the encoder has `A` and `A_adjoint`, of an affine one the linear part; `counts` that its mean is of photo-electrons,
    never negative.
    """

    name: str
    make: Callable[[tuple[int, int], tuple[str, ...]], ImagingSystem]
    shapes: tuple[tuple[int, int], tuple[int, int]]
    parameters: tuple[str, ...]
    linear: bool
    counts: bool
