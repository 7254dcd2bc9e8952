// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points.
#include <string.h>

#include "statistics.h"
#include "table.h"

#if defined(BITLENS_ENTRY_POINTS)
#include "../../common/instruction_set.h"
#include "../../common/parallel.h"
#endif

namespace bitlens {
namespace poisson_gaussian_log_prob_pairs {

constexpr int kColumns = 64;  // columns whose weights are at hand

namespace BITLENS_ISA {
namespace {

// ---- Scores ----

template <class T>
BITLENS_FUNCTION void add_group(const Plan<T>& plan, std::int64_t columns, const std::int64_t* members, int count,
                                T* const* tables, std::int64_t column, std::int64_t n_columns, T* weights,
                                double* sums) {
  typedef typename Lanes<T>::type Lane;
  constexpr int kTaps = Interpolation<T>::kTaps;
  constexpr int kLanes = static_cast<int>(sizeof(Lane) / sizeof(T));
  constexpr int kBlock = kLanes * 4 < kRows ? 4 : kRows / kLanes;  // packs summed at a time, in registers
  for (int q = 0; q < count; ++q) {
    column_weights<T>(plan.fraction + members[q] * columns + column, n_columns, kColumns,
                      weights + q * kTaps * kColumns);
  }
  for (std::int64_t j = 0; j < n_columns; ++j) {
    T totals[kRows];
    for (int row = 0; row < kRows; row += kBlock * kLanes) {
      Lane total[kBlock];
      for (int b = 0; b < kBlock; ++b) total[b] = Lane{};
      for (int q = 0; q < count; ++q) {
        const T* table = tables[q] + plan.first[members[q] * columns + column + j] * kRows + row;
        const T* weight = weights + q * kTaps * kColumns + j;
        for (int tap = 0; tap < kTaps; ++tap) {
          const T w = weight[tap * kColumns];
          for (int b = 0; b < kBlock; ++b) total[b] += w * load<Lane>(table + tap * kRows + b * kLanes);
        }
      }
      for (int b = 0; b < kBlock; ++b) store(totals + row + b * kLanes, total[b]);
    }
    double bias = 0.0;
    for (int q = 0; q < count; ++q) bias += static_cast<double>(plan.bias[members[q] * columns + column + j]);
    double* sum = sums + j * kRows;
    for (int i = 0; i < kRows; ++i) sum[i] += static_cast<double>(totals[i]) + bias;
  }
}

template <class T>
BITLENS_FUNCTION void add_directly(const Arguments<T>& arguments, const Pixel& pixel, std::int64_t p,
                                   const Rows<T>& rows, std::int64_t n_rows, std::int64_t begin, std::int64_t end,
                                   double* sums) {
  const Pack g = spread(pixel.gain), o = spread(pixel.offset), s = spread(pixel.read_std);
  if (n_rows < kWidth) {  // a pack of columns: one of rows would be mostly empty
    for (std::int64_t j = begin; j < end; j += kWidth) {
      const int left = static_cast<int>(end - j < kWidth ? end - j : kWidth);
      Pack mean;
      for (int lane = 0; lane < kWidth; ++lane) {
        mean[lane] = static_cast<double>(arguments.mean[(j + (lane < left ? lane : 0)) * arguments.pixels + p]);
      }
      for (std::int64_t i = 0; i < n_rows; ++i) {
        const Pack z = spread(static_cast<double>(rows.measured[i]));
        const Pack value = formula::evaluate<0, Pack>(z, mean, g, o, s).value;
        for (int lane = 0; lane < left; ++lane) sums[(j - begin + lane) * kRows + i] += value[lane];
      }
    }
    return;
  }
  for (std::int64_t j = begin; j < end; ++j) {
    const Pack mean = spread(static_cast<double>(arguments.mean[j * arguments.pixels + p]));
    double* sum = sums + (j - begin) * kRows;
    for (std::int64_t i = 0; i < n_rows; i += kWidth) {
      Pack z;
      for (int lane = 0; lane < kWidth; ++lane) z[lane] = static_cast<double>(rows.measured[i + lane]);
      store(sum + i, load<Pack>(sum + i) + formula::evaluate<0, Pack>(z, mean, g, o, s).value);
    }
  }
}

// Scores of up to kRows rows and any columns into sums [column_end - column_begin][kRows]; whatever the tile, a sum
// runs over the pixels in their order. A pass that needs no score matrix, only what becomes of its rows and columns,
// can go over these tiles one by one.
template <class T>
BITLENS_FUNCTION void score_tile(const Arguments<T>& arguments, const Plan<T>& plan, std::int64_t row_begin,
                                 std::int64_t row_end, std::int64_t column_begin, std::int64_t column_end, T* scratch,
                                 double* sums) {
  constexpr int kTaps = Interpolation<T>::kTaps, kGroup = Interpolation<T>::kGroup;
  T* const weights = scratch;
  T* const table_space = scratch + kGroup * kTaps * kColumns;
  memset(sums, 0, sizeof(double) * kRows * (column_end - column_begin));
  Rows<T> rows;
  for (std::int64_t p = 0; p < arguments.pixels;) {
    std::int64_t members[kGroup], used = 0;
    T* tables[kGroup];
    int count = 0;
    for (; p < arguments.pixels && count < kGroup; ++p) {
      const Pixel& pixel = plan.pixels[p];
      load_rows(arguments, pixel, p, row_begin, row_end, &rows);
      if (pixel.kind == kDirect) {
        add_directly(arguments, pixel, p, rows, row_end - row_begin, column_begin, column_end, sums);
        continue;
      }
      members[count] = p;
      tables[count] = table_space + used;
      fill_tables<0, T>(plan, pixel, rows, Tables<T>{tables[count], 0, 0, 0, 0});
      used += (pixel.nodes + 1) * kRows;
      ++count;
    }
    for (std::int64_t column = column_begin; column < column_end && count > 0; column += kColumns) {
      const std::int64_t n_columns = column_end - column < kColumns ? column_end - column : kColumns;
      add_group<T>(plan, arguments.columns, members, count, tables, column, n_columns, weights,
                   sums + (column - column_begin) * kRows);
    }
  }
}

// ---- Gradients of one pixel ----

template <class T>
BITLENS_FUNCTION void pixel_gradients_directly(const Arguments<T>& arguments, const Gradients<T>& wanted,
                                               const Pixel& pixel, std::int64_t p) {
  const Pack g = spread(pixel.gain), o = spread(pixel.offset), s = spread(pixel.read_std);
  const std::int64_t n = arguments.rows, m = arguments.columns, pixels = arguments.pixels;
  double sensor[3] = {0.0, 0.0, 0.0};
  // Rows in pieces, and for each of them every column: what a column gathers is carried in its output.
  for (std::int64_t j = 0; j < m && wanted.mean; ++j) wanted.mean[j * pixels + p] = static_cast<T>(0);
  for (std::int64_t i = 0; i < n; i += kWidth) {
    const int left = static_cast<int>(n - i < kWidth ? n - i : kWidth);
    Pack z, in_measured = spread(0.0), in_gain = spread(0.0), in_std = spread(0.0);
    for (int lane = 0; lane < kWidth; ++lane) {
      z[lane] = static_cast<double>(arguments.measured[(i + (lane < left ? lane : 0)) * pixels + p]);
    }
    for (std::int64_t j = 0; j < m; ++j) {
      Pack weight = spread(0.0);
      for (int lane = 0; lane < left; ++lane) weight[lane] = static_cast<double>(wanted.weight[j * n + i + lane]);
      const Pack mean = spread(static_cast<double>(arguments.mean[j * pixels + p]));
      const auto result = formula::evaluate<1, Pack>(z, mean, g, o, s);
      in_gain += weight * result.first[1];
      in_measured += weight * result.first[2];
      in_std += weight * result.first[3];
      if (!wanted.mean) continue;
      double total = 0.0;
      for (int lane = 0; lane < left; ++lane) total += weight[lane] * result.first[0][lane];
      wanted.mean[j * pixels + p] += static_cast<T>(total);
    }
    for (int lane = 0; lane < left; ++lane) {
      sensor[0] += in_gain[lane];
      sensor[1] += in_measured[lane];
      sensor[2] += in_std[lane];
      if (wanted.measured) wanted.measured[(i + lane) * pixels + p] = static_cast<T>(-in_measured[lane]);
    }
  }
  if (wanted.gain) wanted.gain[p] = sensor[0];
  if (wanted.offset) wanted.offset[p] = sensor[1];
  if (wanted.read_std) wanted.read_std[p] = sensor[2];
}

// What the columns of a chunk add to the rows of a tile, through up to three tables, and to their own sums.
template <class T>
BITLENS_FUNCTION void gather_chunk(const T* weight, std::int64_t weight_stride, const T* interpolation,
                                   std::int64_t interpolation_stride, const std::int32_t* first, std::int64_t count,
                                   const T* light, T* light_sums, const T* const* tables, int n_tables, T* row_sums) {
  typedef typename Lanes<T>::type Lane;
  constexpr int kTaps = Interpolation<T>::kTaps;
  constexpr int kLanes = static_cast<int>(sizeof(Lane) / sizeof(T));
  constexpr int kBlock = kLanes * 4 < kRows ? 4 : kRows / kLanes;
  for (int row = 0; row < kRows; row += kBlock * kLanes) {
    if (light) {
      for (std::int64_t j = 0; j < count; ++j) {
        const T* table = light + first[j] * kRows + row;
        Lane value[kBlock], total = load<Lane>(light_sums + j * kLanes);
        for (int b = 0; b < kBlock; ++b) value[b] = Lane{};
        for (int tap = 0; tap < kTaps; ++tap) {
          const T w = interpolation[tap * interpolation_stride + j];
          for (int b = 0; b < kBlock; ++b) value[b] += w * load<Lane>(table + tap * kRows + b * kLanes);
        }
        for (int b = 0; b < kBlock; ++b) total += value[b] * load<Lane>(weight + j * weight_stride + row + b * kLanes);
        store(light_sums + j * kLanes, total);
      }
    }
    for (int t = 0; t < n_tables; ++t) {
      Lane total[kBlock];
      for (int b = 0; b < kBlock; ++b) total[b] = Lane{};
      for (std::int64_t j = 0; j < count; ++j) {
        const T* table = tables[t] + first[j] * kRows + row;
        Lane value[kBlock];
        for (int b = 0; b < kBlock; ++b) value[b] = Lane{};
        for (int tap = 0; tap < kTaps; ++tap) {
          const T w = interpolation[tap * interpolation_stride + j];
          for (int b = 0; b < kBlock; ++b) value[b] += w * load<Lane>(table + tap * kRows + b * kLanes);
        }
        for (int b = 0; b < kBlock; ++b) {
          total[b] += value[b] * load<Lane>(weight + j * weight_stride + row + b * kLanes);
        }
      }
      for (int b = 0; b < kBlock; ++b) store(row_sums + t * kRows + row + b * kLanes, total[b]);
    }
  }
}

template <class T>
BITLENS_FUNCTION void pixel_gradients(const Arguments<T>& arguments, const Plan<T>& plan, const Gradients<T>& wanted,
                                      const double* weight_sums, std::int64_t p, T* scratch, double* column_sums) {
  typedef typename Lanes<T>::type Lane;
  constexpr int kTaps = Interpolation<T>::kTaps;
  constexpr int kLanes = static_cast<int>(sizeof(Lane) / sizeof(T));
  constexpr int kTilesInT = 16;  // tiles whose sums stay in T
  const Pixel& pixel = plan.pixels[p];
  if (pixel.kind == kDirect) return pixel_gradients_directly(arguments, wanted, pixel, p);
  const std::int64_t n = arguments.rows, m = arguments.columns, pixels = arguments.pixels;
  const std::int64_t table_size = (pixel.nodes + 1) * kRows;
  const std::int32_t* first = plan.first + p * m;
  T* const interpolation = scratch;
  T* const light_sums = interpolation + kTaps * m;
  T* const weights = light_sums + kLanes * m;
  T* const space = weights + kColumns * kRows;
  Tables<T> tables{};
  const T* row_tables[3];
  double row_totals[3][kRows], sensor[3] = {0.0, 0.0, 0.0};
  int n_tables = 0, residual = -1, product = -1, square = -1;
  if (wanted.mean) tables.light = space;
  if (wanted.measured || wanted.offset) row_tables[residual = n_tables++] = tables.residual = space + table_size;
  if (wanted.gain) row_tables[product = n_tables++] = tables.product = space + 2 * table_size;
  if (wanted.read_std) row_tables[square = n_tables++] = tables.square = space + 3 * table_size;
  column_weights<T>(plan.fraction + p * m, m, m, interpolation);
  for (std::int64_t j = 0; j < m; ++j) column_sums[j] = 0.0;
  memset(light_sums, 0, sizeof(T) * kLanes * m);
  const double in_adu = pixel.inverse_variance / pixel.gain;  // from electrons of a table to a derivative

  Rows<T> rows;
  int tile = 0;
  for (std::int64_t begin = 0; begin < n; begin += kRows) {
    const std::int64_t end = n - begin < kRows ? n : begin + kRows;
    load_rows(arguments, pixel, p, begin, end, &rows);
    fill_tables<1, T>(plan, pixel, rows, tables);
    memset(row_totals, 0, sizeof(row_totals));
    for (std::int64_t j = 0; j < m; j += kColumns) {
      const std::int64_t count = m - j < kColumns ? m - j : kColumns;
      const T* weight = wanted.weight + j * n + begin;
      std::int64_t stride = n;
      if (end - begin < kRows) {
        memset(weights, 0, sizeof(T) * kColumns * kRows);
        for (std::int64_t c = 0; c < count; ++c) memcpy(weights + c * kRows, weight + c * n, sizeof(T) * (end - begin));
        weight = weights;
        stride = kRows;
      }
      T row_sums[3 * kRows];
      gather_chunk<T>(weight, stride, interpolation + j, m, first + j, count, tables.light, light_sums + kLanes * j,
                      row_tables, n_tables, row_sums);
      for (int t = 0; t < n_tables; ++t) {
        for (int i = 0; i < kRows; ++i) row_totals[t][i] += static_cast<double>(row_sums[t * kRows + i]);
      }
    }
    for (std::int64_t i = begin; i < end; ++i) {
      if (wanted.measured) {
        wanted.measured[i * pixels + p] = static_cast<T>(-row_totals[residual][i - begin] * in_adu);
      }
      if (wanted.gain) sensor[0] += row_totals[product][i - begin];
      if (wanted.offset) sensor[1] += row_totals[residual][i - begin];
      if (wanted.read_std) sensor[2] += row_totals[square][i - begin];
    }
    if (tables.light && (++tile == kTilesInT || end == n)) {
      for (std::int64_t j = 0; j < m; ++j) {
        for (int lane = 0; lane < kLanes; ++lane) column_sums[j] += static_cast<double>(light_sums[kLanes * j + lane]);
      }
      memset(light_sums, 0, sizeof(T) * kLanes * m);
      tile = 0;
    }
  }
  for (std::int64_t j = 0; j < m && wanted.mean; ++j) {
    const double mean = static_cast<double>(arguments.mean[j * pixels + p]);
    // Row 0 alone, the weights' place for no light, holds the derivative itself.
    const bool dark = first[j] == 0;
    const double total = column_sums[j] + static_cast<double>(plan.bias[p * m + j]) * weight_sums[j];
    wanted.mean[j * pixels + p] = static_cast<T>(dark ? column_sums[j] : total / mean);
  }
  if (wanted.gain) wanted.gain[p] = sensor[0] * in_adu;
  if (wanted.offset) wanted.offset[p] = sensor[1] * in_adu;
  if (wanted.read_std) wanted.read_std[p] = sensor[2] * in_adu / pixel.sigma;
}

// ---- Places of the means ----

template <class T>
BITLENS_FUNCTION void place_columns(const Arguments<T>& arguments, const Plan<T>& plan, std::int64_t p) {
  constexpr int kTaps = Interpolation<T>::kTaps, kLeft = kTaps / 2 - 1;
  const Pixel& pixel = plan.pixels[p];
  const std::int64_t m = arguments.columns;
  double growth[kTaps];  // of the mean, from the place left of it to each node
  for (int tap = 0; tap < kTaps; ++tap) growth[tap] = exponential(spread(pixel.step * (tap - kLeft)))[0];
  for (std::int64_t j = 0; j < m; j += kWidth) {
    const int left = static_cast<int>(m - j < kWidth ? m - j : kWidth);
    Pack mean = spread(1.0);
    for (int lane = 0; lane < left; ++lane) {
      mean[lane] = static_cast<double>(arguments.mean[(j + lane) * arguments.pixels + p]);
    }
    const Pack log_mean = logarithm(mean);
    const Pack place = (log_mean - pixel.least_log) / pixel.step;
    const auto lit = (mean <= formula::kLargestMean) & (log_mean >= pixel.least_log);
    const auto dark = (mean >= 0.0) & (log_mean < pixel.least_log);
    const Pack safe = lit ? place : spread(0.0);
    const Pack lower = maximum(round_to_integer(safe - 0.5), spread(0.0));
    Pack fraction = safe - lower;
    for (int lane = 0; lane < kWidth; ++lane) fraction[lane] = static_cast<double>(static_cast<T>(fraction[lane]));
    const Pack moved = (fraction - (safe - lower)) * pixel.step;  // by rounding the fraction to T
    Pack weights[kTaps], interpolated = spread(0.0);
    lagrange_weights<kTaps>(fraction, weights);
    for (int tap = 0; tap < kTaps; ++tap) interpolated += weights[tap] * growth[tap];
    const Pack bias = mean * (exponential((lower - safe) * pixel.step) * interpolated - 1.0 - moved);
    for (int lane = 0; lane < left; ++lane) {
      const std::int64_t at = p * m + j + lane;
      plan.first[at] = lit[lane] ? 1 + static_cast<std::int32_t>(lower[lane]) : 0;
      plan.fraction[at] = static_cast<T>(lit[lane] ? fraction[lane] : dark[lane] ? -static_cast<double>(kLeft) : NAN);
      plan.bias[at] = static_cast<T>(lit[lane] ? bias[lane] : 0.0);
    }
  }
}

}  // namespace

#define BITLENS_PAIRS_OF(T, name)                                                                                      \
  void place_columns_##name(const Arguments<T>& arguments, const Plan<T>& plan, std::int64_t p) {                      \
    place_columns(arguments, plan, p);                                                                                 \
  }                                                                                                                    \
  void score_tile_##name(const Arguments<T>& arguments, const Plan<T>& plan, std::int64_t row_begin,                   \
                         std::int64_t row_end, std::int64_t column_begin, std::int64_t column_end, T* scratch,         \
                         double* sums) {                                                                               \
    score_tile(arguments, plan, row_begin, row_end, column_begin, column_end, scratch, sums);                          \
  }                                                                                                                    \
  void pixel_gradients_##name(const Arguments<T>& arguments, const Plan<T>& plan, const Gradients<T>& wanted,          \
                              const double* weight_sums, std::int64_t p, T* scratch, double* column_sums) {            \
    pixel_gradients(arguments, plan, wanted, weight_sums, p, scratch, column_sums);                                    \
  }
