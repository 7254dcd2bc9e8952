// CUDA's warp matrix functions: every lane holds a whole fragment and works out all of it. So places, strides and
// roundings of the operands are checked; which lane holds what, alignment beyond 16 bytes and the order of the
// sums are not. A lane whose warp diverges shows elsewhere, at the next barrier.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_on_cpu.h"

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32;
}

template <class Use, int M, int N, int K>
struct Extent;
template <int M, int N, int K>
struct Extent<matrix_a, M, N, K> {
  static constexpr int rows = M, columns = K;
};
template <int M, int N, int K>
struct Extent<matrix_b, M, N, K> {
  static constexpr int rows = K, columns = N;
};
template <int M, int N, int K>
struct Extent<accumulator, M, N, K> {
  static constexpr int rows = M, columns = N;
};

template <class Use, int M, int N, int K, class Element, class Order = void>
struct fragment : Extent<Use, M, N, K> {
  float values[Extent<Use, M, N, K>::rows][Extent<Use, M, N, K>::columns];
};

// To 11 significant bits, ties away from zero.
inline float __float_to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7F800000) != 0x7F800000) bits = (bits + 0x1000) & ~0x1FFFu;
  std::memcpy(&value, &bits, 4);
  return value;
}

// The hardware ignores the low bits of an operand in tf32.
template <class Element>
float operand(float value) {
  static_assert(std::is_same_v<Element, precision::tf32>, "a float fragment is one of tf32");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits &= ~0x1FFFu;
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class Element>
float operand(__nv_bfloat16 value) {
  static_assert(std::is_same_v<Element, __nv_bfloat16>, "a bfloat16 fragment");
  return __bfloat162float(value);
}

// A stride of whole 16 bytes, as the functions ask for. They ask for addresses of whole 32 bytes; the emulated shared
// memory itself begins at 16.
template <class Memory>
void check_place(const Memory* memory, unsigned stride) {
  if (stride * sizeof(Memory) % 16 || reinterpret_cast<uintptr_t>(memory) % 16)
    throw std::runtime_error("a fragment in memory needs a stride of whole 16 bytes and an aligned address");
}

template <class Use, int M, int N, int K, class Element, class Order, class Memory>
void load_matrix_sync(fragment<Use, M, N, K, Element, Order>& target, const Memory* memory, unsigned stride) {
  check_place(memory, stride);
  constexpr bool by_row = std::is_same_v<Order, row_major>;
  for (int i = 0; i < target.rows; ++i)
    for (int j = 0; j < target.columns; ++j)
      target.values[i][j] = operand<Element>(memory[by_row ? i * stride + j : j * stride + i]);
}

template <int M, int N, int K>
void store_matrix_sync(float* memory, const fragment<accumulator, M, N, K, float>& source, unsigned stride,
                       layout_t layout) {
  check_place(memory, stride);
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j)
      memory[layout == mem_row_major ? i * stride + j : j * stride + i] = source.values[i][j];
}

template <int M, int N, int K>
void fill_fragment(fragment<accumulator, M, N, K, float>& target, float value) {
  for (auto& row : target.values)
    for (float& element : row) element = value;
}

template <int M, int N, int K, class Element, class OrderA, class OrderB>
void mma_sync(fragment<accumulator, M, N, K, float>& d, const fragment<matrix_a, M, N, K, Element, OrderA>& a,
              const fragment<matrix_b, M, N, K, Element, OrderB>& b,
              const fragment<accumulator, M, N, K, float>& c) {
  for (int i = 0; i < M; ++i) {
    float sums[N];
    for (int j = 0; j < N; ++j) sums[j] = c.values[i][j];
    for (int k = 0; k < K; ++k)
      for (int j = 0; j < N; ++j) sums[j] += a.values[i][k] * b.values[k][j];
    for (int j = 0; j < N; ++j) d.values[i][j] = sums[j];
  }
}

}  // namespace wmma
}  // namespace nvcuda
