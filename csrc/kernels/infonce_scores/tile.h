// Products of small matrices held in registers: the one place where a tile of scores and its gradients are multiplied.
#pragma once

#include <stdint.h>

#include "../../common/simd.h"
#include "../../common/simd_float.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace infonce {

// Rows of the register block; with two vectors a row the accumulators fill the register file but for the operands.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisterRows = 8;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisterRows = 6;
#else
constexpr int kVectorBytes = 16, kRegisterRows = 4;
#endif
// Queries and keys of a tile: a multiple of every register block and of every pack.
constexpr int64_t kTile = 96;
// Products that are added up before they join a sum of sums: rounding grows with either, not with all.
constexpr int64_t kDepth = 128;

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes), aligned(4)));
  typedef FloatPack Pack;  // for the elementary functions
  static constexpr int width = kVectorBytes / 4;
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes), aligned(8)));
  typedef ::bitlens::BITLENS_ISA::Pack Pack;
  static constexpr int width = kVectorBytes / 8;
};

template <class T>
BITLENS_FUNCTION typename Lanes<T>::Pack load(const T* source) {
  return *(const typename Lanes<T>::Vector*)source;
}

template <class T>
BITLENS_FUNCTION void store(T* target, typename Lanes<T>::Pack value) {
  *(typename Lanes<T>::Vector*)target = value;
}

BITLENS_FUNCTION int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// sums[r][v] = sum over k of a[r a_row + k a_step] b[k b_step + v-th vector], in the order of k.
template <int Vectors, class T>
BITLENS_FUNCTION void multiply(typename Lanes<T>::Vector (&sums)[kRegisterRows][Vectors], int64_t depth, const T* a,
                               int64_t a_row, int64_t a_step, const T* b, int64_t b_step) {
  using Vector = typename Lanes<T>::Vector;
  for (int r = 0; r < kRegisterRows; ++r) {
    for (int v = 0; v < Vectors; ++v) sums[r][v] = Vector{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector right[Vectors];
    for (int v = 0; v < Vectors; ++v) right[v] = *(const Vector*)(b + k * b_step + v * Lanes<T>::width);
    for (int r = 0; r < kRegisterRows; ++r) {
      const T left = a[r * a_row + k * a_step];
      for (int v = 0; v < Vectors; ++v) sums[r][v] += left * right[v];
    }
  }
}

// Columns of a panel of transposed keys: panel p holds keys p * width .. as [d][width].
template <class T>
BITLENS_FUNCTION constexpr int64_t panel_width() {
  return 2 * Lanes<T>::width;
}

// dots[i * kTile + j] = queries[i] . keys[j] for a tile; rows and columns are rounded up to whole register blocks.
template <class T>
BITLENS_FUNCTION void tile_dots(T* dots, const T* queries, int64_t query_step, const T* panels, int64_t features,
                                int64_t rows, int64_t columns) {
  constexpr int64_t width = panel_width<T>();
  int64_t done = 0;
  do {
    const int64_t depth = features - done < kDepth ? features - done : kDepth;
    for (int64_t j = 0; j < columns; j += width) {
      for (int64_t i = 0; i < rows; i += kRegisterRows) {
        typename Lanes<T>::Vector sums[kRegisterRows][2];
        multiply<2>(sums, depth, queries + i * query_step + done, query_step, int64_t{1},
                    panels + j * features + done * width, width);
        for (int r = 0; r < kRegisterRows; ++r) {
          for (int v = 0; v < 2; ++v) {
            auto& target = *(typename Lanes<T>::Vector*)(dots + (i + r) * kTile + j + v * Lanes<T>::width);
            target = done == 0 ? sums[r][v] : target + sums[r][v];
          }
        }
      }
    }
    done += depth;
  } while (done < features);
}

template <int Vectors, class T>
BITLENS_FUNCTION void add_product_panel(T* target, int64_t target_step, int64_t rows, int64_t depth, const T* a,
                                        int64_t a_row, int64_t a_step, const T* b, int64_t b_step) {
  for (int64_t i = 0; i < rows; i += kRegisterRows) {
    typename Lanes<T>::Vector sums[kRegisterRows][Vectors];
    multiply<Vectors>(sums, depth, a + i * a_row, a_row, a_step, b, b_step);
    const auto add_row = [&](int r) {
      for (int v = 0; v < Vectors; ++v) {
        *(typename Lanes<T>::Vector*)(target + (i + r) * target_step + v * Lanes<T>::width) += sums[r][v];
      }
    };
    // Two loops with constant bounds: an index that varies would move the sums out of the registers.
    if (i + kRegisterRows <= rows) {
      for (int r = 0; r < kRegisterRows; ++r) add_row(r);
    } else {
      for (int r = 0; r < kRegisterRows; ++r) {
        if (i + r < rows) add_row(r);
      }
    }
  }
}

// target[i][c] += sum over k of a[i a_row + k a_step] b[k][c] for i < rows and c < columns, whole vectors. `a` is read
// up to whole register blocks.
template <class T>
BITLENS_FUNCTION void add_product(T* target, int64_t target_step, const T* b, int64_t b_step, int64_t rows,
                                  int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_step) {
  constexpr int64_t width = Lanes<T>::width;
  int64_t c = 0;
  for (; c + 2 * width <= columns; c += 2 * width) {
    add_product_panel<2>(target + c, target_step, rows, depth, a, a_row, a_step, b + c, b_step);
  }
  if (c < columns) add_product_panel<1>(target + c, target_step, rows, depth, a, a_row, a_step, b + c, b_step);
}

}  // namespace infonce
}  // namespace BITLENS_ISA
}  // namespace bitlens
