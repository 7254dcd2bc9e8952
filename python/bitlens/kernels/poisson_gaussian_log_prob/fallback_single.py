"""Value and first derivatives in single precision, block by block: the algorithm of narrow.h for LLVM's vectoriser.

Every stage is one branch-free loop over the lanes of a block. The lanes' variables lie in rows of one scratch array at
constant distances, which is how the vectoriser knows without a test at run time that no two rows overlap.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from bitlens.kernels.poisson_gaussian_log_prob.fallback_double import BLOCK, evaluate_element, load_block
from bitlens.kernels.poisson_gaussian_log_prob.fallback_elementary import (
    OPTIONS,
    bits,
    exponential,
    exponential_of_double,
    from_bits,
    logarithm,
    square_root,
)

_GROUP = 2  # terms on either side for each pass over a block
# A sum starts at most so many electrons from its mode; further out, and where it is wider than 26 = 5.1^2
# electrons, the double path takes over: the product of 32 denominators must not overflow.
_FARTHEST_START = np.float32(2.5)
_LEAST_CURVATURE = np.float32(1 / 26)
_STEEPEST_FALL = np.float32(6)  # of the first ratio downwards, or the expected count is what start + shift leave
_MARGIN, _TWICE_LOG_TAIL = 1.2, 32.2  # terms = margin + sqrt(2 log(1e7) / curvature): share left out <= 4e-8
_MOST_COUNTS = np.float32(1e6)  # beyond, a step of one electron is lost in rounding
_LARGEST_RATIO = 8.0  # gain / read_std, so that exp(-a) is a normal number

_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_FIVE, _HUGE, _LARGEST_EXPONENT = np.float32(5), np.float32(1e30), np.float32(80)
_TINY, _TWO_PI, _LARGEST_NORMALISED = np.float32(1e-30), np.float32(2 * math.pi), np.float32(1e15)
_MAGIC = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
# atanh(v) / v - 1 as a minimax polynomial in v^2 (relative error 4e-9 to |v| = 1/2).
_ATANH = tuple(
    np.float32(c) for c in (0.156587446, 0.0407138586, 0.0975708431, 0.110502348, 0.142883168, 0.199999588, 0.333333334)
)
# log k! less Stirling's formula, fitted in 1/k at k = 1, 2, ...: within 5e-10.
_CORRECTION = tuple(
    np.float32(c)
    for c in (-0.000336943526, 0.000828855641, 1.90160063e-05, -0.00278324005, 4.55557999e-07, 0.0833333232)
)

# Rows of the single-precision scratch array, 18 KiB: the sensor, the pixel, the sums.
_A, _DECAY, _RATIO, _INVERSE_STD, _SCALE, _BAD, _Z, _Y = (BLOCK * i for i in range(8))
_SAFE_Y, _M, _NORMALISED, _RISE, _INVERSE_M, _HARD, _DEVIANCE, _RESULT = (BLOCK * i for i in range(8, 16))
_UP_FACTOR, _DOWN_FACTOR, _DENOMINATOR, _UP, _UP_SUM, _UP_SUM1, _UP_SUM2 = (BLOCK * i for i in range(16, 23))
_DOWN, _DOWN_SUM, _DOWN_SUM1, _DOWN_SUM2, _SHIFT, _VARIANCE, _RESIDUAL = (BLOCK * i for i in range(23, 30))
_INVERSE_GAIN, _NEAR_OFFSET, _HALF_SQUARE, _EXPONENT, _EXPONENT_REST = (BLOCK * i for i in range(30, 35))
_ROWS = 35
# Rows of the double-precision one, 5 KiB.
_GAIN, _OFFSET, _STD, _DOUBLE_RATIO, _DOUBLE_INVERSE_STD = (BLOCK * i for i in range(5))
_DOUBLE_ROWS = 5

_compiled = numba.njit(cache=True, **OPTIONS)


@_compiled
def _sensor(x: np.ndarray, wide: np.ndarray) -> None:
    """What depends on the sensor alone, from gain, offset and read_std in `wide`."""
    for lane in range(BLOCK):
        gain, offset, read_std = wide[_GAIN + lane], wide[_OFFSET + lane], wide[_STD + lane]
        good = (gain > 1e-10) & (gain < 1e10) & (read_std > 1e-10) & (read_std < 1e10)
        good = good & (gain < read_std * _LARGEST_RATIO) & (abs(offset) < 1e30)
        safe_gain, safe_std = (gain if good else 1.0), (read_std if good else 1.0)
        ratio = safe_gain / safe_std
        wide[_DOUBLE_RATIO + lane] = ratio
        wide[_DOUBLE_INVERSE_STD + lane] = 1.0 / safe_std
        x[_INVERSE_GAIN + lane] = np.float32(1.0 / safe_gain)
        x[_NEAR_OFFSET + lane] = np.float32(offset)
        x[_RATIO + lane] = np.float32(ratio)
        x[_A + lane] = np.float32(ratio * ratio)
        x[_DECAY + lane] = exponential_of_double(-(ratio * ratio))
        x[_INVERSE_STD + lane] = np.float32(1.0 / safe_std)
        x[_SCALE + lane] = np.float32(1.0 / (safe_std * safe_std * (2 * math.pi)))
        x[_BAD + lane] = _ZERO if good else _ONE


@_compiled
def _start(x: np.ndarray) -> None:
    """The count where the sum starts: log(k / y) ~ 2 (k - y) / (k + y) makes the equation of the mode quadratic."""
    for lane in range(BLOCK):
        a, y, z = x[_A + lane], x[_Y + lane], x[_Z + lane]
        good = (x[_BAD + lane] < _HALF) & (y < _MOST_COUNTS) & (abs(z) < _HUGE) & ((y == _ZERO) | (y > _TINY))
        y = y if good else _ONE
        c = (z - x[_NEAR_OFFSET + lane]) * x[_INVERSE_GAIN + lane]
        b = a * (c - y) - _TWO
        p = _TWO + a * c
        p = p if p > _ZERO else _ZERO
        twice_py = (y + y) * p
        root = square_root(b * b + (a + a) * twice_py)
        negative = b < _ZERO
        k = (twice_py if negative else b + root) / (root - b if negative else a + a)
        k = k if y > _ZERO else _ZERO
        k = k if k < _TWO * _MOST_COUNTS else _TWO * _MOST_COUNTS
        x[_SAFE_Y + lane] = y
        x[_M + lane] = (k + _MAGIC) - _MAGIC
        x[_HARD + lane] = _ZERO if good else _ONE


@_compiled
def _residual(x: np.ndarray, wide: np.ndarray) -> None:
    """(z - offset - gain m) / read_std, half its square and log(rise) = its share of the ratios, from doubles."""
    for lane in range(BLOCK):
        ratio = wide[_DOUBLE_RATIO + lane]
        signal = np.float64(x[_Z + lane]) - wide[_OFFSET + lane]
        normalised = (signal - wide[_GAIN + lane] * np.float64(x[_M + lane])) * wide[_DOUBLE_INVERSE_STD + lane]
        exponent = ratio * (normalised - 0.5 * ratio)
        high = np.float32(exponent)
        x[_NORMALISED + lane] = np.float32(normalised)
        # Squared before it is rounded: where read_std is small, log(read_std) takes most of it away again.
        x[_HALF_SQUARE + lane] = np.float32(0.5 * normalised * normalised)
        x[_EXPONENT + lane] = high
        x[_EXPONENT_REST + lane] = np.float32(exponent - np.float64(high))


@_compiled
def _ratios(x: np.ndarray) -> tuple[np.int32, np.int32, np.int32]:
    """The first ratios of the sum; bits of the least curvature, of whether a lane is hard, or far from its mean."""
    least = np.int32(0x7F000000)
    any_hard = np.int32(0)
    any_far = np.int32(0)
    for lane in range(BLOCK):
        a, y, m = x[_A + lane], x[_SAFE_Y + lane], x[_M + lane]
        rise = exponential(x[_EXPONENT + lane]) * (_ONE + x[_EXPONENT_REST + lane])
        up = y * rise
        down = x[_DECAY + lane] / (up if up > _TINY else _TINY)
        safe_m = m if m > _ONE else _ONE
        m5 = safe_m + _FIVE
        both = _ONE / (safe_m * m5)
        inverse_m = both * m5
        curvature = a + both * safe_m
        steepest = _ONE + _FARTHEST_START * curvature
        easy = (x[_HARD + lane] < _HALF) & (m <= _MOST_COUNTS) & (curvature > _LEAST_CURVATURE)
        easy = easy & (x[_EXPONENT + lane] < _LARGEST_EXPONENT) & (abs(x[_NORMALISED + lane]) < _LARGEST_NORMALISED)
        easy = easy & (up <= steepest * (m + _ONE)) & (down * m <= steepest) & (down * m <= _STEEPEST_FALL)

        hard_bits = bits(_ZERO if easy else _ONE)
        any_hard = any_hard if any_hard > hard_bits else hard_bits
        curvature_bits = bits(curvature if easy else _HUGE)
        least = least if least < curvature_bits else curvature_bits
        far_bits = bits(abs(safe_m - y) - _HALF * (safe_m + y))
        any_far = any_far if any_far > far_bits else far_bits
        x[_HARD + lane] = _ZERO if easy else _ONE
        x[_RISE + lane] = rise
        x[_INVERSE_M + lane] = inverse_m
        x[_UP_FACTOR + lane] = up * inverse_m if easy else _ZERO
        x[_DOWN_FACTOR + lane] = down if easy else _ZERO
    return least, any_hard, any_far


def _summation(moments: bool) -> Any:
    """Both sides of the sum, with or without the first two moments of the distance from its start.

    The upper side is a fraction, so that no term needs a division.
    """

    @_compiled
    def run(x: np.ndarray, terms: int) -> None:
        for lane in range(BLOCK):
            x[_DENOMINATOR + lane] = _ONE
            x[_UP + lane] = _ONE
            x[_UP_SUM + lane] = _ZERO
            x[_DOWN + lane] = _ONE
            x[_DOWN_SUM + lane] = _ONE
            if moments:
                x[_UP_SUM1 + lane] = _ZERO
                x[_UP_SUM2 + lane] = _ZERO
                x[_DOWN_SUM1 + lane] = _ZERO
                x[_DOWN_SUM2 + lane] = _ZERO
        for first in range(0, terms, _GROUP):
            d = np.float32(first)
            for lane in range(BLOCK):
                m, inverse_m, decay = x[_M + lane], x[_INVERSE_M + lane], x[_DECAY + lane]
                up_factor, down_factor = x[_UP_FACTOR + lane], x[_DOWN_FACTOR + lane]
                denominator, up, up_sum = x[_DENOMINATOR + lane], x[_UP + lane], x[_UP_SUM + lane]
                down, down_sum = x[_DOWN + lane], x[_DOWN_SUM + lane]
                if moments:
                    up_sum1, up_sum2 = x[_UP_SUM1 + lane], x[_UP_SUM2 + lane]
                    down_sum1, down_sum2 = x[_DOWN_SUM1 + lane], x[_DOWN_SUM2 + lane]
                factor = (m + d) * inverse_m
                for step in range(_GROUP):
                    distance = d + np.float32(step + 1)
                    factor = factor + inverse_m
                    up = up * up_factor
                    up_sum = up_sum * factor + up
                    denominator = denominator * factor
                    down = down * (down_factor * (m - (d + np.float32(step))))
                    down_sum = down_sum + down
                    if moments:
                        up_sum1 = up_sum1 * factor + up * distance
                        up_sum2 = up_sum2 * factor + up * (distance * distance)
                        down_sum1 = down_sum1 + down * distance
                        down_sum2 = down_sum2 + down * (distance * distance)
                    up_factor = up_factor * decay
                    down_factor = down_factor * decay
                x[_UP_FACTOR + lane] = up_factor
                x[_DOWN_FACTOR + lane] = down_factor
                x[_DENOMINATOR + lane] = denominator
                x[_UP + lane] = up
                x[_UP_SUM + lane] = up_sum
                x[_DOWN + lane] = down
                x[_DOWN_SUM + lane] = down_sum
                if moments:
                    x[_UP_SUM1 + lane] = up_sum1
                    x[_UP_SUM2 + lane] = up_sum2
                    x[_DOWN_SUM1 + lane] = down_sum1
                    x[_DOWN_SUM2 + lane] = down_sum2

    return run


_sum, _sum_with_moments = _summation(False), _summation(True)


@_compiled
def _deviance(x: np.ndarray, far: bool) -> None:
    """Loader's deviance of the start from the mean, in v = (k - mean) / (k + mean)."""
    for lane in range(BLOCK):
        m, y = x[_M + lane], x[_SAFE_Y + lane]
        k = m if m > _ONE else _ONE
        v = (k - y) / (k + y)
        v2 = v * v
        series = _ATANH[0] * v2 + _ATANH[1]
        series = series * v2 + _ATANH[2]
        series = series * v2 + _ATANH[3]
        series = series * v2 + _ATANH[4]
        series = series * v2 + _ATANH[5]
        series = series * v2 + _ATANH[6]
        series = series * v2
        x[_DEVIANCE + lane] = (k + y) * v * ((_ONE + v) * series + v)
    if not far:
        return
    for lane in range(BLOCK):
        m, y = x[_M + lane], x[_SAFE_Y + lane]
        k = m if m > _ONE else _ONE
        by_log = k * logarithm(k / (y if y > _TINY else _TINY)) + (y - k)
        x[_DEVIANCE + lane] = by_log if abs(k - y) > _HALF * (k + y) else x[_DEVIANCE + lane]


