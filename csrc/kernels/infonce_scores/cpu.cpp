// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points.
//
// Both passes run in stages over a chunk of batch items: stage 0 packs the inputs, stages 1 .. phases visit the tiles,
// the last one writes the results. Within a stage the tasks are independent; plan.h says why sums keep one order.
#include "kernel.h"
#include "math.h"
#include "plan.h"
#include "tile.h"

#if defined(BITLENS_ENTRY_POINTS)
#include "../../common/instruction_set.h"
#include "../../common/parallel.h"
#endif

namespace bitlens {
namespace infonce_scores {
namespace BITLENS_ISA {
namespace {

using namespace ::bitlens::BITLENS_ISA::infonce;
using Pack = ::bitlens::BITLENS_ISA::Pack;
using ::bitlens::BITLENS_ISA::any;
using ::bitlens::BITLENS_ISA::exponential;
using ::bitlens::BITLENS_ISA::logarithm;
using ::bitlens::BITLENS_ISA::maximum;
using ::bitlens::BITLENS_ISA::minimum;
using ::bitlens::BITLENS_ISA::select;

constexpr int kWidth = BITLENS_PACK_WIDTH;
static_assert(kTile == kSlabStep, "a slab is made of whole tiles");

struct Range {
  std::int64_t begin, end;
};

BITLENS_FUNCTION Range slab_range(std::int64_t slab, std::int64_t per_slab, std::int64_t count) {
  const std::int64_t begin = slab * per_slab < count ? slab * per_slab : count;
  return {begin, begin + per_slab < count ? begin + per_slab : count};
}

BITLENS_FUNCTION Pack constant(double x) { return ::bitlens::BITLENS_ISA::broadcast((Pack*)0, x); }

BITLENS_FUNCTION double sum_of_lanes(Pack pack) {
  double sum = pack[0];
  for (int lane = 1; lane < kWidth; ++lane) sum += pack[lane];
  return sum;
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

// Work arrays of one batch item, in double, padded to whole tiles. The first of each side hold the biases.
enum RowArray { kQueryBias, kLargest, kSum, kPositive };
enum ColumnArray { kKeyBias, kColumnLargest, kColumnSum };
enum RowGradientArray { kRowTotal = 1, kNegativesTotal, kWeight, kGradRow, kGradPositive, kRowGradient, kRowDots };
enum ColumnGradientArray { kColumnTotal = 1, kGradColumn, kColumnGradient };

// ---- Stage 0 ----

template <class T>
void pack_rows(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, const T* source, std::int64_t b,
               Range range) {
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
void pack_columns(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, const T* source, std::int64_t b,
                  Range range) {
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

// Packs the slabs that this task stands for.
template <class T>
void pack(const Inputs<T>& inputs, const Plan& plan, const Item<T>& item, std::int64_t b, Range rows, Range columns) {
  std::int64_t offsets[2];
  operand_offsets(inputs.layout, b, offsets);
  if (rows.begin < rows.end) pack_rows(inputs, plan, item, inputs.query + offsets[0], b, rows);
  if (columns.begin < columns.end) pack_columns(inputs, plan, item, inputs.key + offsets[1], b, columns);
}

BITLENS_FUNCTION void fill(double* array, Range range, double value) {
  for (std::int64_t i = range.begin; i < whole(range.end, kPadding); ++i) array[i] = value;
}

// Calls visit(row, rows, column, columns) for the tiles where row slab `slab` meets its column slab in this phase.
template <class Visit>
BITLENS_FUNCTION void for_each_tile(const Plan& plan, const Sizes& sizes, std::int64_t slab, std::int64_t phase,
                                    const Visit& visit) {
  const Range rows = slab_range(slab, plan.rows_per_slab, sizes.queries);
  const Range columns = slab_range((slab + phase) % plan.phases, plan.columns_per_slab, sizes.keys);
  for (std::int64_t column = columns.begin; column < columns.end; column += kTile) {
    for (std::int64_t row = rows.begin; row < rows.end; row += kTile) {
      visit(row, rows.end - row < kTile ? rows.end - row : kTile, column,
            columns.end - column < kTile ? columns.end - column : kTile);
    }
  }
}

// ---- Forward ----

// Turns the dot products of a tile into scores, takes the positives out (they become -inf) and finds the largest
// score of every row and column.
template <class T>
BITLENS_FUNCTION void finish_scores(double* scores, const Inputs<T>& inputs, const Plan& plan, const Item<T>& item,
                                    std::int64_t b, std::int64_t row, std::int64_t rows, std::int64_t column,
                                    std::int64_t columns, double* row_largest, double* column_largest) {
  const double scale = finite_or_nan(static_cast<double>(inputs.scale[b]));
  const double* key_bias = item.columns + column;
  double* positives = item.rows + kPositive * plan.rows_padded + row;
  for (std::int64_t j = 0; j < columns; j += kWidth) store(column_largest + j, constant(-INFINITY));
  for (std::int64_t i = 0; i < rows; ++i) {
    double* line = scores + i * kTile;
    const double query_bias = item.rows[row + i];
    for (std::int64_t j = 0; j < columns; j += kWidth) {
      store(line + j, scale * load(line + j) + (query_bias + load(key_bias + j)));
    }
    const std::int64_t positive = positive_of(inputs, b, row + i) - column;
    if (positive >= 0 && positive < columns) {
      positives[i] = line[positive];
      line[positive] = -INFINITY;
    }
    Pack largest = constant(-INFINITY);
    for (std::int64_t j = 0; j < columns; j += kWidth) {
      const Pack score = load(line + j);
      largest = maximum(score, largest);
      store(column_largest + j, maximum(score, load(column_largest + j)));
    }
    double joined = -INFINITY;
    for (int lane = 0; lane < kWidth; ++lane) joined = maximum(largest[lane], joined);
    row_largest[i] = joined;
  }
}

// The largest of a tile, when every row and column with a term comes within kSharedRange of it.
BITLENS_FUNCTION bool find_shared_reference(const double* row_largest, std::int64_t rows, const double* column_largest,
                                            std::int64_t columns, double& reference) {
  double highest = -INFINITY, lowest = INFINITY;
  for (std::int64_t i = 0; i < rows; ++i) {
    highest = maximum(row_largest[i], highest);
    if (row_largest[i] != -INFINITY) lowest = minimum(row_largest[i], lowest);
  }
  for (std::int64_t j = 0; j < columns; ++j) {
    if (column_largest[j] != -INFINITY) lowest = minimum(column_largest[j], lowest);
  }
  reference = highest == -INFINITY ? 0.0 : highest;
  return lowest >= highest - kSharedRange;
}

BITLENS_FUNCTION double reference_or_zero(double largest) { return largest == -INFINITY ? 0.0 : largest; }

template <class T>
void forward_tile(const Forward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b, std::int64_t row,
                  std::int64_t rows, std::int64_t column, std::int64_t columns) {
  const Inputs<T>& inputs = arguments.inputs;
  alignas(64) double scores[kTile * kTile];
  alignas(64) T partial[kTile * kTile];
  alignas(64) double row_largest[kTile], row_reference[kTile], row_sums[kTile];
  alignas(64) double column_largest[kTile], column_reference[kTile], column_sums[kTile];
  tile_dots(scores, partial, item.queries + row * plan.features_padded, plan.features_padded,
            item.panels + column * inputs.sizes.features, inputs.sizes.features, rows, columns);
  finish_scores(scores, inputs, plan, item, b, row, rows, column, columns, row_largest, column_largest);

  for (std::int64_t j = 0; j < columns; j += kWidth) store(column_sums + j, constant(0.0));
  double reference;
  if (find_shared_reference(row_largest, rows, column_largest, columns, reference)) {
    for (std::int64_t i = 0; i < rows; ++i) {
      Pack sum = constant(0.0);
      for (std::int64_t j = 0; j < columns; j += kWidth) {
        const Pack term = exponential(load(scores + i * kTile + j) - reference);
        sum += term;
        store(column_sums + j, load(column_sums + j) + term);
      }
      row_sums[i] = sum_of_lanes(sum);
      row_reference[i] = reference;
    }
    for (std::int64_t j = 0; j < columns; j += kWidth) store(column_reference + j, constant(reference));
  } else {
    for (std::int64_t j = 0; j < columns; ++j) column_reference[j] = reference_or_zero(column_largest[j]);
    for (std::int64_t j = columns; j < whole(columns, kWidth); ++j) column_reference[j] = 0.0;
    for (std::int64_t i = 0; i < rows; ++i) {
      row_reference[i] = reference_or_zero(row_largest[i]);
      Pack sum = constant(0.0);
      for (std::int64_t j = 0; j < columns; j += kWidth) {
        const Pack score = load(scores + i * kTile + j);
        sum += exponential(score - row_reference[i]);
        store(column_sums + j, load(column_sums + j) + exponential(score - load(column_reference + j)));
      }
      row_sums[i] = sum_of_lanes(sum);
    }
  }

  for (std::int64_t i = rows; i < whole(rows, kWidth); ++i) {
    row_largest[i] = -INFINITY;
    row_reference[i] = row_sums[i] = 0.0;
  }
  const auto merge_into = [](double* largest, double* sums, const double* part_largest, const double* part_reference,
                             const double* part_sums, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += kWidth) {
      Pack joined = load(largest + i), sum = load(sums + i);
      merge(joined, sum, load(part_largest + i), load(part_reference + i), load(part_sums + i));
      store(largest + i, joined);
      store(sums + i, sum);
    }
  };
  merge_into(item.rows + kLargest * plan.rows_padded + row, item.rows + kSum * plan.rows_padded + row, row_largest,
             row_reference, row_sums, rows);
  double* const column_state = item.columns + kColumnLargest * plan.columns_padded + column;
  double* const column_state_sums = item.columns + kColumnSum * plan.columns_padded + column;
  merge_into(column_state, column_state_sums, column_largest, column_reference, column_sums, columns);
  // The positives join their columns one by one, so that the leave-one-out sums above never held them.
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t j = positive_of(inputs, b, row + i) - column;
    if (j < 0 || j >= columns) continue;
    const double score = item.rows[kPositive * plan.rows_padded + row + i];
    merge(column_state[j], column_state_sums[j], score, score, 1.0);
  }
}

template <class T>
void forward_finish(const Forward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b, Range rows,
                    Range columns) {
  const Sizes& sizes = arguments.inputs.sizes;
  const double* const largest = item.rows + kLargest * plan.rows_padded;
  const double* const sums = item.rows + kSum * plan.rows_padded;
  const double* const positives = item.rows + kPositive * plan.rows_padded;
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const std::int64_t out = b * sizes.queries + i;
    const double positive = positives[i];
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
    arguments.column[b * sizes.keys + j] = static_cast<T>(
        log_sum(item.columns[kColumnLargest * plan.columns_padded + j], item.columns[kColumnSum * plan.columns_padded + j]));
  }
}

template <class T>
void forward_stage(const Forward<T>& arguments, const Stage& stage, std::int64_t begin, std::int64_t end) {
  const Sizes& sizes = arguments.inputs.sizes;
  const Plan plan = make_plan(sizes, sizeof(T), false, false, false);
  const bool tiles = stage.number > 0 && stage.number <= plan.phases;
  const std::int64_t per_item = tiles ? plan.row_slabs : plan.phases;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t index = task / per_item, slab = task % per_item, b = stage.first_item + index;
    const Item<T> item = item_of<T>(plan, arguments.workspace, index);
    if (tiles) {
      for_each_tile(plan, sizes, slab, stage.number - 1, [&](std::int64_t row, std::int64_t rows, std::int64_t column,
                                                      std::int64_t columns) {
        forward_tile(arguments, plan, item, b, row, rows, column, columns);
      });
      continue;
    }
    const Range rows = slab_range(slab, plan.rows_per_slab, sizes.queries);
    const Range columns = slab_range(slab, plan.columns_per_slab, sizes.keys);
    if (stage.number == 0) {
      pack(arguments.inputs, plan, item, b, rows, columns);
      fill(item.rows + kLargest * plan.rows_padded, rows, -INFINITY);
      fill(item.rows + kSum * plan.rows_padded, rows, 0.0);
      fill(item.rows + kPositive * plan.rows_padded, rows, NAN);
      fill(item.columns + kColumnLargest * plan.columns_padded, columns, -INFINITY);
      fill(item.columns + kColumnSum * plan.columns_padded, columns, 0.0);
    } else {
      forward_finish(arguments, plan, item, b, rows, columns);
    }
  }
}

// ---- Backward ----

// What the tiles need of the outputs and their gradients, in double.
template <class T>
void prepare_gradients(const Backward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b, Range rows,
                       Range columns) {
  const Sizes& sizes = arguments.inputs.sizes;
  const auto row_array = [&](int which) { return item.rows + which * plan.rows_padded; };
  const auto column_array = [&](int which) { return item.columns + which * plan.columns_padded; };
  for (int which = kRowTotal; which <= kRowDots; ++which) fill(row_array(which), rows, 0.0);
  for (int which = kColumnTotal; which <= kColumnGradient; ++which) fill(column_array(which), columns, 0.0);
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
  const auto clear = [&](T* sums, Range range) {
    if (sums == nullptr || range.begin == range.end) return;
    T* const last = sums + whole(range.end, kPadding) * plan.features_padded;
    for (T* sum = sums + range.begin * plan.features_padded; sum < last; ++sum) *sum = T(0);
  };
  clear(item.query_sums, rows);
  clear(item.key_sums, columns);
}

template <class T>
void backward_tile(const Backward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b,
                   std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
  const Inputs<T>& inputs = arguments.inputs;
  alignas(64) double dots[kTile * kTile];
  alignas(64) T gradient[kTile * kTile];
  alignas(64) double line[kTile], row_factor[kTile], column_factor[kTile];
  tile_dots(dots, gradient, item.queries + row * plan.features_padded, plan.features_padded,
            item.panels + column * inputs.sizes.features, inputs.sizes.features, rows, columns);

  const double scale = finite_or_nan(static_cast<double>(inputs.scale[b]));
  const auto row_array = [&](int which) { return item.rows + which * plan.rows_padded + row; };
  const auto column_array = [&](int which) { return item.columns + which * plan.columns_padded + column; };
  const double* const key_bias = item.columns + column;
  const double* const negatives = row_array(kNegativesTotal);
  const double* const totals = column_array(kColumnTotal);

  // No negative exceeds its row's total, so the largest total is a reference that nothing overflows.
  double reference = -INFINITY, lowest = INFINITY;
  for (std::int64_t i = 0; i < rows; ++i) {
    reference = maximum(negatives[i], reference);
    if (negatives[i] != -INFINITY) lowest = minimum(negatives[i], lowest);
  }
  for (std::int64_t j = 0; j < columns; ++j) {
    if (totals[j] != -INFINITY) lowest = minimum(totals[j], lowest);
  }
  const bool shared = lowest >= reference - kSharedRange;
  reference = reference_or_zero(reference);
  for (std::int64_t i = 0; i < rows; i += kWidth) {
    store(row_factor + i, shared_factor(load(row_array(kWeight) + i), load(negatives + i), constant(reference)));
  }
  for (std::int64_t j = 0; j < columns; j += kWidth) {
    store(column_factor + j, shared_factor(load(column_array(kGradColumn) + j), load(totals + j), constant(reference)));
  }

  for (std::int64_t i = 0; i < rows; ++i) {
    const double query_bias = item.rows[row + i];
    const double* const dot = dots + i * kTile;
    T* const target = gradient + i * kTile;
    for (std::int64_t j = 0; j < columns; j += kWidth) {
      store(line + j, scale * load(dot + j) + (query_bias + load(key_bias + j)));
    }
    const std::int64_t positive = positive_of(inputs, b, row + i) - column;
    const bool here = positive >= 0 && positive < columns;
    const double score = here ? line[positive] : 0.0;
    if (here) line[positive] = -INFINITY;

    Pack sum = constant(0.0), dot_sum = constant(0.0);
    const auto add = [&](std::int64_t j, Pack value) {
      store(target + j, value);
      sum += value;
      dot_sum += value * load(dot + j);
      store(column_array(kColumnGradient) + j, load(column_array(kColumnGradient) + j) + value);
    };
    if (shared) {
      for (std::int64_t j = 0; j < columns; j += kWidth) {
        add(j, exponential(load(line + j) - reference) * (row_factor[i] + load(column_factor + j)));
      }
    } else {
      const Pack weight = constant(row_array(kWeight)[i]), total = constant(negatives[i]);
      for (std::int64_t j = 0; j < columns; j += kWidth) {
        const Pack score = load(line + j);
        add(j, weight * share(score, total) + load(column_array(kGradColumn) + j) * share(score, load(totals + j)));
      }
    }
    row_array(kRowGradient)[i] += sum_of_lanes(sum);
    row_array(kRowDots)[i] += sum_of_lanes(dot_sum);
    if (here) {
      const double value =
          positive_gradient(score, row_array(kRowTotal)[i], totals[positive], row_array(kGradPositive)[i],
                            row_array(kGradRow)[i], column_array(kGradColumn)[positive]);
      target[positive] = static_cast<T>(value);
      row_array(kRowGradient)[i] += value;
      row_array(kRowDots)[i] += value * dot[positive];
      column_array(kColumnGradient)[positive] += value;
    }
    for (std::int64_t j = whole(columns, kWidth); j < whole(columns, kRegisterRows); ++j) target[j] = T(0);
  }
  for (std::int64_t i = rows; i < whole(rows, kRegisterRows); ++i) {
    for (std::int64_t j = 0; j < kTile; ++j) gradient[i * kTile + j] = T(0);
  }

  const std::int64_t step = plan.features_padded;
  const std::int64_t features = whole(inputs.sizes.features * std::int64_t{sizeof(T)}, kAlignment) / std::int64_t{sizeof(T)};
  if (item.query_sums != nullptr) {
    add_product(item.query_sums + row * step, item.keys + column * step, step, rows, features, columns, gradient,
                std::int64_t{kTile}, std::int64_t{1});
  }
  if (item.key_sums != nullptr) {
    add_product(item.key_sums + column * step, item.queries + row * step, step, columns, features, rows, gradient,
                std::int64_t{1}, std::int64_t{kTile});
  }
}

template <class T>
void backward_finish(const Backward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b, Range rows,
                     Range columns, bool first) {
  const Sizes& sizes = arguments.inputs.sizes;
  const double scale = finite_or_nan(static_cast<double>(arguments.inputs.scale[b]));
  const auto write = [&](T* target, const T* sums, std::int64_t count, Range range) {
    if (target == nullptr) return;
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      for (std::int64_t k = 0; k < sizes.features; ++k) {
        target[(b * count + i) * sizes.features + k] =
            static_cast<T>(scale * static_cast<double>(sums[i * plan.features_padded + k]));
      }
    }
  };
  write(arguments.query, item.query_sums, sizes.queries, rows);
  write(arguments.key, item.key_sums, sizes.keys, columns);
  const double* const row_gradient = item.rows + kRowGradient * plan.rows_padded;
  const double* const row_dots = item.rows + kRowDots * plan.rows_padded;
  const double* const column_gradient = item.columns + kColumnGradient * plan.columns_padded;
  if (arguments.query_bias != nullptr) {
    for (std::int64_t i = rows.begin; i < rows.end; ++i) {
      arguments.query_bias[b * sizes.queries + i] = static_cast<T>(row_gradient[i]);
    }
  }
  if (arguments.key_bias != nullptr) {
    for (std::int64_t j = columns.begin; j < columns.end; ++j) {
      arguments.key_bias[b * sizes.keys + j] = static_cast<T>(column_gradient[j]);
    }
  }
  if (first && arguments.scale != nullptr) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < sizes.queries; ++i) sum += row_dots[i];
    arguments.scale[b] = static_cast<T>(sum);
  }
}

