// Transforms of many lines by one block of threads: each thread takes butterflies, with a barrier after every stage.
// Neighbouring threads work on neighbouring lines at the same place, so they share twiddles and, where lines lie an
// odd number of points apart, never meet in a bank of shared memory.
#pragma once

#include "math.h"

namespace bitlens {
namespace psf_convolve {
namespace cuda_lines {

namespace fourier = scalar::fourier;
using fourier::Complex;

// A complex number in memory, read and written at once.
template <class T>
struct alignas(2 * sizeof(T)) Point {
  T re, im;
  BITLENS_FUNCTION Point of(Complex<T> value) { return {value.re, value.im}; }
};

template <class T>
__device__ Complex<T> read(const Point<T>& point) {
  const Point<T> value = point;
  return {value.re, value.im};
}

// Lines at a constant distance, point by point at another. The first line is number `first`; they count modulo
// `modulus`.
template <class T>
struct Strided {
  Point<T>* data;
  unsigned line_stride, point_stride, first, modulus;

  struct Line {
    Point<T>* data;
    unsigned stride;
    __device__ Point<T>& operator[](unsigned point) const { return data[point * stride]; }
  };
  __device__ Line operator()(unsigned line) const {
    unsigned at = first + line;
    if (at >= modulus) at -= modulus;
    return {data + at * line_stride, point_stride};
  }
};

// Lines whose even and odd points lie in two rows of a plane: [line][2] offsets of these rows.
template <class T>
struct Halves {
  Point<T>* plane;
  const unsigned* offsets;

