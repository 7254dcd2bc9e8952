// A block for every line of running sums, then one for every view or line of pixels, whose threads walk the lookups of
// neighbouring places, so that reads of a table lie side by side. All in double; sums in a fixed order. The work space
// is that of the whole batch: 16 bytes a pixel and a little more.
#include <stdexcept>
#include <string>

#include "kernel.h"
#include "math.h"

namespace bitlens {
namespace parallel_projection {
namespace {

using namespace scalar;

constexpr int kBlock = 128;

__device__ inline double look_up(const double* table, const Places& places, double n) {
  const double x = places.start + places.step * n;
  if (!isfinite(x)) return NAN;
  const double within = x > 0 ? (x < places.limit ? x : places.limit) : 0;
  const std::int64_t entry = static_cast<std::int64_t>(within);
  return between(table[entry], table[entry + 1], within - static_cast<double>(entry));
}

// Sums up to every edge of `count` values, by one block: runs of neighbours, one a thread, and then the runs' totals.
template <class Read>
__device__ inline void running_sum(double* table, std::int64_t count, double* totals, const Read& read) {
  const std::int64_t run = (count + kBlock - 1) / kBlock;
  const std::int64_t begin = threadIdx.x * run, end = begin + run < count ? begin + run : count;
  double total = 0;
  for (std::int64_t i = begin; i < end; ++i) total += read(i);
  totals[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    double before = 0;
    for (int thread = 0; thread < kBlock; ++thread) {
      const double own = totals[thread];
      totals[thread] = before;
      before += own;
    }
    table[0] = 0;
    table[count + 1] = before;
  }
  __syncthreads();
  total = totals[threadIdx.x];
  for (std::int64_t i = begin; i < end; ++i) {
    total += read(i);
    table[i + 1] = total;
    // The last entry twice, the same bits.
    if (i + 1 == count) table[count + 1] = total;
  }
}

__host__ __device__ inline std::int64_t column_tables(const Sizes& sizes) {
  return sizes.batch * sizes.rows * table_size(sizes.columns);
}

// Blocks: batch x (rows + columns).
template <class T>
__global__ void __launch_bounds__(kBlock) sum_lines(Arguments<T> arguments) {
  BITLENS_DYNAMIC_SHARED(double, totals);
  const Sizes& sizes = arguments.sizes;
  for (std::int64_t task = blockIdx.x; task < sizes.batch * (sizes.rows + sizes.columns); task += gridDim.x) {
    const std::int64_t image = task / (sizes.rows + sizes.columns), line = task % (sizes.rows + sizes.columns);
    const T* const pixels = arguments.input + image * sizes.rows * sizes.columns;
    if (line < sizes.rows) {
      double* const table = arguments.workspace + (image * sizes.rows + line) * table_size(sizes.columns);
      running_sum(table, sizes.columns, totals,
                  [&](std::int64_t i) { return static_cast<double>(pixels[line * sizes.columns + i]); });
    } else {
      const std::int64_t column = line - sizes.rows;
      double* const table = arguments.workspace + column_tables(sizes) +
                            (image * sizes.columns + column) * table_size(sizes.rows);
      running_sum(table, sizes.rows, totals,
                  [&](std::int64_t i) { return static_cast<double>(pixels[i * sizes.columns + column]); });
    }
    __syncthreads();
  }
}

// Blocks: batch x views x groups of kBlock - 1 bins; every thread has an edge.
template <class T>
__global__ void __launch_bounds__(kBlock) project_views(Arguments<T> arguments) {
  BITLENS_DYNAMIC_SHARED(double, sums);
  const Sizes& sizes = arguments.sizes;
  const std::int64_t groups = (sizes.bins + kBlock - 2) / (kBlock - 1);
  for (std::int64_t task = blockIdx.x; task < sizes.batch * sizes.views * groups; task += gridDim.x) {
    const std::int64_t group = task % groups, view = task / groups % sizes.views, image = task / groups / sizes.views;
    const int part = part_of(arguments.views, sizes.views, view);
    const std::int64_t lines = part == 0 ? sizes.rows : part == 1 ? sizes.columns : 0;
    const std::int64_t size = table_size(part == 0 ? sizes.columns : sizes.rows);
    const double* const tables = arguments.workspace + (part == 0 ? 0 : column_tables(sizes)) + image * lines * size;
    const std::int64_t edge = group * (kBlock - 1) + threadIdx.x;
    double sum = 0;
    if (edge <= sizes.bins) {
      for (std::int64_t line = 0; line < lines; ++line) {
        const Places places = edges_of_bins(arguments.views, sizes, part, view, line);
        sum += look_up(tables + line * size, places, static_cast<double>(edge));
      }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < kBlock - 1 && edge < sizes.bins) {
      const bool backwards = part < 2 && arguments.views.width[part * sizes.views + view] < 0;
      const double factor = backwards ? -arguments.views.factor[view] : arguments.views.factor[view];
      const std::int64_t bin = backwards ? sizes.bins - 1 - edge : edge;
      arguments.output[(image * sizes.views + view) * sizes.bins + bin] =
          static_cast<T>(factor * (sums[threadIdx.x + 1] - sums[threadIdx.x]));
    }
    __syncthreads();
  }
}

// Blocks: batch x views.
template <class T>
__global__ void __launch_bounds__(kBlock) sum_bins(Arguments<T> arguments) {
  BITLENS_DYNAMIC_SHARED(double, totals);
  const Sizes& sizes = arguments.sizes;
  for (std::int64_t task = blockIdx.x; task < sizes.batch * sizes.views; task += gridDim.x) {
    const std::int64_t view = task % sizes.views;
    const int part = part_of(arguments.views, sizes.views, view);
    if (part == 2) continue;
    const double weight = bin_weight(arguments.views, sizes.views, part, view);
    const bool backwards = arguments.views.width[part * sizes.views + view] < 0;
    const T* const bins = arguments.input + task * sizes.bins;
    running_sum(arguments.workspace + task * table_size(sizes.bins), sizes.bins, totals, [&](std::int64_t i) {
      return weight * static_cast<double>(bins[backwards ? sizes.bins - 1 - i : i]);
    });
    __syncthreads();
  }
}

// Blocks: batch x groups of kBlock - 1 pixels of a line of the part; every thread has an edge. The rows come first and
// are written, the columns are added to them.
template <int Part, class T>
__global__ void __launch_bounds__(kBlock) backproject_lines(Arguments<T> arguments) {
  BITLENS_DYNAMIC_SHARED(double, sums);
  const Sizes& sizes = arguments.sizes;
  const std::int64_t lines = Part == 0 ? sizes.rows : sizes.columns, pixels = Part == 0 ? sizes.columns : sizes.rows;
  const std::int64_t groups = (pixels + kBlock - 2) / (kBlock - 1);
  double* const of_rows = arguments.workspace + sizes.batch * sizes.views * table_size(sizes.bins);
  for (std::int64_t task = blockIdx.x; task < sizes.batch * lines * groups; task += gridDim.x) {
    const std::int64_t group = task % groups, line = task / groups % lines, image = task / groups / lines;
    const double* const tables = arguments.workspace + image * sizes.views * table_size(sizes.bins);
    const std::int64_t edge = group * (kBlock - 1) + threadIdx.x;
    double sum = 0;
    if (edge <= pixels) {
      for (std::int64_t view = 0; view < sizes.views; ++view) {
        if (!arguments.views.inside[Part * sizes.views + view]) continue;
        const Places places = edges_of_pixels(arguments.views, sizes, Part, view, line);
        sum += look_up(tables + view * table_size(sizes.bins), places, static_cast<double>(edge));
      }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < kBlock - 1 && edge < pixels) {
      const double value = sums[threadIdx.x + 1] - sums[threadIdx.x];
      const std::int64_t row = Part == 0 ? line : edge, column = Part == 0 ? edge : line;
      const std::int64_t pixel = (image * sizes.rows + row) * sizes.columns + column;
      if constexpr (Part == 0) {
        of_rows[pixel] = value;
      } else {
        arguments.output[pixel] = static_cast<T>(of_rows[pixel] + value);
      }
    }
    __syncthreads();
  }
}

template <class T>
void launch(void (*kernel)(Arguments<T>), std::int64_t blocks, const Arguments<T>& arguments, std::uintptr_t stream) {
  if (blocks == 0) return;
  const unsigned grid = static_cast<unsigned>(blocks < (1 << 30) ? blocks : (1 << 30));
  BITLENS_LAUNCH(kernel, dim3(grid), dim3(kBlock), kBlock * sizeof(double), reinterpret_cast<cudaStream_t>(stream),
                 arguments);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("parallel_projection: ") + cudaGetErrorString(status));
  }
}

std::int64_t groups_of(std::int64_t places) { return (places + kBlock - 2) / (kBlock - 1); }

template <class T>
void run_project(const Arguments<T>& arguments, std::uintptr_t stream) {
  const Sizes& sizes = arguments.sizes;
  launch<T>(sum_lines<T>, sizes.batch * (sizes.rows + sizes.columns), arguments, stream);
  launch<T>(project_views<T>, sizes.batch * sizes.views * groups_of(sizes.bins), arguments, stream);
}

template <class T>
void run_backproject(const Arguments<T>& arguments, std::uintptr_t stream) {
  const Sizes& sizes = arguments.sizes;
  launch<T>(sum_bins<T>, sizes.batch * sizes.views, arguments, stream);
  launch<T>(backproject_lines<0, T>, sizes.batch * sizes.rows * groups_of(sizes.columns), arguments, stream);
  launch<T>(backproject_lines<1, T>, sizes.batch * sizes.columns * groups_of(sizes.rows), arguments, stream);
}

}  // namespace

namespace cuda {

std::int64_t workspace_bytes(const Sizes& sizes, bool adjoint) {
  const std::int64_t numbers =
      adjoint ? sizes.batch * (sizes.views * table_size(sizes.bins) + sizes.rows * sizes.columns)
              : column_tables(sizes) + sizes.batch * sizes.columns * table_size(sizes.rows);
  return numbers * 8;
}

void project(const Arguments<float>& arguments, std::uintptr_t stream) { run_project(arguments, stream); }
void project(const Arguments<double>& arguments, std::uintptr_t stream) { run_project(arguments, stream); }
void backproject(const Arguments<float>& arguments, std::uintptr_t stream) { run_backproject(arguments, stream); }
void backproject(const Arguments<double>& arguments, std::uintptr_t stream) { run_backproject(arguments, stream); }

}  // namespace cuda

}  // namespace parallel_projection
}  // namespace bitlens
