// Both directions look up running sums at places start + step n, n = 0, 1, ..., linear between the entries and constant
// beyond them: a bin's edges in the running sum of a line of pixels, or a pixel's edges in that of a view's bins. Tables
// and places are turned around such that step > 0. Differences of neighbours are what is wanted, so a constant that all
// lookups share does not matter. In double, because the running sums cancel.
#pragma once

#include "../../common/value.h"
#include "kernel.h"

namespace bitlens {
namespace parallel_projection {
namespace BITLENS_ISA {

// A table of n pixels has the sums up to edges 0 to n, and the last one again: a place beyond the end is put at n, where
// the next entry is read too, with weight 0. The rest, which is never used, lets a whole window of entries be read from
// any place.
constexpr std::int64_t kSpare = 16;
BITLENS_FUNCTION std::int64_t table_size(std::int64_t n) { return (n + 2 + kSpare + 7) / 8 * 8; }

struct Places {
  double start, step, limit;  // of the table: constant from there on
};

// Edges of a view's bins on a line of pixels; where the bins run against the pixels, counted from the last edge, whose
// place is good to a rounding of width x bins.
BITLENS_FUNCTION Places edges_of_bins(const Views& views, const Sizes& sizes, int part, std::int64_t view,
                                      std::int64_t line) {
  const std::int64_t which = part * sizes.views + view;
  const double width = views.width[which], limit = static_cast<double>(part == 0 ? sizes.columns : sizes.rows);
  const double start = views.start[which] + views.slope[which] * static_cast<double>(line);
  if (width > 0) return {start, width, limit};
  return {start + width * static_cast<double>(sizes.bins), -width, limit};
}

// Edges of a line's pixels among a view's bins; where they run against each other, counted from the last bin's edge.
BITLENS_FUNCTION Places edges_of_pixels(const Views& views, const Sizes& sizes, int part, std::int64_t view,
                                        std::int64_t line) {
  const std::int64_t which = part * sizes.views + view;
  const double width = views.width[which], limit = static_cast<double>(sizes.bins);
  const double start = -(views.start[which] + views.slope[which] * static_cast<double>(line)) / width;
  if (width > 0) return {start, 1 / width, limit};
  return {limit - start, -1 / width, limit};
}

// The view's part; 2 where it is in none.
BITLENS_FUNCTION int part_of(const Views& views, std::int64_t n_views, std::int64_t view) {
  return views.inside[view] ? 0 : views.inside[n_views + view] ? 1 : 2;
}

// Weight of a bin in the running sum of its view; the bins of a view that runs backwards are summed from the last.
BITLENS_FUNCTION double bin_weight(const Views& views, std::int64_t n_views, int part, std::int64_t view) {
  return views.factor[view] * views.width[part * n_views + view];
}

template <class Value>
BITLENS_FUNCTION Value between(Value left, Value right, Value share) {
  return left + share * (right - left);
}

}  // namespace BITLENS_ISA
}  // namespace parallel_projection
}  // namespace bitlens
