// The activation of a pair and its gate, on a vector or one number of either precision.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../../common/portable.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace joint_critic {

// max(x, 0), where NaN stays NaN. Spelled out, since GCC makes a comparison and a masked move of the conditional; the
// instruction returns its second operand for NaN.
template <class Vector>
BITLENS_FUNCTION Vector rectified(Vector x) {
  constexpr bool single = sizeof(x[0]) == 4;
#if defined(__AVX512F__)
  if constexpr (sizeof(Vector) == 64 && single) return (Vector)_mm512_maskz_max_ps(0xffff, _mm512_setzero_ps(), (__m512)x);
  if constexpr (sizeof(Vector) == 64 && !single) return (Vector)_mm512_maskz_max_pd(0xff, _mm512_setzero_pd(), (__m512d)x);
#elif defined(__AVX2__)
  if constexpr (sizeof(Vector) == 32 && single) return (Vector)_mm256_max_ps(_mm256_setzero_ps(), (__m256)x);
  if constexpr (sizeof(Vector) == 32 && !single) return (Vector)_mm256_max_pd(_mm256_setzero_pd(), (__m256d)x);
#elif defined(__SSE2__)
  if constexpr (sizeof(Vector) == 16 && single) return (Vector)_mm_max_ps(_mm_setzero_ps(), (__m128)x);
  if constexpr (sizeof(Vector) == 16 && !single) return (Vector)_mm_max_pd(_mm_setzero_pd(), (__m128d)x);
#endif
  const Vector nothing = {};
  return nothing > x ? nothing : x;
}

// `value` where x + y > 0 in exact arithmetic, which is where the rounded sum is positive; `threshold` is -y.
// NaN opens the gate, so that an undefined activation has an undefined gradient.
template <class Vector>
BITLENS_FUNCTION Vector gated(Vector value, Vector x, Vector threshold) {
  const Vector nothing = {};
  return x <= threshold ? nothing : value;
}

}  // namespace joint_critic
}  // namespace BITLENS_ISA
}  // namespace bitlens
