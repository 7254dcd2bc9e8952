"""Value, first and second derivatives of one element in double precision: the algorithm of math.h."""

from __future__ import annotations

import math

import numba
import numpy as np

BLOCK = 128  # elements that are loaded together

# log k! - (k + 1/2) log k + k - log(2 pi)/2 for k = 0..15; lgamma would lose three digits here.
_STIRLING = np.array(
    [
        0.0,
        0.08106146679532725821967026,
        0.04134069595540929409382208,
        0.02767792568499833914878929,
        0.02079067210376509311152277,
        0.01664469118982119216319487,
        0.01387612882307074799874573,
        0.01189670994589177009505572,
        0.01041126526197209649747857,
        0.009255462182712732917728637,
        0.008330563433362871256469318,
        0.007573675487951840794972024,
        0.006942840107209529865664152,
        0.006408994188004207068439631,
        0.005951370112758847735624416,
        0.005554733551962801371038690,
    ]
)
_LARGEST_MEAN, _LARGEST_MODE, _TAIL = 1e15, 9e15, 1e-20  # as in math.h
_DISTINCT_MODE, _FAINT_FIRST, _FAINT_SECOND = 1e9, 1e-13, 1e-8
_LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)


@numba.njit(nogil=True, cache=True)
def _exact_product(a: float, b: float) -> tuple[float, float]:
    """a b as a rounded product and its rounding error (Veltkamp and Dekker), where C++ has a fused multiply-add."""
    product = a * b
    split_a, split_b = 134217729.0 * a, 134217729.0 * b
    high_a, high_b = split_a - (split_a - a), split_b - (split_b - b)
    low_a, low_b = a - high_a, b - high_b
    error = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    return product, error if math.isfinite(error) else 0.0


@numba.njit(nogil=True, cache=True)
def _stirling_error(k: float) -> float:
    if k < 15.5:
        return _STIRLING[int(k)]
    inverse = 1.0 / k
    square = inverse * inverse
    series = ((1 / 1188 * square - 1 / 1680) * square + 1 / 1260) * square - 1 / 360
    return (series * square + 1 / 12) * inverse


@numba.njit(nogil=True, cache=True)
def _wright_omega(level: float) -> float:
    if level > 1.0:
        x = level - math.log(level)
    else:
        x = math.exp(level) / (1.0 + math.exp(level))
    x = max(x, 1e-300)
    for _ in range(3):
        residual = level - x - math.log(x)
        two = 2.0 * (1.0 + x) * (1.0 + x + residual * (2.0 / 3.0))
        x = max(x * (1.0 + residual / (1.0 + x) * ((two - residual) / (two - 2.0 * residual))), 1e-300)
    return x


@numba.njit(nogil=True, cache=True)
def _add_term(moments: np.ndarray, weight: float, d: float) -> None:
    moments[0] += weight
    moments[1] += weight * d
    moments[2] += weight * d * d
    moments[3] += weight * d * d * d
    moments[4] += weight * d * d * d * d


@numba.njit(nogil=True, cache=True)
def _narrow_sum(moments: np.ndarray, mode: float, log_y: float, a: float, pull: float) -> None:
    decay = math.exp(-a)
    k, d, weight = mode, 0.0, 1.0
    step = math.exp(min(log_y - math.log(mode + 1.0) + pull - 0.5 * a, 700.0))
    terms = 0
    while weight > _TAIL and terms < 2000:
        weight *= step
        k += 1.0
        d += 1.0
        step *= decay * (k / (k + 1.0))
        _add_term(moments, weight, d)
        terms += 1
    if mode == 0.0:
        return
    k, d, weight = mode, 0.0, 1.0
    step = math.exp(min(math.log(mode) - log_y - pull - 0.5 * a, 700.0))
    while weight > _TAIL and k > 0.0:
        weight *= step
        step *= decay * ((k - 1.0) / k)
        k -= 1.0
        d -= 1.0
        _add_term(moments, weight, d)


