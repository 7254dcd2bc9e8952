// What every kernel over a matrix of scores needs of its slabs and tiles: packing, the walk over tiles, the products
// that a tile's gradient adds to those of its queries and keys.
#pragma once

#include "kernel.h"
#include "math.h"
#include "plan.h"
#include "tile.h"

namespace bitlens {
namespace infonce_scores {
namespace BITLENS_ISA {

using namespace ::bitlens::BITLENS_ISA::infonce;

static_assert(kTile == kSlabStep, "a slab is made of whole tiles");

template <class T>
using PackOf = typename Lanes<T>::Pack;

template <class T>
BITLENS_FUNCTION PackOf<T> constant(T x) {
  return x - PackOf<T>{};
}

// Halves are added, and then their halves.
template <class T>
BITLENS_FUNCTION T sum_of_lanes(PackOf<T> pack) {
  T lanes[Lanes<T>::width];
  store(lanes, pack);
  for (int half = Lanes<T>::width / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

template <class T>
BITLENS_FUNCTION double value_or(const T* values, std::int64_t index, double otherwise) {
  return values != nullptr ? static_cast<double>(values[index]) : otherwise;
}

// Column of a row's positive.
template <class T>
BITLENS_FUNCTION std::int64_t positive_of(const Inputs<T>& inputs, std::int64_t b, std::int64_t row) {
  return inputs.positive != nullptr ? inputs.positive[b * inputs.sizes.queries + row] : row;
}

struct Range {
  std::int64_t begin, end;
};

BITLENS_FUNCTION Range slab_range(std::int64_t slab, std::int64_t per_slab, std::int64_t count) {
  const std::int64_t begin = slab * per_slab < count ? slab * per_slab : count;
  return {begin, begin + per_slab < count ? begin + per_slab : count};
}

// Fills a range of a work array and its padding.
BITLENS_FUNCTION void fill(double* array, Range range, double value) {
  for (std::int64_t i = range.begin; i < whole(range.end, kPadding); ++i) array[i] = value;
}

// ---- Packing: the first work array of either side holds the biases ----

template <class T>
BITLENS_FUNCTION void pack_rows(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, const T* source,
                                std::int64_t b, Range range) {
  for (std::int64_t i = range.begin; i < range.end; ++i) {
    T* target = item.queries + i * plan.features_padded;
    const T* row = source + i * inputs.query_strides[0];
    for (std::int64_t k = 0; k < inputs.sizes.features; ++k) target[k] = finite_or_nan(row[k * inputs.query_strides[1]]);
    for (std::int64_t k = inputs.sizes.features; k < plan.features_padded; ++k) target[k] = T(0);
    item.rows[i] = bias_or_nan(value_or(inputs.query_bias, b * inputs.sizes.queries + i, 0.0));
  }
  for (std::int64_t i = range.end; i < whole(range.end, kPadding); ++i) {
    for (std::int64_t k = 0; k < plan.features_padded; ++k) item.queries[i * plan.features_padded + k] = T(0);
  }
}

template <class T>
BITLENS_FUNCTION void pack_columns(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, const T* source,
                                   std::int64_t b, Range range) {
  constexpr std::int64_t width = panel_width<T>();
  const std::int64_t features = inputs.sizes.features;
  for (std::int64_t j = range.begin; j < range.end; ++j) {
    T* const target = item.panels + j / width * width * features + j % width;
    const T* const row = source + j * inputs.key_strides[0];
    for (std::int64_t k = 0; k < features; ++k) target[k * width] = finite_or_nan(row[k * inputs.key_strides[1]]);
    if (item.keys != nullptr) {
      T* const kept = item.keys + j * plan.features_padded;
      for (std::int64_t k = 0; k < features; ++k) kept[k] = target[k * width];
      for (std::int64_t k = features; k < plan.features_padded; ++k) kept[k] = T(0);
    }
    item.columns[j] = bias_or_nan(value_or(inputs.key_bias, b * inputs.sizes.keys + j, 0.0));
  }
  for (std::int64_t j = range.end; j < whole(range.end, kPanelPadding); ++j) {
    T* const target = item.panels + j / width * width * features + j % width;
    for (std::int64_t k = 0; k < features; ++k) target[k * width] = T(0);
  }
  // A padded column is a masked one.
  for (std::int64_t j = range.end; j < whole(range.end, kPadding); ++j) item.columns[j] = -INFINITY;
}

template <class T>
BITLENS_FUNCTION void pack(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, std::int64_t b, Range rows,
                           Range columns) {
  std::int64_t offsets[2];
  operand_offsets(inputs.layout, b, offsets);
  if (rows.begin < rows.end) pack_rows(inputs, plan, item, inputs.query + offsets[0], b, rows);
  if (columns.begin < columns.end) pack_columns(inputs, plan, item, inputs.key + offsets[1], b, columns);
}

// ---- Tiles ----

struct Tile {
  std::int64_t row, rows, column, columns;
};

// Calls visit(tile) for the tiles where row slab `slab` meets its column slab in this phase.
template <class AnyPlan, class AnySizes, class Visit>
BITLENS_FUNCTION void for_each_tile(const AnyPlan& plan, const AnySizes& sizes, std::int64_t slab, std::int64_t phase,
                                    const Visit& visit) {
  const Range rows = slab_range(slab, plan.rows_per_slab, sizes.queries);
  const Range columns = slab_range((slab + phase) % plan.phases, plan.columns_per_slab, sizes.keys);
  for (std::int64_t column = columns.begin; column < columns.end; column += kTile) {
    for (std::int64_t row = rows.begin; row < rows.end; row += kTile) {
      visit(Tile{row, rows.end - row < kTile ? rows.end - row : kTile, column,
                 columns.end - column < kTile ? columns.end - column : kTile});
    }
  }
}

// Dot products of a tile, zero in the columns that no product writes.
template <class T>
BITLENS_FUNCTION void find_dots(T* dots, const Inputs<T>& inputs, const Plan& plan, const Item<T>& item,
                                const Tile& tile) {
  for (std::int64_t i = 0; i < (tile.columns < kTile ? tile.rows : 0); ++i) {
    for (std::int64_t j = tile.columns; j < kTile; ++j) dots[i * kTile + j] = T(0);
  }
  tile_dots(dots, item.queries + tile.row * plan.features_padded, plan.features_padded,
            item.panels + tile.column * inputs.sizes.features, inputs.sizes.features, tile.rows, tile.columns);
}

// Zeros in the rows of a tile's gradient that only fill a register block.
template <class T>
BITLENS_FUNCTION void clear_rows(T* gradient, std::int64_t rows) {
  for (std::int64_t i = rows; i < whole(rows, kRegisterRows); ++i) {
    for (std::int64_t j = 0; j < kTile; ++j) gradient[i * kTile + j] = T(0);
  }
}

// ---- Gradients in queries and keys ----

// Where batch item `b` sums them: in the outputs themselves unless the plan keeps sums in the work space.
template <class T>
BITLENS_FUNCTION void find_sums(Item<T>& item, T* query, T* key, const Sizes& sizes, std::int64_t b) {
  if (item.query_sums == nullptr && query != nullptr) item.query_sums = query + b * sizes.queries * sizes.features;
  if (item.key_sums == nullptr && key != nullptr) item.key_sums = key + b * sizes.keys * sizes.features;
}

template <class T>
BITLENS_FUNCTION void clear_sums(T* sums, const Plan& plan, Range range) {
  if (sums == nullptr) return;
  T* const last = sums + range.end * plan.features_padded;
  for (T* sum = sums + range.begin * plan.features_padded; sum < last; ++sum) *sum = T(0);
}

// Adds what the gradient of a tile's scores pulls on.
template <class T>
BITLENS_FUNCTION void add_to_sums(const Item<T>& item, const Plan& plan, const Sizes& sizes, const Tile& tile,
                                  const T* gradient) {
  const std::int64_t step = plan.features_padded;
  const std::int64_t features = whole(sizes.features * std::int64_t{sizeof(T)}, kAlignment) / std::int64_t{sizeof(T)};
  if (item.query_sums != nullptr) {
    add_product(item.query_sums + tile.row * step, step, item.keys + tile.column * step, step, tile.rows, features,
                tile.columns, gradient, std::int64_t{kTile}, std::int64_t{1});
  }
  if (item.key_sums != nullptr) {
    add_product(item.key_sums + tile.column * step, step, item.queries + tile.row * step, step, tile.columns, features,
                tile.rows, gradient, std::int64_t{1}, std::int64_t{kTile});
  }
}

// Scales the sums of a range and puts them where they belong; `target` may be `sums`.
template <class T>
BITLENS_FUNCTION void write_sums(T* target, const T* sums, const Plan& plan, const Sizes& sizes, double scale,
                                 Range range) {
  if (sums == nullptr) return;
  for (std::int64_t i = range.begin; i < range.end; ++i) {
    for (std::int64_t k = 0; k < sizes.features; ++k) {
      target[i * sizes.features + k] = static_cast<T>(scale * static_cast<double>(sums[i * plan.features_padded + k]));
    }
  }
}

}  // namespace BITLENS_ISA
}  // namespace infonce_scores
}  // namespace bitlens
