"""Poisson-Gaussian log-likelihood in Numba: single precision where it is as good, the double formula elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bitlens.kernels import _fallback
from bitlens.kernels.poisson_gaussian_log_prob import fallback_double, fallback_single

_GRAIN = 16  # blocks: as many elements as a thread of its own is worth


def poisson_gaussian_log_prob(
    inputs: Sequence[Tensor], shape: torch.Size, order: int, wanted: Sequence[bool], threads: int
) -> list[Tensor | None]:
    """Value and derivatives of broadcast inputs, in the dtype of the first; `wanted` marks which of the 15 to return.

    The others may be float32 or float64 whatever the first is.
    """
    count = (1, 5, 15)[order]
    wanted = [want and i < count for i, want in enumerate(wanted)]
    if math.prod(shape) == 0:
        return [inputs[0].new_empty(shape) if want else None for want in wanted]
    if order < 2 and _in_single_precision(inputs):
        return _single(inputs, shape, wanted, threads)
    return _double(inputs, shape, count, wanted, threads)


def _in_single_precision(inputs: Sequence[Tensor]) -> bool:
    """Pixels and maps in float32; numbers of the sensor may be float64."""
    pixels = all(tensor.dtype == torch.float32 for tensor in inputs[:2])
    return pixels and all(tensor.dtype == torch.float32 or tensor.ndim == 0 for tensor in inputs[2:])


def _single(inputs: Sequence[Tensor], shape: torch.Size, wanted: Sequence[bool], threads: int) -> list[Tensor | None]:
    sizes, strides = _layout(inputs, shape)
    none = np.empty(0, dtype=np.float32)
    sensor = inputs[2:]
    outputs = [torch.empty(shape, dtype=torch.float32) if want else None for want in wanted[:5]]
    arguments = (
        _memory(inputs[0]),
        _memory(inputs[1]),
        tuple(none if tensor.numel() == 1 else _memory(tensor) for tensor in sensor),
        tuple(float(tensor) if tensor.numel() == 1 else 0.0 for tensor in sensor),
        sizes,
        strides,
        tuple(none if output is None else output.numpy().reshape(-1) for output in outputs),
    )
    _in_blocks(fallback_single.evaluate_blocks, arguments, math.prod(shape), threads)
    return [*outputs, *([None] * 10)]


def _double(
    inputs: Sequence[Tensor], shape: torch.Size, count: int, wanted: Sequence[bool], threads: int
) -> list[Tensor | None]:
    doubles = [tensor.double() for tensor in inputs]
    sizes, strides = _layout(doubles, shape)
    results = np.empty((count, math.prod(shape)))
    arguments = (*(_memory(tensor) for tensor in doubles), sizes, strides, (0, 1, 2)[(1, 5, 15).index(count)], results)
    _in_blocks(fallback_double.evaluate_blocks, arguments, results.shape[1], threads)
    # Copies: the outputs of an operator must not share memory.
    return [
        torch.from_numpy(results[i]).to(inputs[0].dtype, copy=True).reshape(shape) if want else None
        for i, want in enumerate(wanted)
    ]


def _in_blocks(evaluate: Callable[..., None], arguments: tuple[object, ...], count: int, threads: int) -> None:
    """Whole blocks to every thread: what a result shares its block with is then the same for any number of them."""
    blocks = -(-count // fallback_double.BLOCK)
    _fallback.in_threads(lambda first, last: evaluate(*arguments, first, last), blocks, _GRAIN, threads)


def _layout(inputs: Sequence[Tensor], shape: torch.Size) -> tuple[np.ndarray, np.ndarray]:
    """Axis lengths, and strides [input, axis], with neighbouring axes merged where every input allows it."""
    strides = [tensor.expand(shape).stride() for tensor in inputs]
    axes: list[tuple[int, tuple[int, ...]]] = []
    for size, *steps in zip(shape, *strides, strict=True):
        if size == 1:
            continue
        if axes and all(outer == size * inner for outer, inner in zip(axes[-1][1], steps, strict=True)):
            axes[-1] = (axes[-1][0] * size, tuple(steps))
        else:
            axes.append((size, tuple(steps)))
    axes = axes or [(1, (0,) * len(inputs))]
    sizes = np.array([size for size, _ in axes], dtype=np.int64)
    return sizes, np.ascontiguousarray(np.array([steps for _, steps in axes], dtype=np.int64).T)


def _memory(tensor: Tensor) -> np.ndarray:
    """The memory from the first to the last element, in one row: an expanded tensor stays as small as it is."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((extent,), (1,)).numpy()
