// The products of cuda_tile.h on tensor cores, for floats: operands rounded to tf32 or bfloat16, sums in float. For
// compute capability 8.0 and later.
#pragma once

#include "cuda_tile.h"

#include <cuda_bf16.h>
#include <mma.h>

#include <type_traits>

#if defined(BITLENS_CUDA_ON_CPU) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
#define BITLENS_TENSOR_CORES
#endif

namespace bitlens {
namespace infonce_scores {
namespace cuda_tile {

template <int kPrecision>
struct Tensor;
template <>
struct Tensor<kTf32> {
  using Staged = float;
  static constexpr int kSteps = 8, kPitch = Layout<float>::kPitch;
};
template <>
struct Tensor<kBfloat16> {
  using Staged = __nv_bfloat16;
  static constexpr int kSteps = 16, kPitch = Layout<float>::kTile + 8;
};
static_assert(4 * Tensor<kTf32>::kSteps * Tensor<kTf32>::kPitch * 4 <= Layout<float>::kStagesValues * 4, "tf32 stages");
static_assert(4 * Tensor<kBfloat16>::kSteps * Tensor<kBfloat16>::kPitch * 2 <= Layout<float>::kStagesValues * 4,
              "bfloat16 stages");

#if defined(BITLENS_TENSOR_CORES)

// Eight warps share a tile: each holds 2 x 4 squares of 16.
constexpr int kSquare = 16, kOwnSquares = 2, kOtherSquares = 4, kOwnWarps = 4;

template <int kPrecision>
using TensorSums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kSquare, kSquare, Tensor<kPrecision>::kSteps,
                                          float>[kOwnSquares][kOtherSquares];

__device__ inline void convert(float& target, float value) { target = nvcuda::wmma::__float_to_tf32(value); }
__device__ inline void convert(__nv_bfloat16& target, float value) { target = __float2bfloat16(value); }

__device__ inline int own_line(int square) { return (threadIdx.x / 32 % kOwnWarps * kOwnSquares + square) * kSquare; }
__device__ inline int other_line(int square) {
  return (threadIdx.x / 32 / kOwnWarps * kOtherSquares + square) * kSquare;
}

// Fetches and puts in pieces of cuda_tile's kStep.
template <int kPrecision>
struct Fetched {
  static constexpr int kPieces = Tensor<kPrecision>::kSteps / kStep;
  float values[kPieces][Layout<float>::kFetched];

  __device__ void fetch(const Operand<float>& operand, std::int64_t first, std::int64_t steps, std::int64_t lines) {
    BITLENS_UNROLL
    for (int piece = 0; piece < kPieces; ++piece) {
      cuda_tile::fetch(values[piece], operand, first + piece * kStep, steps, lines);
    }
  }

