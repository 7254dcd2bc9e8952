// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points.
//
// Slabs, phases, stages and the products of a tile are those of infonce_scores: see its plan.h and tile.h.
#include "../infonce_scores/math.h"
#include "../infonce_scores/plan.h"
#include "../infonce_scores/tile.h"
#include "kernel.h"
#include "math.h"

#if defined(BITLENS_ENTRY_POINTS)
#include "../../common/instruction_set.h"
#include "../../common/parallel.h"
#endif

namespace bitlens {
namespace pairwise_map_sums {
namespace BITLENS_ISA {
namespace {

using namespace ::bitlens::BITLENS_ISA::infonce;
using namespace ::bitlens::infonce_scores::BITLENS_ISA;

static_assert(kTile == kSlabStep, "a slab is made of whole tiles");

struct Range {
  std::int64_t begin, end;
};

BITLENS_FUNCTION Range slab_range(std::int64_t slab, std::int64_t per_slab, std::int64_t count) {
  const std::int64_t begin = slab * per_slab < count ? slab * per_slab : count;
  return {begin, begin + per_slab < count ? begin + per_slab : count};
}

// Work arrays of one batch item, in double, padded to whole tiles. The first of each side hold the biases.
enum RowArray { kQueryBias, kSum, kPositive, kForwardRows };
enum RowGradientArray { kGradSum = 1, kGradPositive, kRowGradient, kRowDots, kBackwardRows };
enum ColumnArray { kKeyBias, kColumnGradient, kColumns };

// The plan of infonce_scores with the arrays of this kernel.
BITLENS_FUNCTION Plan plan_of(const Sizes& sizes, int value_bytes, bool backward, bool query, bool key) {
  Plan plan = make_plan(sizes, value_bytes, backward, query, key);
  plan.item_bytes -= 8 * (plan.row_arrays * plan.rows_padded + plan.column_arrays * plan.columns_padded);
  plan.row_arrays = backward ? std::int64_t{kBackwardRows} : std::int64_t{kForwardRows};
  plan.column_arrays = kColumns;
  plan.item_bytes += 8 * (plan.row_arrays * plan.rows_padded + plan.column_arrays * plan.columns_padded);
  plan.chunk = plan.item_bytes == 0 ? sizes.batch : kChunkBytes / plan.item_bytes;
  if (plan.chunk < 1) plan.chunk = 1;
  if (plan.chunk > sizes.batch) plan.chunk = sizes.batch;
  return plan;
}

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

template <class T>
BITLENS_FUNCTION std::int64_t positive_of(const Inputs<T>& inputs, std::int64_t b, std::int64_t row) {
  return inputs.positive != nullptr ? inputs.positive[b * inputs.sizes.queries + row] : row;
}

BITLENS_FUNCTION void fill(double* array, Range range, double value) {
  for (std::int64_t i = range.begin; i < whole(range.end, kPadding); ++i) array[i] = value;
}

// ---- Stage 0 ----

template <class T>
void pack_rows(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, const T* source, std::int64_t b,
               Range range) {
  const std::int64_t features = inputs.sizes.features;
  for (std::int64_t i = range.begin; i < whole(range.end, kPadding); ++i) {
    T* const target = item.queries + i * plan.features_padded;
    const bool inside = i < range.end;
    const T* const row = source + i * inputs.query_strides[0];
    for (std::int64_t k = 0; k < plan.features_padded; ++k) {
      target[k] = inside && k < features ? finite_or_nan(row[k * inputs.query_strides[1]]) : T(0);
    }
    if (inside) item.rows[i] = bias_or_nan(value_or(inputs.query_bias, b * inputs.sizes.queries + i, 0.0));
  }
}

template <class T>
void pack_columns(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, const T* source, std::int64_t b,
                  Range range) {
  constexpr std::int64_t width = panel_width<T>();
  const std::int64_t features = inputs.sizes.features;
  for (std::int64_t j = range.begin; j < whole(range.end, kPanelPadding); ++j) {
    T* const target = item.panels + j / width * width * features + j % width;
    const bool inside = j < range.end;
    const T* const row = source + j * inputs.key_strides[0];
    for (std::int64_t k = 0; k < features; ++k) {
      target[k * width] = inside ? finite_or_nan(row[k * inputs.key_strides[1]]) : T(0);
    }
    if (!inside) continue;
    if (item.keys != nullptr) {
      T* const kept = item.keys + j * plan.features_padded;
      for (std::int64_t k = 0; k < features; ++k) kept[k] = target[k * width];
      for (std::int64_t k = features; k < plan.features_padded; ++k) kept[k] = T(0);
    }
    item.columns[j] = bias_or_nan(value_or(inputs.key_bias, b * inputs.sizes.keys + j, 0.0));
  }
}

template <class T>
void pack(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, std::int64_t b, Range rows, Range columns) {
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
template <class Visit>
BITLENS_FUNCTION void for_each_tile(const Plan& plan, const Sizes& sizes, std::int64_t slab, std::int64_t phase,
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

// Dot products of a tile, zero in the columns that no product writes, and the biases of its keys, -inf past the last.
template <class T>
BITLENS_FUNCTION void find_dots(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, const Tile& tile,
                                T* dots, T* key_bias) {
  for (std::int64_t i = 0; i < tile.rows; ++i) {
    for (std::int64_t j = tile.columns; j < kTile; ++j) dots[i * kTile + j] = T(0);
  }
  tile_dots(dots, item.queries + tile.row * plan.features_padded, plan.features_padded,
            item.panels + tile.column * inputs.sizes.features, inputs.sizes.features, tile.rows, tile.columns);
  for (std::int64_t j = 0; j < kTile; ++j) {
    key_bias[j] = j < tile.columns ? static_cast<T>(item.columns[tile.column + j]) : T(-INFINITY);
  }
}

template <class T>
BITLENS_FUNCTION void finish_line(T* scores, const T* dots, T scale, T query_bias, const T* key_bias) {
  for (std::int64_t j = 0; j < kTile; j += Lanes<T>::width) {
    store(scores + j, scale * load(dots + j) + (query_bias + load(key_bias + j)));
  }
}

template <int Kind, class T>
BITLENS_FUNCTION PackOf<T> map_value(PackOf<T> score, T limit) {
  return Kind == Map::kSoftplus ? ::bitlens::BITLENS_ISA::pairwise_map::softplus(score)
                                : ::bitlens::BITLENS_ISA::pairwise_map::clipped_exp(score, limit);
}
template <int Kind, class T>
BITLENS_FUNCTION PackOf<T> map_slope(PackOf<T> score, T limit) {
  return Kind == Map::kSoftplus ? ::bitlens::BITLENS_ISA::pairwise_map::softplus_slope(score)
                                : ::bitlens::BITLENS_ISA::pairwise_map::clipped_exp_slope(score, limit);
}

template <int Kind, class T>
void forward_tile(const Forward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b,
                  const Tile& tile) {
  const Inputs<T>& inputs = arguments.inputs;
  alignas(64) T dots[kTile * kTile], key_bias[kTile];
  find_dots(inputs, plan, item, tile, dots, key_bias);
  const T scale = finite_or_nan(inputs.scale[b]), limit = static_cast<T>(arguments.map.limit);
  double* const sums = item.rows + kSum * plan.rows_padded + tile.row;
  for (std::int64_t i = 0; i < tile.rows; ++i) {
    T* const line = dots + i * kTile;
    finish_line(line, line, scale, static_cast<T>(item.rows[tile.row + i]), key_bias);
    const std::int64_t positive = positive_of(inputs, b, tile.row + i) - tile.column;
    if (positive >= 0 && positive < tile.columns) {
      item.rows[kPositive * plan.rows_padded + tile.row + i] = line[positive];
      line[positive] = T(-INFINITY);
    }
    PackOf<T> sum = constant(T(0));
    for (std::int64_t j = 0; j < kTile; j += Lanes<T>::width) sum += map_value<Kind, T>(load(line + j), limit);
    sums[i] += static_cast<double>(sum_of_lanes<T>(sum));
  }
}

template <int Kind, class T>
void backward_tile(const Backward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b,
                   const Tile& tile) {
  constexpr int width = Lanes<T>::width, packs = kTile / width;
  const Inputs<T>& inputs = arguments.inputs;
  alignas(64) T dots[kTile * kTile], gradient[kTile * kTile], key_bias[kTile], line[kTile];
  find_dots(inputs, plan, item, tile, dots, key_bias);
  const auto row_array = [&](int which) { return item.rows + which * plan.rows_padded + tile.row; };
  double* const column_gradient = item.columns + kColumnGradient * plan.columns_padded + tile.column;
  const T scale = finite_or_nan(inputs.scale[b]), limit = static_cast<T>(arguments.map.limit);
  PackOf<T> column_sums[packs];
  for (int p = 0; p < packs; ++p) column_sums[p] = constant(T(0));
  for (std::int64_t i = 0; i < tile.rows; ++i) {
    const T* const dot = dots + i * kTile;
    T* const target = gradient + i * kTile;
    finish_line(line, dot, scale, static_cast<T>(item.rows[tile.row + i]), key_bias);
    const std::int64_t positive = positive_of(inputs, b, tile.row + i) - tile.column;
    const bool here = positive >= 0 && positive < tile.columns;
    if (here) line[positive] = T(-INFINITY);
    const T weight = static_cast<T>(row_array(kGradSum)[i]);
    PackOf<T> sum = constant(T(0)), dot_sum = constant(T(0));
    for (int p = 0; p < packs; ++p) {
      const PackOf<T> value = weight * map_slope<Kind, T>(load(line + p * width), limit);
      store(target + p * width, value);
      sum += value;
      dot_sum += value * load(dot + p * width);
      column_sums[p] += value;
    }
    row_array(kRowGradient)[i] += sum_of_lanes<T>(sum);
    row_array(kRowDots)[i] += sum_of_lanes<T>(dot_sum);
    if (here) {
      const double value = row_array(kGradPositive)[i];
      target[positive] = static_cast<T>(value);
      row_array(kRowGradient)[i] += value;
      row_array(kRowDots)[i] += value * dot[positive];
      column_gradient[positive] += value;
    }
  }
  for (std::int64_t i = tile.rows; i < whole(tile.rows, kRegisterRows); ++i) {
    for (std::int64_t j = 0; j < kTile; ++j) gradient[i * kTile + j] = T(0);
  }
  for (std::int64_t j = 0; j < tile.columns; ++j) column_gradient[j] += column_sums[j / width][j % width];

  const std::int64_t step = plan.features_padded;
  const std::int64_t features =
      whole(inputs.sizes.features * std::int64_t{sizeof(T)}, kAlignment) / std::int64_t{sizeof(T)};
  if (item.query_sums != nullptr) {
    add_product(item.query_sums + tile.row * step, item.keys + tile.column * step, step, tile.rows, features,
                tile.columns, gradient, std::int64_t{kTile}, std::int64_t{1});
  }
  if (item.key_sums != nullptr) {
    add_product(item.key_sums + tile.column * step, item.queries + tile.row * step, step, tile.columns, features,
                tile.rows, gradient, std::int64_t{1}, std::int64_t{kTile});
  }
}

// ---- Stages ----

template <class T>
void forward_finish(const Forward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b, Range rows) {
  const Sizes& sizes = arguments.inputs.sizes;
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const std::int64_t out = b * sizes.queries + i, column = positive_of(arguments.inputs, b, i);
    // A positive that is not a column leaves nothing to be left out: undefined.
    const bool inside = column >= 0 && column < sizes.keys;
    arguments.positive[out] = static_cast<T>(item.rows[kPositive * plan.rows_padded + i]);
    arguments.sum[out] = static_cast<T>(inside ? item.rows[kSum * plan.rows_padded + i] : NAN);
  }
}

template <class T>
void prepare_gradients(const Backward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b, Range rows,
                       Range columns) {
  const Sizes& sizes = arguments.inputs.sizes;
  for (int which = kGradSum; which <= kRowDots; ++which) fill(item.rows + which * plan.rows_padded, rows, 0.0);
  fill(item.columns + kColumnGradient * plan.columns_padded, columns, 0.0);
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const std::int64_t in = b * sizes.queries + i;
    item.rows[kGradSum * plan.rows_padded + i] = value_or(arguments.grad_sum, in, 0.0);
    item.rows[kGradPositive * plan.rows_padded + i] = value_or(arguments.grad_positive, in, 0.0);
  }
  const auto clear = [&](T* sums, Range range) {
    if (sums == nullptr || range.begin == range.end) return;
    T* const last = sums + whole(range.end, kPadding) * plan.features_padded;
    for (T* sum = sums + range.begin * plan.features_padded; sum < last; ++sum) *sum = T(0);
  };
  clear(item.query_sums, rows);
  clear(item.key_sums, columns);
}

template <class T>
void backward_finish(const Backward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b, Range rows,
                     Range columns, bool first) {
  const Sizes& sizes = arguments.inputs.sizes;
  const double scale = finite_or_nan(static_cast<double>(arguments.inputs.scale[b]));
  const auto write_matrix = [&](T* target, const T* sums, std::int64_t count, Range range) {
    if (target == nullptr) return;
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      for (std::int64_t k = 0; k < sizes.features; ++k) {
        target[(b * count + i) * sizes.features + k] =
            static_cast<T>(scale * static_cast<double>(sums[i * plan.features_padded + k]));
      }
    }
  };
  const auto write = [&](T* target, const double* sums, std::int64_t count, Range range) {
    if (target == nullptr) return;
    for (std::int64_t i = range.begin; i < range.end; ++i) target[b * count + i] = static_cast<T>(sums[i]);
  };
  write_matrix(arguments.query, item.query_sums, sizes.queries, rows);
  write_matrix(arguments.key, item.key_sums, sizes.keys, columns);
  write(arguments.query_bias, item.rows + kRowGradient * plan.rows_padded, sizes.queries, rows);
  write(arguments.key_bias, item.columns + kColumnGradient * plan.columns_padded, sizes.keys, columns);
  if (first && arguments.scale != nullptr) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < sizes.queries; ++i) sum += item.rows[kRowDots * plan.rows_padded + i];
    arguments.scale[b] = static_cast<T>(sum);
  }
}

template <class T>
void forward_stage(const Forward<T>& arguments, const Stage& stage, std::int64_t begin, std::int64_t end) {
  const Sizes& sizes = arguments.inputs.sizes;
  const Plan plan = plan_of(sizes, sizeof(T), false, false, false);
  const bool tiles = stage.number > 0 && stage.number <= plan.phases;
  const std::int64_t per_item = tiles ? plan.row_slabs : plan.phases;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t index = task / per_item, slab = task % per_item, b = stage.first_item + index;
    const Item<T> item = item_of<T>(plan, arguments.workspace, index);
    if (tiles) {
      for_each_tile(plan, sizes, slab, stage.number - 1, [&](const Tile& tile) {
        if (arguments.map.kind == Map::kSoftplus) {
          forward_tile<Map::kSoftplus>(arguments, plan, item, b, tile);
        } else {
          forward_tile<Map::kClippedExp>(arguments, plan, item, b, tile);
        }
      });
      continue;
    }
    const Range rows = slab_range(slab, plan.rows_per_slab, sizes.queries);
    if (stage.number == 0) {
      pack(arguments.inputs, plan, item, b, rows, slab_range(slab, plan.columns_per_slab, sizes.keys));
      fill(item.rows + kSum * plan.rows_padded, rows, 0.0);
      fill(item.rows + kPositive * plan.rows_padded, rows, NAN);
    } else {
      forward_finish(arguments, plan, item, b, rows);
    }
  }
}

