"""What a ready-made system consists of, and how it introduces itself."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class ImagingSystem(NamedTuple):
    """`encoder` (scene -> mean), `noise` (mean -> measured) and `scenes` (n, channel, row, column).

    Unpacks into the calls that take them: `optimize_design(*system)`, `encoder, noise, scenes = system`.
    """

    encoder: nn.Module
    noise: nn.Module
    scenes: Tensor


class SystemDescription(NamedTuple):
    """One line about a system: its `name`, the `designs` it comes in, its `formula` and a `reference`."""

    name: str
    designs: tuple[str, ...]
    formula: str
    reference: str
