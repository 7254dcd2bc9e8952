"""The public function at the points of the oracle, its sensor given as tensors, scalars or Python numbers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitlens import ops

NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
_COPIES = 17  # of a pixel, where its sensor is numbers: whole vectors and what is left over


def outputs(points: NDArray[np.float64], dtype: torch.dtype, operands: str, *, gradients: bool) -> NDArray[np.floating]:
    """(quantities, points, copies) in the precision: the value, and with `gradients` the five derivatives after it.

    Operands of the sensor: "tensors" of a value per pixel, "scalars" of no axes, or Python "numbers".
    """
    if operands != "tensors":
        return np.stack([_of_one_sensor(point, dtype, operands, gradients) for point in points.T], axis=1)
    leaves = [torch.from_numpy(row).to(dtype).requires_grad_(gradients) for row in points]
    return _evaluated(*leaves, gradients=gradients)[..., None]


def _of_one_sensor(
    point: NDArray[np.float64], dtype: torch.dtype, operands: str, gradients: bool
) -> NDArray[np.floating]:
    pixels = [torch.full((_COPIES,), float(value), dtype=dtype, requires_grad=gradients) for value in point[:2]]
    sensor = [float(value) for value in point[2:]]
    if operands == "numbers":
        return _evaluated(*pixels, *sensor, gradients=gradients)
    return _evaluated(
        *pixels,
        *(torch.tensor(value, dtype=dtype, requires_grad=gradients) for value in sensor),
        gradients=gradients,
    )


def _evaluated(*arguments: Tensor | float, gradients: bool) -> NDArray[np.floating]:
    measured, mean, gain, offset, read_std = arguments
    value = ops.poisson_gaussian_log_prob(measured, mean, gain=gain, offset=offset, read_std=read_std)
    parts = [value.detach()]
    if gradients:
        leaves = [argument for argument in arguments if isinstance(argument, Tensor)]
        # That of a scalar is summed over the copies, which must not overflow.
        found = torch.autograd.grad((value / 32).sum(), leaves)
        parts += [(part * (32 if part.ndim else 32 / value.numel())).expand_as(value) for part in found]
    return np.stack([part.numpy() for part in parts])
