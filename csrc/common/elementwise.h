// Arguments of a kernel that maps broadcast operands to outputs of their common shape, element by element.
#pragma once

#include <cstdint>

#include "broadcast.h"

namespace bitlens {

template <class T, int Inputs, int Outputs>
struct Elementwise {
  Broadcast<Inputs> layout;
  const T* inputs[Inputs];          // each read through layout.strides, unless `constants` has it
  const double* constants[Inputs];  // one number in double precision whatever T is, or null
  T* outputs[Outputs];              // each contiguous [layout.count], or null where not wanted
  int order;                        // highest derivative wanted
};

}  // namespace bitlens
