// Discrete Fourier transform by mixed radices 2, 3, 4, 5 and 7, in place.
//
// `split` goes from natural order to the order that the radices leave (position p holds frequency[p]), `merge` goes
// from that order back to natural. A convolution multiplies two spectra of the same order, so no reordering pass is
// ever needed. Both are forward transforms; the inverse is one with real and imaginary parts exchanged on either side:
// swap(x) = i conj(x), and conj(F conj(X)) = n F^-1 X. Value is one number or a pack of them (one transform per lane).
#pragma once

#include <stdint.h>

#include "../../common/portable.h"
#include "kernel.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace fourier {

using psf_convolve::Transform;

template <class Value>
struct Complex {
  Value re, im;
};

template <class Value>
BITLENS_FUNCTION Complex<Value> operator+(Complex<Value> a, Complex<Value> b) {
  return {a.re + b.re, a.im + b.im};
}

template <class Value>
BITLENS_FUNCTION Complex<Value> operator-(Complex<Value> a, Complex<Value> b) {
  return {a.re - b.re, a.im - b.im};
}

template <class Value>
BITLENS_FUNCTION Complex<Value> operator*(Complex<Value> a, Complex<Value> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <class Value>
BITLENS_FUNCTION Complex<Value> swapped(Complex<Value> a) {
  return {a.im, a.re};
}

// a times the complex number stored at w[0], w[1].
template <class Value, class Scalar>
BITLENS_FUNCTION Complex<Value> times(Complex<Value> a, const Scalar* w) {
  return {a.re * w[0] - a.im * w[1], a.re * w[1] + a.im * w[0]};
}

// cos and sin of 2 pi q / radix for q up to (radix - 1) / 2.
template <int Radix>
struct Roots;
template <>
struct Roots<3> {
  BITLENS_FUNCTION constexpr double cosine(int) { return -0.5; }
  BITLENS_FUNCTION constexpr double sine(int) { return 0.86602540378443864676; }
};
template <>
struct Roots<5> {
  BITLENS_FUNCTION constexpr double cosine(int q) { return q == 1 ? 0.30901699437494742410 : -0.80901699437494742410; }
  BITLENS_FUNCTION constexpr double sine(int q) { return q == 1 ? 0.95105651629515357212 : 0.58778525229247312917; }
};
template <>
struct Roots<7> {
  BITLENS_FUNCTION constexpr double cosine(int q) {
    return q == 1 ? 0.62348980185873353053 : q == 2 ? -0.22252093395631440429 : -0.90096886790241912624;
  }
  BITLENS_FUNCTION constexpr double sine(int q) {
    return q == 1 ? 0.78183148246802980871 : q == 2 ? 0.97492791218182360702 : 0.43388373911755812048;
  }
};

// Odd radices: terms q and radix - q share one cosine and one sine.
template <int Radix>
struct Butterfly {
  template <class Scalar, class Value>
  BITLENS_FUNCTION void run(Complex<Value> (&x)[Radix]) {
    constexpr int kHalf = (Radix - 1) / 2;
    Complex<Value> sum[kHalf], difference[kHalf];
    Complex<Value> total = x[0];
    for (int q = 1; q <= kHalf; ++q) {
      sum[q - 1] = x[q] + x[Radix - q];
      difference[q - 1] = x[q] - x[Radix - q];
      total = total + sum[q - 1];
    }
    const Complex<Value> first = x[0];
    x[0] = total;
    for (int k = 1; k <= kHalf; ++k) {
      Complex<Value> even = first;
      Complex<Value> odd = difference[0];
      for (int q = 1; q <= kHalf; ++q) {
        const int turn = q * k % Radix;
        const int index = turn <= kHalf ? turn : Radix - turn;
        const Scalar c = static_cast<Scalar>(Roots<Radix>::cosine(index));
        const Scalar s = static_cast<Scalar>(turn <= kHalf ? Roots<Radix>::sine(index) : -Roots<Radix>::sine(index));
        even.re = even.re + sum[q - 1].re * c;
        even.im = even.im + sum[q - 1].im * c;
        odd.re = q == 1 ? difference[0].re * s : odd.re + difference[q - 1].re * s;
        odd.im = q == 1 ? difference[0].im * s : odd.im + difference[q - 1].im * s;
      }
      x[k] = {even.re + odd.im, even.im - odd.re};
      x[Radix - k] = {even.re - odd.im, even.im + odd.re};
    }
  }
};

template <>
struct Butterfly<2> {
  template <class Scalar, class Value>
  BITLENS_FUNCTION void run(Complex<Value> (&x)[2]) {
    const Complex<Value> first = x[0];
    x[0] = first + x[1];
    x[1] = first - x[1];
  }
};

template <>
struct Butterfly<4> {
  template <class Scalar, class Value>
  BITLENS_FUNCTION void run(Complex<Value> (&x)[4]) {
    const Complex<Value> a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = x[1] - x[3];
    x[0] = a + c;
    x[2] = a - c;
    x[1] = {b.re + d.im, b.im - d.re};
    x[3] = {b.re - d.im, b.im + d.re};
  }
};

// One stage over every block of `length` points. Split: butterfly, then twiddle; merge: its transpose.
template <int Radix, bool Merge, class Scalar, class Value>
BITLENS_FUNCTION void stage(Complex<Value>* x, int64_t size, int64_t length, const Scalar* twiddles) {
  const int64_t step = length / Radix;
  for (int64_t block = 0; block < size; block += length) {
    for (int64_t j = 0; j < step; ++j) {
      Complex<Value>* const at = x + block + j;
      const Scalar* const w = twiddles + 2 * (Radix - 1) * j;
      Complex<Value> values[Radix];
      for (int q = 0; q < Radix; ++q) {
        values[q] = Merge && q > 0 ? times(at[q * step], w + 2 * (q - 1)) : at[q * step];
      }
      Butterfly<Radix>::template run<Scalar>(values);
      for (int q = 0; q < Radix; ++q) {
        at[q * step] = !Merge && q > 0 ? times(values[q], w + 2 * (q - 1)) : values[q];
      }
    }
  }
}

template <bool Merge, class Scalar, class Value>
BITLENS_FUNCTION void stage_of_radix(int radix, Complex<Value>* x, int64_t size, int64_t length,
                                     const Scalar* twiddles) {
  switch (radix) {
    case 2: return stage<2, Merge>(x, size, length, twiddles);
    case 3: return stage<3, Merge>(x, size, length, twiddles);
    case 4: return stage<4, Merge>(x, size, length, twiddles);
    case 5: return stage<5, Merge>(x, size, length, twiddles);
    default: return stage<7, Merge>(x, size, length, twiddles);
  }
}

template <class Scalar, class Value>
BITLENS_FUNCTION void split(const Transform<Scalar>& transform, Complex<Value>* x) {
  int64_t length = transform.inner;
  const Scalar* twiddles = transform.twiddles;
  for (int i = 0; i < transform.stages; ++i) {
    const int radix = transform.radix[i];
    stage_of_radix<false>(radix, x, transform.inner, length, twiddles);
    twiddles += 2 * (radix - 1) * (length / radix);
    length /= radix;
  }
}

template <class Scalar, class Value>
BITLENS_FUNCTION void merge(const Transform<Scalar>& transform, Complex<Value>* x) {
  int64_t length = 1;
  const Scalar* twiddles = transform.twiddles;
  for (int i = 0; i < transform.stages; ++i) {
    twiddles += 2 * (transform.radix[i] - 1) * (transform.inner / length / transform.radix[i]);
    length *= transform.radix[i];
  }
  length = 1;
  for (int i = transform.stages - 1; i >= 0; --i) {
    const int radix = transform.radix[i];
    twiddles -= 2 * (radix - 1) * length;
    length *= radix;
    stage_of_radix<true>(radix, x, transform.inner, length, twiddles);
  }
}

// A length with a prime factor above 7, natural order on both sides: k q = (k^2 + q^2 - (k - q)^2) / 2 makes the
// transform a convolution with a chirp (Bluestein 1970). `scratch` holds `inner` values.
template <class Scalar, class Value>
BITLENS_FUNCTION void bluestein(const Transform<Scalar>& transform, Complex<Value>* x, Complex<Value>* scratch) {
  for (int64_t k = 0; k < transform.size; ++k) scratch[k] = times(x[k], transform.chirp + 2 * k);
  for (int64_t k = transform.size; k < transform.inner; ++k) scratch[k] = Complex<Value>{Value{}, Value{}};
  split(transform, scratch);
  for (int64_t k = 0; k < transform.inner; ++k) {
    scratch[k] = swapped(times(scratch[k], transform.chirp_spectrum + 2 * k));
  }
  merge(transform, scratch);
  for (int64_t k = 0; k < transform.size; ++k) x[k] = times(swapped(scratch[k]), transform.chirp + 2 * k);
}

// Natural order to position order.
template <class Scalar, class Value>
BITLENS_FUNCTION void forward(const Transform<Scalar>& transform, Complex<Value>* x, Complex<Value>* scratch) {
  if (transform.chirp) return bluestein(transform, x, scratch);
  split(transform, x);
}

// Position order, real and imaginary parts swapped, to natural order, still swapped; `size` times the inverse.
template <class Scalar, class Value>
BITLENS_FUNCTION void inverse_of_swapped(const Transform<Scalar>& transform, Complex<Value>* x,
                                         Complex<Value>* scratch) {
  if (transform.chirp) return bluestein(transform, x, scratch);
  merge(transform, x);
}

}  // namespace fourier
}  // namespace BITLENS_ISA
}  // namespace bitlens