template <class T>
void backward_stage(const Backward<T>& arguments, const Stage& stage, std::int64_t begin, std::int64_t end) {
  const Sizes& sizes = arguments.inputs.sizes;
  const Plan plan = plan_of(sizes, sizeof(T), true, arguments.query != nullptr, arguments.key != nullptr);
  const bool tiles = stage.number > 0 && stage.number <= plan.phases;
  const std::int64_t per_item = tiles ? plan.row_slabs : plan.phases;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t index = task / per_item, slab = task % per_item, b = stage.first_item + index;
    const Item<T> item = item_of<T>(plan, arguments.workspace, index);
    if (tiles) {
      for_each_tile(plan, sizes, slab, stage.number - 1, [&](const Tile& tile) {
        if (arguments.map.kind == Map::kSoftplus) {
          backward_tile<Map::kSoftplus>(arguments, plan, item, b, tile);
        } else {
          backward_tile<Map::kClippedExp>(arguments, plan, item, b, tile);
        }
      });
      continue;
    }
    const Range rows = slab_range(slab, plan.rows_per_slab, sizes.queries);
    const Range columns = slab_range(slab, plan.columns_per_slab, sizes.keys);
    if (stage.number == 0) {
      pack(arguments.inputs, plan, item, b, rows, columns);
      prepare_gradients(arguments, plan, item, b, rows, columns);
    } else {
      backward_finish(arguments, plan, item, b, rows, columns, slab == 0);
    }
  }
}

}  // namespace

