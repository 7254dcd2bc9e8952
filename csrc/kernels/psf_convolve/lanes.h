// Vectors of one value per lane: load, store and transpose. Sized by the unit's compiler flags.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

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

// The first `count` lanes from memory, zeros in the others.
template <class T>
BITLENS_FUNCTION typename Vector<T>::Type load_some(const T* source, int64_t count) {
  typename Vector<T>::Type value{};
  if (count >= kLanes<T>) {
    memcpy(&value, source, sizeof(value));
    return value;
  }
  for (int64_t lane = 0; lane < count; ++lane) value[lane] = source[lane];
  return value;
}
#if defined(__AVX512F__)
BITLENS_FUNCTION uint32_t first_lanes(int64_t count) { return count <= 0 ? 0u : (1u << count) - 1u; }
template <>
inline __attribute__((always_inline)) Vector<float>::Type load_some(const float* source, int64_t count) {
  if (count >= 16) return (Vector<float>::Type)_mm512_loadu_ps(source);
  return (Vector<float>::Type)_mm512_maskz_loadu_ps((__mmask16)first_lanes(count), source);
}
template <>
inline __attribute__((always_inline)) Vector<double>::Type load_some(const double* source, int64_t count) {
  if (count >= 8) return (Vector<double>::Type)_mm512_loadu_pd(source);
  return (Vector<double>::Type)_mm512_maskz_loadu_pd((__mmask8)first_lanes(count), source);
}
#endif

// An infinity becomes NaN: it has no spectrum, and left alone it would reach some outputs as an infinity and others as
// NaN.
template <class Value>
BITLENS_FUNCTION Value finite_or_nan(Value value) {
  return value + value * 0;
}

template <class T>
BITLENS_FUNCTION typename Vector<T>::Type load(const T* source, int64_t count) {
  return finite_or_nan(load_some(source, count));
}

template <class T>
BITLENS_FUNCTION void store(T* target, typename Vector<T>::Type value, int64_t count) {
  if (count >= kLanes<T>) {
    memcpy(target, &value, sizeof(value));
  } else {
    for (int64_t lane = 0; lane < count; ++lane) target[lane] = value[lane];
  }
}
#if defined(__AVX512F__)
template <>
inline __attribute__((always_inline)) void store(float* target, Vector<float>::Type value, int64_t count) {
  if (count >= 16) return _mm512_storeu_ps(target, (__m512)value);
  _mm512_mask_storeu_ps(target, (__mmask16)first_lanes(count), (__m512)value);
}
template <>
inline __attribute__((always_inline)) void store(double* target, Vector<double>::Type value, int64_t count) {
  if (count >= 8) return _mm512_storeu_pd(target, (__m512d)value);
  _mm512_mask_storeu_pd(target, (__mmask8)first_lanes(count), (__m512d)value);
}
#endif

// Lane by lane from two vectors: index below the number of lanes from a, above from b.
template <class T>
BITLENS_FUNCTION typename Vector<T>::Type pick(typename Vector<T>::Type a, typename Vector<T>::Type b,
                                               typename Vector<T>::Index index) {
#if defined(__clang__)
  typename Vector<T>::Type result;
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    result[lane] = index[lane] < kLanes<T> ? a[index[lane]] : b[index[lane] - kLanes<T>];
  }
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// Real and imaginary parts of the first `count` complex numbers, and back.
template <class T>
BITLENS_FUNCTION void load_complex(const T* source, int64_t count, typename Vector<T>::Type& re,
                                   typename Vector<T>::Type& im) {
  constexpr int kCount = kLanes<T>;
  typename Vector<T>::Index even, odd;
  for (int lane = 0; lane < kCount; ++lane) even[lane] = 2 * lane, odd[lane] = 2 * lane + 1;
  const auto a = load(source, 2 * count), b = load(source + kCount, 2 * count - kCount);
  re = pick<T>(a, b, even);
  im = pick<T>(a, b, odd);
}

template <class T>
BITLENS_FUNCTION void store_complex(T* target, typename Vector<T>::Type re, typename Vector<T>::Type im,
                                    int64_t count) {
  constexpr int kCount = kLanes<T>;
  typename Vector<T>::Index low, high;
  for (int lane = 0; lane < kCount; ++lane) {
    low[lane] = lane / 2 + (lane % 2) * kCount;
    high[lane] = kCount / 2 + lane / 2 + (lane % 2) * kCount;
  }
  store(target, pick<T>(re, im, low), 2 * count);
  store(target + kCount, pick<T>(re, im, high), 2 * count - kCount);
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
      tile[i] = pick<T>(a, b, low);
      tile[i + Step] = pick<T>(a, b, high);
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
