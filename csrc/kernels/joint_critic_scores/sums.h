// Log-sum-exps of a tile of scores and the gradient in them, for scores that come from anywhere.
// The formulas are in infonce_scores/math.h.
#pragma once

#include "../infonce_scores/math.h"
#include "../infonce_scores/tile.h"
#include "converting.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace score_sums {

using infonce::kTile;

constexpr int64_t kWidth = BITLENS_PACK_WIDTH;

BITLENS_FUNCTION Pack constant(double x) { return broadcast((Pack*)0, x); }
BITLENS_FUNCTION int64_t padded(int64_t count) { return (count + kWidth - 1) / kWidth * kWidth; }
BITLENS_FUNCTION double or_zero(double largest) { return largest == -INFINITY ? 0.0 : largest; }

BITLENS_FUNCTION double sum_of_lanes(Pack pack) {
  double sum = pack[0];
  for (int lane = 1; lane < kWidth; ++lane) sum += pack[lane];
  return sum;
}

// (largest, sum) of every row and column of a tile, relative to a reference.
struct TileSums {
  alignas(64) double row_largest[kTile], row_reference[kTile], row_sums[kTile];
  alignas(64) double column_largest[kTile], column_reference[kTile], column_sums[kTile];
};

// The largest score of every row and column; those that are to be left out are -inf already.
BITLENS_FUNCTION void find_largest(TileSums& sums, const double* scores, int64_t rows, int64_t columns) {
  for (int64_t j = 0; j < columns; j += kWidth) store(sums.column_largest + j, constant(-INFINITY));
  for (int64_t i = 0; i < rows; ++i) {
    Pack largest = constant(-INFINITY);
    for (int64_t j = 0; j < columns; j += kWidth) {
      const Pack score = load(scores + i * kTile + j);
      largest = maximum(score, largest);
      store(sums.column_largest + j, maximum(score, load(sums.column_largest + j)));
    }
    double joined = -INFINITY;
    for (int lane = 0; lane < kWidth; ++lane) joined = maximum(largest[lane], joined);
    sums.row_largest[i] = joined;
  }
}

// The largest of a tile, when every row and column with a term comes within shared_range() of it.
BITLENS_FUNCTION bool find_shared_reference(const TileSums& sums, int64_t rows, int64_t columns, double& reference) {
  double highest = -INFINITY, lowest = INFINITY;
  for (int64_t i = 0; i < rows; ++i) {
    highest = maximum(sums.row_largest[i], highest);
    if (sums.row_largest[i] != -INFINITY) lowest = minimum(sums.row_largest[i], lowest);
  }
  for (int64_t j = 0; j < columns; ++j) {
    if (sums.column_largest[j] != -INFINITY) lowest = minimum(sums.column_largest[j], lowest);
  }
  reference = or_zero(highest);
  return lowest >= highest - infonce::shared_range<double>();
}

// Scores of the lanes beyond `columns`, up to a whole pack, are -inf.
BITLENS_FUNCTION void sum_tile(TileSums& sums, const double* scores, int64_t rows, int64_t columns) {
  find_largest(sums, scores, rows, columns);
  for (int64_t j = 0; j < columns; j += kWidth) store(sums.column_sums + j, constant(0.0));
  double reference;
  if (find_shared_reference(sums, rows, columns, reference)) {
    for (int64_t i = 0; i < rows; ++i) {
      Pack sum = constant(0.0);
      for (int64_t j = 0; j < columns; j += kWidth) {
        const Pack term = exponential(load(scores + i * kTile + j) - reference);
        sum += term;
        store(sums.column_sums + j, load(sums.column_sums + j) + term);
      }
      sums.row_sums[i] = sum_of_lanes(sum);
      sums.row_reference[i] = reference;
    }
    for (int64_t j = 0; j < columns; j += kWidth) store(sums.column_reference + j, constant(reference));
  } else {
    for (int64_t j = 0; j < padded(columns); ++j) sums.column_reference[j] = or_zero(sums.column_largest[j]);
    for (int64_t i = 0; i < rows; ++i) {
      sums.row_reference[i] = or_zero(sums.row_largest[i]);
      Pack sum = constant(0.0);
      for (int64_t j = 0; j < columns; j += kWidth) {
        const Pack score = load(scores + i * kTile + j);
        sum += exponential(score - sums.row_reference[i]);
        store(sums.column_sums + j, load(sums.column_sums + j) + exponential(score - load(sums.column_reference + j)));
      }
      sums.row_sums[i] = sum_of_lanes(sum);
    }
  }
  for (int64_t i = rows; i < padded(rows); ++i) {
    sums.row_largest[i] = -INFINITY;
    sums.row_reference[i] = sums.row_sums[i] = 0.0;
  }
}

