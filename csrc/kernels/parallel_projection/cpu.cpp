// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points.
#include "kernel.h"
#include "math.h"

#if defined(BITLENS_ENTRY_POINTS)
#include "../../common/instruction_set.h"
#include "../../common/parallel.h"
#include "../../common/workspace.h"
#endif

namespace bitlens {
namespace parallel_projection {
namespace BITLENS_ISA {
namespace {

using ::bitlens::BITLENS_ISA::broadcast;
using ::bitlens::BITLENS_ISA::Mask;
using ::bitlens::BITLENS_ISA::maximum;
using ::bitlens::BITLENS_ISA::minimum;
using ::bitlens::BITLENS_ISA::multiply_add;
using ::bitlens::BITLENS_ISA::Pack;

constexpr std::int64_t kWidth = BITLENS_PACK_WIDTH;
// Differences at once: their sums stay in the first cache, and on the stack.
constexpr std::int64_t kChunk = 512;
constexpr std::int64_t kPacks = (kChunk + 1 + kWidth - 1) / kWidth;
constexpr std::int64_t kColumns = 16;  // whose running sums go down the image together

// ---- Lookups ----

// The table at places x from 0 to its limit.
BITLENS_FUNCTION Pack look_up(const double* table, Pack x) {
  Pack left, right, whole;
  for (int lane = 0; lane < kWidth; ++lane) {
    const std::int64_t entry = static_cast<std::int64_t>(x[lane]);
    whole[lane] = static_cast<double>(entry);
    left[lane] = table[entry];
    right[lane] = table[entry + 1];
  }
  return between(left, right, x - whole);
}

#if defined(__AVX512F__)
constexpr double kWindowStep = 1.99;  // up to which the entries of a pack's places lie within 16
// The same for rising places within a window: two loads and two permutations in place of 16 loads.
BITLENS_FUNCTION Pack look_up_window(const double* table, Pack x) {
  const Mask entry = __builtin_convertvector(x, Mask);
  const std::int64_t first = static_cast<std::int64_t>(x[0]);
  const __m512d low = _mm512_loadu_pd(table + first), high = _mm512_loadu_pd(table + first + 8);
  const Pack left = (Pack)_mm512_permutex2var_pd(low, (__m512i)(entry - first), high);
  const Pack right = (Pack)_mm512_permutex2var_pd(low, (__m512i)(entry - (first - 1)), high);
  return multiply_add(x - __builtin_convertvector(entry, Pack), right - left, left);
}
#else
constexpr double kWindowStep = 0.0;
BITLENS_FUNCTION Pack look_up_window(const double* table, Pack x) { return look_up(table, x); }
#endif

// ---- Sums over lines ----

// Sums at neighbouring places; totals[k] still has to be added to the packs from k on.
struct Sums {
  alignas(64) double at[kPacks * kWidth];
  double totals[kPacks + 1];
  std::int64_t packs;
};

BITLENS_FUNCTION void clear(Sums& sums, std::int64_t count) {
  sums.packs = (count + kWidth - 1) / kWidth;
  for (std::int64_t i = 0; i < sums.packs * kWidth; ++i) sums.at[i] = 0.0;
  for (std::int64_t k = 0; k <= sums.packs; ++k) sums.totals[k] = 0.0;
}

BITLENS_FUNCTION std::int64_t clamped(double x, std::int64_t high) {
  return x > 0 ? (x < static_cast<double>(high) ? static_cast<std::int64_t>(x) : high) : 0;
}

template <bool Window>
BITLENS_FUNCTION void add_packs(Sums& sums, const double* table, const Places& places, std::int64_t begin,
                                std::int64_t end) {
  const Pack start = broadcast((Pack*)0, places.start), step = broadcast((Pack*)0, places.step);
  const Pack zero = broadcast((Pack*)0, 0.0), limit = broadcast((Pack*)0, places.limit);
  Pack n = broadcast((Pack*)0, static_cast<double>(begin * kWidth));
  for (int lane = 0; lane < kWidth; ++lane) n[lane] += lane;
  for (std::int64_t k = begin; k < end; ++k) {
    const Pack x = minimum(maximum(multiply_add(step, n, start), zero), limit);
    Pack* const sum = reinterpret_cast<Pack*>(sums.at + k * kWidth);
    *sum += Window ? look_up_window(table, x) : look_up(table, x);
    n += static_cast<double>(kWidth);
  }
}

// Adds a table, which begins with 0, at the places of all sums.
BITLENS_FUNCTION void add_line(Sums& sums, const double* table, const Places& places) {
  if (!__builtin_isfinite(places.start)) {
    sums.totals[0] = NAN;
    return;
  }
  const double per_step = 1 / places.step, width = static_cast<double>(kWidth);
  // Packs before the first have places below 0; those from the last on, places beyond the limit.
  const std::int64_t first = clamped(-places.start * per_step / width, sums.packs);
  const std::int64_t last = clamped((places.limit - places.start) * per_step / width + 1.0, sums.packs);
  sums.totals[last > first ? last : first] += table[static_cast<std::int64_t>(places.limit)];
  if (places.step < kWindowStep) {
    add_packs<true>(sums, table, places, first, last);
  } else {
    add_packs<false>(sums, table, places, first, last);
  }
}

BITLENS_FUNCTION void add_totals(Sums& sums) {
  double total = 0.0;
  for (std::int64_t k = 0; k < sums.packs; ++k) {
    total += sums.totals[k];
    for (int lane = 0; lane < kWidth; ++lane) sums.at[k * kWidth + lane] += total;
  }
}

// ---- Stages: a range of tasks each ----

struct Tables {
  double* rows;     // [batch, rows, table of columns]
  double* columns;  // [batch, columns, table of rows]
};

BITLENS_FUNCTION std::int64_t row_tables_size(const Sizes& sizes) {
  return sizes.batch * sizes.rows * table_size(sizes.columns);
}

BITLENS_FUNCTION Tables tables_of(const Sizes& sizes, double* workspace) {
  return {workspace, workspace + row_tables_size(sizes)};
}

// Running sums of rows; tasks count batch x rows.
template <class T>
void sum_rows(const Arguments<T>& arguments, std::int64_t begin, std::int64_t end) {
  const Sizes& sizes = arguments.sizes;
  for (std::int64_t line = begin; line < end; ++line) {
    double* const table = arguments.workspace + line * table_size(sizes.columns);
    const T* const pixels = arguments.input + line * sizes.columns;
    double total = 0.0;
    table[0] = 0.0;
    for (std::int64_t column = 0; column < sizes.columns; ++column) {
      table[column + 1] = total += static_cast<double>(pixels[column]);
    }
    table[sizes.columns + 1] = total;
  }
}

// Running sums of columns; tasks count batch x groups of kColumns.
template <class T>
void sum_columns(const Arguments<T>& arguments, std::int64_t begin, std::int64_t end) {
  const Sizes& sizes = arguments.sizes;
  const std::int64_t groups = (sizes.columns + kColumns - 1) / kColumns, size = table_size(sizes.rows);
  double* const tables = tables_of(sizes, arguments.workspace).columns;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t image = task / groups, column = task % groups * kColumns;
    const std::int64_t count = sizes.columns - column < kColumns ? sizes.columns - column : kColumns;
    double* const table = tables + (image * sizes.columns + column) * size;
    const T* pixels = arguments.input + image * sizes.rows * sizes.columns + column;
    for (std::int64_t c = 0; c < count; ++c) table[c * size] = 0.0;
    for (std::int64_t row = 0; row < sizes.rows; ++row, pixels += sizes.columns) {
      for (std::int64_t c = 0; c < count; ++c) {
        table[c * size + row + 1] = table[c * size + row] + static_cast<double>(pixels[c]);
      }
    }
    for (std::int64_t c = 0; c < count; ++c) table[c * size + sizes.rows + 1] = table[c * size + sizes.rows];
  }
}

// Bins of views; tasks count batch x views.
template <class T>
void project_views(const Arguments<T>& arguments, std::int64_t begin, std::int64_t end) {
  const Sizes& sizes = arguments.sizes;
  const Tables tables = tables_of(sizes, arguments.workspace);
  Sums sums;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t image = task / sizes.views, view = task % sizes.views;
    const int part = part_of(arguments.views, sizes.views, view);
    T* const output = arguments.output + task * sizes.bins;
    const std::int64_t lines = part == 0 ? sizes.rows : part == 1 ? sizes.columns : 0;
    const std::int64_t size = table_size(part == 0 ? sizes.columns : sizes.rows);
    const double* const table = part == 0 ? tables.rows + image * sizes.rows * size
                                          : tables.columns + image * sizes.columns * size;
    const bool backwards = part < 2 && arguments.views.width[part * sizes.views + view] < 0;
    const double factor = backwards ? -arguments.views.factor[view] : arguments.views.factor[view];
    for (std::int64_t chunk = 0; chunk < sizes.bins; chunk += kChunk) {
      const std::int64_t count = sizes.bins - chunk < kChunk ? sizes.bins - chunk : kChunk;
      clear(sums, count + 1);
      for (std::int64_t line = 0; line < lines; ++line) {
        Places places = edges_of_bins(arguments.views, sizes, part, view, line);
        places.start += places.step * static_cast<double>(chunk);
        add_line(sums, table + line * size, places);
      }
      add_totals(sums);
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t bin = backwards ? sizes.bins - 1 - chunk - i : chunk + i;
        output[bin] = static_cast<T>(factor * (sums.at[i + 1] - sums.at[i]));
      }
    }
  }
}

// Running sums of bins, weighted; tasks count batch x views.
template <class T>
void sum_bins(const Arguments<T>& arguments, std::int64_t begin, std::int64_t end) {
  const Sizes& sizes = arguments.sizes;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t view = task % sizes.views;
    const int part = part_of(arguments.views, sizes.views, view);
    if (part == 2) continue;
    const double weight = bin_weight(arguments.views, sizes.views, part, view);
    const bool backwards = arguments.views.width[part * sizes.views + view] < 0;
    double* const table = arguments.workspace + task * table_size(sizes.bins);
    const T* const bins = arguments.input + task * sizes.bins;
    double total = 0.0;
    table[0] = 0.0;
    for (std::int64_t i = 0; i < sizes.bins; ++i) {
      table[i + 1] = total += weight * static_cast<double>(bins[backwards ? sizes.bins - 1 - i : i]);
    }
    table[sizes.bins + 1] = total;
  }
}

