"""Elementary functions of a float32 that LLVM's vectoriser can take into a loop: those of simd_float.h."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

_HALF, _ONE, _LARGEST = np.float32(0.5), np.float32(1), np.float32(80)
_MAGIC = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504088896341), np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP = tuple(np.float32(c) for c in (1.3888889e-03, 8.3333333e-03, 4.1666667e-02, 1.6666667e-01))
_LOG = tuple(
    np.float32(c)
    for c in (
        7.0376836292e-2,
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    )
)

# Only products and sums may be fused; nothing is reordered, and not a number stays one.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
_compiled = numba.njit(cache=True, **OPTIONS)


def _reinterpret(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


@intrinsic
def bits(context: Any, value: Any) -> Any:
    """The int32 of the same bits as a float32."""
    return types.int32(types.float32), _reinterpret


@intrinsic
def from_bits(context: Any, value: Any) -> Any:
    """The float32 of the same bits as an int32."""
    return types.float32(types.int32), _reinterpret


@intrinsic
def square_root(context: Any, value: Any) -> Any:
    """An instruction, where math.sqrt would call a function and end the vectorisation."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.sqrt", [arguments[0].type]), arguments)

    return types.float32(types.float32), generate


@_compiled
def exponential(x: np.float32) -> np.float32:
    """exp of |x| <= 80 (clamped there), as in simd_float.h."""
    x = x if x > -_LARGEST else -_LARGEST
    x = x if x < _LARGEST else _LARGEST
    shifted = x * _LOG2_E + _MAGIC
    n = shifted - _MAGIC
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = _EXP[0] * r + _EXP[1]
    p = p * r + _EXP[2]
    p = p * r + _EXP[3]
    p = p * r + _HALF
    p = p * r * r + r + _ONE
    return p * from_bits(np.int32((bits(shifted) << 23) + (127 << 23)))


@_compiled
def exponential_of_double(x: float) -> np.float32:
    """exp in single precision of an argument whose rounding to it would be seen: 80 * 2^-24 is 40 units."""
    high = np.float32(x)
    return exponential(high) * (_ONE + np.float32(x - np.float64(high)))


@_compiled
def logarithm(x: np.float32) -> np.float32:
    """log of a positive normal number, as in simd_float.h."""
    exponent_bits = (bits(x) - 0x3F3504F3) >> 23  # mantissa in [sqrt(1/2), sqrt(2))
    f = from_bits(np.int32(bits(x) - (exponent_bits << 23))) - _ONE
    exponent = np.float32(np.int32(exponent_bits))
    p = _LOG[0] * f + _LOG[1]
    p = p * f + _LOG[2]
    p = p * f + _LOG[3]
    p = p * f + _LOG[4]
    p = p * f + _LOG[5]
    p = p * f + _LOG[6]
    p = p * f + _LOG[7]
    p = p * f + _LOG[8]
    square = f * f
    small = p * f * square + exponent * _LN2_LOW - _HALF * square
    return f + small + exponent * _LN2_HIGH