@_compiled
def _store(x: np.ndarray, output: np.ndarray, begin: int, count: int) -> None:
    for lane in range(count):
        output[begin + lane] = x[_RESULT + lane]


@_compiled
def _value(x: np.ndarray, value: np.ndarray, begin: int, count: int) -> None:
    """The log-likelihood, its square roots and normalisations under one logarithm, to `value`."""
    for lane in range(BLOCK):
        inverse_m = x[_INVERSE_M + lane]
        no_count = x[_M + lane] < _HALF
        correction = _CORRECTION[0] * inverse_m + _CORRECTION[1]
        correction = correction * inverse_m + _CORRECTION[2]
        correction = correction * inverse_m + _CORRECTION[3]
        correction = correction * inverse_m + _CORRECTION[4]
        correction = (correction * inverse_m + _CORRECTION[5]) * inverse_m
        exponent = x[_SAFE_Y + lane] if no_count else x[_DEVIANCE + lane] + correction
        exponent = x[_HALF_SQUARE + lane] + exponent
        total = x[_DOWN_SUM + lane] + x[_UP_SUM + lane] / x[_DENOMINATOR + lane]
        inverse_k = _ONE if no_count else inverse_m * (_ONE / _TWO_PI)
        x[_RESULT + lane] = _HALF * logarithm(total * total * inverse_k * x[_SCALE + lane]) - exponent
    _store(x, value, begin, count)