BITLENS_FUNCTION double* lines_of(const Sizes& sizes, double* workspace) {
  return workspace + sizes.batch * sizes.views * table_size(sizes.bins);
}

// What views of the two parts give to the pixels, [batch, rows, columns] and then [batch, columns, rows]; tasks count
// batch x (rows + columns).
template <class T>
void backproject_lines(const Arguments<T>& arguments, std::int64_t begin, std::int64_t end) {
  const Sizes& sizes = arguments.sizes;
  double* const all = lines_of(sizes, arguments.workspace);
  Sums sums;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t image = task / (sizes.rows + sizes.columns);
    std::int64_t line = task % (sizes.rows + sizes.columns);
    const int part = line < sizes.rows ? 0 : 1;
    line -= part * sizes.rows;
    const std::int64_t pixels = part == 0 ? sizes.columns : sizes.rows;
    double* const target = all + part * sizes.batch * sizes.rows * sizes.columns +
                           image * sizes.rows * sizes.columns + line * pixels;
    const double* const tables = arguments.workspace + image * sizes.views * table_size(sizes.bins);
    for (std::int64_t chunk = 0; chunk < pixels; chunk += kChunk) {
      const std::int64_t count = pixels - chunk < kChunk ? pixels - chunk : kChunk;
      clear(sums, count + 1);
      for (std::int64_t view = 0; view < sizes.views; ++view) {
        if (!arguments.views.inside[part * sizes.views + view]) continue;
        Places places = edges_of_pixels(arguments.views, sizes, part, view, line);
        places.start += places.step * static_cast<double>(chunk);
        add_line(sums, tables + view * table_size(sizes.bins), places);
      }
      add_totals(sums);
      for (std::int64_t i = 0; i < count; ++i) target[chunk + i] = sums.at[i + 1] - sums.at[i];
    }
  }
}

