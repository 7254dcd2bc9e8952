"""The Numba likelihood in single precision against the explicit sum over counts, and the layout of its operands."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest
import torch
from scipy.special import gammaln, xlogy
from torch import Tensor

from bitlens.kernels.poisson_gaussian_log_prob import fallback, fallback_elementary, fallback_single

EPS = float(np.finfo(np.float32).eps)


def explicit_sum(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value, derivatives in mean, gain, offset, read_std and their natural sizes; rows measured ... read_std.

    The sum in double precision over every count within 14 standard deviations and 40 electrons of the largest term.
    """
    low, high = np.full(points.shape[1], -700.0), np.full(points.shape[1], 60.0)
    z, y, g, o, s = points
    with np.errstate(divide="ignore", over="ignore"):
        for _ in range(120):
            middle = 0.5 * (low + high)
            rising = np.log(y) - middle + g / s**2 * (z - o - g * np.exp(middle)) > 0
            low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    centre = np.exp(low)
    width = 1 / np.sqrt(1 / np.maximum(centre, 1) + (g / s) ** 2)
    results = np.empty((5, points.shape[1]))
    sizes = np.ones((5, points.shape[1]))
    for chunk in np.array_split(np.argsort(width), 40):
        z, y, g, o, s = points[:, chunk, None]
        half = math.ceil(14 * width[chunk].max() + 40)
        k = np.maximum(np.floor(centre[chunk, None]) - half, 0) + np.arange(2 * half + 1)
        residual = (z - o - g * k) / s
        exponent = xlogy(k, y) - y - gammaln(k + 1) - 0.5 * residual**2
        peak = exponent.max(axis=1, keepdims=True)
        weight = np.exp(exponent - peak)
        total = weight.sum(axis=1)
        results[0, chunk] = (peak - np.log(s) - 0.5 * math.log(2 * math.pi))[:, 0] + np.log(total)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            one = np.exp(g / s * ((z - o) / s - 0.5 * g / s))
            slope = np.where(y > 0, (k - y) / y, np.where(k == 0, one - 1, 0))
        terms = (slope, k * residual / s, residual / s, (residual**2 - 1) / s)
        for row, term in enumerate(terms, start=1):
            results[row, chunk] = (weight * term).sum(axis=1) / total
            sizes[row, chunk] = np.maximum(1.0, (weight * np.abs(term)).sum(axis=1) / total)
    sizes[0] = np.maximum(1.0, np.abs(results[0]))
    return results, sizes


def sensors(count: int, seed: int, sigma: tuple[float, float], means: tuple[float, float] = (1e-3, 1e6)) -> np.ndarray:
    """Pixels of which every 25th is dark, each of its own sensor; some far from what they should read.

    In the order of their read noise in electrons: the terms of a block are then as few as its pixels need.
    """
    random = np.random.default_rng(seed)
    mean = np.where(np.arange(count) % 25 == 0, 0.0, 10 ** random.uniform(*np.log10(means), count))
    gain = random.uniform(0.3, 3.0, count)
    read_std = gain * np.sort(10 ** random.uniform(*np.log10(sigma), count))
    offset = random.uniform(-100, 100, count)
    measured = gain * random.poisson(mean) + offset + read_std * random.standard_normal(count)
    spread = np.sqrt(gain**2 * mean + read_std**2)
    twelve, far = np.arange(count) % 10 == 3, np.arange(count) % 20 == 7
    measured[twelve] += (random.uniform(-12, 12, count) * spread)[twelve]
    measured[far] += (random.uniform(-300, 300, count) * spread)[far]
    return np.stack([measured, mean, gain, offset, read_std]).astype(np.float32).astype(np.float64)


def evaluate(inputs: list[Tensor], order: int, threads: int = 1) -> list[Tensor]:
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in inputs))
    wanted = [i < (1, 5, 15)[order] for i in range(15)]
    outputs = fallback.poisson_gaussian_log_prob(inputs, shape, order, wanted, threads)
    return [output for output in outputs if output is not None]


def floats(points: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(row).float() for row in points]


def errors(outputs: list[Tensor], points: np.ndarray) -> np.ndarray:
    """Largest error of every output in units of the last place of its natural size; what overflows must overflow."""
    truth, sizes = explicit_sum(points)
    with np.errstate(over="ignore"):
        rounded = truth.astype(np.float32)
    ours = np.stack([output.numpy() for output in outputs]).astype(np.float64)
    finite = np.isfinite(rounded)[: len(ours)]
    assert np.array_equal(ours[~finite], rounded[: len(ours)][~finite])
    gap = np.where(finite, np.abs(np.where(finite, ours, 0) - truth[: len(ours)]), 0)
    return (gap / sizes[: len(ours)]).max(axis=1) / EPS


@pytest.mark.parametrize(
    ("sigma", "means"),
    [((0.01, 100.0), (1e-3, 1e6)), ((0.12, 5.0), (1e-3, 1e6)), ((0.12, 1.0), (1e-3, 3.0)), ((1.0, 20.0), (3.0, 300.0))],
    ids=["all", "narrow", "few electrons", "wide"],
)
def test_single_precision_against_the_explicit_sum(sigma: tuple[float, float], means: tuple[float, float]) -> None:
    """Everything, and cases where hardly a pixel is left to the double path.

    The derivative in read_std takes the variance from a second moment about a start up to 2.5 electrons away, which
    may be thirty times as large.
    """
    points = sensors(20_000, 5, sigma, means)
    assert errors(evaluate(floats(points), 0), points)[0] <= 4
    first = errors(evaluate(floats(points), 1), points)
    assert first[0] <= 4
    assert (first[1:] <= [12, 24, 12, 48]).all(), first


