// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points.
//
// Slabs, phases, stages and the products of a tile are those of infonce_scores: see its plan.h and slabs.h.
#include "../infonce_scores/slabs.h"
#include "kernel.h"
#include "math.h"

#if defined(BITLENS_ENTRY_POINTS)
#include "../../common/instruction_set.h"
#include "../infonce_scores/stages.h"
#endif

namespace bitlens {
namespace pairwise_map_sums {
namespace BITLENS_ISA {
namespace {

using namespace ::bitlens::infonce_scores::BITLENS_ISA;

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

// ---- Tiles ----

// Biases of a tile's keys, -inf past the last.
template <class T>
BITLENS_FUNCTION void find_key_bias(T* key_bias, const Item<T>& item, const Tile& tile) {
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
  find_dots(dots, inputs, plan, item, tile);
  find_key_bias(key_bias, item, tile);
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
  find_dots(dots, inputs, plan, item, tile);
  find_key_bias(key_bias, item, tile);
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
  clear_rows(gradient, tile.rows);
  for (std::int64_t j = 0; j < tile.columns; ++j) column_gradient[j] += column_sums[j / width][j % width];
  add_to_sums(item, plan, inputs.sizes, tile, gradient);
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
  clear_sums(item.query_sums, plan, rows);
  clear_sums(item.key_sums, plan, columns);
}

template <class T>
void backward_finish(const Backward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b, Range rows,
                     Range columns, bool first) {
  const Sizes& sizes = arguments.inputs.sizes;
  const double scale = finite_or_nan(static_cast<double>(arguments.inputs.scale[b]));
  const auto write = [&](T* target, const double* sums, std::int64_t count, Range range) {
    if (target == nullptr) return;
    for (std::int64_t i = range.begin; i < range.end; ++i) target[b * count + i] = static_cast<T>(sums[i]);
  };
  write_sums(arguments.query + b * sizes.queries * sizes.features, item.query_sums, plan, sizes, scale, rows);
  write_sums(arguments.key + b * sizes.keys * sizes.features, item.key_sums, plan, sizes, scale, columns);
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
    Item<T> item = item_of<T>(plan, arguments.workspace, index);
    find_sums(item, arguments.query, arguments.key, sizes, b);
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
void run_pass(const Arguments& arguments, const Plan& plan, const Run& run, int threads) {
  infonce_scores::run_chunks(
      plan, arguments.inputs.sizes.batch, threads,
      [&](const Stage& stage, std::int64_t begin, std::int64_t end) { run(arguments, stage, begin, end); });
}

template <class T, class Run>
void run_forward(const Forward<T>& arguments, const Run& run, int threads) {
  run_pass(arguments, baseline::plan_of(arguments.inputs.sizes, sizeof(T), false, false, false), run, threads);
}

template <class T, class Run>
void run_backward(const Backward<T>& arguments, const Run& run, int threads) {
  const bool query = arguments.query != nullptr, key = arguments.key != nullptr;
  run_pass(arguments, baseline::plan_of(arguments.inputs.sizes, sizeof(T), true, query, key), run, threads);
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
