// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points.
//
// Both passes run in stages, one batch item after the other: stage 0 packs the inputs, stages 1 .. phases visit the
// tiles, the last one writes the results. Within a stage the tasks are independent.
#include "../infonce_scores/slabs.h"
#include "kernel.h"
#include "pairs.h"
#include "plan.h"
#include "sums.h"

#if defined(BITLENS_ENTRY_POINTS)
#include "../../common/instruction_set.h"
#include "../infonce_scores/stages.h"
#endif

namespace bitlens {
namespace joint_critic_scores {
namespace BITLENS_ISA {
namespace {

using namespace ::bitlens::BITLENS_ISA::joint_critic;
using namespace ::bitlens::BITLENS_ISA::score_sums;
namespace infonce = ::bitlens::BITLENS_ISA::infonce;
using infonce::add_product;
using infonce::finite_or_nan;
using infonce::log_sum;
using infonce::merge;
using infonce::row_weight;

using infonce_scores::BITLENS_ISA::for_each_tile;
using infonce_scores::BITLENS_ISA::Range;
using infonce_scores::BITLENS_ISA::slab_range;
using infonce_scores::BITLENS_ISA::Tile;
using infonce_scores::BITLENS_ISA::value_or;

// Column of a row's positive.
template <class T>
BITLENS_FUNCTION std::int64_t positive_of(const Inputs<T>& inputs, std::int64_t b, std::int64_t row) {
  return inputs.positive != nullptr ? inputs.positive[b * inputs.sizes.queries + row] : row;
}

template <class Value>
BITLENS_FUNCTION void fill(Value* array, std::int64_t count, Value value) {
  if (array == nullptr) return;
  for (std::int64_t k = 0; k < count; ++k) array[k] = value;
}

// Work arrays of one batch item, in double, padded to whole blocks.
enum RowArray { kLargest, kSum, kPositive };
enum ColumnArray { kColumnLargest, kColumnSum };
enum RowGradientArray { kRowTotal, kNegativesTotal, kWeight, kGradRow, kGradPositive };
enum ColumnGradientArray { kColumnTotal, kGradColumn };

// ---- Stage 0 ----

// Rows of h values a `step` apart, followed by zeros up to a whole block of rows.
template <class T>
void pack_rows(T* target, const T* source, std::int64_t hidden, std::int64_t step, Range range) {
  for (std::int64_t i = range.begin; i < range.end; ++i) {
    for (std::int64_t c = 0; c < hidden; ++c) target[i * step + c] = finite_or_nan(source[i * hidden + c]);
    fill(target + i * step + hidden, step - hidden, T(0));
  }
  if (range.begin < range.end) {
    fill(target + range.end * step, (whole(range.end, kPadding) - range.end) * step, T(0));
  }
}

template <class T>
void pack_panels(T* panels, const T* source, std::int64_t hidden, Range range) {
  constexpr std::int64_t width = panel_width<T>();
  if (range.begin == range.end) return;
  for (std::int64_t j = range.begin; j < whole(range.end, kPanelPadding); ++j) {
    T* const target = panels + j / width * width * hidden + j % width;
    for (std::int64_t c = 0; c < hidden; ++c) {
      target[c * width] = j < range.end ? finite_or_nan(source[j * hidden + c]) : T(0);
    }
  }
}

template <class T>
void pack_weights(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, std::int64_t b) {
  const std::int64_t hidden = inputs.sizes.hidden, units = inputs.sizes.second;
  const auto pack_vector = [](T* target, const T* source, std::int64_t count, std::int64_t padded_count) {
    for (std::int64_t k = 0; k < padded_count; ++k) {
      target[k] = source != nullptr && k < count ? finite_or_nan(source[k]) : T(0);
    }
  };
  if (!plan.two_layers) {
    pack_vector(item.output, inputs.output + b * hidden, hidden, plan.step);
    return;
  }
  pack_rows(item.weight, inputs.weight + b * units * hidden, hidden, plan.step, {0, units});
  pack_vector(item.bias, inputs.bias != nullptr ? inputs.bias + b * units : nullptr, units, plan.second_padded);
  pack_vector(item.output, inputs.output + b * units, units, plan.second_padded);
}

// Packs the slabs that this task stands for.
template <class T>
void pack(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, std::int64_t b, std::int64_t slab) {
  const Sizes& sizes = inputs.sizes;
  const Range rows = slab_range(slab, plan.rows_per_slab, sizes.queries);
  const Range columns = slab_range(slab, plan.columns_per_slab, sizes.keys);
  const T* const key = inputs.key + b * sizes.keys * sizes.hidden;
  pack_rows(item.queries, inputs.query + b * sizes.queries * sizes.hidden, sizes.hidden, plan.step, rows);
  pack_panels(item.panels, key, sizes.hidden, columns);
  if (item.keys != nullptr) pack_rows(item.keys, key, sizes.hidden, plan.step, columns);
  if (slab == 0) pack_weights(inputs, plan, item, b);
}

// All scores of a tile; `part` is of the same shape.
template <class T>
BITLENS_FUNCTION void tile_scores(double* scores, T* part, const Sizes& sizes, const Plan& plan, const Item<T>& item,
                                  const Scratch<T>& scratch, std::int64_t row, std::int64_t rows, std::int64_t column,
                                  std::int64_t columns) {
  const T* const queries = item.queries + row * plan.step;
  const T* const panels = item.panels + column * sizes.hidden;
  if (!plan.two_layers) {
    one_layer_scores(scores, part, queries, plan.step, panels, item.output, sizes.hidden, rows, columns);
    return;
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    two_layer_line(part, scratch.activations, static_cast<T*>(nullptr), queries + i * plan.step, panels, item.weight,
                   plan.step, item.bias, item.output, sizes.hidden, sizes.second, columns);
    for (std::int64_t j = 0; j < columns; j += kWidth) store(scores + i * kTile + j, load(part + j));
  }
}

// ---- Forward ----

template <class T>
void forward_tile(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, const Scratch<T>& scratch,
                  std::int64_t b, const Tile& tile) {
  const std::int64_t row = tile.row, rows = tile.rows, column = tile.column, columns = tile.columns;
  alignas(64) double scores[kTile * kTile];
  alignas(64) T part[kTile * kTile];
  TileSums sums;
  tile_scores(scores, part, inputs.sizes, plan, item, scratch, row, rows, column, columns);

  // The positives join their columns one by one, so that the leave-one-out sums never hold them.
  double* const positives = item.rows + kPositive * plan.rows_padded + row;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = columns; j < padded(columns); ++j) scores[i * kTile + j] = -INFINITY;
    const std::int64_t positive = positive_of(inputs, b, row + i) - column;
    if (positive < 0 || positive >= columns) continue;
    positives[i] = scores[i * kTile + positive];
    scores[i * kTile + positive] = -INFINITY;
  }
  sum_tile(sums, scores, rows, columns);
  merge_into(item.rows + kLargest * plan.rows_padded + row, item.rows + kSum * plan.rows_padded + row,
             sums.row_largest, sums.row_reference, sums.row_sums, rows);
  double* const column_largest = item.columns + kColumnLargest * plan.columns_padded + column;
  double* const column_sums = item.columns + kColumnSum * plan.columns_padded + column;
  merge_into(column_largest, column_sums, sums.column_largest, sums.column_reference, sums.column_sums, columns);
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t j = positive_of(inputs, b, row + i) - column;
    if (j >= 0 && j < columns) merge(column_largest[j], column_sums[j], positives[i], positives[i], 1.0);
  }
}

template <class T>
void forward_finish(const Forward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b,
                    std::int64_t slab) {
  const Sizes& sizes = arguments.inputs.sizes;
  const Range rows = slab_range(slab, plan.rows_per_slab, sizes.queries);
  const Range columns = slab_range(slab, plan.columns_per_slab, sizes.keys);
  const double* const largest = item.rows + kLargest * plan.rows_padded;
  const double* const sums = item.rows + kSum * plan.rows_padded;
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const std::int64_t out = b * sizes.queries + i;
    const double positive = item.rows[kPositive * plan.rows_padded + i];
    double joined = largest[i], sum = sums[i];
    merge(joined, sum, positive, positive, 1.0);
    arguments.positive[out] = static_cast<T>(positive);
    arguments.row[out] = static_cast<T>(log_sum(joined, sum));
    // A positive that is not a column leaves nothing to be left out: undefined.
    const std::int64_t column = positive_of(arguments.inputs, b, i);
    const bool inside = column >= 0 && column < sizes.keys;
    arguments.negatives[out] = static_cast<T>(inside ? log_sum(largest[i], sums[i]) : NAN);
  }
  for (std::int64_t j = columns.begin; j < columns.end; ++j) {
    arguments.column[b * sizes.keys + j] = static_cast<T>(log_sum(
        item.columns[kColumnLargest * plan.columns_padded + j], item.columns[kColumnSum * plan.columns_padded + j]));
  }
}

