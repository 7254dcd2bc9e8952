// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points.
//
// Both passes run in stages over a chunk of batch items: stage 0 packs the inputs, stages 1 .. phases visit the tiles,
// the last one writes the results. Within a stage the tasks are independent; plan.h says why sums keep one order.
#include "slabs.h"

#if defined(BITLENS_ENTRY_POINTS)
#include "../../common/instruction_set.h"
#include "stages.h"
#endif

namespace bitlens {
namespace infonce_scores {
namespace BITLENS_ISA {
namespace {

using Pack = ::bitlens::BITLENS_ISA::Pack;
using FloatPack = ::bitlens::BITLENS_ISA::FloatPack;
using ::bitlens::BITLENS_ISA::any;
using ::bitlens::BITLENS_ISA::exponential;
using ::bitlens::BITLENS_ISA::logarithm;
using ::bitlens::BITLENS_ISA::maximum;
using ::bitlens::BITLENS_ISA::minimum;
using ::bitlens::BITLENS_ISA::select;

constexpr int kWidth = BITLENS_PACK_WIDTH;

// exp of a score less its reference.
BITLENS_FUNCTION Pack exp_of_score(Pack x) { return exponential(x); }
BITLENS_FUNCTION FloatPack exp_of_score(FloatPack x) { return ::bitlens::BITLENS_ISA::exponential_or_zero(x); }

template <class T>
BITLENS_FUNCTION T largest_of_lanes(PackOf<T> pack) {
  T lanes[Lanes<T>::width];
  store(lanes, pack);
  for (int half = Lanes<T>::width / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] = lanes[lane] > lanes[lane + half] ? lanes[lane] : lanes[lane + half];
  }
  return lanes[0];
}

// Work arrays of one batch item, in double, padded to whole tiles. The first of each side hold the biases.
enum RowArray { kQueryBias, kLargest, kSum, kPositive };
enum ColumnArray { kKeyBias, kColumnLargest, kColumnSum };
enum RowGradientArray { kRowTotal = 1, kNegativesTotal, kWeight, kGradRow, kGradPositive, kRowGradient, kRowDots };
enum ColumnGradientArray { kColumnTotal = 1, kGradColumn, kColumnGradient };

// ---- Forward ----

// What a tile adds to the sums of its rows and columns. `reference` is what the sums are relative to.
template <class T>
struct TileSums {
  alignas(64) T row_largest[kTile], row_reference[kTile], row_sum[kTile];
  alignas(64) T column_largest[kTile], column_reference[kTile], column_sum[kTile];
};

// Turns the dot products of a tile into scores, takes the positives out (they become -inf) and finds the largest
// score of every row and column. Columns past the last become -inf.
template <class T>
BITLENS_FUNCTION void finish_scores(T* scores, const Inputs<T>& inputs, const Plan& plan, const Item<T>& item,
                                    std::int64_t b, const Tile& tile, TileSums<T>& sums) {
  const std::int64_t row = tile.row, rows = tile.rows, column = tile.column, columns = tile.columns;
  constexpr int width = Lanes<T>::width, packs = kTile / width;
  const T scale = finite_or_nan(inputs.scale[b]);
  double* const positives = item.rows + kPositive * plan.rows_padded + row;
  PackOf<T> bias[packs], column_largest[packs];
  for (int p = 0; p < packs; ++p) {
    T lanes[width];
    for (int lane = 0; lane < width; ++lane) {
      const std::int64_t j = p * width + lane;
      lanes[lane] = j < columns ? static_cast<T>(item.columns[column + j]) : T(-INFINITY);
    }
    bias[p] = load(lanes);
    column_largest[p] = constant(T(-INFINITY));
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    T* const line = scores + i * kTile;
    const T query_bias = static_cast<T>(item.rows[row + i]);
    for (int p = 0; p < packs; ++p) store(line + p * width, scale * load(line + p * width) + (query_bias + bias[p]));
    const std::int64_t positive = positive_of(inputs, b, row + i) - column;
    if (positive >= 0 && positive < columns) {
      positives[i] = line[positive];
      line[positive] = T(-INFINITY);
    }
    PackOf<T> largest = constant(T(-INFINITY));
    for (int p = 0; p < packs; ++p) {
      const PackOf<T> score = load(line + p * width);
      largest = maximum(score, largest);
      column_largest[p] = maximum(score, column_largest[p]);
    }
    sums.row_largest[i] = largest_of_lanes<T>(largest);
  }
  for (int p = 0; p < packs; ++p) store(sums.column_largest + p * width, column_largest[p]);
}

// The largest of a tile, when every row and column with a term comes within shared_range() of it.
template <class T>
BITLENS_FUNCTION bool find_shared_reference(const T* row_largest, std::int64_t rows, const T* column_largest,
                                            std::int64_t columns, T& reference) {
  T highest = T(-INFINITY), lowest = T(INFINITY);
  const auto join = [&](T value) {
    highest = value > highest ? value : highest;
    if (value != T(-INFINITY)) lowest = value < lowest ? value : lowest;
  };
  for (std::int64_t i = 0; i < rows; ++i) join(row_largest[i]);
  for (std::int64_t j = 0; j < columns; ++j) join(column_largest[j]);
  reference = highest == T(-INFINITY) ? T(0) : highest;
  return lowest >= highest - shared_range<T>();
}

template <class T>
BITLENS_FUNCTION T reference_or_zero(T largest) {
  return largest == T(-INFINITY) ? T(0) : largest;
}

template <class T>
BITLENS_FUNCTION void sum_tile(const T* scores, std::int64_t rows, std::int64_t columns, TileSums<T>& sums) {
  constexpr int width = Lanes<T>::width, packs = kTile / width;
  PackOf<T> column_sum[packs];
  for (int p = 0; p < packs; ++p) column_sum[p] = constant(T(0));
  T reference;
  if (find_shared_reference(sums.row_largest, rows, sums.column_largest, columns, reference)) {
    for (std::int64_t i = 0; i < rows; ++i) {
      PackOf<T> sum = constant(T(0));
      for (int p = 0; p < packs; ++p) {
        const PackOf<T> term = exp_of_score(load(scores + i * kTile + p * width) - reference);
        sum += term;
        column_sum[p] += term;
      }
      sums.row_sum[i] = sum_of_lanes<T>(sum);
      sums.row_reference[i] = reference;
    }
    for (int p = 0; p < packs; ++p) store(sums.column_reference + p * width, constant(reference));
  } else {
    for (std::int64_t j = 0; j < kTile; ++j) sums.column_reference[j] = reference_or_zero(sums.column_largest[j]);
    for (std::int64_t i = 0; i < rows; ++i) {
      sums.row_reference[i] = reference_or_zero(sums.row_largest[i]);
      PackOf<T> sum = constant(T(0));
      for (int p = 0; p < packs; ++p) {
        const PackOf<T> score = load(scores + i * kTile + p * width);
        sum += exp_of_score(score - sums.row_reference[i]);
        column_sum[p] += exp_of_score(score - load(sums.column_reference + p * width));
      }
      sums.row_sum[i] = sum_of_lanes<T>(sum);
    }
  }
  for (int p = 0; p < packs; ++p) store(sums.column_sum + p * width, column_sum[p]);
  for (std::int64_t i = rows; i < kTile; ++i) {
    sums.row_largest[i] = T(-INFINITY);
    sums.row_reference[i] = sums.row_sum[i] = T(0);
  }
}

// Joins the sums of a tile, `count` of them, to those kept in double.
template <class T>
BITLENS_FUNCTION void merge_sums(double* largest, double* sums, const T* part_largest, const T* part_reference,
                                 const T* part_sums, std::int64_t count) {
  const auto in_double = [](const T* source) {
    double lanes[kWidth];
    for (int lane = 0; lane < kWidth; ++lane) lanes[lane] = static_cast<double>(source[lane]);
    return load(lanes);
  };
  for (std::int64_t i = 0; i < count; i += kWidth) {
    Pack joined = load(largest + i), sum = load(sums + i);
    merge(joined, sum, in_double(part_largest + i), in_double(part_reference + i), in_double(part_sums + i));
    store(largest + i, joined);
    store(sums + i, sum);
  }
}

template <class T>
void forward_tile(const Forward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b,
                  const Tile& tile) {
  const Inputs<T>& inputs = arguments.inputs;
  const std::int64_t row = tile.row, rows = tile.rows, column = tile.column, columns = tile.columns;
  alignas(64) T scores[kTile * kTile];
  TileSums<T> sums;
  find_dots(scores, inputs, plan, item, tile);
  finish_scores(scores, inputs, plan, item, b, tile, sums);
  sum_tile(scores, rows, columns, sums);
  merge_sums(item.rows + kLargest * plan.rows_padded + row, item.rows + kSum * plan.rows_padded + row, sums.row_largest,
             sums.row_reference, sums.row_sum, rows);
  double* const column_state = item.columns + kColumnLargest * plan.columns_padded + column;
  double* const column_state_sums = item.columns + kColumnSum * plan.columns_padded + column;
  merge_sums(column_state, column_state_sums, sums.column_largest, sums.column_reference, sums.column_sum, columns);
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
      for_each_tile(plan, sizes, slab, stage.number - 1,
                    [&](const Tile& tile) { forward_tile(arguments, plan, item, b, tile); });
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
  clear_sums(item.query_sums, plan, rows);
  clear_sums(item.key_sums, plan, columns);
}

// What the scores of one tile pull on, in the precision of the scores.
template <class T>
struct TilePulls {
  alignas(64) T negatives[kTile], weight[kTile], row_factor[kTile], query_bias[kTile];
  alignas(64) T totals[kTile], column_weight[kTile], column_factor[kTile], key_bias[kTile];
  T reference;
  bool shared;
};

template <class T>
BITLENS_FUNCTION void find_pulls(const Plan& plan, const Item<T>& item, const Tile& tile, TilePulls<T>& pulls) {
  const std::int64_t row = tile.row, rows = tile.rows, column = tile.column, columns = tile.columns;
  const auto row_array = [&](int which) { return item.rows + which * plan.rows_padded + row; };
  const auto column_array = [&](int which) { return item.columns + which * plan.columns_padded + column; };
  // No score exceeds the largest total. The lowest is the reference: shares of that order are the ones that round least,
  // and it is the columns' where columns are short.
  double highest = -INFINITY, lowest = INFINITY;
  for (std::int64_t i = 0; i < kTile; ++i) {
    const bool inside = i < rows;
    const double total = inside ? row_array(kNegativesTotal)[i] : -INFINITY;
    highest = total > highest ? total : highest;
    if (total != -INFINITY) lowest = total < lowest ? total : lowest;
    pulls.negatives[i] = static_cast<T>(total);
    pulls.weight[i] = inside ? static_cast<T>(row_array(kWeight)[i]) : T(0);
    pulls.query_bias[i] = inside ? static_cast<T>(row_array(kQueryBias)[i]) : T(0);
  }
  for (std::int64_t j = 0; j < kTile; ++j) {
    const bool inside = j < columns;
    const double total = inside ? column_array(kColumnTotal)[j] : -INFINITY;
    if (total != -INFINITY) lowest = total < lowest ? total : lowest;
    pulls.totals[j] = static_cast<T>(total);
    pulls.column_weight[j] = inside ? static_cast<T>(column_array(kGradColumn)[j]) : T(0);
    pulls.key_bias[j] = inside ? static_cast<T>(column_array(kKeyBias)[j]) : T(-INFINITY);
  }
  pulls.shared = lowest >= highest - shared_range<T>();
  pulls.reference = static_cast<T>(lowest == INFINITY ? 0.0 : lowest);
  if (!pulls.shared) return;
  const Pack joint = constant(static_cast<double>(pulls.reference));
  const auto factors = [&](T* target, const T* weights, const T* totals) {
    for (std::int64_t i = 0; i < kTile; i += kWidth) {
      double weight[kWidth], total[kWidth], factor[kWidth];
      for (int lane = 0; lane < kWidth; ++lane) weight[lane] = weights[i + lane], total[lane] = totals[i + lane];
      store(factor, shared_factor(load(weight), load(total), joint));
      for (int lane = 0; lane < kWidth; ++lane) target[i + lane] = static_cast<T>(factor[lane]);
    }
  };
  factors(pulls.row_factor, pulls.weight, pulls.negatives);
  factors(pulls.column_factor, pulls.column_weight, pulls.totals);
}

// exp(x - total) where there is a total, 0 where there is none.
template <class T>
BITLENS_FUNCTION PackOf<T> share_of(PackOf<T> score, PackOf<T> total) {
  const auto none = total == T(-INFINITY);
  return select(none, constant(T(0)), exp_of_score(score - select(none, constant(T(0)), total)));
}

// Sums: whether the gradients in the biases or the scale are wanted, which need the sums of the tile's rows and columns.
template <bool Sums, class T>
void backward_tile(const Backward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b,
                   const Tile& tile) {
  const std::int64_t row = tile.row, rows = tile.rows, column = tile.column, columns = tile.columns;
  constexpr int width = Lanes<T>::width, packs = kTile / width;
  const Inputs<T>& inputs = arguments.inputs;
  alignas(64) T dots[kTile * kTile], gradient[kTile * kTile], line[kTile];
  TilePulls<T> pulls;
  find_dots(dots, inputs, plan, item, tile);
  find_pulls(plan, item, tile, pulls);
  const auto row_array = [&](int which) { return item.rows + which * plan.rows_padded + row; };
  const auto column_array = [&](int which) { return item.columns + which * plan.columns_padded + column; };
  const T scale = finite_or_nan(inputs.scale[b]);
  const T reference = pulls.reference;
  PackOf<T> column_gradient[packs];
  for (int p = 0; p < packs; ++p) column_gradient[p] = constant(T(0));

  for (std::int64_t i = 0; i < rows; ++i) {
    const T* const dot = dots + i * kTile;
    T* const target = gradient + i * kTile;
    for (int p = 0; p < packs; ++p) {
      store(line + p * width, scale * load(dot + p * width) + (pulls.query_bias[i] + load(pulls.key_bias + p * width)));
    }
    const std::int64_t positive = positive_of(inputs, b, row + i) - column;
    const bool here = positive >= 0 && positive < columns;
    const T score = here ? line[positive] : T(0);
    if (here) line[positive] = T(-INFINITY);

    PackOf<T> sum = constant(T(0)), dot_sum = constant(T(0));
    const auto add = [&](int p, PackOf<T> value) {
      store(target + p * width, value);
      if (Sums) {
        sum += value;
        dot_sum += value * load(dot + p * width);
        column_gradient[p] += value;
      }
    };
    if (pulls.shared) {
      const T factor = pulls.row_factor[i];
      for (int p = 0; p < packs; ++p) {
        add(p, exp_of_score(load(line + p * width) - reference) * (factor + load(pulls.column_factor + p * width)));
      }
    } else {
      const PackOf<T> weight = constant(pulls.weight[i]), total = constant(pulls.negatives[i]);
      for (int p = 0; p < packs; ++p) {
        const PackOf<T> scores = load(line + p * width);
        add(p, weight * share_of<T>(scores, total) +
                   load(pulls.column_weight + p * width) * share_of<T>(scores, load(pulls.totals + p * width)));
      }
    }
    if (Sums) {
      row_array(kRowGradient)[i] += sum_of_lanes<T>(sum);
      row_array(kRowDots)[i] += sum_of_lanes<T>(dot_sum);
    }
    if (here) {
      const double value = positive_gradient(static_cast<double>(score), row_array(kRowTotal)[i],
                                             column_array(kColumnTotal)[positive], row_array(kGradPositive)[i],
                                             row_array(kGradRow)[i], column_array(kGradColumn)[positive]);
      target[positive] = static_cast<T>(value);
      row_array(kRowGradient)[i] += value;
      row_array(kRowDots)[i] += value * dot[positive];
      column_array(kColumnGradient)[positive] += value;
    }
  }
  clear_rows(gradient, rows);
  if (Sums) {
    for (int p = 0; p < packs; ++p) {
      for (int lane = 0; lane < width; ++lane) {
        const std::int64_t j = p * width + lane;
        if (j < columns) column_array(kColumnGradient)[j] += column_gradient[p][lane];
      }
    }
  }
  add_to_sums(item, plan, inputs.sizes, tile, gradient);
}

template <class T>
void backward_finish(const Backward<T>& arguments, const Plan& plan, const Item<T>& item, std::int64_t b, Range rows,
                     Range columns, bool first) {
  const Sizes& sizes = arguments.inputs.sizes;
  const double scale = finite_or_nan(static_cast<double>(arguments.inputs.scale[b]));
  write_sums(arguments.query + b * sizes.queries * sizes.features, item.query_sums, plan, sizes, scale, rows);
  write_sums(arguments.key + b * sizes.keys * sizes.features, item.key_sums, plan, sizes, scale, columns);
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
  const bool sums = arguments.scale != nullptr || arguments.query_bias != nullptr || arguments.key_bias != nullptr;
  const bool tiles = stage.number > 0 && stage.number <= plan.phases;
  const std::int64_t per_item = tiles ? plan.row_slabs : plan.phases;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t index = task / per_item, slab = task % per_item, b = stage.first_item + index;
    Item<T> item = item_of<T>(plan, arguments.workspace, index);
    find_sums(item, arguments.query, arguments.key, sizes, b);
    if (tiles) {
      for_each_tile(plan, sizes, slab, stage.number - 1, [&](const Tile& tile) {
        if (sums) {
          backward_tile<true>(arguments, plan, item, b, tile);
        } else {
          backward_tile<false>(arguments, plan, item, b, tile);
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

template <class Arguments, class Run>
void run_pass(const Arguments& arguments, const baseline::Plan& plan, const Run& run, int threads) {
  run_chunks(plan, arguments.inputs.sizes.batch, threads,
             [&](const Stage& stage, std::int64_t begin, std::int64_t end) { run(arguments, stage, begin, end); });
}

template <class T, class Run>
void run_forward(const Forward<T>& arguments, const Run& run, int threads) {
  run_pass(arguments, baseline::make_plan(arguments.inputs.sizes, sizeof(T), false, false, false), run, threads);
}

template <class T, class Run>
void run_backward(const Backward<T>& arguments, const Run& run, int threads) {
  const bool query = arguments.query != nullptr, key = arguments.key != nullptr;
  run_pass(arguments, baseline::make_plan(arguments.inputs.sizes, sizeof(T), true, query, key), run, threads);
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