template <class T>
void backward_stage(const Backward<T>& arguments, const Stage& stage, std::int64_t begin, std::int64_t end) {
  const Sizes& sizes = arguments.inputs.sizes;
  const Plan plan = make_plan(sizes, sizeof(T), true, arguments.query != nullptr, arguments.key != nullptr);
  const bool tiles = stage.number > 0 && stage.number <= plan.phases;
  const std::int64_t per_item = tiles ? plan.row_slabs : plan.phases;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t index = task / per_item, slab = task % per_item, b = stage.first_item + index;
    const Item<T> item = item_of<T>(plan, arguments.workspace, index);
    if (tiles) {
      for_each_tile(plan, sizes, slab, stage.number - 1, [&](std::int64_t row, std::int64_t rows, std::int64_t column,
                                                      std::int64_t columns) {
        backward_tile(arguments, plan, item, b, row, rows, column, columns);
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

template <class Arguments, class Run>
void run_stages(const Arguments& arguments, const baseline::Plan& plan, const Run& run, int threads) {
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
  run_stages(arguments, baseline::make_plan(arguments.inputs.sizes, sizeof(T), false, false, false), run, threads);
}

template <class T, class Run>
void run_backward(const Backward<T>& arguments, const Run& run, int threads) {
  const bool query = arguments.query != nullptr, key = arguments.key != nullptr;
  run_stages(arguments, baseline::make_plan(arguments.inputs.sizes, sizeof(T), true, query, key), run, threads);
}

}  // namespace

std::int64_t workspace_bytes(const Sizes& sizes, int value_bytes, bool backward, bool query, bool key) {
  const auto plan = baseline::make_plan(sizes, value_bytes, backward, query, key);
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

}  // namespace infonce_scores
}  // namespace bitlens