@_compiled
def _moments(x: np.ndarray) -> None:
    """Posterior mean of the distance from the start, its variance, and that of the normalised residual."""
    for lane in range(BLOCK):
        denominator = x[_DENOMINATOR + lane]
        share = _ONE / (x[_DOWN_SUM + lane] * denominator + x[_UP_SUM + lane])
        shift = (x[_UP_SUM1 + lane] - x[_DOWN_SUM1 + lane] * denominator) * share
        variance = (x[_UP_SUM2 + lane] + x[_DOWN_SUM2 + lane] * denominator) * share - shift * shift
        x[_SHIFT + lane] = shift
        x[_VARIANCE + lane] = variance if variance > _ZERO else _ZERO
        x[_RESIDUAL + lane] = x[_NORMALISED + lane] - x[_RATIO + lane] * shift


@_compiled
def _first_derivatives(
    x: np.ndarray,
    mean: np.ndarray,
    gain: np.ndarray,
    offset: np.ndarray,
    read_std: np.ndarray,
    begin: int,
    count: int,
) -> None:
    """Derivatives in mean, gain, offset, read_std; an output of no elements is not wanted."""
    if mean.size:
        for lane in range(BLOCK):
            y = x[_SAFE_Y + lane]
            # (k - y) / y keeps the digits that k / y - 1 would lose.
            slope = ((x[_M + lane] - y) + x[_SHIFT + lane]) / (y if y > _ZERO else _ONE)
            x[_RESULT + lane] = slope if y > _ZERO else x[_RISE + lane] - _ONE
        _store(x, mean, begin, count)
    if gain.size:
        for lane in range(BLOCK):
            k_mean = x[_M + lane] + x[_SHIFT + lane]
            k_residual = k_mean * x[_RESIDUAL + lane] - x[_RATIO + lane] * x[_VARIANCE + lane]
            x[_RESULT + lane] = k_residual * x[_INVERSE_STD + lane]
        _store(x, gain, begin, count)
    if offset.size:
        for lane in range(BLOCK):
            x[_RESULT + lane] = x[_RESIDUAL + lane] * x[_INVERSE_STD + lane]
        _store(x, offset, begin, count)
    if read_std.size:
        for lane in range(BLOCK):
            residual = x[_RESIDUAL + lane]
            square = residual * residual + x[_A + lane] * x[_VARIANCE + lane]
            x[_RESULT + lane] = (square - _ONE) * x[_INVERSE_STD + lane]
        _store(x, read_std, begin, count)