template <class T>
void forward_stage(const Forward<T>& arguments, const Stage& stage, std::int64_t begin, std::int64_t end) {
  const Inputs<T>& inputs = arguments.inputs;
  const Sizes& sizes = inputs.sizes;
  const Plan plan = make_plan(sizes, sizeof(T), false, Wanted{});
  const Item<T> item = item_of<T>(plan, sizes, arguments.workspace);
  for (std::int64_t slab = begin; slab < end; ++slab) {
    if (stage.number > plan.phases) {
      forward_finish(arguments, plan, item, stage.item, slab);
    } else if (stage.number > 0) {
      const Scratch<T> scratch = scratch_of<T>(plan, sizes, arguments.workspace, slab);
      for_each_tile(plan, sizes, slab, stage.number - 1,
                    [&](const Tile& tile) {
                      forward_tile(inputs, plan, item, scratch, stage.item, tile);
                    });
    } else {
      pack(inputs, plan, item, stage.item, slab);
      const auto clear = [](double* array, Range range, double value) {
        fill(array + range.begin, whole(range.end, kPadding) - range.begin, value);
      };
      const Range rows = slab_range(slab, plan.rows_per_slab, sizes.queries);
      const Range columns = slab_range(slab, plan.columns_per_slab, sizes.keys);
      if (rows.begin < rows.end) {
        clear(item.rows + kLargest * plan.rows_padded, rows, -INFINITY);
        clear(item.rows + kSum * plan.rows_padded, rows, 0.0);
        clear(item.rows + kPositive * plan.rows_padded, rows, NAN);
      }
      if (columns.begin < columns.end) {
        clear(item.columns + kColumnLargest * plan.columns_padded, columns, -INFINITY);
        clear(item.columns + kColumnSum * plan.columns_padded, columns, 0.0);
      }
    }
  }
}

