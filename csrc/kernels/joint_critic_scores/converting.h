// A pack of doubles from and to an array of either precision.
#pragma once

#include "../../common/simd.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace score_sums {

template <class T>
struct Narrow {
  typedef T Vector __attribute__((vector_size(sizeof(T) * BITLENS_PACK_WIDTH), aligned(sizeof(T))));
};
template <class T>
BITLENS_FUNCTION Pack load(const T* source) {
  return __builtin_convertvector(*(const typename Narrow<T>::Vector*)source, Pack);
}
template <class T>
BITLENS_FUNCTION void store(T* target, Pack value) {
  *(typename Narrow<T>::Vector*)target = __builtin_convertvector(value, typename Narrow<T>::Vector);
}

// The nearest values of T.
template <class T>
BITLENS_FUNCTION Pack rounded(Pack value) {
  return __builtin_convertvector(__builtin_convertvector(value, typename Narrow<T>::Vector), Pack);
}

}  // namespace score_sums
}  // namespace BITLENS_ISA
}  // namespace bitlens