@numba.njit(nogil=True, cache=True)
def _wide_sum(moments: np.ndarray, mode: float, log_y: float, a: float, pull: float, stride: float) -> None:
    slope = math.log(mode) - log_y - pull
    base = _stirling_error(mode)
    for side in (-1.0, 1.0):
        d, weight, terms = 0.0, 1.0, 0
        while weight > _TAIL and terms < 2000:
            d += side * stride
            k = mode + d
            if k < 0.5:
                break
            growth = math.log1p(d / mode)
            exponent = k * growth - d + d * (slope + 0.5 * a * d) + 0.5 * growth + _stirling_error(k) - base
            weight = math.exp(-exponent)
            _add_term(moments, weight, d)
            terms += 1


@numba.njit(nogil=True, cache=True)
def evaluate_element(
    measured: float, mean: float, gain: float, offset: float, read_std: float, order: int, out: np.ndarray
) -> None:
    """Value, first and second derivatives of one element into out[0:15]."""
    inputs_finite = math.isfinite(measured) and math.isfinite(mean) and math.isfinite(gain)
    inputs_finite = inputs_finite and math.isfinite(offset) and math.isfinite(read_std)
    if not (inputs_finite and 0.0 <= mean <= _LARGEST_MEAN and gain > 0.0 and read_std > 0.0):
        out[:] = math.nan
        return
    signal = measured - offset
    virtual_offset = measured - signal
    signal_error = (measured - (signal + virtual_offset)) + (virtual_offset - offset)
    inverse_s = 1.0 / read_std
    ratio = gain * inverse_s
    a = ratio * ratio
    dark = mean == 0.0
    log_y = 0.0 if dark else math.log(mean)
    mode = 0.0
    if not dark:
        solution = _wright_omega(math.log(a) + log_y + ratio * (signal * inverse_s)) / a
        if not solution < _LARGEST_MODE:
            out[:] = math.nan
            return
        mode = float(round(solution))
    product, product_error = _exact_product(gain, mode)
    residual = ((signal - product) - product_error) + signal_error
    if mode > _DISTINCT_MODE:  # a relative 1e-12 is many counts there: Newton with the exact residual
        slope = ratio * (residual * inverse_s) + (log_y - math.log(mode))
        mode = min(max(mode + float(round(slope / (1.0 / mode + a))), 0.0), _LARGEST_MODE)
        product, product_error = _exact_product(gain, mode)
        residual = ((signal - product) - product_error) + signal_error
    pull = ratio * (residual * inverse_s)
    width = 1.0 / math.sqrt(1.0 / max(mode, 1.0) + a)
    stride = max(1.0, float(round(width * 0.25 - 0.5)))
    moments = np.zeros(5)
    _add_term(moments, 1.0, 0.0)
    if not dark:
        if stride < 1.5:
            _narrow_sum(moments, mode, log_y, a, pull)
        else:
            _wide_sum(moments, mode, log_y, a, pull, stride)

    if mode > 0.5:
        excess = (mode - mean) / mean
        if abs(excess) < 0.5:
            deviance = mean * ((1.0 + excess) * math.log1p(excess) - excess)
        else:
            deviance = mode * (math.log(mode) - log_y) + (mean - mode)
        log_poisson = -deviance - _stirling_error(mode) - 0.5 * math.log(mode) - _LOG_ROOT_TWO_PI
    else:
        log_poisson = -mean
    normalised = residual * inverse_s
    log_normal = -0.5 * normalised * normalised - math.log(read_std) - _LOG_ROOT_TWO_PI
    out[0] = log_poisson + log_normal + math.log(moments[0] * stride)
    if order == 0:
        return

    shift, raw2 = moments[1] / moments[0], moments[2] / moments[0]
    raw3, raw4 = moments[3] / moments[0], moments[4] / moments[0]
    c2 = max(raw2 - shift * shift, 0.0)
    k_mean, r_mean = mode + shift, residual - gain * shift
    inverse_s2 = inverse_s * inverse_s
    inverse_s3 = inverse_s2 * inverse_s
    r_square = r_mean * r_mean + gain * gain * c2
    kr = k_mean * r_mean - gain * c2
    q0 = math.exp(min(pull - 0.5 * a, 709.0)) if mode < 0.5 else 0.0
    out[1] = (q0 if dark or (mode < 0.5 and mean * q0 < _FAINT_FIRST) else k_mean / mean) - 1.0
    out[2] = kr * inverse_s2
    out[3] = r_mean * inverse_s2
    out[4] = r_square * inverse_s3 - inverse_s
    if order == 1:
        return

    c3 = raw3 - 3.0 * shift * raw2 + 2.0 * shift**3
    c4 = raw4 - 4.0 * shift * raw3 + 6.0 * shift * shift * raw2 - 3.0 * shift**4
    inverse_y = 0.0 if dark else 1.0 / mean
    linear = (
        inverse_y,
        (r_mean - gain * k_mean) * inverse_s2,
        -gain * inverse_s2,
        -2.0 * gain * r_mean * inverse_s3,
    )
    square = (0.0, -gain * inverse_s2, 0.0, gain * gain * inverse_s3)
    expected = (
        -k_mean * inverse_y * inverse_y,
        0.0,
        0.0,
        0.0,
        -(k_mean * k_mean + c2) * inverse_s2,
        -k_mean * inverse_s2,
        -2.0 * kr * inverse_s3,
        -inverse_s2,
        -2.0 * r_mean * inverse_s3,
        inverse_s2 - 3.0 * r_square * inverse_s2 * inverse_s2,
    )
    index = 0
    for row in range(4):
        for column in range(row, 4):
            out[5 + index] = (
                expected[index]
                + linear[row] * linear[column] * c2
                + (linear[row] * square[column] + square[row] * linear[column]) * c3
                + square[row] * square[column] * (c4 - c2 * c2)
            )
            index += 1
    if mode < 0.5 and mean * q0 < _FAINT_SECOND:
        r_one = residual - gain
        out[5] = q0 * math.exp(min(pull - 1.5 * a, 709.0)) - q0 * q0
        out[6] = q0 * r_one * inverse_s2
        out[7] = -q0 * gain * inverse_s2
        out[8] = q0 * (r_one * r_one - residual * residual) * inverse_s3


