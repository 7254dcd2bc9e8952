// What every bind.cpp needs: the device's handle type and the merging of axes.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "elementwise.h"

namespace bitlens {

#if defined(BITLENS_DEVICE_IS_CUDA)
using DeviceHandle = std::uintptr_t;  // the stream
#else
using DeviceHandle = int;  // the number of threads
#endif

// Drops axes of length one and joins neighbours that every operand walks with one stride.
template <int Operands>
Broadcast<Operands> merged_layout(const std::vector<std::int64_t>& shape,
                                  const std::array<std::vector<std::int64_t>, Operands>& strides) {
  Broadcast<Operands> layout{};
  layout.count = 1;
  for (std::int64_t length : shape) layout.count *= length;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] == 1) continue;
    bool joins = layout.ndim > 0;
    for (int operand = 0; operand < Operands && joins; ++operand) {
      joins = layout.strides[operand][layout.ndim - 1] == strides[operand][axis] * shape[axis];
    }
    if (!joins) {
      if (layout.ndim == kMaxDims) throw std::invalid_argument("more than 12 axes that cannot be merged");
      layout.shape[layout.ndim++] = 1;
    }
    layout.shape[layout.ndim - 1] *= shape[axis];
    for (int operand = 0; operand < Operands; ++operand) {
      layout.strides[operand][layout.ndim - 1] = strides[operand][axis];
    }
  }
  if (layout.ndim == 0) layout.shape[layout.ndim++] = 1;
  return layout;
}

template <class T, int Inputs, int Outputs>
Elementwise<T, Inputs, Outputs> elementwise_arguments(const std::vector<std::int64_t>& shape,
                                                      const std::array<std::vector<std::int64_t>, Inputs>& strides,
                                                      const std::array<std::uintptr_t, Inputs>& inputs,
                                                      const std::array<std::uintptr_t, Inputs>& constants,
                                                      const std::array<std::uintptr_t, Outputs>& outputs, int order) {
  Elementwise<T, Inputs, Outputs> arguments{};
  arguments.layout = merged_layout<Inputs>(shape, strides);
  for (int i = 0; i < Inputs; ++i) arguments.inputs[i] = reinterpret_cast<const T*>(inputs[i]);
  for (int i = 0; i < Inputs; ++i) arguments.constants[i] = reinterpret_cast<const double*>(constants[i]);
  for (int i = 0; i < Outputs; ++i) arguments.outputs[i] = reinterpret_cast<T*>(outputs[i]);
  arguments.order = order;
  return arguments;
}

}  // namespace bitlens
