// The functions of simd.h for one double, so that a kernel's math.h compiles for a CUDA thread as it does for a pack.
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

}  // namespace BITLENS_ISA
}  // namespace bitlens
