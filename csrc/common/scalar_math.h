// The functions of simd.h and simd_float.h for one number, so that a kernel's math.h compiles for a CUDA thread as it does for a pack.
#pragma once

#include <math.h>

#include "portable.h"

namespace bitlens {
namespace BITLENS_ISA {

BITLENS_FUNCTION double broadcast(double*, double x) { return x; }
BITLENS_FUNCTION double select(bool condition, double yes, double no) { return condition ? yes : no; }
BITLENS_FUNCTION bool any(bool condition) { return condition; }
BITLENS_FUNCTION double maximum(double a, double b) { return a > b ? a : b; }
BITLENS_FUNCTION double minimum(double a, double b) { return a < b ? a : b; }
BITLENS_FUNCTION double absolute(double a) { return fabs(a); }
BITLENS_FUNCTION double multiply_add(double a, double b, double c) { return fma(a, b, c); }
BITLENS_FUNCTION double round_to_integer(double x) { return rint(x); }
BITLENS_FUNCTION double table_lookup(const double* table, double index) { return table[(int)index]; }
BITLENS_FUNCTION double square_root(double x) { return sqrt(x); }
BITLENS_FUNCTION double exponential(double x) { return exp(x); }
BITLENS_FUNCTION double logarithm(double x) { return log(x); }
BITLENS_FUNCTION double logarithm_of_one_plus(double x) { return log1p(x); }

BITLENS_FUNCTION float broadcast(float*, float x) { return x; }
BITLENS_FUNCTION float select(bool condition, float yes, float no) { return condition ? yes : no; }
BITLENS_FUNCTION float maximum(float a, float b) { return a > b ? a : b; }
BITLENS_FUNCTION float minimum(float a, float b) { return a < b ? a : b; }
BITLENS_FUNCTION float absolute(float a) { return fabsf(a); }
BITLENS_FUNCTION float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
BITLENS_FUNCTION float round_to_integer(float x) { return rintf(x); }
BITLENS_FUNCTION float square_root(float x) { return sqrtf(x); }
BITLENS_FUNCTION float reciprocal(float x) { return 1.0f / x; }
BITLENS_FUNCTION float rough_reciprocal(float x) { return 1.0f / x; }
BITLENS_FUNCTION float rough_square_root(float x) { return sqrtf(x); }
BITLENS_FUNCTION float largest(float x) { return x; }
BITLENS_FUNCTION float exponential(float x) { return expf(x); }
BITLENS_FUNCTION float logarithm(float x) { return logf(x); }
BITLENS_FUNCTION float logarithm_parts(float x, float& rest) {
  int exponent;
  const float mantissa = frexpf(x, &exponent);
  rest = logf(mantissa) + static_cast<float>(exponent) * -2.12194440e-4f;
  return static_cast<float>(exponent) * 0.693359375f;
}

}  // namespace BITLENS_ISA
}  // namespace bitlens