// The sum of both parts; tasks count batch x rows.
template <class T>
void join_parts(const Arguments<T>& arguments, std::int64_t begin, std::int64_t end) {
  const Sizes& sizes = arguments.sizes;
  const double* const of_rows = lines_of(sizes, arguments.workspace);
  const double* const of_columns = of_rows + sizes.batch * sizes.rows * sizes.columns;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t image = task / sizes.rows, row = task % sizes.rows;
    const double* const down = of_columns + image * sizes.rows * sizes.columns + row;
    for (std::int64_t column = 0; column < sizes.columns; ++column) {
      const std::int64_t pixel = task * sizes.columns + column;
      arguments.output[pixel] = static_cast<T>(of_rows[pixel] + down[column * sizes.rows]);
    }
  }
}

template <class T>
void run_stage(const Arguments<T>& arguments, bool adjoint, int stage, std::int64_t begin, std::int64_t end) {
  if (adjoint) {
    if (stage == 0) return sum_bins(arguments, begin, end);
    if (stage == 1) return backproject_lines(arguments, begin, end);
    return join_parts(arguments, begin, end);
  }
  if (stage == 0) return sum_rows(arguments, begin, end);
  if (stage == 1) return sum_columns(arguments, begin, end);
  return project_views(arguments, begin, end);
}

}  // namespace

