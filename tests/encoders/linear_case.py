"""One linear encoder with the scene it takes, for the contract that all of them pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bitlens.encoders.linear import LinearEncoder


class LinearCase(NamedTuple):
    """`make()` gives the encoder in float64; `scene_shape` is (channel, row, column), not square.

    `parameters` names the tensors (`nn.Parameter` or buffers) the measurements are differentiable in. `flux` is the
    share of a constant scene's sum that arrives, where a closed form says so; `shifts` whether a scene moved by one
    sample along the columns moves the measurement by one column, the edges aside.
    """

    name: str
    make: Callable[[], LinearEncoder]
    scene_shape: tuple[int, int, int]
    parameters: tuple[str, ...] = ()
    flux: float | None = None
    shifts: bool = False
