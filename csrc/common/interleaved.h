// Two values as one. A chain of dependent steps leaves a processor waiting for each result; the same steps on a few
// packs in turn fill the wait, which its scheduler is too short to do across whole chains.
#pragma once

#include "simd_float.h"

namespace bitlens {
namespace BITLENS_ISA {

template <class Value>
struct Two {
  Value first, second;
};

#define BITLENS_OPERATOR(op)                                                                                         \
  template <class Value>                                                                                             \
  BITLENS_FUNCTION auto operator op(const Two<Value>& a, const Two<Value>& b)->Two<decltype(a.first op b.first)> {   \
    return {a.first op b.first, a.second op b.second};                                                               \
  }                                                                                                                  \
  template <class Value>                                                                                             \
  BITLENS_FUNCTION auto operator op(const Two<Value>& a, float b)->Two<decltype(a.first op b)> {                     \
    return {a.first op b, a.second op b};                                                                            \
  }                                                                                                                  \
  template <class Value>                                                                                             \
  BITLENS_FUNCTION auto operator op(float a, const Two<Value>& b)->Two<decltype(a op b.first)> {                     \
    return {a op b.first, a op b.second};                                                                            \
  }
BITLENS_OPERATOR(+)
BITLENS_OPERATOR(-)
BITLENS_OPERATOR(*)
BITLENS_OPERATOR(/)
BITLENS_OPERATOR(<)
BITLENS_OPERATOR(>)
BITLENS_OPERATOR(>=)
BITLENS_OPERATOR(&)
BITLENS_OPERATOR(|)
#undef BITLENS_OPERATOR

template <class Value>
BITLENS_FUNCTION Two<Value> operator-(const Two<Value>& a) {
  return {-a.first, -a.second};
}
template <class Value>
BITLENS_FUNCTION Two<Value> broadcast(Two<Value>*, float x) {
  return {broadcast((Value*)0, x), broadcast((Value*)0, x)};
}
template <class Condition, class Value>
BITLENS_FUNCTION Two<Value> select(const Two<Condition>& condition, const Two<Value>& yes, const Two<Value>& no) {
  return {select(condition.first, yes.first, no.first), select(condition.second, yes.second, no.second)};
}
template <class Condition>
BITLENS_FUNCTION bool any(const Two<Condition>& condition) {
  return any(condition.first | condition.second);
}
template <class Value>
BITLENS_FUNCTION float largest(const Two<Value>& x) {
  return largest(maximum(x.first, x.second));
}
template <class Value>
BITLENS_FUNCTION Two<Value> multiply_add(const Two<Value>& a, const Two<Value>& b, const Two<Value>& c) {
  return {multiply_add(a.first, b.first, c.first), multiply_add(a.second, b.second, c.second)};
}

template <class Value>
BITLENS_FUNCTION Two<Value> logarithm_parts(const Two<Value>& x, Two<Value>& rest) {
  return {logarithm_parts(x.first, rest.first), logarithm_parts(x.second, rest.second)};
}

#define BITLENS_BINARY(name)                                                        \
  template <class Value>                                                            \
  BITLENS_FUNCTION Two<Value> name(const Two<Value>& a, const Two<Value>& b) {      \
    return {name(a.first, b.first), name(a.second, b.second)};                      \
  }
BITLENS_BINARY(maximum)
BITLENS_BINARY(minimum)

#undef BITLENS_BINARY

#define BITLENS_UNARY(name)                                  \
  template <class Value>                                     \
  BITLENS_FUNCTION Two<Value> name(const Two<Value>& a) {    \
    return {name(a.first), name(a.second)};                  \
  }
BITLENS_UNARY(absolute)
BITLENS_UNARY(round_to_integer)
BITLENS_UNARY(reciprocal)
BITLENS_UNARY(rough_reciprocal)
BITLENS_UNARY(rough_square_root)
BITLENS_UNARY(exponential)
BITLENS_UNARY(logarithm)
#undef BITLENS_UNARY

// Four packs where there are 32 registers, two where there are 16.
#if defined(__AVX512F__)
typedef Two<Two<FloatPack>> FloatPacks;
#else
typedef Two<FloatPack> FloatPacks;
#endif

}  // namespace BITLENS_ISA
}  // namespace bitlens