BITLENS_PAIRS_OF(float, float)
BITLENS_PAIRS_OF(double, double)
#undef BITLENS_PAIRS_OF

void reduce_tile(const TileMasks& masks, std::int64_t rows, std::int64_t columns, std::int64_t column_begin,
                 double* scores, const TileSums& to) {
  reduce_tile_of(masks, rows, columns, column_begin, scores, to);
}

void infonce_merge(double& largest, double& sum, double part_largest, double part_sum) {
  sums_of_exponentials::merge(largest, sum, part_largest, part_largest, part_sum);
}

double infonce_log_sum(double largest, double sum) { return sums_of_exponentials::log_sum(largest, sum); }

// Entries [begin, end) of a pixel's curve; both multiples of a pack of any instruction set.
void fill_curve(const Pixel& pixel, std::int64_t begin, std::int64_t end, bool derivatives, double* value, double* mean,
                double* variance) {
  for (std::int64_t at = begin; at < end; at += kWidth) {
    Pack index;
    for (int lane = 0; lane < kWidth; ++lane) index[lane] = static_cast<double>(at + lane);
    fill_curve_pack(pixel.sigma, pixel.inverse_variance, pixel.first_t + pixel.step * index, derivatives, value + at,
                    mean + at, variance + at);
  }
}

}  // namespace BITLENS_ISA