  struct Line {
    Point<T>*even, *odd;
    __device__ Point<T>& operator[](unsigned point) const { return (point & 1 ? odd : even)[point / 2]; }
  };
  __device__ Line operator()(unsigned line) const {
    return {plane + offsets[2 * line], plane + offsets[2 * line + 1]};
  }
};

template <int Radix, bool Merge, class T, class Lines>
__device__ __forceinline__ void stage(const Lines& lines, unsigned count, unsigned size, unsigned step,
                                      const Point<T>* twiddles) {
  const unsigned butterflies = count * (size / Radix);
  for (unsigned i = threadIdx.x; i < butterflies; i += blockDim.x) {
    const unsigned butterfly = i / count, line = i - butterfly * count;
    const unsigned block = butterfly / step, j = butterfly - block * step;
    const unsigned first = block * step * Radix + j;
    const Point<T>* const w = twiddles + (Radix - 1) * j;
    const auto points = lines(line);
    Complex<T> values[Radix];
    BITLENS_UNROLL
    for (int q = 0; q < Radix; ++q) values[q] = read(points[first + q * step]);
    if (Merge && step > 1) {
      BITLENS_UNROLL
      for (int q = 1; q < Radix; ++q) values[q] = values[q] * read(w[q - 1]);
    }
    fourier::Butterfly<Radix>::template run<T>(values);
    if (!Merge && step > 1) {
      BITLENS_UNROLL
      for (int q = 1; q < Radix; ++q) values[q] = values[q] * read(w[q - 1]);
    }
    BITLENS_UNROLL
    for (int q = 0; q < Radix; ++q) points[first + q * step] = Point<T>::of(values[q]);
  }
}

template <bool Merge, class T, class Lines>
__device__ __forceinline__ void stage_of_radix(int radix, const Lines& lines, unsigned count, unsigned size,
                                               unsigned step, const Point<T>* twiddles) {
  switch (radix) {
    case 2: stage<2, Merge>(lines, count, size, step, twiddles); break;
    case 3: stage<3, Merge>(lines, count, size, step, twiddles); break;
    case 4: stage<4, Merge>(lines, count, size, step, twiddles); break;
    case 5: stage<5, Merge>(lines, count, size, step, twiddles); break;
    case 7: stage<7, Merge>(lines, count, size, step, twiddles); break;
    default: stage<8, Merge>(lines, count, size, step, twiddles); break;
  }
  __syncthreads();
}

template <class T>
__device__ const Point<T>* points_of(const T* table) {
  return reinterpret_cast<const Point<T>*>(table);
}

// In place, from natural order to the order of positions. Begins after a barrier and ends with one, as all below.
template <class T, class Lines>
__device__ __forceinline__ void split(const Transform<T>& transform, const Lines& lines, unsigned count) {
  const Point<T>* twiddles = points_of(transform.twiddles);
  unsigned step = static_cast<unsigned>(transform.inner);
  for (int i = 0; i < transform.stages; ++i) {
    const int radix = transform.radix[i];
    step /= static_cast<unsigned>(radix);
    stage_of_radix<false>(radix, lines, count, static_cast<unsigned>(transform.inner), step, twiddles);
    twiddles += (radix - 1) * step;
  }
}

// In place, from the order of positions to natural order.
template <class T, class Lines>
__device__ __forceinline__ void merge(const Transform<T>& transform, const Lines& lines, unsigned count) {
  const Point<T>* twiddles = points_of(transform.twiddles) + transform.twiddle_count / 2;
  unsigned step = 1;
  for (int i = transform.stages - 1; i >= 0; --i) {
    const int radix = transform.radix[i];
    twiddles -= (radix - 1) * step;
    stage_of_radix<true>(radix, lines, count, static_cast<unsigned>(transform.inner), step, twiddles);
    step *= static_cast<unsigned>(radix);
  }
}

// Calls visit(line, point) for `points` points of every line, neighbouring threads on neighbouring points.
template <class Visit>
__device__ __forceinline__ void for_points(unsigned count, unsigned points, const Visit& visit) {
  for (unsigned i = threadIdx.x; i < count * points; i += blockDim.x) {
    const unsigned line = i / points;
    visit(line, i - line * points);
  }
}

// Lines of `inner` points of which the first `size` count, in natural order before and after.
template <class T, class Lines>
__device__ __forceinline__ void bluestein(const Transform<T>& transform, const Lines& lines, unsigned count) {
  const unsigned size = static_cast<unsigned>(transform.size), inner = static_cast<unsigned>(transform.inner);
  const Point<T>*const chirp = points_of(transform.chirp), *const spectrum = points_of(transform.chirp_spectrum);
  for_points(count, inner, [&](unsigned line, unsigned k) {
    Point<T>& point = lines(line)[k];
    point = k < size ? Point<T>::of(read(point) * read(chirp[k])) : Point<T>{T(0), T(0)};
  });
  __syncthreads();
  split(transform, lines, count);
  for_points(count, inner, [&](unsigned line, unsigned k) {
    Point<T>& point = lines(line)[k];
    point = Point<T>::of(fourier::swapped(read(point) * read(spectrum[k])));
  });
  __syncthreads();
  merge(transform, lines, count);
  for_points(count, size, [&](unsigned line, unsigned k) {
    Point<T>& point = lines(line)[k];
    point = Point<T>::of(fourier::swapped(read(point)) * read(chirp[k]));
  });
  __syncthreads();
}

// Natural order to the order of positions, for lines with room for `inner` points.
template <class T>
__device__ BITLENS_OUT_OF_LINE void forward(const Transform<T>& transform, const Strided<T>& lines, unsigned count) {
  if (transform.chirp != nullptr) {
    bluestein(transform, lines, count);
  } else {
    split(transform, lines, count);
  }
}

// Order of positions, real and imaginary parts swapped, to natural order, still swapped: `size` times the inverse.
template <class T>
__device__ BITLENS_OUT_OF_LINE void inverse_of_swapped(const Transform<T>& transform, const Strided<T>& lines,
                                                unsigned count) {
  if (transform.chirp != nullptr) {
    bluestein(transform, lines, count);
  } else {
    merge(transform, lines, count);
  }
}

}  // namespace cuda_lines
}  // namespace psf_convolve
}  // namespace bitlens
