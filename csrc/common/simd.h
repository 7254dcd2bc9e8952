// A pack of doubles for one instruction set, and the elementary functions that the kernels need on it.
// GCC/Clang vector extensions: the same text becomes SSE2, AVX2 or AVX-512 by the unit's compiler flags.
#pragma once

#include <math.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "portable.h"

#if defined(__AVX512F__)
#define BITLENS_PACK_WIDTH 8
#elif defined(__AVX2__)
#define BITLENS_PACK_WIDTH 4
#else
#define BITLENS_PACK_WIDTH 2
#endif

namespace bitlens {
namespace BITLENS_ISA {

typedef double Pack __attribute__((vector_size(8 * BITLENS_PACK_WIDTH)));
typedef int64_t Mask __attribute__((vector_size(8 * BITLENS_PACK_WIDTH)));

BITLENS_FUNCTION Pack broadcast(Pack*, double x) { return x - Pack{}; }
BITLENS_FUNCTION Pack select(Mask condition, Pack yes, Pack no) { return condition ? yes : no; }

BITLENS_FUNCTION bool any(Mask mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi64_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_pd((__m256d)mask) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_pd((__m128d)mask) != 0;
#endif
  int64_t joined = 0;
  for (int lane = 0; lane < BITLENS_PACK_WIDTH; ++lane) joined |= mask[lane];
  return joined != 0;
}

BITLENS_FUNCTION Pack maximum(Pack a, Pack b) { return a > b ? a : b; }
BITLENS_FUNCTION Pack minimum(Pack a, Pack b) { return a < b ? a : b; }
BITLENS_FUNCTION Pack absolute(Pack a) { return (Pack)((Mask)a & INT64_MAX); }

// a * b + c with one rounding on every instruction set.
BITLENS_FUNCTION Pack multiply_add(Pack a, Pack b, Pack c) {
  Pack result;
  for (int lane = 0; lane < BITLENS_PACK_WIDTH; ++lane) result[lane] = __builtin_fma(a[lane], b[lane], c[lane]);
  return result;
}

// Round to nearest, ties to even; magnitudes of 2^52 and more are integers already.
BITLENS_FUNCTION Pack round_to_integer(Pack x) {
  const Pack big = broadcast((Pack*)0, 4503599627370496.0);
  const Pack magnitude = absolute(x);
  const Pack rounded = (magnitude + big) - big;
  const Pack signed_rounded = x < 0.0 ? -rounded : rounded;
  return magnitude < big ? signed_rounded : x;
}

BITLENS_FUNCTION Pack table_lookup(const double* table, Pack index) {
  Pack result;
  for (int lane = 0; lane < BITLENS_PACK_WIDTH; ++lane) result[lane] = table[(int)index[lane]];
  return result;
}

BITLENS_FUNCTION Pack square_root(Pack x) {
  Pack result;
  for (int lane = 0; lane < BITLENS_PACK_WIDTH; ++lane) result[lane] = __builtin_sqrt(x[lane]);
  return result;
}

// exp by Cody-Waite reduction and a Taylor polynomial of degree 13 on |r| <= ln(2)/2: truncation 4e-18.
// Below -708 the result is 0 (no subnormals), above 709 infinity.
BITLENS_FUNCTION Pack exponential(Pack x) {
  const Pack clamped = minimum(maximum(x, broadcast((Pack*)0, -708.0)), broadcast((Pack*)0, 709.0));
  const Pack magic = broadcast((Pack*)0, 6755399441055744.0);  // 1.5 * 2^52: the sum's low bits hold the integer
  const Pack shifted = clamped * 1.4426950408889634074 + magic;
  const Pack n = shifted - magic;
  const Pack r = (clamped - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  Pack p = 1.6059043836821614599e-10 * r + 2.0876756987868098979e-09;
  p = p * r + 2.5052108385441718775e-08;
  p = p * r + 2.7557319223985890653e-07;
  p = p * r + 2.7557319223985892511e-06;
  p = p * r + 2.4801587301587301566e-05;
  p = p * r + 1.9841269841269841253e-04;
  p = p * r + 1.3888888888888889419e-03;
  p = p * r + 8.3333333333333332177e-03;
  p = p * r + 4.1666666666666664354e-02;
  p = p * r + 1.6666666666666665741e-01;
  p = p * r + 0.5;
  p = p * r * r + r + 1.0;
  const Mask scale_bits = ((Mask)shifted << 52) + ((int64_t)1023 << 52);
  const Pack result = p * (Pack)scale_bits;
  const Pack capped = x > 709.0 ? broadcast((Pack*)0, INFINITY) : result;
  const Pack floored = x < -708.0 ? broadcast((Pack*)0, 0.0) : capped;
  return x != x ? x : floored;
}

// log by the FDLIBM polynomial (error below 1 unit in the last place); -inf at 0, NaN below.
BITLENS_FUNCTION Pack logarithm(Pack x) {
  const Mask tiny = x < 2.2250738585072014e-308;
  const Pack scaled = tiny ? x * 18014398509481984.0 : x;
  const Mask bits = (Mask)scaled;
  // Exponent such that the mantissa lies in [sqrt(1/2), sqrt(2)).
  const Mask shifted = bits - (int64_t)0x3fe6a09e667f3bcd;
  const Mask exponent_bits = shifted >> 52;
  const Pack mantissa = (Pack)(bits - (exponent_bits << 52));
  const Pack magic = broadcast((Pack*)0, 6755399441055744.0);
  const Pack exponent =
      ((Pack)(exponent_bits + (Mask)magic) - magic) - (tiny ? broadcast((Pack*)0, 54.0) : broadcast((Pack*)0, 0.0));
  const Pack f = mantissa - 1.0;
  const Pack s = f / (2.0 + f);
  const Pack z = s * s;
  Pack r = 1.479819860511658591e-01 * z + 1.531383769920937332e-01;
  r = r * z + 1.818357216161805012e-01;
  r = r * z + 2.222219843214978396e-01;
  r = r * z + 2.857142874366239149e-01;
  r = r * z + 3.999999999940941908e-01;
  r = r * z + 6.666666666666735130e-01;
  r = r * z;
  const Pack half_square = 0.5 * f * f;
  const Pack result = exponent * 6.93147180369123816490e-01 -
                      ((half_square - (s * (half_square + r) + exponent * 1.90821492927058770002e-10)) - f);
  const Pack at_zero = x == 0.0 ? broadcast((Pack*)0, -INFINITY) : result;
  const Pack below = x < 0.0 ? broadcast((Pack*)0, NAN) : at_zero;
  return (x != x) | (x == INFINITY) ? x : below;
}

// log(1 + x) with the rounding of 1 + x put back.
BITLENS_FUNCTION Pack logarithm_of_one_plus(Pack x) {
  const Pack u = 1.0 + x;
  const Pack correction = (x - (u - 1.0)) / u;
  return u > 0.0 ? logarithm(u) + correction : logarithm(u);
}

}  // namespace BITLENS_ISA
}  // namespace bitlens