// Adds what a tile found to the running (largest, sum) of its rows or columns.
BITLENS_FUNCTION void merge_into(double* largest, double* sums, const double* part_largest,
                                 const double* part_reference, const double* part_sums, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) {
    Pack joined = load(largest + i), sum = load(sums + i);
    infonce::merge(joined, sum, load(part_largest + i), load(part_reference + i), load(part_sums + i));
    store(largest + i, joined);
    store(sums + i, sum);
  }
}

// What a tile's gradients need of the outputs and their gradients.
struct Pull {
  const double *row_totals, *negatives, *row_weights, *grad_row, *grad_positive;  // of the tile's first row on
  const double *column_totals, *grad_column;                                      // of its first column on
  double reference;
  bool shared;
  alignas(64) double row_factor[kTile], column_factor[kTile];
};

BITLENS_FUNCTION void prepare(Pull& pull, int64_t rows, int64_t columns) {
  // No negative exceeds its row's total, so the largest total is a reference that nothing overflows.
  double reference = -INFINITY, lowest = INFINITY;
  for (int64_t i = 0; i < rows; ++i) {
    reference = maximum(pull.negatives[i], reference);
    if (pull.negatives[i] != -INFINITY) lowest = minimum(pull.negatives[i], lowest);
  }
  for (int64_t j = 0; j < columns; ++j) {
    if (pull.column_totals[j] != -INFINITY) lowest = minimum(pull.column_totals[j], lowest);
  }
  pull.shared = lowest >= reference - infonce::shared_range<double>();
  pull.reference = or_zero(reference);
  const Pack common = constant(pull.reference);
  for (int64_t i = 0; i < rows; i += kWidth) {
    store(pull.row_factor + i, infonce::shared_factor(load(pull.row_weights + i), load(pull.negatives + i), common));
  }
  for (int64_t j = 0; j < columns; j += kWidth) {
    store(pull.column_factor + j,
          infonce::shared_factor(load(pull.grad_column + j), load(pull.column_totals + j), common));
  }
}

// Gradient in the scores of row i of a tile, zero beyond `columns`; `positive` is the row's positive in the tile's
// columns, or outside them. Changes `scores`.
template <class T>
BITLENS_FUNCTION void gradient_line(T* target, double* scores, const Pull& pull, int64_t i, int64_t positive,
                                    int64_t columns) {
  const bool here = positive >= 0 && positive < columns;
  const double score = here ? scores[positive] : 0.0;
  if (here) scores[positive] = -INFINITY;
  if (pull.shared) {
    const double factor = pull.row_factor[i], reference = pull.reference;
    for (int64_t j = 0; j < columns; j += kWidth) {
      store(target + j, exponential(load(scores + j) - reference) * (factor + load(pull.column_factor + j)));
    }
  } else {
    const Pack weight = constant(pull.row_weights[i]), total = constant(pull.negatives[i]);
    for (int64_t j = 0; j < columns; j += kWidth) {
      const Pack own = load(scores + j);
      store(target + j, weight * infonce::share(own, total) +
                            load(pull.grad_column + j) * infonce::share(own, load(pull.column_totals + j)));
    }
  }
  if (here) {
    target[positive] = static_cast<T>(infonce::positive_gradient(score, pull.row_totals[i],
                                                                 pull.column_totals[positive], pull.grad_positive[i],
                                                                 pull.grad_row[i], pull.grad_column[positive]));
  }
  for (int64_t j = columns; j < kTile; ++j) target[j] = T(0);
}

}  // namespace score_sums
}  // namespace BITLENS_ISA
}  // namespace bitlens
