// How the score matrix is cut into slabs and tiles, and where the work space keeps what: the same on every
// instruction set and for every number of threads, because it fixes the order of all sums.
#pragma once

#include "../../common/portable.h"
#include "kernel.h"

namespace bitlens {
namespace infonce_scores {
namespace BITLENS_ISA {

// Rows and columns are cut into at most kMaxSlabs slabs. In phase p row slab r meets column slab (r + p) mod phases:
// within a phase no two tasks share a row or a column, and over the phases every row and every column collects its
// terms in an order that depends on the sizes alone. So both sums come from one visit to each tile, without locks
// and without a copy of the sums for each thread.
constexpr std::int64_t kSlabStep = 96;  // rows or columns of a tile
// Lengths are padded to whole register blocks and packs of every instruction set: 24 is a multiple of 8, 6 and 4,
// and a panel of transposed keys has at most 32.
constexpr std::int64_t kPadding = 24, kPanelPadding = 32;
constexpr std::int64_t kMaxSlabs = 32;
constexpr std::int64_t kAlignment = 64;
// Batch items are worked on this many bytes of work space at a time: touching fresh memory for each of thousands of
// small ones costs more than they do.
constexpr std::int64_t kChunkBytes = std::int64_t{8} << 20;

struct Plan {
  std::int64_t rows_padded, columns_padded;  // lengths of the work arrays
  std::int64_t features_padded;              // row stride of the packed queries and keys, whole cache lines
  std::int64_t rows_per_slab, columns_per_slab;
  std::int64_t row_slabs, column_slabs, phases;
  std::int64_t item_bytes;   // work space of one batch item
  std::int64_t panel_bytes;  // of which transposed keys
  std::int64_t chunk;        // batch items that share the work space at a time
  std::int64_t row_arrays, column_arrays;
  bool keep_keys;
  bool sum_queries, sum_keys;  // gradients that are summed in the work space: those whose rows are not whole vectors
};

BITLENS_FUNCTION std::int64_t whole(std::int64_t count, std::int64_t step) { return (count + step - 1) / step * step; }

BITLENS_FUNCTION std::int64_t per_slab(std::int64_t length) {
  return length == 0 ? kSlabStep : whole((length + kMaxSlabs - 1) / kMaxSlabs, kSlabStep);
}

BITLENS_FUNCTION Plan make_plan(const Sizes& sizes, int value_bytes, bool backward, bool query, bool key) {
  Plan plan{};
  plan.rows_padded = whole(sizes.queries, kPadding);
  plan.columns_padded = whole(sizes.keys, kPadding);
  std::int64_t row_bytes = whole(sizes.features * value_bytes, kAlignment);
  // Rows a multiple of 512 bytes apart would meet in a few sets of the first-level cache.
  if (row_bytes % 512 == 0 && row_bytes > 0) row_bytes += kAlignment;
  plan.features_padded = row_bytes / value_bytes;
  plan.rows_per_slab = per_slab(sizes.queries);
  plan.columns_per_slab = per_slab(sizes.keys);
  plan.row_slabs = (sizes.queries + plan.rows_per_slab - 1) / plan.rows_per_slab;
  plan.column_slabs = (sizes.keys + plan.columns_per_slab - 1) / plan.columns_per_slab;
  plan.phases = plan.row_slabs > plan.column_slabs ? plan.row_slabs : plan.column_slabs;
  plan.row_arrays = backward ? 8 : 4;
  plan.column_arrays = backward ? 4 : 3;
  plan.keep_keys = backward && query;  // the gradient in the queries multiplies keys as they are, not transposed
  const bool in_place = plan.features_padded == sizes.features;
  plan.sum_queries = backward && query && !in_place;
  plan.sum_keys = backward && key && !in_place;
  const std::int64_t query_bytes = plan.rows_padded * row_bytes, key_bytes = plan.columns_padded * row_bytes;
  plan.panel_bytes = whole(whole(sizes.keys, kPanelPadding) * sizes.features * value_bytes, kAlignment);
  plan.item_bytes = 8 * (plan.row_arrays * plan.rows_padded + plan.column_arrays * plan.columns_padded) +
                    query_bytes * (plan.sum_queries ? 2 : 1) + plan.panel_bytes +
                    key_bytes * ((plan.keep_keys ? 1 : 0) + (plan.sum_keys ? 1 : 0));
  plan.chunk = plan.item_bytes == 0 ? sizes.batch : kChunkBytes / plan.item_bytes;
  if (plan.chunk < 1) plan.chunk = 1;
  if (plan.chunk > sizes.batch) plan.chunk = sizes.batch;
  return plan;
}

// One batch item's part of the work space.
template <class T>
struct Item {
  double* rows;     // [row_arrays][rows_padded]
  double* columns;  // [column_arrays][columns_padded]
  T* queries;     // [rows_padded][features_padded]
  T* panels;      // transposed keys, see panel_width
  T* keys;        // [columns_padded][features_padded], or null
  T* query_sums;  // [rows_padded][features_padded], or null
  T* key_sums;    // [columns_padded][features_padded], or null
};

template <class T>
BITLENS_FUNCTION Item<T> item_of(const Plan& plan, void* workspace, std::int64_t index) {
  unsigned char* next = static_cast<unsigned char*>(workspace) + index * plan.item_bytes;
  Item<T> item{};
  item.rows = reinterpret_cast<double*>(next);
  next += 8 * plan.row_arrays * plan.rows_padded;
  item.columns = reinterpret_cast<double*>(next);
  next += 8 * plan.column_arrays * plan.columns_padded;
  const std::int64_t row_bytes = plan.features_padded * static_cast<std::int64_t>(sizeof(T));
  item.queries = reinterpret_cast<T*>(next);
  next += plan.rows_padded * row_bytes;
  item.panels = reinterpret_cast<T*>(next);
  next += plan.panel_bytes;
  if (plan.keep_keys) {
    item.keys = reinterpret_cast<T*>(next);
    next += plan.columns_padded * row_bytes;
  }
  if (plan.sum_queries) {
    item.query_sums = reinterpret_cast<T*>(next);
    next += plan.rows_padded * row_bytes;
  }
  if (plan.sum_keys) item.key_sums = reinterpret_cast<T*>(next);
  return item;
}

}  // namespace BITLENS_ISA
}  // namespace infonce_scores
}  // namespace bitlens
