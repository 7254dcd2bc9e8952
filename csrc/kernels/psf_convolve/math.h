// Discrete Fourier transform by mixed radices 2, 3, 4, 5, 7 and 8.
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

template <>
struct Butterfly<8> {
  template <class Scalar, class Value>
  BITLENS_FUNCTION void run(Complex<Value> (&x)[8]) {
    const Scalar half = static_cast<Scalar>(0.70710678118654752440);
    Complex<Value> even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
    Butterfly<4>::template run<Scalar>(even);
    Butterfly<4>::template run<Scalar>(odd);
    const Complex<Value> turned[4] = {odd[0],
                                      {(odd[1].re + odd[1].im) * half, (odd[1].im - odd[1].re) * half},
                                      {odd[2].im, -odd[2].re},
                                      {(odd[3].im - odd[3].re) * half, -(odd[3].re + odd[3].im) * half}};
    for (int k = 0; k < 4; ++k) {
      x[k] = even[k] + turned[k];
      x[k + 4] = even[k] - turned[k];
    }
  }
};

// One stage over every block of `length` points. Split: butterfly, then twiddle; merge: its transpose. The innermost
// stage, whose blocks are one butterfly long, has no twiddles. Values come from read(index) and go to
// write(index, value).
template <int Radix, bool Merge, class Scalar, class Value, class Read, class Write>
BITLENS_HOST_FUNCTION void stage(int64_t size, int64_t length, const Scalar* twiddles, const Read& read,
                                 const Write& write) {
  const int64_t step = length / Radix;
  Complex<Value> values[Radix];
  if (step == 1) {
    for (int64_t block = 0; block < size; block += Radix) {
      for (int q = 0; q < Radix; ++q) values[q] = read(block + q);
      Butterfly<Radix>::template run<Scalar>(values);
      for (int q = 0; q < Radix; ++q) write(block + q, values[q]);
    }
    return;
  }
  for (int64_t block = 0; block < size; block += length) {
    for (int64_t j = 0; j < step; ++j) {
      const int64_t at = block + j;
      const Scalar* const w = twiddles + 2 * (Radix - 1) * j;
      for (int q = 0; q < Radix; ++q) {
        const Complex<Value> value = read(at + q * step);
        values[q] = Merge && q > 0 ? times(value, w + 2 * (q - 1)) : value;
      }
      Butterfly<Radix>::template run<Scalar>(values);
      for (int q = 0; q < Radix; ++q) {
        write(at + q * step, !Merge && q > 0 ? times(values[q], w + 2 * (q - 1)) : values[q]);
      }
    }
  }
}

template <bool Merge, class Scalar, class Value, class Read, class Write>
BITLENS_HOST_FUNCTION void stage_of_radix(int radix, int64_t size, int64_t length, const Scalar* twiddles,
                                          const Read& read, const Write& write) {
  switch (radix) {
    case 2: return stage<2, Merge, Scalar, Value>(size, length, twiddles, read, write);
    case 3: return stage<3, Merge, Scalar, Value>(size, length, twiddles, read, write);
    case 4: return stage<4, Merge, Scalar, Value>(size, length, twiddles, read, write);
    case 5: return stage<5, Merge, Scalar, Value>(size, length, twiddles, read, write);
    case 7: return stage<7, Merge, Scalar, Value>(size, length, twiddles, read, write);
    default: return stage<8, Merge, Scalar, Value>(size, length, twiddles, read, write);
  }
}

// A stage in place, a function of its own: the same code serves every transform.
template <bool Merge, class Scalar, class Value>
static void stage_in_place(int radix, Complex<Value>* x, int64_t size, int64_t length, const Scalar* twiddles) {
  stage_of_radix<Merge, Scalar, Value>(
      radix, size, length, twiddles, [x](int64_t i) { return x[i]; },
      [x](int64_t i, Complex<Value> value) { x[i] = value; });
}

