// Products of a square tile by one block of threads: operands go through shared memory a few steps at a time, the
// next steps are fetched while the present ones are multiplied, and each thread holds a small part in registers.
//
// The tile lies in shared memory as [other][own]: a block owns the rows (or columns) `own` of the score matrix and
// walks the `other` ones. So the threads of a warp, which hold neighbouring own ones, never meet in a bank.
#pragma once

#include "../../common/portable.h"
#include "kernel.h"
#include "math.h"

namespace bitlens {
namespace infonce_scores {
namespace cuda_tile {

using scalar::infonce::finite_or_nan;

// Two blocks of floats fit an H200's registers and shared memory (91 KiB each at most); a tile of doubles has half the side.
template <class T>
struct Shape;
template <>
struct Shape<float> {
  static constexpr int kTile = 128, kOwnThreads = 16, kOtherThreads = 16;
};
template <>
struct Shape<double> {
  static constexpr int kTile = 64, kOwnThreads = 8, kOtherThreads = 16;
};

constexpr int kStep = 8;
// Products that are added up in a register before they join the tile.
constexpr int kDepth = 256;

template <class T>
struct Layout : Shape<T> {
  using Shape<T>::kTile;
  using Shape<T>::kOwnThreads;
  using Shape<T>::kOtherThreads;
  static constexpr int kThreads = kOwnThreads * kOtherThreads;
  static constexpr int kOwn = kTile / kOwnThreads, kOther = kTile / kOtherThreads;  // per thread
  static constexpr int kVector = 16 / sizeof(T);                                    // values of one wide load
  static constexpr int kPitch = kTile + kVector;  // keeps the wide loads aligned and spreads columns over the banks
  static constexpr int kFetched = kTile * kStep / kThreads;
  static constexpr int kStage = kStep * kPitch;
  static constexpr int kTileValues = kTile * kPitch, kStagesValues = 4 * kStage + kTile;
  static_assert(kThreads == 2 * kTile, "a thread for each row and each column");
};

template <class T>
struct alignas(16) Vector {
  T values[16 / sizeof(T)];
};

// Values (step, line) at source[step * step_stride + line * line_stride].
template <class T>
struct Operand {
  const T* source;
  std::int64_t step_stride, line_stride;
};

// This thread's share of kStep steps of kTile lines, along the axis whose neighbours lie closer; 0 outside.
template <class T>
__device__ void fetch(T (&values)[Layout<T>::kFetched], const Operand<T>& operand, std::int64_t first_step,
                      std::int64_t steps, std::int64_t lines) {
  const bool along_steps = operand.step_stride <= operand.line_stride;
  BITLENS_UNROLL
  for (int q = 0; q < Layout<T>::kFetched; ++q) {
    const int element = threadIdx.x + q * Layout<T>::kThreads;
    const int step = along_steps ? element % kStep : element / Layout<T>::kTile;
    const int line = along_steps ? element / kStep : element % Layout<T>::kTile;
    values[q] = T(0);
    if (first_step + step < steps && line < lines) {
      values[q] = finite_or_nan(
          operand.source[(first_step + step) * operand.step_stride + line * operand.line_stride]);
    }
  }
}

// Calls visit(step, line, value) for what this thread fetched.
template <class T, class Visit>
__device__ void for_each_fetched(const T (&values)[Layout<T>::kFetched], const Operand<T>& operand,
                                 const Visit& visit) {
  const bool along_steps = operand.step_stride <= operand.line_stride;
  BITLENS_UNROLL
  for (int q = 0; q < Layout<T>::kFetched; ++q) {
    const int element = threadIdx.x + q * Layout<T>::kThreads;
    visit(along_steps ? element % kStep : element / Layout<T>::kTile,
          along_steps ? element / kStep : element % Layout<T>::kTile, values[q]);
  }
}

template <class T>
__device__ void put(T* stage, const T (&values)[Layout<T>::kFetched], const Operand<T>& operand) {
  for_each_fetched(values, operand, [&](int step, int line, T value) { stage[step * Layout<T>::kPitch + line] = value; });
}

// Line of the tile that a thread's r-th value belongs to, of `threads` threads along that side.
template <class T>
__device__ int line_of(int thread, int threads, int r) {
  return r / Layout<T>::kVector * (threads * Layout<T>::kVector) + thread * Layout<T>::kVector +
         r % Layout<T>::kVector;
}

template <class T>
using Sums = T[Layout<T>::kOwn][Layout<T>::kOther];

template <class T, int kCount>
__device__ void load_lines(T (&target)[kCount], const T* lines, int thread, int threads) {
  constexpr int kVector = Layout<T>::kVector;
BITLENS_UNROLL
  for (int r = 0; r < kCount; r += kVector) {
    const auto vector = *reinterpret_cast<const Vector<T>*>(lines + line_of<T>(thread, threads, r));
BITLENS_UNROLL
    for (int v = 0; v < kVector; ++v) target[r + v] = vector.values[v];
  }
}

// sums[own][other] += sum over kStep steps of own_lines[step][own] other_lines[step][other].
template <class T>
__device__ void multiply(Sums<T>& sums, const T* own_lines, const T* other_lines) {
  using L = Layout<T>;
  const int own_thread = threadIdx.x / L::kOtherThreads, other_thread = threadIdx.x % L::kOtherThreads;
BITLENS_UNROLL
  for (int step = 0; step < kStep; ++step) {
    T own[L::kOwn], other[L::kOther];
    load_lines(own, own_lines + step * L::kPitch, own_thread, L::kOwnThreads);
    load_lines(other, other_lines + step * L::kPitch, other_thread, L::kOtherThreads);
BITLENS_UNROLL
    for (int r = 0; r < L::kOwn; ++r) {
BITLENS_UNROLL
      for (int c = 0; c < L::kOther; ++c) sums[r][c] += own[r] * other[c];
    }
  }
}

// Whether this thread holds anything of the first `own` by `other` lines.
template <class T>
__device__ bool takes_part(std::int64_t own, std::int64_t other) {
  using L = Layout<T>;
  return line_of<T>(threadIdx.x / L::kOtherThreads, L::kOwnThreads, 0) < own &&
         line_of<T>(threadIdx.x % L::kOtherThreads, L::kOtherThreads, 0) < other;
}

// Calls visit(own, other, sum) for every value that this thread holds.
template <class T, class Visit>
__device__ void for_each_sum(const Sums<T>& sums, const Visit& visit) {
  using L = Layout<T>;
BITLENS_UNROLL
  for (int c = 0; c < L::kOther; ++c) {
BITLENS_UNROLL
    for (int r = 0; r < L::kOwn; ++r) {
      visit(line_of<T>(threadIdx.x / L::kOtherThreads, L::kOwnThreads, r),
            line_of<T>(threadIdx.x % L::kOtherThreads, L::kOtherThreads, c), sums[r][c]);
    }
  }
}

template <class T>
__device__ void clear(Sums<T>& sums) {
BITLENS_UNROLL
  for (int r = 0; r < Layout<T>::kOwn; ++r) {
BITLENS_UNROLL
    for (int c = 0; c < Layout<T>::kOther; ++c) sums[r][c] = T(0);
  }
}

// tile[other][own] = dot products of `own` and `other` lines over all steps. The block has met since the tile and the
// stages were read, and has to meet again before this tile is read.
template <class T>
__device__ void tile_dots(T* tile, T* stages, const Operand<T>& own, const Operand<T>& other, std::int64_t owns,
                          std::int64_t others, std::int64_t steps) {
  using L = Layout<T>;
  const bool active = takes_part<T>(owns, others);
  Sums<T> sums;
  clear<T>(sums);
  T own_values[L::kFetched], other_values[L::kFetched];
  fetch(own_values, own, 0, steps, owns);
  fetch(other_values, other, 0, steps, others);
  bool joined = false;
  for (std::int64_t step = 0; step < steps; step += kStep) {
    T* const own_stage = stages + (step / kStep % 2) * 2 * L::kStage;
    T* const other_stage = own_stage + L::kStage;
    put(own_stage, own_values, own);
    put(other_stage, other_values, other);
    // One meeting a round is enough: the stage written next was read before it.
    __syncthreads();
    if (step + kStep < steps) {
      fetch(own_values, own, step + kStep, steps, owns);
      fetch(other_values, other, step + kStep, steps, others);
    }
    if (active) multiply<T>(sums, own_stage, other_stage);
    if ((step + kStep) % kDepth == 0 && step + kStep < steps && active) {
      for_each_sum<T>(sums, [&](int i, int j, T sum) {
        tile[j * L::kPitch + i] = joined ? tile[j * L::kPitch + i] + sum : sum;
      });
      clear<T>(sums);
      joined = true;
    }
  }
  if (!active) return;
  for_each_sum<T>(sums, [&](int i, int j, T sum) {
    tile[j * L::kPitch + i] = joined ? tile[j * L::kPitch + i] + sum : sum;
  });
}

// Calls visit(own, line, sum) with sum = sum over others of tile[other][own] matrix(other, line), for the `lines` (at
// most kTile) lines of `matrix`. The tile is 0 in the others that fill up the last kStep.
template <class T, class Visit>
__device__ void tile_product(const T* tile, T* stages, const Operand<T>& matrix, std::int64_t owns,
                             std::int64_t others, std::int64_t lines, const Visit& visit) {
  using L = Layout<T>;
  const bool active = takes_part<T>(owns, lines);
  Sums<T> sums;
  clear<T>(sums);
  T values[L::kFetched];
  fetch(values, matrix, 0, others, lines);
  for (std::int64_t step = 0; step < others; step += kStep) {
    T* const stage = stages + step / kStep % 2 * L::kStage;
    put(stage, values, matrix);
    __syncthreads();
    if (step + kStep < others) fetch(values, matrix, step + kStep, others, lines);
    if (active) multiply<T>(sums, tile + step * L::kPitch, stage);
  }
  if (!active) return;
  for_each_sum<T>(sums, [&](int i, int line, T sum) {
    if (i < owns && line < lines) visit(i, line, sum);
  });
}

}  // namespace cuda_tile
}  // namespace infonce_scores
}  // namespace bitlens