// ---- Backward ----

// What the tiles need of the outputs and their gradients, in double, and sums of nothing.
template <class T>
void prepare_gradients(const Backward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b,
                       std::int64_t slab) {
  const Sizes& sizes = arguments.inputs.sizes;
  const Range rows = slab_range(slab, plan.rows_per_slab, sizes.queries);
  const Range columns = slab_range(slab, plan.columns_per_slab, sizes.keys);
  const auto row_array = [&](int which) { return item.rows + which * plan.rows_padded; };
  const auto column_array = [&](int which) { return item.columns + which * plan.columns_padded; };
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const std::int64_t in = b * sizes.queries + i;
    const double row = arguments.row[in], negatives = arguments.negatives[in];
    const double grad_row = value_or(arguments.grad_row, in, 0.0);
    row_array(kRowTotal)[i] = row;
    row_array(kNegativesTotal)[i] = negatives;
    row_array(kWeight)[i] = row_weight(negatives, row, value_or(arguments.grad_negatives, in, 0.0), grad_row);
    row_array(kGradRow)[i] = grad_row;
    row_array(kGradPositive)[i] = value_or(arguments.grad_positive, in, 0.0);
  }
  for (std::int64_t j = columns.begin; j < columns.end; ++j) {
    const std::int64_t in = b * sizes.keys + j;
    // Without a gradient a column has no pull, whatever it holds.
    column_array(kColumnTotal)[j] = arguments.grad_column != nullptr ? arguments.column[in] : -INFINITY;
    column_array(kGradColumn)[j] = value_or(arguments.grad_column, in, 0.0);
  }
  if (rows.begin < rows.end) {
    const std::int64_t count = whole(rows.end, kPadding) - rows.begin;
    for (int which = kRowTotal; which <= kGradPositive; ++which) {
      fill(row_array(which) + rows.end, rows.begin + count - rows.end, 0.0);
    }
    if (item.query_sums != nullptr) fill(item.query_sums + rows.begin * plan.step, count * plan.step, 0.0);
  }
  if (columns.begin < columns.end) {
    const std::int64_t count = whole(columns.end, kPadding) - columns.begin;
    for (int which = kColumnTotal; which <= kGradColumn; ++which) {
      fill(column_array(which) + columns.end, columns.begin + count - columns.end, 0.0);
    }
    if (item.key_sums != nullptr) fill(item.key_sums + columns.begin * plan.step, count * plan.step, 0.0);
  }
  if (slab < plan.row_slabs && plan.two_layers) {
    const Scratch<T> scratch = scratch_of<T>(plan, sizes, arguments.workspace, slab);
    fill(scratch.weight_sums, plan.second_padded * plan.step, 0.0);
    fill(scratch.bias_sums, plan.second_padded * kWidestVector, 0.0);
    fill(scratch.output_sums, plan.second_padded * kWidestVector, 0.0);
  }
}

