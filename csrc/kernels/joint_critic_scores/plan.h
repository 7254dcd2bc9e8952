// Where the work space of one batch item keeps what. Slabs, phases and tiles are those of infonce_scores, whose plan.h
// says why they keep one order of all sums. Gradients in the weights are kept by row slab and added up in the end.
#pragma once

#include "../infonce_scores/plan.h"
#include "kernel.h"

namespace bitlens {
namespace joint_critic_scores {
namespace BITLENS_ISA {

using infonce_scores::BITLENS_ISA::kAlignment;
using infonce_scores::BITLENS_ISA::kPadding;
using infonce_scores::BITLENS_ISA::kPanelPadding;
using infonce_scores::BITLENS_ISA::kSlabStep;
using infonce_scores::BITLENS_ISA::per_slab;
using infonce_scores::BITLENS_ISA::whole;

// Widest vector of any instruction set, in values of the narrowest type.
constexpr std::int64_t kWidestVector = 16;

struct Plan {
  std::int64_t rows_padded, columns_padded;  // lengths of the work arrays
  std::int64_t step;                         // row stride of all packed [..., h] arrays
  std::int64_t second_padded;                // rows of the packed second layer
  std::int64_t rows_per_slab, columns_per_slab;
  std::int64_t row_slabs, column_slabs, phases;
  std::int64_t row_arrays, column_arrays;
  bool backward, two_layers, keep_keys, sum_queries, sum_keys, sum_weight;
};

template <class T>
BITLENS_FUNCTION Wanted wanted_of(const Backward<T>& arguments) {
  return {arguments.query != nullptr, arguments.key != nullptr, arguments.weight != nullptr, arguments.bias != nullptr,
          arguments.output != nullptr};
}

BITLENS_FUNCTION Plan make_plan(const Sizes& sizes, int value_bytes, bool backward, const Wanted& wanted) {
  Plan plan{};
  plan.rows_padded = whole(sizes.queries, kPadding);
  plan.columns_padded = whole(sizes.keys, kPadding);
  // An odd number of cache lines: rows then spread over all sets of the first-level cache.
  const std::int64_t lines = whole(sizes.hidden * value_bytes, kAlignment) / kAlignment;
  plan.step = (lines + 1 - lines % 2) * kAlignment / value_bytes;
  plan.second_padded = whole(sizes.second, kPadding);
  plan.rows_per_slab = per_slab(sizes.queries);
  plan.columns_per_slab = per_slab(sizes.keys);
  plan.row_slabs = (sizes.queries + plan.rows_per_slab - 1) / plan.rows_per_slab;
  plan.column_slabs = (sizes.keys + plan.columns_per_slab - 1) / plan.columns_per_slab;
  plan.phases = plan.row_slabs > plan.column_slabs ? plan.row_slabs : plan.column_slabs;
  plan.backward = backward;
  plan.two_layers = sizes.second > 0;
  plan.row_arrays = backward ? 5 : 3;
  plan.column_arrays = 2;
  // With one layer the gradient in w comes from the sums of both sides.
  plan.sum_queries = backward && (wanted.query || (!plan.two_layers && wanted.output));
  plan.sum_keys = backward && (wanted.key || (!plan.two_layers && wanted.output));
  plan.sum_weight = backward && plan.two_layers && wanted.weight;
  plan.keep_keys = backward;
  return plan;
}

// The work space of one batch item.
template <class T>
struct Item {
  double* rows;        // [row_arrays][rows_padded]
  double* columns;     // [column_arrays][columns_padded]
  double* query_sums;  // [rows_padded][step], or null
  double* key_sums;    // [columns_padded][step], or null
  T* queries;          // [rows_padded][step]
  T* panels;           // transposed keys, see panel_width
  T* keys;             // [columns_padded][step], or null
  T* weight;           // V, [second_padded][step], or null
  T* bias;             // d, [second_padded], or null
  T* output;           // w, [second_padded] or [step]
};

// What a row slab has to itself, all null with one hidden layer.
template <class T>
struct Scratch {
  double* weight_sums;   // [second_padded][step], or null
  double* bias_sums;     // [second_padded][kWidestVector], by lane
  double* output_sums;   // [second_padded][kWidestVector], by lane
  T* weight_part;        // [second_padded][step], of one tile, or null
  T* key_part;           // [kSlabStep][step], of one tile, or null
  T* activations;        // [h][kSlabStep] of a row's pairs
  T* activations_by_key;  // [kSlabStep][step]
  T* second;             // [second_padded][kSlabStep]
};

// Hands out the work space front to back.
struct Cursor {
  std::uintptr_t next;
};

template <class Value>
BITLENS_FUNCTION Value* take(Cursor& cursor, std::int64_t count) {
  const std::uintptr_t begin = cursor.next;
  cursor.next += static_cast<std::uintptr_t>(whole(count * static_cast<std::int64_t>(sizeof(Value)), kAlignment));
  return count > 0 ? reinterpret_cast<Value*>(begin) : nullptr;
}

template <class T>
BITLENS_FUNCTION Item<T> take_item(const Plan& plan, const Sizes& sizes, Cursor& cursor) {
  const std::int64_t last = plan.two_layers ? plan.second_padded : plan.step;
  Item<T> item{};
  item.rows = take<double>(cursor, plan.row_arrays * plan.rows_padded);
  item.columns = take<double>(cursor, plan.column_arrays * plan.columns_padded);
  item.query_sums = take<double>(cursor, plan.sum_queries ? plan.rows_padded * plan.step : 0);
  item.key_sums = take<double>(cursor, plan.sum_keys ? plan.columns_padded * plan.step : 0);
  item.queries = take<T>(cursor, plan.rows_padded * plan.step);
  item.panels = take<T>(cursor, whole(sizes.keys, kPanelPadding) * sizes.hidden);
  item.keys = take<T>(cursor, plan.keep_keys ? plan.columns_padded * plan.step : 0);
  item.weight = take<T>(cursor, plan.second_padded * plan.step);
  item.bias = take<T>(cursor, plan.second_padded);
  item.output = take<T>(cursor, last);
  return item;
}

template <class T>
BITLENS_FUNCTION Scratch<T> take_scratch(const Plan& plan, const Sizes& sizes, Cursor& cursor) {
  Scratch<T> scratch{};
  if (!plan.two_layers) return scratch;
  scratch.activations = take<T>(cursor, sizes.hidden * kSlabStep);
  if (!plan.backward) return scratch;
  const std::int64_t matrix = plan.second_padded * plan.step;
  scratch.weight_sums = take<double>(cursor, plan.sum_weight ? matrix : 0);
  scratch.bias_sums = take<double>(cursor, plan.second_padded * kWidestVector);
  scratch.output_sums = take<double>(cursor, plan.second_padded * kWidestVector);
  scratch.weight_part = take<T>(cursor, plan.sum_weight ? matrix : 0);
  scratch.key_part = take<T>(cursor, plan.sum_keys ? kSlabStep * plan.step : 0);
  scratch.activations_by_key = take<T>(cursor, kSlabStep * plan.step);
  scratch.second = take<T>(cursor, plan.second_padded * kSlabStep);
  return scratch;
}

template <class T>
BITLENS_FUNCTION Item<T> item_of(const Plan& plan, const Sizes& sizes, void* workspace) {
  Cursor cursor{reinterpret_cast<std::uintptr_t>(workspace)};
  return take_item<T>(plan, sizes, cursor);
}

template <class T>
BITLENS_FUNCTION Scratch<T> scratch_of(const Plan& plan, const Sizes& sizes, void* workspace, std::int64_t slab) {
  Cursor cursor{reinterpret_cast<std::uintptr_t>(workspace)};
  take_item<T>(plan, sizes, cursor);
  const std::uintptr_t begin = cursor.next;
  take_scratch<T>(plan, sizes, cursor);
  cursor.next = begin + static_cast<std::uintptr_t>(slab) * (cursor.next - begin);
  return take_scratch<T>(plan, sizes, cursor);
}

template <class T>
BITLENS_FUNCTION std::int64_t bytes_of(const Plan& plan, const Sizes& sizes) {
  Cursor cursor{0};
  take_item<T>(plan, sizes, cursor);
  const std::uintptr_t begin = cursor.next;
  take_scratch<T>(plan, sizes, cursor);
  return static_cast<std::int64_t>(begin + static_cast<std::uintptr_t>(plan.row_slabs) * (cursor.next - begin));
}

}  // namespace BITLENS_ISA
}  // namespace joint_critic_scores
}  // namespace bitlens
