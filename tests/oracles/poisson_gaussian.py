"""Poisson-Gaussian log-likelihood and gradient to 50 digits, and the random points that accuracy is judged on.

Every count contributes. The ratio of neighbouring terms, y / (k+1) exp((g (z - o - g k) - g^2/2) / s^2) from k to k+1,
is itself multiplied by exp(-(g/s)^2) (k+1) / (k+2) from one k to the next, so that a term costs a few products of
integers of 220 bits. Nothing but `math` and mpmath is used, and no table, window or stride.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import mpmath
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (5, points): measured, mean, gain, offset, read_std
Gradient = tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf, mpmath.mpf, mpmath.mpf]

_DIGITS = 80
_BITS = 220
_TAIL_BITS = 175  # terms below 1e-52 of the largest are left out


class Truth(NamedTuple):
    """In nats; the gradient in the order measured, mean, gain, offset, read_std."""

    value: mpmath.mpf
    gradient: Gradient


def poisson_gaussian(z: float, y: float, g: float, o: float, s: float) -> Truth:
    """log sum_k Poisson(k; y) Normal(z; g k + o, s^2) and its gradient, the arguments taken as they are."""
    start = _near_mode(z, y, g, o, s) if y > 0 else 0
    with mpmath.workdps(_DIGITS):
        mean, gain, read_std = mpmath.mpf(y), mpmath.mpf(g), mpmath.mpf(s)
        signal = mpmath.mpf(z) - mpmath.mpf(o)
        variance = read_std**2
        a = gain**2 / variance

        def photon_ratio(k: int) -> mpmath.mpf:
            """Normal(z; g (k + 1) + o, s^2) / Normal(z; g k + o, s^2)."""
            return mpmath.exp(gain * (signal - gain * k) / variance - a / 2)

        if y == 0:
            shift = square = mpmath.mpf(0)
            log_poisson, per_photon = mpmath.mpf(0), photon_ratio(0)
        else:
            while mean * photon_ratio(start) > 2 * (start + 1):
                start += 1
            while start > 0 and 2 * mean * photon_ratio(start - 1) < start:
                start -= 1
            up = mean * photon_ratio(start) / (start + 1)
            down = start / (mean * photon_ratio(start - 1)) if start > 0 else mpmath.mpf(0)
            bits = _BITS + max(0, math.ceil(-math.log2(y)))
            sums = _moments(up, down, mpmath.exp(-a), start, bits)
            total, first, second = (mpmath.mpf(part) for part in sums)
            shift, square = first / total, second / total
            log_poisson = (start * mpmath.log(mean) if start else 0) - mean - _log_factorial(start)
            log_poisson += mpmath.log(total) - bits * mpmath.log(2)
            per_photon = (start + shift) / mean
        residual = signal - gain * start
        r = residual - gain * shift
        k_r = start * residual + shift * (residual - gain * start) - gain * square
        r_r = residual**2 - 2 * gain * residual * shift + gain**2 * square
        log_normal = -(residual**2) / (2 * variance) - mpmath.log(read_std) - mpmath.log(2 * mpmath.pi) / 2
        return Truth(
            log_poisson + log_normal,
            (-r / variance, per_photon - 1, k_r / variance, r / variance, (r_r / variance - 1) / read_std),
        )


def _near_mode(z: float, y: float, g: float, o: float, s: float) -> int:
    """A count near the largest term: bisection on the sign of the logarithm of the ratio of neighbours."""

    def rises(k: int) -> bool:
        return math.log(y) - math.log(k + 1) + (g / s) * ((z - o - g * (k + 0.5)) / s) > 0

    low, high = -1, 1
    while rises(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rises(middle) else (low, middle)
    return high


def _log_factorial(k: int) -> mpmath.mpf:
    return mpmath.log(math.factorial(k)) if k < 300 else mpmath.loggamma(k + 1)


def _moments(up: mpmath.mpf, down: mpmath.mpf, decay: mpmath.mpf, start: int, bits: int) -> tuple[int, int, int]:
    """Sums of w, w d and w d^2 over the counts start + d, w in units of 2^-bits of the term at `start`.

    Args:
        up: ratio of the term at start + 1 to that at start.
        down: ratio of the term at start - 1 to that at start.
        decay: exp(-(gain / read_std)^2).
        start: the count that the sum goes out from.
        bits: of the fixed point.
    """
    one, per_step = 1 << bits, int(decay * (1 << bits))
    tail = one >> _TAIL_BITS
    total, first, second = one, 0, 0
    for sign, ratio in ((1, int(up * one)), (-1, int(down * one))):
        weight, k, d = one, start, 0
        while weight and (weight > tail or ratio > one or d == 0):
            weight = (weight * ratio) >> bits
            d += 1
            moment = weight * d
            total += weight
            first += sign * moment
            second += moment * d
            ratio = (ratio * per_step) >> bits
            ratio = ratio * (k + 1) // (k + 2) if sign > 0 else ratio * (k - 1) // k if k > 0 else 0
            k += sign
    return total, first, second


def random_points(count: int, seed: int = 20) -> Points:
    """Mean 1e-3 to 1e6 and 0, read noise 0.01 to 100 electrons, measured within 12 sigma of its mean and far outside.

    One mean in 10 is exactly 0; one measured value in 5 lies 12 to 10,000 sigma out. Gain 0.01 to 100 ADU.
    """
    random = np.random.default_rng(seed)
    index = np.arange(count)
    mean = np.where(np.isin(index % 20, (7, 8)), 0.0, 10 ** random.uniform(-3, 6, count))
    gain = 10 ** random.uniform(-2, 2, count)
    read_std = gain * 10 ** random.uniform(-2, 2, count)
    offset = np.where(index % 4 == 0, 0.0, random.uniform(-200, 1000, count))
    sigma = gain * np.sqrt(mean + (read_std / gain) ** 2)
    sigmas = random.uniform(-12, 12, count)
    far = index % 5 == 3
    sigmas[far] = np.sign(sigmas[far]) * 12 * 10 ** random.uniform(0, math.log10(10_000 / 12), np.count_nonzero(far))
    return np.stack([gain * mean + offset + sigmas * sigma, mean, gain, offset, read_std])


def truths(points: Points) -> Points:
    """Value and the five derivatives (6, points), rounded to float64; infinite where float64 ends."""
    return np.array([[float(part) for part in _flat(poisson_gaussian(*map(float, point)))] for point in points.T]).T


def _flat(truth: Truth) -> Iterable[mpmath.mpf]:
    return (truth.value, *truth.gradient)


def rounded(points: Points, dtype: type[np.floating], operands: str) -> Points:
    """The points as the call sees them: all five in the precision, or measured and mean where the sensor is numbers."""
    result = points.copy()
    n_rounded = {"tensors": 5, "scalars": 5, "numbers": 2}[operands]
    result[:n_rounded] = points[:n_rounded].astype(dtype)
    return result


def relative_error(value: NDArray[np.floating], truth: Points) -> Points:
    """|value - truth| / max(1, |truth|), inf for NaN; where the truth overflows the precision, 0 for anything else."""
    with np.errstate(invalid="ignore", over="ignore"):
        within = np.isfinite(truth.astype(value.dtype))
        error = np.abs(value.astype(np.float64) - truth) / np.maximum(1.0, np.abs(truth))
    error = np.where(within | np.isnan(value), error, 0.0)
    result: Points = np.where(np.isnan(error), np.inf, error)
    return result