void forward_float(const Forward<float>& arguments, const Stage& stage, std::int64_t begin, std::int64_t end) {
  forward_stage(arguments, stage, begin, end);
}
void forward_double(const Forward<double>& arguments, const Stage& stage, std::int64_t begin, std::int64_t end) {
  forward_stage(arguments, stage, begin, end);
}
void backward_float(const Backward<float>& arguments, const Stage& stage, std::int64_t begin, std::int64_t end) {
  backward_stage(arguments, stage, begin, end);
}
void backward_double(const Backward<double>& arguments, const Stage& stage, std::int64_t begin, std::int64_t end) {
  backward_stage(arguments, stage, begin, end);
}

}  // namespace BITLENS_ISA

#if defined(BITLENS_ENTRY_POINTS)
BITLENS_DECLARE_PER_ISA(void forward_float(const Forward<float>&, const Stage&, std::int64_t, std::int64_t))
BITLENS_DECLARE_PER_ISA(void forward_double(const Forward<double>&, const Stage&, std::int64_t, std::int64_t))
BITLENS_DECLARE_PER_ISA(void backward_float(const Backward<float>&, const Stage&, std::int64_t, std::int64_t))
BITLENS_DECLARE_PER_ISA(void backward_double(const Backward<double>&, const Stage&, std::int64_t, std::int64_t))

