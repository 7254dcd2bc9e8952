"""All pairs in Numba: the elementwise algorithm for each pair and pixel, summed in the order of the pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from bitlens.kernels import _fallback
from bitlens.kernels.poisson_gaussian_log_prob.fallback_double import evaluate_element


@numba.njit(nogil=True, cache=True)
def _score_rows(
    measured: np.ndarray,
    mean: np.ndarray,
    gain: np.ndarray,
    offset: np.ndarray,
    read_std: np.ndarray,
    output: np.ndarray,
    begin: int,
    end: int,
) -> None:
    out = np.empty(15)
    for i in range(begin, end):
        for j in range(mean.shape[0]):
            total = 0.0
            for p in range(mean.shape[1]):
                evaluate_element(
                    np.float64(measured[i, p]), np.float64(mean[j, p]), gain[p], offset[p], read_std[p], 0, out
                )
                total += out[0]
            output[i, j] = total


@numba.njit(nogil=True, cache=True)
def _differentiate_pixels(
    measured: np.ndarray,
    mean: np.ndarray,
    gain: np.ndarray,
    offset: np.ndarray,
    read_std: np.ndarray,
    weight: np.ndarray,
    in_measured: np.ndarray,
    in_mean: np.ndarray,
    in_sensor: np.ndarray,
    begin: int,
    end: int,
) -> None:
    out = np.empty(15)
    for p in range(begin, end):
        for i in range(measured.shape[0]):
            for j in range(mean.shape[0]):
                evaluate_element(
                    np.float64(measured[i, p]), np.float64(mean[j, p]), gain[p], offset[p], read_std[p], 1, out
                )
                w = np.float64(weight[i, j])
                in_measured[i, p] -= w * out[3]
                in_mean[j, p] += w * out[1]
                for parameter in range(3):
                    in_sensor[parameter, p] += w * out[2 + parameter]


def scores(inputs: Sequence[Tensor], threads: int) -> Tensor:
    """(n, pixels), (m, pixels) and three float64 (pixels,) -> (n, m)."""
    arrays = [tensor.numpy() for tensor in inputs]
    output = np.empty((arrays[0].shape[0], arrays[1].shape[0]), dtype=arrays[0].dtype)
    _fallback.in_threads(lambda begin, end: _score_rows(*arrays, output, begin, end), arrays[0].shape[0], 4, threads)
    return torch.from_numpy(output)


def gradients(inputs: Sequence[Tensor], weight: Tensor, wanted: Sequence[bool], threads: int) -> list[Tensor | None]:
    """Gradients of the sum of weight (n, m) times scores, in the five inputs; None where not wanted."""
    arrays = [tensor.numpy() for tensor in inputs]
    weights = weight.numpy()
    in_measured, in_mean = (np.zeros(array.shape) for array in arrays[:2])
    in_sensor = np.zeros((3, arrays[0].shape[1]))
    _fallback.in_threads(
        lambda begin, end: _differentiate_pixels(*arrays, weights, in_measured, in_mean, in_sensor, begin, end),
        arrays[0].shape[1],
        1,
        threads,
    )
    results = [in_measured.astype(arrays[0].dtype), in_mean.astype(arrays[1].dtype), *(row.copy() for row in in_sensor)]
    return [torch.from_numpy(result) if want else None for result, want in zip(results, wanted, strict=True)]