template <class T>
BITLENS_FUNCTION Pull pull_of(const Plan& plan, const Item<T>& item, const Tile& tile) {
  const std::int64_t row = tile.row, rows = tile.rows, column = tile.column, columns = tile.columns;
  const auto row_array = [&](int which) { return item.rows + which * plan.rows_padded + row; };
  const auto column_array = [&](int which) { return item.columns + which * plan.columns_padded + column; };
  Pull pull;
  pull.row_totals = row_array(kRowTotal);
  pull.negatives = row_array(kNegativesTotal);
  pull.row_weights = row_array(kWeight);
  pull.grad_row = row_array(kGradRow);
  pull.grad_positive = row_array(kGradPositive);
  pull.column_totals = column_array(kColumnTotal);
  pull.grad_column = column_array(kGradColumn);
  prepare(pull, rows, columns);
  return pull;
}

template <class T>
void backward_tile_one_layer(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, std::int64_t b, const Tile& tile) {
  const std::int64_t row = tile.row, rows = tile.rows, column = tile.column, columns = tile.columns;
  alignas(64) double scores[kTile * kTile];
  alignas(64) T gradient[kTile * kTile];
  const Pull pull = pull_of(plan, item, tile);
  tile_scores(scores, gradient, inputs.sizes, plan, item, Scratch<T>{}, row, rows, column, columns);
  for (std::int64_t i = 0; i < rows; ++i) {
    gradient_line(gradient + i * kTile, scores + i * kTile, pull, i, positive_of(inputs, b, row + i) - column, columns);
  }
  fill(gradient + rows * kTile, (whole(rows, kGateRows) - rows) * kTile, T(0));
  const std::int64_t at_row = row * plan.step, at_column = column * plan.step;
  add_gated(item.query_sums != nullptr ? item.query_sums + at_row : nullptr,
            item.key_sums != nullptr ? item.key_sums + at_column : nullptr, item.queries + at_row,
            item.keys + at_column, plan.step, inputs.sizes.hidden, gradient, rows, columns);
}

