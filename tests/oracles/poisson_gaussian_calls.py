"""The public function at the points of the oracle, its sensor given as tensors or as Python numbers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from bitlens import ops

NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
_COPIES = 17  # of a pixel, where its sensor is numbers: whole vectors and what is left over


def outputs(points: NDArray[np.float64], dtype: torch.dtype, operands: str, *, gradients: bool) -> NDArray[np.floating]:
    """(quantities, points, copies) in the precision: the value, and with `gradients` the five derivatives after it."""
    if operands == "numbers":
        assert not gradients
        return np.stack([_of_one_sensor(point, dtype) for point in points.T], axis=1)
    leaves = [torch.from_numpy(row).to(dtype).requires_grad_(gradients) for row in points]
    measured, mean, gain, offset, read_std = leaves
    value = ops.poisson_gaussian_log_prob(measured, mean, gain=gain, offset=offset, read_std=read_std)
    parts = [value.detach(), *(torch.autograd.grad(value.sum(), leaves) if gradients else ())]
    return np.stack([part.numpy() for part in parts])[..., None]


def _of_one_sensor(point: NDArray[np.float64], dtype: torch.dtype) -> NDArray[np.floating]:
    measured, mean = (torch.full((_COPIES,), float(value), dtype=dtype) for value in point[:2])
    gain, offset, read_std = map(float, point[2:])
    value = ops.poisson_gaussian_log_prob(measured, mean, gain=gain, offset=offset, read_std=read_std)
    return value.numpy()[None]