#if defined(BITLENS_ENTRY_POINTS)
#define BITLENS_DECLARE_PAIRS_OF(T, name)                                                                              \
  BITLENS_DECLARE_PER_ISA(void place_columns_##name(const Arguments<T>&, const Plan<T>&, std::int64_t))                \
  BITLENS_DECLARE_PER_ISA(void score_tile_##name(const Arguments<T>&, const Plan<T>&, std::int64_t, std::int64_t,      \
                                                 std::int64_t, std::int64_t, T*, double*))                             \
  BITLENS_DECLARE_PER_ISA(void pixel_gradients_##name(const Arguments<T>&, const Plan<T>&, const Gradients<T>&,        \
                                                      const double*, std::int64_t, T*, double*))
BITLENS_DECLARE_PAIRS_OF(float, float)
BITLENS_DECLARE_PAIRS_OF(double, double)
BITLENS_DECLARE_PER_ISA(void fill_curve(const Pixel&, std::int64_t, std::int64_t, bool, double*, double*, double*))

BITLENS_DECLARE_PER_ISA(void reduce_tile(const TileMasks&, std::int64_t, std::int64_t, std::int64_t, double*,
                                         const TileSums&))

inline auto place_columns_for(float*) { return BITLENS_FOR_THIS_PROCESSOR(place_columns_float); }
inline auto place_columns_for(double*) { return BITLENS_FOR_THIS_PROCESSOR(place_columns_double); }

}  // namespace poisson_gaussian_log_prob_pairs
}  // namespace bitlens

