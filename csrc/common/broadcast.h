// Operands of one elementwise kernel: a common shape, and for each operand a pointer with strides (0 where broadcast).
#pragma once

#include <cstdint>

#include "portable.h"

namespace bitlens {

constexpr int kMaxDims = 12;

template <int Operands>
struct Broadcast {
  int ndim;                              // after merging; at least 1
  std::int64_t count;                    // product of shape
  std::int64_t shape[kMaxDims];          // outermost first
  std::int64_t strides[Operands][kMaxDims];  // in elements
};

// Element offset of every operand for one linear index of the common shape.
template <int Operands>
BITLENS_FUNCTION void operand_offsets(const Broadcast<Operands>& layout, std::int64_t index,
                                      std::int64_t (&offsets)[Operands]) {
  for (int operand = 0; operand < Operands; ++operand) offsets[operand] = 0;
  for (int dim = layout.ndim - 1; dim >= 0; --dim) {
    const std::int64_t position = index % layout.shape[dim];
    index /= layout.shape[dim];
    for (int operand = 0; operand < Operands; ++operand) offsets[operand] += position * layout.strides[operand][dim];
  }
}

}  // namespace bitlens