@_compiled
def _load_sensor(
    target: np.ndarray,
    source: np.ndarray,
    number: float,
    sizes: np.ndarray,
    strides: np.ndarray,
    begin: int,
    count: int,
) -> None:
    """One sensor parameter: a map, or where that has no elements a number in double precision."""
    if source.size:
        load_block(target, source, sizes, strides, begin, count)
    else:
        target[:] = number


@_compiled
def evaluate_blocks(
    measured: np.ndarray,
    mean: np.ndarray,
    maps: tuple[np.ndarray, np.ndarray, np.ndarray],
    numbers: tuple[float, float, float],
    sizes: np.ndarray,
    strides: np.ndarray,
    outputs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    first: int,
    last: int,
) -> None:
    """Blocks [first, last) of the value and the first derivatives; an output of no elements is not wanted."""
    x = np.empty(_ROWS * BLOCK, dtype=np.float32)
    wide = np.empty(_DOUBLE_ROWS * BLOCK)
    result = np.empty(15)
    one_sensor = maps[0].size + maps[1].size + maps[2].size == 0
    derivatives = outputs[1].size + outputs[2].size + outputs[3].size + outputs[4].size > 0
    total = 1
    for size in sizes:
        total *= size
    for begin in range(first * BLOCK, min(last * BLOCK, total), BLOCK):
        count = min(BLOCK, total - begin)
        load_block(x[_Z : _Z + BLOCK], measured, sizes, strides[0], begin, count)
        load_block(x[_Y : _Y + BLOCK], mean, sizes, strides[1], begin, count)
        if begin == first * BLOCK or not one_sensor:
            _load_sensor(wide[_GAIN : _GAIN + BLOCK], maps[0], numbers[0], sizes, strides[2], begin, count)
            _load_sensor(wide[_OFFSET : _OFFSET + BLOCK], maps[1], numbers[1], sizes, strides[3], begin, count)
            _load_sensor(wide[_STD : _STD + BLOCK], maps[2], numbers[2], sizes, strides[4], begin, count)
            _sensor(x, wide)
        _start(x)
        _residual(x, wide)
        least, hard, far = _ratios(x)
        terms = math.ceil(_MARGIN + math.sqrt(_TWICE_LOG_TAIL / np.float64(from_bits(least))))
        if derivatives:
            _sum_with_moments(x, terms)
        else:
            _sum(x, terms)
        if outputs[0].size:
            _deviance(x, far > 0)
            _value(x, outputs[0], begin, count)
        if derivatives:
            _moments(x)
            _first_derivatives(x, outputs[1], outputs[2], outputs[3], outputs[4], begin, count)
        if hard == 0:
            continue
        for lane in range(count):
            if x[_HARD + lane] > _HALF:
                evaluate_element(
                    np.float64(x[_Z + lane]),
                    np.float64(x[_Y + lane]),
                    wide[_GAIN + lane],
                    wide[_OFFSET + lane],
                    wide[_STD + lane],
                    1 if derivatives else 0,
                    result,
                )
                for i in range(5):
                    if outputs[i].size:
                        outputs[i][begin + lane] = np.float32(result[i])