void stage_float(const Arguments<float>& arguments, bool adjoint, int stage, std::int64_t begin, std::int64_t end) {
  run_stage(arguments, adjoint, stage, begin, end);
}
void stage_double(const Arguments<double>& arguments, bool adjoint, int stage, std::int64_t begin, std::int64_t end) {
  run_stage(arguments, adjoint, stage, begin, end);
}

}  // namespace BITLENS_ISA

#if defined(BITLENS_ENTRY_POINTS)
BITLENS_DECLARE_PER_ISA(void stage_float(const Arguments<float>&, bool, int, std::int64_t, std::int64_t))
BITLENS_DECLARE_PER_ISA(void stage_double(const Arguments<double>&, bool, int, std::int64_t, std::int64_t))

namespace cpu {
namespace {

constexpr std::int64_t kGrain = 65536;          // lookups or additions that make the start of a thread worth while
constexpr std::int64_t kBytesAtOnce = 16 << 20;  // of tables: a batch is done in parts

std::int64_t bytes_of(const Sizes& sizes, bool adjoint) {
  const std::int64_t both = sizes.batch * sizes.rows * sizes.columns * 2;
  const std::int64_t numbers =
      adjoint ? sizes.batch * sizes.views * baseline::table_size(sizes.bins) + both
              : baseline::row_tables_size(sizes) + sizes.batch * sizes.columns * baseline::table_size(sizes.rows);
  return numbers * 8;
}

Sizes part_at_once(Sizes sizes, bool adjoint) {
  const std::int64_t batch = sizes.batch;
  sizes.batch = 1;
  const std::int64_t fits = kBytesAtOnce / (bytes_of(sizes, adjoint) + 1);
  sizes.batch = fits < 1 ? 1 : fits < batch ? fits : batch;
  return sizes;
}

template <class T, class Run>
void run(const Arguments<T>& all, bool adjoint, const Run& stage, int threads) {
  const Sizes sizes = part_at_once(all.sizes, adjoint);
  const std::int64_t pixels = sizes.rows * sizes.columns, bins = sizes.views * sizes.bins;
  const std::int64_t longest = std::max(sizes.rows, sizes.columns);
  for (std::int64_t first = 0; first < all.sizes.batch; first += sizes.batch) {
    Arguments<T> arguments = all;
    arguments.sizes.batch = std::min(sizes.batch, all.sizes.batch - first);
    arguments.input += first * (adjoint ? bins : pixels);
    arguments.output += first * (adjoint ? pixels : bins);
    const std::int64_t batch = arguments.sizes.batch;
    const auto run_stage = [&](int number, std::int64_t tasks, std::int64_t work) {
      parallel_for(tasks, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, work)), threads,
                   [&](std::int64_t begin, std::int64_t end) { stage(arguments, adjoint, number, begin, end); });
    };
    if (adjoint) {
      run_stage(0, batch * sizes.views, sizes.bins);
      run_stage(1, batch * (sizes.rows + sizes.columns), longest * sizes.views / 2);
      run_stage(2, batch * sizes.rows, sizes.columns);
    } else {
      run_stage(0, batch * sizes.rows, sizes.columns);
      run_stage(1, batch * ((sizes.columns + baseline::kColumns - 1) / baseline::kColumns),
                sizes.rows * baseline::kColumns);
      run_stage(2, batch * sizes.views, longest * (sizes.bins + 1));
    }
  }
}

template <class T, class Run>
void run_in_workspace(Arguments<T> arguments, bool adjoint, const Run& stage, int threads) {
  const auto bytes = static_cast<std::size_t>(bytes_of(part_at_once(arguments.sizes, adjoint), adjoint));
  void* const workspace = take_workspace(bytes);
  arguments.workspace = static_cast<double*>(workspace);
  run(arguments, adjoint, stage, threads);
  return_workspace(workspace, bytes);
}

}  // namespace

std::int64_t workspace_bytes(const Sizes&, bool) { return 0; }

void project(const Arguments<float>& arguments, int threads) {
  run_in_workspace(arguments, false, BITLENS_FOR_THIS_PROCESSOR(stage_float), threads);
}
void project(const Arguments<double>& arguments, int threads) {
  run_in_workspace(arguments, false, BITLENS_FOR_THIS_PROCESSOR(stage_double), threads);
}
void backproject(const Arguments<float>& arguments, int threads) {
  run_in_workspace(arguments, true, BITLENS_FOR_THIS_PROCESSOR(stage_float), threads);
}
void backproject(const Arguments<double>& arguments, int threads) {
  run_in_workspace(arguments, true, BITLENS_FOR_THIS_PROCESSOR(stage_double), threads);
}

}  // namespace cpu
#endif

}  // namespace parallel_projection
}  // namespace bitlens