#include "planning.h"

namespace bitlens {
namespace poisson_gaussian_log_prob_pairs {

namespace cpu {
namespace {

constexpr std::int64_t kColumnBlock = 1024;  // columns whose sums of a tile stay in the cache

#define BITLENS_PAIRS_OF(T, name)                                                                                \
  auto score_tile_for(T*) { return BITLENS_FOR_THIS_PROCESSOR(score_tile_##name); }                              \
  auto pixel_gradients_for(T*) { return BITLENS_FOR_THIS_PROCESSOR(pixel_gradients_##name); }
BITLENS_PAIRS_OF(float, float)
BITLENS_PAIRS_OF(double, double)
#undef BITLENS_PAIRS_OF

template <class T>
void all_scores(const Arguments<T>& arguments, T* output, int threads) {
  const OwnedPlan<T> owned = make_plan(arguments, false, threads);
  const Plan<T> plan = owned.view();
  const auto tile = score_tile_for(static_cast<T*>(nullptr));
  const std::int64_t scratch_size =
      Interpolation<T>::kGroup * (Interpolation<T>::kTaps * kColumns + (owned.most_nodes() + 1) * kRows);
  const std::int64_t row_tiles = (arguments.rows + kRows - 1) / kRows;
  const std::int64_t column_tiles = (arguments.columns + kColumnBlock - 1) / kColumnBlock;
  parallel_for(row_tiles * column_tiles, 1, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> scratch(scratch_size);
    std::vector<double> sums(kRows * std::min(kColumnBlock, arguments.columns));
    for (std::int64_t at = begin; at < end; ++at) {
      const std::int64_t row = at / column_tiles * kRows, column = at % column_tiles * kColumnBlock;
      const std::int64_t row_end = std::min(row + kRows, arguments.rows);
      const std::int64_t column_end = std::min(column + kColumnBlock, arguments.columns);
      tile(arguments, plan, row, row_end, column, column_end, scratch.data(), sums.data());
      for (std::int64_t i = row; i < row_end; ++i) {
        T* target = output + i * arguments.columns;
        const double* source = sums.data() + (i - row);
        for (std::int64_t j = column; j < column_end; ++j) target[j] = static_cast<T>(source[(j - column) * kRows]);
      }
    }
  });
}

template <class T>
void all_gradients(const Arguments<T>& arguments, const Gradients<T>& wanted, int threads) {
  const OwnedPlan<T> owned = make_plan(arguments, true, threads);
  const Plan<T> plan = owned.view();
  const std::int64_t n = arguments.rows, m = arguments.columns;
  std::vector<double> weight_sums(m, 0.0);
  parallel_for(m, 64, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t j = begin; j < end; ++j) {
      for (std::int64_t i = 0; i < n; ++i) weight_sums[j] += static_cast<double>(wanted.weight[j * n + i]);
    }
  });
  const auto gradients_of = pixel_gradients_for(static_cast<T*>(nullptr));
  constexpr std::int64_t kMostLanes = 64 / sizeof(T);
  const std::int64_t scratch_size =
      (Interpolation<T>::kTaps + kMostLanes) * m + kColumns * kRows + 4 * (owned.most_nodes() + 1) * kRows;
  parallel_for(arguments.pixels, 1, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> scratch(scratch_size);
    std::vector<double> column_sums(m);
    for (std::int64_t p = begin; p < end; ++p) {
      gradients_of(arguments, plan, wanted, weight_sums.data(), p, scratch.data(), column_sums.data());
    }
  });
}

}  // namespace

void scores(const Arguments<float>& arguments, float* output, int threads) { all_scores(arguments, output, threads); }
void scores(const Arguments<double>& arguments, double* output, int threads) { all_scores(arguments, output, threads); }
void gradients(const Arguments<float>& arguments, const Gradients<float>& wanted, int threads) {
  all_gradients(arguments, wanted, threads);
}
void gradients(const Arguments<double>& arguments, const Gradients<double>& wanted, int threads) {
  all_gradients(arguments, wanted, threads);
}

}  // namespace cpu

#include "statistics.inl"
#endif

}  // namespace poisson_gaussian_log_prob_pairs
}  // namespace bitlens
