// A block of threads per tile of scores, which it makes in shared memory and turns into sums at once.
//
// Forward: each block walks a rectangle of tiles, keeps what it adds up for its rows and columns to itself, and a
// second kernel merges these parts in the order of the blocks. Backward: one kernel whose blocks own rows, one whose
// blocks own columns; each makes the tiles anew, walks all or a segment of the other side, and adds up its own
// gradients, without atomics. The numbers of blocks follow from the sizes, so that all sums have one order.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda_tensor.h"
#include "cuda_tile.h"
#include "kernel.h"
#include "math.h"

namespace bitlens {
namespace infonce_scores {
namespace {

using namespace cuda_tile;
using namespace scalar::infonce;
using scalar::exponential;
using scalar::maximum;

// Parts of a sum that are merged later: at most kMaxSlabs for each row and column, so that they stay O(n + m), and
// about kBlocks blocks in all, several for each multiprocessor.
constexpr std::int64_t kMaxSlabs = 32, kBlocks = 1024;
// Blocks of the backward pass that run at once on an H200: below that the other side is cut into segments.
constexpr std::int64_t kOwners = 264;
constexpr int kFlatThreads = 256;
constexpr std::int64_t kMaxGrid = 65535;

// One side of the score matrix, cut into slabs of whole tiles.
struct Cut {
  std::int64_t length, per_slab, slabs;
};

Cut cut(std::int64_t length, std::int64_t tile, std::int64_t max_slabs) {
  const std::int64_t tiles = (length + tile - 1) / tile;
  const std::int64_t per_slab = std::max<std::int64_t>(1, (tiles + max_slabs - 1) / max_slabs) * tile;
  return {length, per_slab, (length + per_slab - 1) / per_slab};
}

struct ForwardPlan {
  Cut rows, columns;
  std::int64_t batch;
};

ForwardPlan forward_plan(const Sizes& sizes, std::int64_t tile) {
  std::int64_t slabs = kMaxSlabs;
  while (slabs > 1 && slabs * slabs * sizes.batch > kBlocks) slabs /= 2;
  return {cut(sizes.queries, tile, slabs), cut(sizes.keys, tile, slabs), sizes.batch};
}

// Parts of the sums, each [slabs of the other side][batch][length], in double.
struct Parts {
  double *row_largest, *row_sum, *column_largest, *column_sum;
};

std::int64_t row_parts(const ForwardPlan& plan) { return plan.columns.slabs * plan.batch * plan.rows.length; }
std::int64_t column_parts(const ForwardPlan& plan) { return plan.rows.slabs * plan.batch * plan.columns.length; }

Parts parts_of(const ForwardPlan& plan, void* workspace) {
  double* const first = static_cast<double*>(workspace);
  const std::int64_t rows = row_parts(plan), columns = column_parts(plan);
  return {first, first + rows, first + 2 * rows, first + 2 * rows + columns};
}

// One side of the backward pass: blocks own a tile of `length` and walk a segment of the other side.
struct SidePlan {
  std::int64_t length, other_length, other_per_segment, segments, batch;
};

SidePlan side_plan(std::int64_t length, std::int64_t other_length, std::int64_t batch, std::int64_t tile) {
  const std::int64_t blocks = std::max<std::int64_t>(1, (length + tile - 1) / tile * batch);
  const Cut other = cut(other_length, tile, std::min(kMaxSlabs, std::max<std::int64_t>(1, kOwners / blocks)));
  return {length, other_length, other.per_slab, other.slabs, batch};
}

// Parts of one side's gradients: sums of G and of G times the dot products, [segments][batch][length] in double, and
// the matrix [segments][batch][length][d]. A single segment's matrix is the output itself.
template <class T>
struct SideParts {
  double *scores, *dots;
  T* matrix;
};

std::int64_t side_values(const SidePlan& plan) { return plan.segments * plan.batch * plan.length; }

std::int64_t matrix_bytes(const SidePlan& plan, std::int64_t features, std::int64_t value_bytes, bool wanted) {
  return wanted && plan.segments > 1 ? side_values(plan) * features * value_bytes : 0;
}

__device__ std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

template <class T>
__device__ T value_or(const T* values, std::int64_t index, T otherwise) {
  return values != nullptr ? values[index] : otherwise;
}

template <class T>
__device__ std::int64_t positive_of(const Inputs<T>& inputs, std::int64_t b, std::int64_t row) {
  return inputs.positive != nullptr ? inputs.positive[b * inputs.sizes.queries + row] : row;
}

// Both matrices of one batch item as (feature, line).
template <class T>
struct Item {
  Operand<T> query, key;
};

template <class T>
__device__ Item<T> item_of(const Inputs<T>& inputs, std::int64_t b) {
  std::int64_t offsets[2];
  operand_offsets(inputs.layout, b, offsets);
  return {{inputs.query + offsets[0], inputs.query_strides[1], inputs.query_strides[0]},
          {inputs.key + offsets[1], inputs.key_strides[1], inputs.key_strides[0]}};
}

template <class T>
__device__ Operand<T> from_line(const Operand<T>& operand, std::int64_t line) {
  return {operand.source + line * operand.line_stride, operand.step_stride, operand.line_stride};
}

template <int kPrecision, class T>
__device__ void dots_of(T* tile, T* stages, const Operand<T>& own, const Operand<T>& other, std::int64_t owns,
                        std::int64_t others, std::int64_t features) {
  if constexpr (kPrecision == kFull) {
    tile_dots(tile, stages, own, other, owns, others, features);
  } else {
    tensor_dots<kPrecision>(tile, stages, own, other, owns, others, features);
  }
}

template <int kPrecision, class T, class Visit>
__device__ void product_of(const T* tile, T* stages, const Operand<T>& matrix, std::int64_t owns, std::int64_t others,
                           std::int64_t lines, const Visit& visit) {
  if constexpr (kPrecision == kFull) {
    tile_product(tile, stages, matrix, owns, others, lines, visit);
  } else {
    tensor_product<kPrecision>(tile, stages, matrix, owns, others, lines, visit);
  }
}

// ---- Forward ----

// Merges exp of score(0 .. count - 1), without `skipped`, into (largest, sum). `turn` is where the thread begins in
// each group of four: lanes that walk along a row of the tile would meet in a bank otherwise.
template <class T, class Score>
__device__ void add_line(double& largest, double& sum, int count, std::int64_t skipped, int turn, const Score& score) {
  T highest = -INFINITY;
  for (int base = 0; base < count; base += 4) {
    for (int s = 0; s < 4; ++s) {
      const int x = base + ((s + turn) & 3);
      if (x < count && x != skipped) highest = maximum(score(x), highest);
    }
  }
  const T reference = highest == -INFINITY ? T(0) : highest;
  T sums[4] = {T(0), T(0), T(0), T(0)};
  for (int base = 0; base < count; base += 4) {
BITLENS_UNROLL
    for (int s = 0; s < 4; ++s) {
      const int x = base + ((s + turn) & 3);
      if (x < count && x != skipped) sums[s] += exponential(score(x) - reference);
    }
  }
  const double part = (static_cast<double>(sums[0]) + static_cast<double>(sums[1])) +
                      (static_cast<double>(sums[2]) + static_cast<double>(sums[3]));
  merge(largest, sum, static_cast<double>(highest), static_cast<double>(reference), part);
}

template <class T>
struct ForwardShared {
  static constexpr int kBytes =
      (Layout<T>::kTileValues + Layout<T>::kStagesValues + 2 * Layout<T>::kTile) * static_cast<int>(sizeof(T));
};

template <class T, int kPrecision>
__global__ void __launch_bounds__(Layout<T>::kThreads, 2)
    sum_tiles(Forward<T> arguments, ForwardPlan plan, Parts parts) {
  using L = Layout<T>;
  BITLENS_DYNAMIC_SHARED(T, tile);
  T* const stages = tile + L::kTileValues;
  T* const query_bias = stages + L::kStagesValues;
  T* const key_bias = query_bias + L::kTile;
  const Inputs<T>& inputs = arguments.inputs;
  const int thread = threadIdx.x;
  const bool has_row = thread < L::kTile;  // the other half of the threads have a column
  const int line = has_row ? thread : thread - L::kTile;
  const std::int64_t n = plan.rows.length, m = plan.columns.length;
  const std::int64_t row_begin = blockIdx.x * plan.rows.per_slab, column_begin = blockIdx.y * plan.columns.per_slab;
  const std::int64_t row_end = smaller(row_begin + plan.rows.per_slab, n);
  const std::int64_t column_end = smaller(column_begin + plan.columns.per_slab, m);

  for (std::int64_t b = blockIdx.z; b < plan.batch; b += gridDim.z) {
    const Item<T> item = item_of(inputs, b);
    const T scale = finite_or_nan(inputs.scale[b]);
    double* const row_largest = parts.row_largest + (blockIdx.y * plan.batch + b) * n;
    double* const row_sum = parts.row_sum + (blockIdx.y * plan.batch + b) * n;
    for (std::int64_t column = column_begin; column < column_end; column += L::kTile) {
      const int columns = static_cast<int>(smaller(L::kTile, column_end - column));
      double column_largest = -INFINITY, column_sum = 0.0;
      for (std::int64_t row = row_begin; row < row_end; row += L::kTile) {
        const int rows = static_cast<int>(smaller(L::kTile, row_end - row));
        dots_of<kPrecision>(tile, stages, from_line(item.query, row), from_line(item.key, column), rows, columns,
                            inputs.sizes.features);
        if (has_row && line < rows) {
          query_bias[line] = bias_or_nan(value_or(inputs.query_bias, b * n + row + line, T(0)));
        } else if (!has_row && line < columns) {
          key_bias[line] = bias_or_nan(value_or(inputs.key_bias, b * m + column + line, T(0)));
        }
        __syncthreads();
        const auto score = [&](int i, int j) {
          return scale * tile[j * L::kPitch + i] + (query_bias[i] + key_bias[j]);
        };
        if (has_row && line < rows) {
          const std::int64_t positive = positive_of(inputs, b, row + line) - column;
          const bool first = column == column_begin;
          double largest = first ? -INFINITY : row_largest[row + line];
          double sum = first ? 0.0 : row_sum[row + line];
          add_line<T>(largest, sum, columns, positive, 0, [&](int j) { return score(line, j); });
          row_largest[row + line] = largest;
          row_sum[row + line] = sum;
          if (positive >= 0 && positive < columns) {
            arguments.positive[b * n + row + line] = score(line, static_cast<int>(positive));
          }
        } else if (!has_row && line < columns) {
          add_line<T>(column_largest, column_sum, rows, -1, line / 8, [&](int i) { return score(i, line); });
        }
        __syncthreads();
      }
      if (!has_row && line < columns) {
        const std::int64_t at = (blockIdx.x * plan.batch + b) * m + column + line;
        parts.column_largest[at] = column_largest;
        parts.column_sum[at] = column_sum;
      }
    }
  }
}

__device__ std::int64_t flat_begin() { return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ std::int64_t flat_stride() { return static_cast<std::int64_t>(gridDim.x) * blockDim.x; }

__device__ void merge_parts(double& largest, double& sum, const double* part_largest, const double* part_sum,
                            std::int64_t slabs, std::int64_t stride, std::int64_t at) {
  for (std::int64_t slab = 0; slab < slabs; ++slab) {
    const double part = part_largest[slab * stride + at];
    merge(largest, sum, part, part, part_sum[slab * stride + at]);
  }
}

template <class T>
__global__ void __launch_bounds__(kFlatThreads) finish_rows(Forward<T> arguments, ForwardPlan plan, Parts parts) {
  const std::int64_t count = plan.batch * plan.rows.length;
  for (std::int64_t at = flat_begin(); at < count; at += flat_stride()) {
    double largest = -INFINITY, sum = 0.0;
    merge_parts(largest, sum, parts.row_largest, parts.row_sum, plan.columns.slabs, count, at);
    const std::int64_t column = positive_of(arguments.inputs, at / plan.rows.length, at % plan.rows.length);
    // A positive that is not a column leaves nothing to be left out: undefined.
    const bool inside = column >= 0 && column < plan.columns.length;
    const double positive = inside ? static_cast<double>(arguments.positive[at]) : NAN;
    arguments.positive[at] = static_cast<T>(positive);
    arguments.negatives[at] = static_cast<T>(inside ? log_sum(largest, sum) : NAN);
    merge(largest, sum, positive, positive, 1.0);
    arguments.row[at] = static_cast<T>(log_sum(largest, sum));
  }
}

template <class T>
__global__ void __launch_bounds__(kFlatThreads) finish_columns(Forward<T> arguments, ForwardPlan plan, Parts parts) {
  const std::int64_t count = plan.batch * plan.columns.length;
  for (std::int64_t at = flat_begin(); at < count; at += flat_stride()) {
    double largest = -INFINITY, sum = 0.0;
    merge_parts(largest, sum, parts.column_largest, parts.column_sum, plan.rows.slabs, count, at);
    arguments.column[at] = static_cast<T>(log_sum(largest, sum));
  }
}

// ---- Backward ----

// What the tiles need of the outputs and their gradients, a tile's length each.
template <class T>
struct Pull {
  std::int64_t* positive;
  T *query_bias, *negatives, *weight, *row, *grad_row, *grad_positive;
  T *key_bias, *column, *grad_column;
};

template <class T>
struct BackwardShared {
  static constexpr int kTile = Layout<T>::kTile;
  static constexpr int kHalves = (Layout<T>::kTileValues + Layout<T>::kStagesValues) * static_cast<int>(sizeof(T));
  static constexpr int kPositive = kHalves + 2 * kTile * 8;
  static constexpr int kVectors = kPositive + kTile * 8;
  static constexpr int kBytes = kVectors + 9 * kTile * static_cast<int>(sizeof(T));
};

template <class T>
__device__ Pull<T> pull_of(unsigned char* shared) {
  constexpr int kTile = Layout<T>::kTile;
  T* const first = reinterpret_cast<T*>(shared + BackwardShared<T>::kVectors);
  return {reinterpret_cast<std::int64_t*>(shared + BackwardShared<T>::kPositive),
          first,
          first + kTile,
          first + 2 * kTile,
          first + 3 * kTile,
          first + 4 * kTile,
          first + 5 * kTile,
          first + 6 * kTile,
          first + 7 * kTile,
          first + 8 * kTile};
}

template <class T>
__device__ void load_rows(const Pull<T>& pull, const Backward<T>& arguments, std::int64_t b, std::int64_t row,
                          int rows) {
  const int i = threadIdx.x;
  if (i >= rows) return;
  const std::int64_t at = b * arguments.inputs.sizes.queries + row + i;
  const double total = arguments.row[at], negatives = arguments.negatives[at];
  const T grad_row = value_or(arguments.grad_row, at, T(0));
  const double grad_negatives = value_or(arguments.grad_negatives, at, T(0));
  pull.positive[i] = positive_of(arguments.inputs, b, row + i);
  pull.query_bias[i] = bias_or_nan(value_or(arguments.inputs.query_bias, at, T(0)));
  pull.negatives[i] = static_cast<T>(negatives);
  pull.weight[i] = static_cast<T>(row_weight(negatives, total, grad_negatives, static_cast<double>(grad_row)));
  pull.row[i] = static_cast<T>(total);
  pull.grad_row[i] = grad_row;
  pull.grad_positive[i] = value_or(arguments.grad_positive, at, T(0));
}

template <class T>
__device__ void load_columns(const Pull<T>& pull, const Backward<T>& arguments, std::int64_t b, std::int64_t column,
                             int columns) {
  const int j = threadIdx.x;
  if (j >= columns) return;
  const std::int64_t at = b * arguments.inputs.sizes.keys + column + j;
  pull.key_bias[j] = bias_or_nan(value_or(arguments.inputs.key_bias, at, T(0)));
  // Without a gradient a column has no pull, whatever it holds.
  pull.column[j] = arguments.grad_column != nullptr ? arguments.column[at] : -INFINITY;
  pull.grad_column[j] = value_or(arguments.grad_column, at, T(0));
}

// Derivative of the loss in score (i, j) of the tile, whose first column is `column`.
template <class T>
__device__ T score_gradient(const Pull<T>& pull, T score, int i, int j, std::int64_t column) {
  if (pull.positive[i] == column + j) {
    return positive_gradient(score, pull.row[i], pull.column[j], pull.grad_positive[i], pull.grad_row[i],
                             pull.grad_column[j]);
  }
  return pull.weight[i] * share(score, pull.negatives[i]) + pull.grad_column[j] * share(score, pull.column[j]);
}

// The two halves of the block have seen each half of the other side: their sums together, for each own line.
__device__ void write_halves(double* target, double* halves, double sum, int tile, std::int64_t owns) {
  const int thread = threadIdx.x;
  halves[thread] = sum;
  __syncthreads();
  if (thread < tile && thread < owns) target[thread] = halves[thread] + halves[thread + tile];
  __syncthreads();
}

template <class T, bool kRowsOwn, int kPrecision>
__global__ void __launch_bounds__(Layout<T>::kThreads, 2)
    pull_tiles(Backward<T> arguments, SidePlan plan, SideParts<T> parts) {
  using L = Layout<T>;
  BITLENS_DYNAMIC_SHARED(unsigned char, shared);
  T* const tile = reinterpret_cast<T*>(shared);
  T* const stages = tile + L::kTileValues;
  double* const halves = reinterpret_cast<double*>(shared + BackwardShared<T>::kHalves);
  const Pull<T> pull = pull_of<T>(shared);
  const Inputs<T>& inputs = arguments.inputs;
  const std::int64_t features = inputs.sizes.features;
  const int own = threadIdx.x % L::kTile, half = threadIdx.x / L::kTile;
  const std::int64_t first_own = static_cast<std::int64_t>(blockIdx.x) * L::kTile;
  const int owns = static_cast<int>(smaller(L::kTile, plan.length - first_own));
  const std::int64_t begin = blockIdx.y * plan.other_per_segment;
  const std::int64_t end = smaller(begin + plan.other_per_segment, plan.other_length);

  for (std::int64_t b = blockIdx.z; b < plan.batch; b += gridDim.z) {
    const Item<T> item = item_of(inputs, b);
    const Operand<T> own_lines = from_line(kRowsOwn ? item.query : item.key, first_own);
    const T scale = finite_or_nan(inputs.scale[b]);
    const std::int64_t at = (blockIdx.y * plan.batch + b) * plan.length + first_own;
    double own_sum = 0.0, own_dots = 0.0;
    if (kRowsOwn) {
      load_rows(pull, arguments, b, first_own, owns);
    } else {
      load_columns(pull, arguments, b, first_own, owns);
    }
    for (std::int64_t other = begin; other < end; other += L::kTile) {
      const int others = static_cast<int>(smaller(L::kTile, end - other));
      const Operand<T> other_lines = from_line(kRowsOwn ? item.key : item.query, other);
      if (kRowsOwn) {
        load_columns(pull, arguments, b, other, others);
      } else {
        load_rows(pull, arguments, b, other, others);
      }
      dots_of<kPrecision>(tile, stages, own_lines, other_lines, owns, others, features);
      __syncthreads();

      T sum = T(0), dots = T(0);
      const int last = (others + kStep - 1) / kStep * kStep;  // filled up with zeros for the product
      for (int x = half * (L::kTile / 2); x < (half + 1) * (L::kTile / 2) && x < last; ++x) {
        T* const place = tile + x * L::kPitch + own;
        T value = T(0);
        if (own < owns && x < others) {
          const int i = kRowsOwn ? own : x, j = kRowsOwn ? x : own;
          const T dot = *place;
          value = score_gradient(pull, scale * dot + (pull.query_bias[i] + pull.key_bias[j]), i, j,
                                 kRowsOwn ? other : first_own);
          sum += value;
          dots += value * dot;
        }
        *place = value;
      }
      own_sum += static_cast<double>(sum);
      own_dots += static_cast<double>(dots);
      __syncthreads();

      for (std::int64_t feature = 0; parts.matrix != nullptr && feature < features; feature += L::kTile) {
        const Operand<T> matrix = {other_lines.source + feature * other_lines.step_stride, other_lines.line_stride,
                                   other_lines.step_stride};
        T* const target = parts.matrix + at * features + feature;
        product_of<kPrecision>(tile, stages, matrix, owns, others, smaller(L::kTile, features - feature),
                               [&](int i, int k, T value) {
                                 T& place = target[i * features + k];
                                 place = other == begin ? value : place + value;
                               });
        __syncthreads();
      }
      __syncthreads();
    }
    write_halves(parts.scores + at, halves, own_sum, L::kTile, owns);
    if (kRowsOwn) write_halves(parts.dots + at, halves, own_dots, L::kTile, owns);
  }
}

// output = scale * sum over segments, the first of which may be the output itself.
template <class T>
__global__ void __launch_bounds__(kFlatThreads)
    finish_matrix(T* output, const T* parts, const T* scales, std::int64_t segments, std::int64_t per_item,
                  std::int64_t count) {
  for (std::int64_t at = flat_begin(); at < count; at += flat_stride()) {
    double sum = 0.0;
    for (std::int64_t segment = 0; segment < segments; ++segment) {
      sum += static_cast<double>(parts[segment * count + at]);
    }
    output[at] = static_cast<T>(finite_or_nan(static_cast<double>(scales[at / per_item])) * sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kFlatThreads)
    finish_bias(T* output, const double* parts, std::int64_t segments, std::int64_t count) {
  for (std::int64_t at = flat_begin(); at < count; at += flat_stride()) {
    double sum = 0.0;
    for (std::int64_t segment = 0; segment < segments; ++segment) sum += parts[segment * count + at];
    output[at] = static_cast<T>(sum);
  }
}

// A block per batch item adds up what its rows pull on the scale.
template <class T>
__global__ void __launch_bounds__(kFlatThreads) finish_scale(T* output, const double* dots, SidePlan plan) {
  BITLENS_DYNAMIC_SHARED(double, sums);  // [kFlatThreads]
  for (std::int64_t b = blockIdx.x; b < plan.batch; b += gridDim.x) {
    double sum = 0.0;
    for (std::int64_t segment = 0; segment < plan.segments; ++segment) {
      for (std::int64_t i = threadIdx.x; i < plan.length; i += kFlatThreads) {
        sum += dots[(segment * plan.batch + b) * plan.length + i];
      }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned half = kFlatThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) output[b] = static_cast<T>(sums[0]);
    __syncthreads();
  }
}

// ---- Launches ----

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("infonce_scores: ") + cudaGetErrorString(status));
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, std::uintptr_t stream,
            Parameters... parameters) {
  // Above 48 KiB a kernel has to ask. The tiles need 91 KiB; compute capability 7.5 has 64.
  if (shared_bytes > 48 << 10 &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) != cudaSuccess) {
    throw std::runtime_error("infonce_scores: need a GPU of compute capability 8.0 or later, or another backend");
  }
  BITLENS_LAUNCH(kernel, grid, dim3(threads), shared_bytes, reinterpret_cast<cudaStream_t>(stream), parameters...);
  check(cudaGetLastError());
}

bool has_tensor_cores() {
#if defined(__CUDACC__)
  int device = 0, major = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major >= 8;
#else
  return true;
#endif
}

// Calls run(std::integral_constant<int, precision>) for the precision of the products: that of the inputs where T or
// the device has no other.
template <class T, class Run>
void for_precision(int precision, const Run& run) {
  if constexpr (sizeof(T) == 4) {
    if (precision != kFull && has_tensor_cores()) {
      if (precision == kTf32) return run(std::integral_constant<int, kTf32>());
      return run(std::integral_constant<int, kBfloat16>());
    }
  }
  run(std::integral_constant<int, kFull>());
}

unsigned extent(std::int64_t blocks) { return static_cast<unsigned>(std::min(blocks, kMaxGrid)); }

dim3 flat_grid(std::int64_t count) { return dim3(extent((count + kFlatThreads - 1) / kFlatThreads)); }

template <class T>
void run_forward(const Forward<T>& arguments, std::uintptr_t stream) {
  using L = Layout<T>;
  const ForwardPlan plan = forward_plan(arguments.inputs.sizes, L::kTile);
  const Parts parts = parts_of(plan, arguments.workspace);
  const std::int64_t rows = plan.batch * plan.rows.length, columns = plan.batch * plan.columns.length;
  if (plan.batch == 0) return;
  if (plan.rows.slabs > 0 && plan.columns.slabs > 0) {
    const dim3 grid(static_cast<unsigned>(plan.rows.slabs), static_cast<unsigned>(plan.columns.slabs),
                    extent(plan.batch));
    for_precision<T>(arguments.inputs.precision, [&](auto precision) {
      launch(sum_tiles<T, decltype(precision)::value>, grid, L::kThreads, ForwardShared<T>::kBytes, stream, arguments,
             plan, parts);
    });
  }
  if (rows > 0) launch(finish_rows<T>, flat_grid(rows), kFlatThreads, 0, stream, arguments, plan, parts);
  if (columns > 0) launch(finish_columns<T>, flat_grid(columns), kFlatThreads, 0, stream, arguments, plan, parts);
}

template <bool kRowsOwn, class T>
void run_side(const Backward<T>& arguments, const SidePlan& plan, const SideParts<T>& parts, std::uintptr_t stream) {
  using L = Layout<T>;
  const std::int64_t count = plan.batch * plan.length, features = arguments.inputs.sizes.features;
  T* const matrix = kRowsOwn ? arguments.query : arguments.key;
  T* const bias = kRowsOwn ? arguments.query_bias : arguments.key_bias;
  T* const scale = kRowsOwn ? arguments.scale : nullptr;
  if (matrix == nullptr && bias == nullptr && scale == nullptr) return;
  if (count > 0 && plan.segments > 0) {
    const dim3 grid(static_cast<unsigned>((plan.length + L::kTile - 1) / L::kTile),
                    static_cast<unsigned>(plan.segments), extent(plan.batch));
    for_precision<T>(arguments.inputs.precision, [&](auto precision) {
      launch(pull_tiles<T, kRowsOwn, decltype(precision)::value>, grid, L::kThreads, BackwardShared<T>::kBytes, stream,
             arguments, plan, parts);
    });
  }
  if (matrix != nullptr && count * features > 0) {
    const T* const sums = parts.matrix;
    launch(finish_matrix<T>, flat_grid(count * features), kFlatThreads, 0, stream, matrix, sums,
           arguments.inputs.scale, plan.segments, plan.length * features, count * features);
  }
  const double *const scores = parts.scores, *const dots = parts.dots;
  if (bias != nullptr && count > 0) {
    launch(finish_bias<T>, flat_grid(count), kFlatThreads, 0, stream, bias, scores, plan.segments, count);
  }
  if (scale != nullptr) {
    launch(finish_scale<T>, dim3(extent(plan.batch)), kFlatThreads, kFlatThreads * 8, stream, scale, dots, plan);
  }
}

template <class T>
void run_backward(const Backward<T>& arguments, std::uintptr_t stream) {
  const Sizes& sizes = arguments.inputs.sizes;
  if (sizes.batch == 0) return;
  const SidePlan rows = side_plan(sizes.queries, sizes.keys, sizes.batch, Layout<T>::kTile);
  const SidePlan columns = side_plan(sizes.keys, sizes.queries, sizes.batch, Layout<T>::kTile);
  double* next = static_cast<double*>(arguments.workspace);
  SideParts<T> row_parts{}, column_parts{};
  row_parts.scores = next;
  row_parts.dots = next + side_values(rows);
  column_parts.scores = row_parts.dots + side_values(rows);
  // The sides run one after the other, so they share the space of the matrix.
  T* const matrix = reinterpret_cast<T*>(column_parts.scores + side_values(columns));
  if (arguments.query != nullptr) row_parts.matrix = rows.segments > 1 ? matrix : arguments.query;
  if (arguments.key != nullptr) column_parts.matrix = columns.segments > 1 ? matrix : arguments.key;
  run_side<true>(arguments, rows, row_parts, stream);
  run_side<false>(arguments, columns, column_parts, stream);
}

}  // namespace

namespace cuda {

std::int64_t workspace_bytes(const Sizes& sizes, int value_bytes, bool backward, bool query, bool key) {
  const std::int64_t tile = value_bytes == 4 ? Layout<float>::kTile : Layout<double>::kTile;
  if (!backward) {
    const ForwardPlan plan = forward_plan(sizes, tile);
    return 16 * (row_parts(plan) + column_parts(plan));
  }
  const SidePlan rows = side_plan(sizes.queries, sizes.keys, sizes.batch, tile);
  const SidePlan columns = side_plan(sizes.keys, sizes.queries, sizes.batch, tile);
  return 16 * side_values(rows) + 8 * side_values(columns) +
         std::max(matrix_bytes(rows, sizes.features, value_bytes, query),
                  matrix_bytes(columns, sizes.features, value_bytes, key));
}

void forward(const Forward<float>& arguments, std::uintptr_t stream) { run_forward(arguments, stream); }
void forward(const Forward<double>& arguments, std::uintptr_t stream) { run_forward(arguments, stream); }
void backward(const Backward<float>& arguments, std::uintptr_t stream) { run_backward(arguments, stream); }
void backward(const Backward<double>& arguments, std::uintptr_t stream) { run_backward(arguments, stream); }

}  // namespace cuda

}  // namespace infonce_scores
}  // namespace bitlens