// Natural order, from read(index), to position order in x.
template <class Scalar, class Value, class Read>
BITLENS_HOST_FUNCTION void split(const Transform<Scalar>& transform, Complex<Value>* x, const Read& read) {
  int64_t length = transform.inner;
  const Scalar* twiddles = transform.twiddles;
  if (transform.stages == 0) x[0] = read(0);
  for (int i = 0; i < transform.stages; ++i) {
    const int radix = transform.radix[i];
    if (i == 0) {
      stage_of_radix<false, Scalar, Value>(radix, transform.inner, length, twiddles, read,
                                           [x](int64_t p, Complex<Value> value) { x[p] = value; });
    } else {
      stage_in_place<false>(radix, x, transform.inner, length, twiddles);
    }
    twiddles += 2 * (radix - 1) * (length / radix);
    length /= radix;
  }
}

// Position order in x, which is lost, to natural order: write(index, value).
template <class Scalar, class Value, class Write>
BITLENS_HOST_FUNCTION void merge(const Transform<Scalar>& transform, Complex<Value>* x, const Write& write) {
  const Scalar* twiddles = transform.twiddles + transform.twiddle_count;
  int64_t length = 1;
  if (transform.stages == 0) write(0, x[0]);
  for (int i = transform.stages - 1; i >= 0; --i) {
    const int radix = transform.radix[i];
    twiddles -= 2 * (radix - 1) * length;
    length *= radix;
    if (i == 0) {
      stage_of_radix<true, Scalar, Value>(radix, transform.inner, length, twiddles, [x](int64_t p) { return x[p]; },
                                          write);
    } else {
      stage_in_place<true>(radix, x, transform.inner, length, twiddles);
    }
  }
}

// A length with a prime factor above 7, natural order on both sides: k q = (k^2 + q^2 - (k - q)^2) / 2 makes the
// transform a convolution with a chirp (Bluestein 1970). `scratch` holds `inner` values.
template <class Scalar, class Value>
static BITLENS_OUT_OF_LINE void bluestein(const Transform<Scalar>& transform, Complex<Value>* x,
                                          Complex<Value>* scratch) {
  for (int64_t k = 0; k < transform.size; ++k) scratch[k] = times(x[k], transform.chirp + 2 * k);
  for (int64_t k = transform.size; k < transform.inner; ++k) scratch[k] = {Value{}, Value{}};
  split(transform, scratch, [scratch](int64_t k) { return scratch[k]; });
  for (int64_t k = 0; k < transform.inner; ++k) {
    scratch[k] = swapped(times(scratch[k], transform.chirp_spectrum + 2 * k));
  }
  merge(transform, scratch, [scratch](int64_t k, Complex<Value> value) { scratch[k] = value; });
  for (int64_t k = 0; k < transform.size; ++k) x[k] = times(swapped(scratch[k]), transform.chirp + 2 * k);
}

// Natural order, from read(index), to position order in x.
template <class Scalar, class Value, class Read>
BITLENS_HOST_FUNCTION void forward(const Transform<Scalar>& transform, Complex<Value>* x, Complex<Value>* scratch,
                                   const Read& read) {
  if (!transform.chirp) return split(transform, x, read);
  for (int64_t k = 0; k < transform.size; ++k) x[k] = read(k);
  bluestein(transform, x, scratch);
}

// Position order in x, real and imaginary parts swapped, to natural order, still swapped: write(index, value) gets
// `size` times the inverse. x is lost.
template <class Scalar, class Value, class Write>
BITLENS_HOST_FUNCTION void inverse_of_swapped(const Transform<Scalar>& transform, Complex<Value>* x,
                                              Complex<Value>* scratch, const Write& write) {
  if (!transform.chirp) return merge(transform, x, write);
  bluestein(transform, x, scratch);
  for (int64_t k = 0; k < transform.size; ++k) write(k, x[k]);
}

// The same in place.
template <class Scalar, class Value>
static BITLENS_OUT_OF_LINE void inverse_of_swapped(const Transform<Scalar>& transform, Complex<Value>* x,
                                                   Complex<Value>* scratch) {
  inverse_of_swapped(transform, x, scratch, [x](int64_t k, Complex<Value> value) { x[k] = value; });
}

}  // namespace fourier
}  // namespace BITLENS_ISA
}  // namespace bitlens
