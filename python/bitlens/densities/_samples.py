"""Arrays of samples as callers pass them in, checked."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def samples(name: str, value: object, *, keep_graph: bool = False) -> Tensor:
    """`value`, an array or tensor (n, ...) of real numbers, as a tensor of its own type, detached unless told.

    Raises:
        TypeError: not an array of real numbers.
        ValueError: no sample axis, empty, or values that are not finite.
    """
    if isinstance(value, Tensor):
        tensor = value if keep_graph else value.detach()
    else:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name}: need an array of real numbers, got {array.dtype} ({type(value).__name__})")
        native = np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
        # A copy, because torch takes neither negative strides, foreign byte order nor read-only memory.
        tensor = torch.from_numpy(np.array(array, dtype=native, order="C"))
    if tensor.is_complex():
        raise TypeError(f"{name}: need real numbers, got {tensor.dtype}")
    if tensor.ndim < 2:
        raise ValueError(f"{name}: need shape (n, ...), one image per row, got {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"{name}: need at least one image and one pixel, got shape {tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise ValueError(f"{name}: need finite values, got NaN or infinity")
    return tensor
