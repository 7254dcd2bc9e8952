// The functions of simd.h for a pack of floats, twice as many lanes; each to about one unit in the last place.
#pragma once

#include <math.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "portable.h"

#if defined(__AVX512F__)
#define BITLENS_FLOAT_PACK_WIDTH 16
#elif defined(__AVX2__)
#define BITLENS_FLOAT_PACK_WIDTH 8
#else
#define BITLENS_FLOAT_PACK_WIDTH 4
#endif

namespace bitlens {
namespace BITLENS_ISA {

typedef float FloatPack __attribute__((vector_size(4 * BITLENS_FLOAT_PACK_WIDTH)));
typedef int32_t FloatMask __attribute__((vector_size(4 * BITLENS_FLOAT_PACK_WIDTH)));

BITLENS_FUNCTION FloatPack broadcast(FloatPack*, float x) { return x - FloatPack{}; }
BITLENS_FUNCTION FloatPack select(FloatMask condition, FloatPack yes, FloatPack no) { return condition ? yes : no; }

BITLENS_FUNCTION bool any(FloatMask mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)mask) != 0;
#endif
  int32_t joined = 0;
  for (int lane = 0; lane < BITLENS_FLOAT_PACK_WIDTH; ++lane) joined |= mask[lane];
  return joined != 0;
}

BITLENS_FUNCTION FloatPack maximum(FloatPack a, FloatPack b) { return a > b ? a : b; }
BITLENS_FUNCTION FloatPack minimum(FloatPack a, FloatPack b) { return a < b ? a : b; }
BITLENS_FUNCTION FloatPack absolute(FloatPack a) { return (FloatPack)((FloatMask)a & INT32_MAX); }

BITLENS_FUNCTION FloatPack multiply_add(FloatPack a, FloatPack b, FloatPack c) {
  FloatPack result;
  for (int lane = 0; lane < BITLENS_FLOAT_PACK_WIDTH; ++lane) result[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
  return result;
}

// For magnitudes below 2^22.
BITLENS_FUNCTION FloatPack round_to_integer(FloatPack x) {
  const FloatPack magic = broadcast((FloatPack*)0, 12582912.0f);  // 1.5 * 2^23
  return (x + magic) - magic;
}

BITLENS_FUNCTION FloatPack square_root(FloatPack x) {
  FloatPack result;
  for (int lane = 0; lane < BITLENS_FLOAT_PACK_WIDTH; ++lane) result[lane] = __builtin_sqrtf(x[lane]);
  return result;
}

// 1 / x to one unit in the last place, for 1e-37 < |x| < 1e37.
BITLENS_FUNCTION FloatPack reciprocal(FloatPack x) {
#if defined(__AVX512F__)
  const FloatPack rough = (FloatPack)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
  return rough + rough * (1.0f - x * rough);
#else
  return 1.0f / x;
#endif
}

// 1 / x and the square root within a relative 1e-3, where only their size matters; x > 0.
BITLENS_FUNCTION FloatPack rough_reciprocal(FloatPack x) {
#if defined(__AVX512F__)
  return (FloatPack)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (FloatPack)_mm256_rcp_ps((__m256)x);
#else
  return 1.0f / x;
#endif
}
BITLENS_FUNCTION FloatPack rough_square_root(FloatPack x) {
#if defined(__AVX512F__)
  return x * (FloatPack)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return x * (FloatPack)_mm256_rsqrt_ps((__m256)x);
#else
  return square_root(x);
#endif
}

BITLENS_FUNCTION float largest(FloatPack x) {
  float result = x[0];
  for (int lane = 1; lane < BITLENS_FLOAT_PACK_WIDTH; ++lane) result = x[lane] > result ? x[lane] : result;
  return result;
}

// exp of |x| <= 80 (clamped there) by Cody-Waite reduction and a polynomial of degree 6 on |r| <= ln(2)/2.
BITLENS_FUNCTION FloatPack exponential(FloatPack x) {
  const FloatPack clamped = minimum(maximum(x, broadcast((FloatPack*)0, -80.0f)), broadcast((FloatPack*)0, 80.0f));
  const FloatPack magic = broadcast((FloatPack*)0, 12582912.0f);
  const FloatPack shifted = clamped * 1.44269504088896341f + magic;
  const FloatPack n = shifted - magic;
  const FloatPack r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  FloatPack p = 1.3888889e-03f * r + 8.3333333e-03f;
  p = p * r + 4.1666667e-02f;
  p = p * r + 1.6666667e-01f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  return p * (FloatPack)(((FloatMask)shifted << 23) + (127 << 23));
}

// log of a positive normal number as the exact product of a whole number and the leading digits of log 2, and the rest.
BITLENS_FUNCTION FloatPack logarithm_parts(FloatPack x, FloatPack& rest) {
  const FloatMask bits = (FloatMask)x;
  const FloatMask shifted = bits - 0x3f3504f3;  // mantissa in [sqrt(1/2), sqrt(2))
  const FloatMask exponent_bits = shifted >> 23;
  const FloatPack f = (FloatPack)(bits - (exponent_bits << 23)) - 1.0f;
  const FloatPack magic = broadcast((FloatPack*)0, 12582912.0f);
  const FloatPack exponent = (FloatPack)(exponent_bits + (FloatMask)magic) - magic;
  FloatPack p = 7.0376836292e-2f * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const FloatPack square = f * f;
  const FloatPack small = p * f * square + exponent * -2.12194440e-4f - 0.5f * square;
  rest = f + small;
  return exponent * 0.693359375f;
}

BITLENS_FUNCTION FloatPack logarithm(FloatPack x) {
  FloatPack rest;
  const FloatPack whole = logarithm_parts(x, rest);
  return rest + whole;
}

}  // namespace BITLENS_ISA
}  // namespace bitlens
