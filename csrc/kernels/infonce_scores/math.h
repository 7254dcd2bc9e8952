// Sums of exponentials that never overflow, and the derivative of every output in one score, for one value.
//
// A sum of exp(x) is kept as (largest, sum of exp(x - largest)). The sum may be relative to a larger reference while
// a tile is worked on; `merge` brings it back. NaN travels in the sum and never in `largest`, so that it stays with
// the rows and columns it belongs to. A score of -inf adds nothing, and a sum without terms is (-inf, 0).
#pragma once

// Packs for tiles, and single values for the positives.
#include "../../common/scalar_math.h"
#include "../../common/value.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace infonce {

// A tile whose rows and columns all reach within this many nats of a common reference needs one exponential a score for
// its row and its column sums together. In double, exp(x - reference) keeps its relative accuracy down to e^-708, and
// what underflows is below e^-100 of either sum. In single precision x - reference itself is rounded, by 1e-6 at 16.
template <class T>
BITLENS_FUNCTION constexpr T shared_range() {
  return sizeof(T) == 4 ? T(16) : T(600);
}

// Adds part_sum * exp(part_reference), whose largest term is exp(part_largest), to (largest, sum).
template <class Value>
BITLENS_FUNCTION void merge(Value& largest, Value& sum, Value part_largest, Value part_reference, Value part_sum) {
  const Value joined = maximum(part_largest, largest);  // a NaN on the left loses
  const Value reference = select(joined == -INFINITY, broadcast((Value*)0, 0.0), joined);
  // An empty part has no say in the reference, which may lie so far below that its own overflows.
  const Value part = select(part_largest == -INFINITY, part_largest, part_reference);
  sum = sum * exponential(largest - reference) + part_sum * exponential(part - reference);
  largest = joined;
}

template <class Value>
BITLENS_FUNCTION Value log_sum(Value largest, Value sum) {
  return largest + logarithm(sum);
}

// exp(x - total), the share of one term in a sum; 0 in a sum without terms.
template <class Value>
BITLENS_FUNCTION Value share(Value x, Value total) {
  const Value nothing = broadcast((Value*)0, 0.0);
  return select(total == -INFINITY, nothing, exponential(x - select(total == -INFINITY, nothing, total)));
}

// Both row outputs pull on a negative S as exp(S - negatives) times this: exp(S - row) is
// exp(S - negatives) exp(negatives - row), whose second factor is at most 1.
template <class Value>
BITLENS_FUNCTION Value row_weight(Value negatives, Value row, Value grad_negatives, Value grad_row) {
  return select(negatives == -INFINITY, broadcast((Value*)0, 0.0), grad_negatives + grad_row * share(negatives, row));
}

// weight * exp(reference - total): the factor on exp(S - reference) that makes it weight * exp(S - total).
template <class Value>
BITLENS_FUNCTION Value shared_factor(Value weight, Value total, Value reference) {
  const Value nothing = broadcast((Value*)0, 0.0);
  return select(total == -INFINITY, nothing,
                weight * exponential(reference - select(total == -INFINITY, nothing, total)));
}

// Derivative of the loss in the score of a row's positive.
template <class Value>
BITLENS_FUNCTION Value positive_gradient(Value score, Value row, Value column, Value grad_positive, Value grad_row,
                                         Value grad_column) {
  return grad_positive + grad_row * share(score, row) + grad_column * share(score, column);
}

// Infinite inputs count as undefined; a bias of -inf masks its row or column.
template <class Value>
BITLENS_FUNCTION Value finite_or_nan(Value x) {
  return x + (x - x);
}

template <class Value>
BITLENS_FUNCTION Value bias_or_nan(Value x) {
  return select(x == -INFINITY, x, finite_or_nan(x));
}

}  // namespace infonce
}  // namespace BITLENS_ISA
}  // namespace bitlens
