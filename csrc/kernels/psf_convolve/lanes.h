// Vectors of one value per lane: load, store and transpose. Sized by the unit's compiler flags.
#pragma once

#include <stdint.h>
#include <string.h>

#include "../../common/portable.h"

#if defined(__AVX512F__)
#define BITLENS_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define BITLENS_VECTOR_BYTES 32
#else
#define BITLENS_VECTOR_BYTES 16
#endif

namespace bitlens {
namespace psf_convolve {

constexpr int kMaxVectorBytes = 64;

namespace BITLENS_ISA {
namespace {

template <class T>
struct Vector;
template <>
struct Vector<float> {
  typedef float Type __attribute__((vector_size(BITLENS_VECTOR_BYTES)));
  typedef int32_t Index __attribute__((vector_size(BITLENS_VECTOR_BYTES)));
};
template <>
struct Vector<double> {
  typedef double Type __attribute__((vector_size(BITLENS_VECTOR_BYTES)));
  typedef int64_t Index __attribute__((vector_size(BITLENS_VECTOR_BYTES)));
};

template <class T>
constexpr int kLanes = BITLENS_VECTOR_BYTES / static_cast<int>(sizeof(T));

// The first `count` lanes from memory, zeros in the others. An infinity becomes NaN here: it has no spectrum, and
// left alone it would reach some outputs as an infinity and others as NaN.
template <class T>
BITLENS_FUNCTION typename Vector<T>::Type load(const T* source, int64_t count) {
  typename Vector<T>::Type value{};
  if (count >= kLanes<T>) {
    memcpy(&value, source, sizeof(value));
  } else {
    for (int64_t lane = 0; lane < count; ++lane) value[lane] = source[lane];
  }
  return value + value * T(0);
}

template <class T>
BITLENS_FUNCTION void store(T* target, typename Vector<T>::Type value, int64_t count) {
  if (count >= kLanes<T>) {
    memcpy(target, &value, sizeof(value));
  } else {
    for (int64_t lane = 0; lane < count; ++lane) target[lane] = value[lane];
  }
}

// Exchanges the off-diagonal blocks of side Step, then of half of it, and so on.
template <int Step, class T>
struct Transpose {
  BITLENS_FUNCTION void run(typename Vector<T>::Type* tile) {
    constexpr int kCount = kLanes<T>;
    typename Vector<T>::Index low, high;
    for (int lane = 0; lane < kCount; ++lane) {
      low[lane] = lane & Step ? kCount + lane - Step : lane;
      high[lane] = lane & Step ? kCount + lane : lane + Step;
    }
    for (int i = 0; i < kCount; ++i) {
      if (i & Step) continue;
      const auto a = tile[i], b = tile[i + Step];
#if defined(__clang__)
      for (int lane = 0; lane < kCount; ++lane) {
        tile[i][lane] = low[lane] < kCount ? a[low[lane]] : b[low[lane] - kCount];
        tile[i + Step][lane] = high[lane] < kCount ? a[high[lane]] : b[high[lane] - kCount];
      }
#else
      tile[i] = __builtin_shuffle(a, b, low);
      tile[i + Step] = __builtin_shuffle(a, b, high);
#endif
    }
    Transpose<Step / 2, T>::run(tile);
  }
};
template <class T>
struct Transpose<0, T> {
  BITLENS_FUNCTION void run(typename Vector<T>::Type*) {}
};

template <class T>
BITLENS_FUNCTION void transpose(typename Vector<T>::Type* tile) {
  Transpose<kLanes<T> / 2, T>::run(tile);
}

}  // namespace
}  // namespace BITLENS_ISA
}  // namespace psf_convolve
}  // namespace bitlens