template <class T>
void backward_tile_two_layers(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, const Scratch<T>& scratch,
                              std::int64_t b, const Tile& tile) {
  const std::int64_t row = tile.row, rows = tile.rows, column = tile.column, columns = tile.columns;
  using Vector = typename Lanes<T>::Vector;
  const std::int64_t step = plan.step, hidden = inputs.sizes.hidden, units = inputs.sizes.second;
  const std::int64_t hidden_padded = whole(hidden, Lanes<T>::width);
  alignas(64) double scores[kTile];
  alignas(64) T line[kTile];
  const Pull pull = pull_of(plan, item, tile);
  fill(scratch.weight_part, plan.second_padded * step, T(0));
  fill(scratch.key_part, kTile * step, T(0));
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* const query = item.queries + (row + i) * step;
    two_layer_line(line, scratch.activations, scratch.second, query, item.panels + column * hidden, item.weight, step,
                   item.bias, item.output, hidden, units, columns);
    for (std::int64_t j = 0; j < columns; j += kWidth) store(scores + j, load(line + j));
    gradient_line(line, scores, pull, i, positive_of(inputs, b, row + i) - column, columns);
    second_layer_gradient(scratch.second, scratch.output_sums, scratch.bias_sums, kWidestVector, line, item.output,
                          units, columns);
    for (std::int64_t j = 0; j < columns; ++j) {
      for (std::int64_t c = 0; c < hidden_padded; c += Lanes<T>::width) {
        const Vector key = vector_at(item.keys + (column + j) * step + c);
        put(scratch.activations_by_key + j * step + c, rectified(vector_at(query + c) + key));
      }
    }
    if (scratch.weight_part != nullptr) {
      add_product(scratch.weight_part, step, scratch.activations_by_key, step, units, hidden_padded, columns, scratch.second,
                  std::int64_t{kTile}, std::int64_t{1});
    }
    if (item.query_sums != nullptr || item.key_sums != nullptr) {
      first_layer_gradient(item.query_sums != nullptr ? item.query_sums + (row + i) * step : nullptr, scratch.key_part,
                           scratch.second, item.weight, scratch.activations_by_key, step, hidden, units, columns);
    }
  }
  if (scratch.weight_part != nullptr) add_line(scratch.weight_sums, scratch.weight_part, units * step);
  if (item.key_sums != nullptr) add_line(item.key_sums + column * step, scratch.key_part, columns * step);
}

// The gradient in w of one hidden layer, from sum_i q_ic P_ic + sum_j k_jc Q_jc, where P and Q are the sums of the
// gradients that pass the gate, by row and by column. Moving both means to the middle spares a cancellation.
template <class T>
void finish_output(T* target, const Sizes& sizes, const Plan& plan, const Item<T>& item, Range hidden) {
  for (std::int64_t c = hidden.begin; c < hidden.end; ++c) {
    double query_mean = 0.0, key_mean = 0.0, sum = 0.0;
    for (std::int64_t i = 0; i < sizes.queries; ++i) query_mean += item.queries[i * plan.step + c];
    for (std::int64_t j = 0; j < sizes.keys; ++j) key_mean += item.keys[j * plan.step + c];
    if (sizes.queries > 0) query_mean /= static_cast<double>(sizes.queries);
    if (sizes.keys > 0) key_mean /= static_cast<double>(sizes.keys);
    const double shift = 0.5 * (query_mean - key_mean);
    for (std::int64_t i = 0; i < sizes.queries; ++i) {
      sum += (item.queries[i * plan.step + c] - shift) * item.query_sums[i * plan.step + c];
    }
    for (std::int64_t j = 0; j < sizes.keys; ++j) {
      sum += (item.keys[j * plan.step + c] + shift) * item.key_sums[j * plan.step + c];
    }
    target[c] = static_cast<T>(sum);
  }
}