namespace cpu {
namespace {

using Plan = ::bitlens::infonce_scores::baseline::Plan;

template <class Arguments, class Run>
void run_stages(const Arguments& arguments, const Plan& plan, const Run& run, int threads) {
  const std::int64_t batch = arguments.inputs.sizes.batch;
  Stage stage{};
  for (stage.first_item = 0; stage.first_item < batch; stage.first_item += plan.chunk) {
    const std::int64_t items = std::min(plan.chunk, batch - stage.first_item);
    for (stage.number = 0; stage.number <= plan.phases + 1; ++stage.number) {
      const bool tiles = stage.number > 0 && stage.number <= plan.phases;
      const std::int64_t tasks = items * (tiles ? plan.row_slabs : plan.phases);
      // Many small items: a few hundred pieces are enough to share out.
      const std::int64_t grain = tasks < 512 ? 1 : tasks / 256;
      parallel_for(tasks, grain, threads,
                   [&](std::int64_t begin, std::int64_t end) { run(arguments, stage, begin, end); });
    }
  }
}

template <class T, class Run>
void run_forward(const Forward<T>& arguments, const Run& run, int threads) {
  run_stages(arguments, baseline::plan_of(arguments.inputs.sizes, sizeof(T), false, false, false), run, threads);
}

template <class T, class Run>
void run_backward(const Backward<T>& arguments, const Run& run, int threads) {
  const bool query = arguments.query != nullptr, key = arguments.key != nullptr;
  run_stages(arguments, baseline::plan_of(arguments.inputs.sizes, sizeof(T), true, query, key), run, threads);
}

}  // namespace

std::int64_t workspace_bytes(const Sizes& sizes, int value_bytes, bool backward, bool query, bool key) {
  const Plan plan = baseline::plan_of(sizes, value_bytes, backward, query, key);
  return plan.chunk * plan.item_bytes;
}

void forward(const Forward<float>& arguments, int threads) {
  run_forward(arguments, BITLENS_FOR_THIS_PROCESSOR(forward_float), threads);
}
void forward(const Forward<double>& arguments, int threads) {
  run_forward(arguments, BITLENS_FOR_THIS_PROCESSOR(forward_double), threads);
}
void backward(const Backward<float>& arguments, int threads) {
  run_backward(arguments, BITLENS_FOR_THIS_PROCESSOR(backward_float), threads);
}
void backward(const Backward<double>& arguments, int threads) {
  run_backward(arguments, BITLENS_FOR_THIS_PROCESSOR(backward_double), threads);
}

}  // namespace cpu
#endif

}  // namespace pairwise_map_sums
}  // namespace bitlens