@numba.njit(nogil=True, cache=True)
def load_block(
    target: np.ndarray, source: np.ndarray, sizes: np.ndarray, strides: np.ndarray, begin: int, count: int
) -> None:
    """Elements [begin, begin + count) of a broadcast operand to `target`, whose other lanes repeat the first."""
    last = sizes.size - 1
    lane = 0
    while lane < count:
        position, at = begin + lane, 0
        left_in_row = sizes[last] - position % sizes[last]
        for axis in range(last, -1, -1):
            at += (position % sizes[axis]) * strides[axis]
            position //= sizes[axis]
        run, stride = min(count - lane, left_in_row), strides[last]
        if stride == 1:
            for i in range(run):
                target[lane + i] = source[at + i]
        else:
            for i in range(run):
                target[lane + i] = source[at + i * stride]
        lane += run
    for i in range(count, target.size):
        target[i] = target[0]


@numba.njit(nogil=True, cache=True)
def evaluate_blocks(
    measured: np.ndarray,
    mean: np.ndarray,
    gain: np.ndarray,
    offset: np.ndarray,
    read_std: np.ndarray,
    sizes: np.ndarray,
    strides: np.ndarray,
    order: int,
    outputs: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Blocks [first, last) into outputs[:, ...]; `strides` has one row for each operand."""
    block = np.empty((5, BLOCK))
    result = np.empty(15)
    for begin in range(first * BLOCK, min(last * BLOCK, outputs.shape[1]), BLOCK):
        count = min(BLOCK, outputs.shape[1] - begin)
        load_block(block[0], measured, sizes, strides[0], begin, count)
        load_block(block[1], mean, sizes, strides[1], begin, count)
        load_block(block[2], gain, sizes, strides[2], begin, count)
        load_block(block[3], offset, sizes, strides[3], begin, count)
        load_block(block[4], read_std, sizes, strides[4], begin, count)
        for i in range(count):
            evaluate_element(block[0, i], block[1, i], block[2, i], block[3, i], block[4, i], order, result)
            for j in range(outputs.shape[0]):
                outputs[j, begin + i] = result[j]
