// The pointwise maps and their slopes for one value. A score of -inf is a masked one: value 0 and slope 0 on every map.
// NaN stays NaN, so selections are written such that a comparison with NaN keeps the computed value.
#pragma once

#include "../../common/value.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace pairwise_map {

// exp of x <= 80 (float) that keeps NaN and is 0 far below.
BITLENS_FUNCTION Pack exp_or_nan(Pack x) { return exponential(x); }
BITLENS_FUNCTION FloatPack exp_or_nan(FloatPack x) { return exponential_or_zero(x); }

// log(1 + x) for 0 <= x <= 1 with the rounding of 1 + x put back: sums of many small softplus keep their digits.
template <class Value>
BITLENS_FUNCTION Value log_of_one_plus(Value x) {
  const Value one = broadcast((Value*)0, 1.0f);
  const Value u = one + x;
  return logarithm(u) + (x - (u - one)) / u;
}

// log(1 + exp x), where exp never overflows, and its slope.
template <class Value>
BITLENS_FUNCTION Value softplus(Value x) {
  return maximum(x, broadcast((Value*)0, 0.0f)) + log_of_one_plus(exp_or_nan(-absolute(x)));
}
template <class Value>
BITLENS_FUNCTION Value softplus_slope(Value x) {
  const Value one = broadcast((Value*)0, 1.0f);
  const Value small = exp_or_nan(-absolute(x));
  return select(x > broadcast((Value*)0, 0.0f), one, small) / (one + small);
}

// exp(clip(x, -limit, limit)); the slope is exp(x) on the closed interval and 0 outside.
template <class Value, class T>
BITLENS_FUNCTION Value clipped_exp(Value x, T limit) {
  const Value high = broadcast((Value*)0, limit);
  const Value raised = select(x < -high, -high, x);
  const Value result = exp_or_nan(select(raised > high, high, raised));
  return select(x == broadcast((Value*)0, -INFINITY), broadcast((Value*)0, 0.0f), result);
}
template <class Value, class T>
BITLENS_FUNCTION Value clipped_exp_slope(Value x, T limit) {
  const Value high = broadcast((Value*)0, limit);
  const Value capped = select(x > high, high, x);  // exp_or_nan takes nothing larger
  return select((x < -high) | (x > high), broadcast((Value*)0, 0.0f), exp_or_nan(capped));
}

}  // namespace pairwise_map
}  // namespace BITLENS_ISA
}  // namespace bitlens
