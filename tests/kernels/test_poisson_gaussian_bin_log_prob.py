"""Probability of a bin of a digitised, saturating sensor: the kernel contract, and truth by mpmath."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import mpmath
import pytest
import torch
from torch import Tensor

from bitlens import ops

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import Case, running

BACKENDS = ("cpu", "numba", "cuda_on_cpu")
DIGITS = 60


def caller(below: float, above: float, full_well: float):
    def call(measured: Tensor, mean: Tensor, gain: Tensor, offset: Tensor, read_std: Tensor) -> Tensor:
        return ops.poisson_gaussian_bin_log_prob(
            measured,
            mean,
            gain=gain,
            offset=offset,
            read_std=read_std,
            below=below,
            above=above,
            full_well_electrons=full_well,
        )

    return call


def sensor_inputs(shape: tuple[int, ...], broadcast: bool = False):
    """Means of 0.1 to 100, read noise of 0.3 to 5 ADU, some pixels far outside the expected spread."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        def uniform(low: float, high: float, size: tuple[int, ...]) -> Tensor:
            return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)

        small = (1,) * len(shape) if broadcast else shape
        mean = 10 ** uniform(-1, 2, shape)
        gain, offset = uniform(0.5, 2.5, small), uniform(-5, 20, small[-1:] if broadcast else shape)
        read_std = 10 ** uniform(-0.5, 0.7, ())
        spread = torch.sqrt(gain**2 * mean + read_std**2)
        measured = torch.round(gain * mean + offset + 2.5 * spread * uniform(-1, 1, shape))
        return tuple(t.to(dtype) for t in (measured, mean, gain, offset, read_std))

    return make


KINDS = {
    "code": (0.5, 0.5, math.inf),
    "code below the full well": (0.5, 0.5, 40.0),
    "top code": (0.5, math.inf, math.inf),
    "code zero, full well": (math.inf, 0.5, 25.5),
    "density below the full well": (0.0, 0.0, 40.0),
}
# Derivatives in gain and read_std are sums of terms some thousand times their result, in the reference as in ours.
CASES = {name: Case(caller(*kind), sensor_inputs((3, 5, 7), True), 1e-11) for name, kind in KINDS.items()}


def oracle(
    measured: float,
    mean: float,
    gain: float,
    offset: float,
    read_std: float,
    below: float,
    above: float,
    full_well: float,
) -> mpmath.mpf:
    """The sum in 60 digits, outward from the largest term of the counts below the full well."""
    with mpmath.workdps(DIGITS):
        y, g, o, s, z = (mpmath.mpf(v) for v in (mean, gain, offset, read_std, measured))
        # A log-concave sum may be cut in units of its largest term.
        filled = math.ceil(full_well) if math.isfinite(full_well) else None

        def log_mass(charge: mpmath.mpf) -> mpmath.mpf:
            middle = (z - o - g * charge) / s
            if below == above == 0:
                return -(middle**2) / 2 - mpmath.log(s * mpmath.sqrt(2 * mpmath.pi))
            a, b = middle - mpmath.mpf(below) / s, middle + mpmath.mpf(above) / s
            if a + b > 0:
                a, b = -b, -a
            # Digits beyond those that the difference of two nearly equal tails costs.
            root = mpmath.sqrt(2)
            if a == -mpmath.inf:
                return mpmath.log(mpmath.erfc(-b / root) / 2)
            return mpmath.log((mpmath.erfc(-b / root) - mpmath.erfc(-a / root)) / 2)

        def log_term(k: int) -> mpmath.mpf:
            return k * log_y - y - mpmath.loggamma(k + 1) + log_mass(mpmath.mpf(k))

        if mean == 0:
            return log_mass(mpmath.mpf(0))
        log_y = mpmath.log(y)
        low, high = 0, int(mean + 60 * math.sqrt(mean) + 400 + max(0.0, (measured - offset) / gain))
        if filled is not None:
            high = min(high, filled - 1)
        last = high
        while high - low > 2:  # log-concave: the largest term by bisection on the step
            k = (low + high) // 2
            if log_term(k + 1) > log_term(k):
                low = k + 1
            else:
                high = k
        best = max(range(low, high + 1), key=log_term)
        unit, total = log_term(best), mpmath.mpf(1)
        for step in (1, -1):
            k = best + step
            while 0 <= k <= last:
                term = mpmath.exp(log_term(k) - unit)
                total += term
                if term < total * mpmath.mpf(10) ** -20:
                    break
                k += step
        result = unit + mpmath.log(total)
        if filled is not None:
            if filled > mean:
                tail = mpmath.gammainc(filled, 0, y, regularized=True)
            else:
                tail = 1 - mpmath.gammainc(filled, y, regularized=True)
            other = mpmath.log(tail) + log_mass(mpmath.mpf(full_well))
            top = max(result, other)
            result = top + mpmath.log(mpmath.exp(result - top) + mpmath.exp(other - top))
        return result


def random_points(count: int) -> list[tuple[float, ...]]:
    generator = contract.generator(11)
    u = torch.rand((count, 8), generator=generator, dtype=torch.float64).tolist()
    points = []
    for i, row in enumerate(u):
        mean = 0.0 if i % 17 == 0 else 10 ** (-3 + 6 * row[0])
        gain = 10 ** (-1.5 + 3 * row[1])
        read_std = gain * 10 ** (-2 + 3.5 * row[2])
        offset = -50 + 200 * row[3]
        well = math.inf if i % 3 else max(math.ceil(10 * mean ** (0.9 + 0.2 * row[4])) / 10, 0.7) + 0.5 * (i % 2)
        spread = math.sqrt(gain**2 * mean + read_std**2)
        reach = (1, 6, 40)[i % 3]
        measured = float(round(gain * min(mean, well) + offset + reach * spread * (2 * row[5] - 1)))
        below, above = ((0.5, 0.5), (0.5, 0.5), (math.inf, 0.5), (0.5, math.inf), (0.0, 0.0))[i % 5]
        points.append((measured, mean, gain, offset, read_std, below, above, well))
    return points


@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_mpmath(backend: str) -> None:
    points = random_points(150)
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True)]
    with running(backend):
        values = ops.poisson_gaussian_bin_log_prob(
            columns[0],
            columns[1],
            **dict(
                zip(
                    ("gain", "offset", "read_std", "below", "above", "full_well_electrons"),
                    columns[2:],
                    strict=True,
                )
            ),
        )
    for value, point in zip(values.tolist(), points, strict=True):
        truth = oracle(*point)
        assert abs(value - float(truth)) <= 1e-10 * max(1.0, abs(float(truth))), (point, value, float(truth))