@pytest.mark.parametrize("mean", [(0.5, 50.0), (9900.0, 10100.0)])
def test_one_sensor_against_the_explicit_sum(mean: tuple[float, float]) -> None:
    """Means where no pixel needs the double path: with one sensor for all, each block is the single-precision sum."""
    random = np.random.default_rng(2)
    y = random.uniform(*mean, 8000)
    points = np.stack([random.poisson(y) + random.normal(0, 1.5, y.size), y, *np.full((3, y.size), 0.0)])
    points = points.astype(np.float32).astype(np.float64)
    points[2:] = np.array([[1.0], [0.0], [1.5]])
    sensor = [torch.tensor(value) for value in (1.0, 0.0, 1.5)]
    first = errors(evaluate([*floats(points[:2]), *sensor], 1), points)
    assert (first <= [4, 12, 24, 12, 48]).all(), first


def test_numbers_of_the_sensor_keep_their_double_precision() -> None:
    """Rounding gain 2.3 and offset 100.1 to single precision would cost 13 units up to 1e5 electrons."""
    random = np.random.default_rng(3)
    y = 10 ** random.uniform(-2, 5, 4000)
    z = 2.3 * random.poisson(y) + 100.1 + random.normal(0, 1.7, y.size)
    points = np.stack([z, y, *np.ones((3, y.size))]).astype(np.float32).astype(np.float64)
    points[2:] = np.array([[2.3], [100.1], [1.7]])
    sensor = [torch.tensor(value, dtype=torch.float64) for value in (2.3, 100.1, 1.7)]
    first = evaluate([*floats(points[:2]), *sensor], 1)
    assert all(output.dtype == torch.float32 for output in first)
    assert errors(first, points)[0] <= 4
    assert errors(evaluate([*floats(points[:2]), *(v.float() for v in sensor)], 0), points)[0] > 8


@pytest.mark.parametrize("double", range(1, 5))
def test_any_mix_of_dtypes_gives_that_of_measured(double: int) -> None:
    points = sensors(300, 8, (0.3, 5.0))
    inputs = [torch.from_numpy(row) if i == double else torch.from_numpy(row).float() for i, row in enumerate(points)]
    for order in (0, 1, 2):
        outputs = evaluate(inputs, order)
        assert all(output.dtype == torch.float32 for output in outputs)
        assert errors(outputs[:1], points)[0] <= 4
    inputs = [torch.from_numpy(row) for row in points]
    inputs[double] = inputs[double].float()
    (value,) = evaluate(inputs, 0)
    assert value.dtype == torch.float64
    assert float(np.abs(value.numpy() - explicit_sum(points)[0][0]).max()) <= 1e-6


@pytest.mark.parametrize("order", [1, 2])
def test_every_number_of_threads_gives_the_same_bits(order: int) -> None:
    """Blocks are the same whatever thread has them, those with elements for the double path included."""
    inputs = floats(sensors(5001, 4, (0.05, 20.0)))
    alone = evaluate(inputs, order)
    for threads in (2, 3, 7):
        for one, many in zip(alone, evaluate(inputs, order, threads), strict=True):
            assert torch.equal(one.view(torch.int32), many.view(torch.int32))


@pytest.mark.parametrize("order", [1, 2])
def test_broadcast_operands_are_read_where_they_lie(order: int) -> None:
    """Maps over a batch, a mean per image, a transposed measurement: as the same operands written out."""
    generator = torch.Generator().manual_seed(1)
    measured = (40 + 8 * torch.randn((5, 11, 3, 1), generator=generator)).permute(2, 0, 3, 1)
    inputs = [
        measured,
        30 + 5 * torch.rand((3, 1, 13, 1), generator=generator),
        1 + torch.rand((13, 11), generator=generator),
        torch.rand((5, 1, 1), generator=generator)[:, :, ::1],
        torch.tensor(1.5).expand(3, 5, 13, 11),
    ]
    written_out = [tensor.expand(3, 5, 13, 11).contiguous() for tensor in inputs]
    for one, other in zip(evaluate(inputs, order), evaluate(written_out, order), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)
    for tensor in inputs:
        assert fallback._memory(tensor).nbytes == tensor.untyped_storage().nbytes()


def test_the_stages_are_vectorised() -> None:
    """What makes the fallback fast: LLVM must turn the loops of every stage into operations on packs of floats."""
    block, wide = numba.float32[::1], numba.float64[::1]
    stages = {
        fallback_single._start: (block,),
        fallback_single._residual: (block, wide),
        fallback_single._ratios: (block,),
        fallback_single._sum: (block, numba.int64),
        fallback_single._sum_with_moments: (block, numba.int64),
        fallback_single._deviance: (block, numba.boolean),
        fallback_single._value: (block, block, numba.int64, numba.int64),
        fallback_single._moments: (block,),
    }
    for stage, signature in stages.items():
        compiled = numba.njit(signature, **fallback_elementary.OPTIONS)(stage.py_func)
        (text,) = compiled.inspect_llvm().values()
        assert any(f"<{lanes} x float>" in text for lanes in (4, 8, 16)), stage.py_func.__name__
