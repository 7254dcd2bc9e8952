// The activation of a pair and its gate, on a vector or one number of either precision.
#pragma once

#include "../../common/portable.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace joint_critic {

// max(x, 0), where NaN stays NaN: the form of one instruction.
template <class Vector>
BITLENS_FUNCTION Vector rectified(Vector x) {
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