  __device__ void put(typename Tensor<kPrecision>::Staged* stage, const Operand<float>& operand) const {
    BITLENS_UNROLL
    for (int piece = 0; piece < kPieces; ++piece) {
      for_each_fetched(values[piece], operand, [&](int step, int line, float value) {
        convert(stage[(piece * kStep + step) * Tensor<kPrecision>::kPitch + line], value);
      });
    }
  }
};

template <int kPrecision>
__device__ void tensor_sums(TensorSums<kPrecision>& sums, float* stages, const Operand<float>& own,
                            const Operand<float>& other, std::int64_t owns, std::int64_t others, std::int64_t steps) {
  namespace wmma = nvcuda::wmma;
  using P = Tensor<kPrecision>;
  using Element = std::conditional_t<kPrecision == kTf32, wmma::precision::tf32, __nv_bfloat16>;
  constexpr int kStage = P::kSteps * P::kPitch;
  BITLENS_UNROLL
  for (int r = 0; r < kOwnSquares; ++r) {
    BITLENS_UNROLL
    for (int c = 0; c < kOtherSquares; ++c) wmma::fill_fragment(sums[r][c], 0.0f);
  }
  Fetched<kPrecision> own_values, other_values;
  own_values.fetch(own, 0, steps, owns);
  other_values.fetch(other, 0, steps, others);
  for (std::int64_t step = 0; step < steps; step += P::kSteps) {
    auto* const own_stage = reinterpret_cast<typename P::Staged*>(stages) + step / P::kSteps % 2 * 2 * kStage;
    auto* const other_stage = own_stage + kStage;
    own_values.put(own_stage, own);
    other_values.put(other_stage, other);
    __syncthreads();
    if (step + P::kSteps < steps) {
      own_values.fetch(own, step + P::kSteps, steps, owns);
      other_values.fetch(other, step + P::kSteps, steps, others);
    }
    wmma::fragment<wmma::matrix_a, kSquare, kSquare, P::kSteps, Element, wmma::col_major> a[kOwnSquares];
    BITLENS_UNROLL
    for (int r = 0; r < kOwnSquares; ++r) wmma::load_matrix_sync(a[r], own_stage + own_line(r), P::kPitch);
    BITLENS_UNROLL
    for (int c = 0; c < kOtherSquares; ++c) {
      wmma::fragment<wmma::matrix_b, kSquare, kSquare, P::kSteps, Element, wmma::row_major> b;
      wmma::load_matrix_sync(b, other_stage + other_line(c), P::kPitch);
      BITLENS_UNROLL
      for (int r = 0; r < kOwnSquares; ++r) wmma::mma_sync(sums[r][c], a[r], b, sums[r][c]);
    }
  }
}

#endif

// As tile_dots.
template <int kPrecision>
__device__ void tensor_dots(float* tile, float* stages, const Operand<float>& own, const Operand<float>& other,
                            std::int64_t owns, std::int64_t others, std::int64_t steps) {
#if defined(BITLENS_TENSOR_CORES)
  TensorSums<kPrecision> sums;
  tensor_sums<kPrecision>(sums, stages, own, other, owns, others, steps);
  BITLENS_UNROLL
  for (int r = 0; r < kOwnSquares; ++r) {
    BITLENS_UNROLL
    for (int c = 0; c < kOtherSquares; ++c) {
      nvcuda::wmma::store_matrix_sync(tile + other_line(c) * Layout<float>::kPitch + own_line(r), sums[r][c],
                                      Layout<float>::kPitch, nvcuda::wmma::mem_col_major);
    }
  }
#endif
}

// As tile_product; the tile is rounded too.
template <int kPrecision, class Visit>
__device__ void tensor_product(const float* tile, float* stages, const Operand<float>& matrix, std::int64_t owns,
                               std::int64_t others, std::int64_t lines, const Visit& visit) {
#if defined(BITLENS_TENSOR_CORES)
  TensorSums<kPrecision> sums;
  tensor_sums<kPrecision>(sums, stages, {tile, Layout<float>::kPitch, 1}, matrix, owns, lines, others);
  __syncthreads();
  // Which lane holds what of a square is not defined, so each passes through the warp's part of the stages.
  constexpr int kScratchPitch = kSquare + 4;
  float* const scratch = stages + threadIdx.x / 32 * (kSquare * kScratchPitch);
  BITLENS_UNROLL
  for (int r = 0; r < kOwnSquares; ++r) {
    BITLENS_UNROLL
    for (int c = 0; c < kOtherSquares; ++c) {
      nvcuda::wmma::store_matrix_sync(scratch, sums[r][c], kScratchPitch, nvcuda::wmma::mem_row_major);
      __syncwarp();
      for (int element = threadIdx.x % 32; element < kSquare * kSquare; element += 32) {
        const int i = own_line(r) + element / kSquare, line = other_line(c) + element % kSquare;
        if (i < owns && line < lines) visit(i, line, scratch[element / kSquare * kScratchPitch + element % kSquare]);
      }
      __syncwarp();
    }
  }
#endif
}

}  // namespace cuda_tile
}  // namespace infonce_scores
}  // namespace bitlens