template <class T>
void backward_finish(const Backward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b,
                     std::int64_t slab) {
  const Sizes& sizes = arguments.inputs.sizes;
  const std::int64_t hidden = sizes.hidden, units = sizes.second;
  const auto write = [&](T* target, const double* sums, std::int64_t count, Range range) {
    if (target == nullptr) return;
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      for (std::int64_t c = 0; c < hidden; ++c) {
        const double weight = plan.two_layers ? 1.0 : static_cast<double>(item.output[c]);
        target[(b * count + i) * hidden + c] = static_cast<T>(weight * sums[i * plan.step + c]);
      }
    }
  };
  write(arguments.query, item.query_sums, sizes.queries, slab_range(slab, plan.rows_per_slab, sizes.queries));
  write(arguments.key, item.key_sums, sizes.keys, slab_range(slab, plan.columns_per_slab, sizes.keys));
  if (!plan.two_layers) {
    const std::int64_t per_task = (hidden + plan.phases - 1) / plan.phases;
    if (arguments.output != nullptr) {
      finish_output(arguments.output + b * hidden, sizes, plan, item, slab_range(slab, per_task, hidden));
    }
    return;
  }
  const std::int64_t per_task = (units + plan.phases - 1) / plan.phases;
  const Range own = slab_range(slab, per_task, units);
  for (std::int64_t k = own.begin; k < own.end; ++k) {
    double bias = 0.0, output = 0.0;
    for (std::int64_t s = 0; s < plan.row_slabs; ++s) {
      const Scratch<T> scratch = scratch_of<T>(plan, sizes, arguments.workspace, s);
      for (std::int64_t lane = k * kWidestVector; lane < (k + 1) * kWidestVector; ++lane) {
        bias += scratch.bias_sums[lane];
        output += scratch.output_sums[lane];
      }
    }
    if (arguments.bias != nullptr) arguments.bias[b * units + k] = static_cast<T>(bias);
    if (arguments.output != nullptr) arguments.output[b * units + k] = static_cast<T>(output);
    for (std::int64_t c = 0; c < hidden && arguments.weight != nullptr; ++c) {
      double sum = 0.0;
      for (std::int64_t s = 0; s < plan.row_slabs; ++s) {
        sum += scratch_of<T>(plan, sizes, arguments.workspace, s).weight_sums[k * plan.step + c];
      }
      arguments.weight[(b * units + k) * hidden + c] = static_cast<T>(sum);
    }
  }
}

template <class T>
void backward_stage(const Backward<T>& arguments, const Stage& stage, std::int64_t begin, std::int64_t end) {
  const Inputs<T>& inputs = arguments.inputs;
  const Sizes& sizes = inputs.sizes;
  const Plan plan = make_plan(sizes, sizeof(T), true, wanted_of(arguments));
  const Item<T> item = item_of<T>(plan, sizes, arguments.workspace);
  for (std::int64_t slab = begin; slab < end; ++slab) {
    if (stage.number == 0) {
      pack(inputs, plan, item, stage.item, slab);
      prepare_gradients(arguments, plan, item, stage.item, slab);
    } else if (stage.number > plan.phases) {
      backward_finish(arguments, plan, item, stage.item, slab);
    } else if (plan.two_layers) {
      const Scratch<T> scratch = scratch_of<T>(plan, sizes, arguments.workspace, slab);
      for_each_tile(plan, sizes, slab, stage.number - 1,
                    [&](const Tile& tile) {
                      backward_tile_two_layers(inputs, plan, item, scratch, stage.item, tile);
                    });
    } else {
      for_each_tile(plan, sizes, slab, stage.number - 1,
                    [&](const Tile& tile) {
                      backward_tile_one_layer(inputs, plan, item, stage.item, tile);
                    });
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

template <class Arguments, class Run>
void run_pass(const Arguments& arguments, const baseline::Plan& plan, const Run& run, int threads) {
  for (std::int64_t item = 0; item < arguments.inputs.sizes.batch; ++item) {
    infonce_scores::run_stages({1, plan.row_slabs, plan.column_slabs, plan.phases}, threads,
                               [&](std::int64_t stage, std::int64_t begin, std::int64_t end) {
                                 run(arguments, Stage{item, stage}, begin, end);
                               });
  }
}

template <class T, class Run>
void run_forward(const Forward<T>& arguments, const Run& run, int threads) {
  run_pass(arguments, baseline::make_plan(arguments.inputs.sizes, sizeof(T), false, Wanted{}), run, threads);
}

template <class T, class Run>
void run_backward(const Backward<T>& arguments, const Run& run, int threads) {
  const Wanted wanted = baseline::wanted_of(arguments);
  run_pass(arguments, baseline::make_plan(arguments.inputs.sizes, sizeof(T), true, wanted), run, threads);
}

}  // namespace

std::int64_t workspace_bytes(const Sizes& sizes, int value_bytes, bool backward, const Wanted& wanted) {
  const auto plan = baseline::make_plan(sizes, value_bytes, backward, wanted);
  return value_bytes == 4 ? baseline::bytes_of<float>(plan, sizes) : baseline::bytes_of<double>(plan, sizes);
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

}  // namespace joint_critic_scores
}  // namespace bitlens
