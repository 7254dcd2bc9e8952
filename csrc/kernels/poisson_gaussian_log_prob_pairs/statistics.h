// What becomes of a tile of scores when no score is kept: its part of the log-sum-exps of its rows and columns, in packs.
#pragma once

#include "../infonce_scores/math.h"
#include "kernel.h"
#include "table.h"

namespace bitlens {
namespace poisson_gaussian_log_prob_pairs {
namespace BITLENS_ISA {
namespace {

namespace sums_of_exponentials = ::bitlens::BITLENS_ISA::infonce;

BITLENS_FUNCTION void add_term(const LogSums& sums, std::int64_t at, double score) {
  // A NaN belongs to the sum: the largest must stay a number for the terms that follow.
  const double largest = score == score ? score : -INFINITY;
  const double term = score == score ? (score == -INFINITY ? 0.0 : 1.0) : score;
  sums_of_exponentials::merge(sums.largest[at], sums.sum[at], largest, largest, term);
}

// Takes a pair out of the tile and into the excluded sums of its row and its column.
BITLENS_FUNCTION void exclude(double* score, const TileSums& to, std::int64_t i, std::int64_t j) {
  add_term(to.row_excluded, i, *score);
  add_term(to.column_excluded, j, *score);
  *score = -INFINITY;
}

// scores: [columns][kRows], used up. Rows and columns of `to` and of the masks count from those of the tile.
BITLENS_FUNCTION void reduce_tile_of(const TileMasks& masks, std::int64_t rows, std::int64_t columns,
                                     std::int64_t column_begin, double* scores, const TileSums& to) {
  constexpr int kPacks = kRows / kWidth;
  if (masks.row_bias) {
    for (std::int64_t j = 0; j < columns; ++j) {
      for (std::int64_t i = 0; i < rows; ++i) scores[j * kRows + i] += masks.row_bias[i];
    }
  }
  for (std::int64_t j = 0; j < columns && rows < kRows; ++j) {
    for (std::int64_t i = rows; i < kRows; ++i) scores[j * kRows + i] = -INFINITY;
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t j = masks.positive[i] - column_begin;
    if (j < 0 || j >= columns) continue;
    to.positive[i] = scores[j * kRows + i];
    exclude(scores + j * kRows + i, to, i, j);
  }
  for (std::int64_t j = 0; j < columns && masks.row_group; ++j) {
    for (std::int64_t i = 0; i < rows; ++i) {
      if (masks.row_group[i] != masks.column_group[j] || masks.positive[i] == column_begin + j) continue;
      exclude(scores + j * kRows + i, to, i, j);
    }
  }
  for (int pack = 0; pack < kPacks; ++pack) {
    const double* const source = scores + pack * kWidth;
    Pack largest = spread(-INFINITY), sum = spread(0.0);
    for (std::int64_t j = 0; j < columns; ++j) largest = maximum(load<Pack>(source + j * kRows), largest);
    const Pack reference = largest == -INFINITY ? spread(0.0) : largest;
    for (std::int64_t j = 0; j < columns; ++j) sum += exponential(load<Pack>(source + j * kRows) - reference);
    Pack kept = load<Pack>(to.row.largest + pack * kWidth), kept_sum = load<Pack>(to.row.sum + pack * kWidth);
    sums_of_exponentials::merge(kept, kept_sum, largest, reference, sum);
    store(to.row.largest + pack * kWidth, kept);
    store(to.row.sum + pack * kWidth, kept_sum);
  }
  for (std::int64_t j = 0; j < columns; ++j) {
    const double* const source = scores + j * kRows;
    Pack lanes = spread(-INFINITY), terms = spread(0.0);
    for (int pack = 0; pack < kPacks; ++pack) lanes = maximum(load<Pack>(source + pack * kWidth), lanes);
    double largest = lanes[0], sum = 0.0;
    for (int lane = 1; lane < kWidth; ++lane) largest = lanes[lane] > largest ? lanes[lane] : largest;
    const Pack reference = spread(largest == -INFINITY ? 0.0 : largest);
    for (int pack = 0; pack < kPacks; ++pack) terms += exponential(load<Pack>(source + pack * kWidth) - reference);
    for (int lane = 0; lane < kWidth; ++lane) sum += terms[lane];
    sums_of_exponentials::merge(to.column.largest[j], to.column.sum[j], largest, reference[0], sum);
  }
}

}  // namespace
}  // namespace BITLENS_ISA
}  // namespace poisson_gaussian_log_prob_pairs
}  // namespace bitlens
