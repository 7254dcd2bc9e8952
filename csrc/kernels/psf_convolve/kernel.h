// Arguments and entry points of psf_convolve, fourier_filter and the cross-spectrum (the filter's gradient in its transfer function).
#pragma once

#include <cstdint>

#include "../../common/broadcast.h"

namespace bitlens {
namespace psf_convolve {

enum class Kind : int {
  convolve,       // real; out[r] = sum of first[i] second[j] over i + j = r + start (modulo period), on both axes;
                  // conjugate: over i - j = r + start, a correlation
  filter,         // complex; ifft2(fft2(first) * second); conjugate: * conj(second)
  cross_spectrum  // complex; fft2(first) * conj(fft2(second)) / (rows * columns)
};

// Which part of a convolution along one axis is wanted; not used by the complex kinds.
struct Window {
  std::int64_t start;   // index in the full convolution or correlation of the first output; may be negative
  std::int64_t count;   // outputs, at most `period` where there is one
  std::int64_t period;  // 0: zeros outside. Otherwise indices count modulo it, and no operand is longer.
};

template <class T>
struct Operand {
  const T* data;            // rows and columns of one image, columns adjacent; complex interleaved
  std::int64_t rows, columns;
  std::int64_t row_stride;  // in elements of T, as are the strides of the layouts
};

// A second result of a correlation or a cross-spectrum, from the same transform of `first`: where that is the gradient
// of a convolution or filter and `second` the image, the main result is the gradient in the PSF or transfer function
// and this the one in the image.
template <class T>
struct Companion {
  const T* factor;  // the PSF or transfer function of each output, contiguous, of the main result's size; may be null
  T* output;        // laid out as `second`, whose rows are contiguous; the window starts where the main result's does
};

template <class T>
struct Arguments {
  Kind kind;
  bool conjugate;  // of the second operand; see Kind
  Broadcast<2> batch;  // one output each
  Broadcast<2> terms;  // summed into each output: where each term's operands lie, from those of the output's first
  Operand<T> first, second;
  Window row, column;
  T* output;  // [batch][rows][columns], contiguous; complex interleaved for the complex kinds
  // On the CPU only:
  bool centered;  // frequency zero of transfer functions and of a cross-spectrum is in the middle, not first
  Companion<T> companion;
  const T* spectra;  // of the second operands, contiguous, as make_spectra leaves them for such a call; may be null
  void* workspace;  // of workspace_bytes, 16-byte aligned; contents are not read before they are written
};

constexpr int kMaxStages = 64;

// Tables of one transform length; pointers into memory that a plan owns.
template <class Scalar>
struct Transform {
  std::int64_t size;             // points
  std::int64_t inner;            // product of the radices: size, or Bluestein's padded length
  int stages;
  int radix[kMaxStages];         // first stage of `split` first
  const Scalar* twiddles;        // per stage [step][radix - 1] complex, exp(-2 pi i j q / length)
  std::int64_t twiddle_count;    // numbers in it
  const std::int64_t* frequency; // [size] at each position
  const std::int64_t* position;  // [size] of each frequency
  const Scalar* chirp;           // [size] complex, exp(-pi i k^2 / size); null unless Bluestein
  const Scalar* chirp_spectrum;  // [inner] complex, divided by inner, in the order that `split` leaves
};

// workspace_bytes depends on neither data, output nor workspace; evaluate needs at least one output and one term.
namespace cpu {
inline std::int64_t workspace_bytes(const Arguments<float>&) { return 0; }
inline std::int64_t workspace_bytes(const Arguments<double>&) { return 0; }
void evaluate(const Arguments<float>& arguments, int threads);
void evaluate(const Arguments<double>& arguments, int threads);

// Spectra of the second operands of a convolution, one for each output; they suit the instruction set, the sizes and
// the windows that they were made for. `spectra` holds spectrum_numbers for each.
std::int64_t spectrum_numbers(const Arguments<float>& arguments);
std::int64_t spectrum_numbers(const Arguments<double>& arguments);
void make_spectra(const Arguments<float>& arguments, float* spectra, int threads);
void make_spectra(const Arguments<double>& arguments, double* spectra, int threads);
}  // namespace cpu

namespace cuda {
std::int64_t workspace_bytes(const Arguments<float>& arguments);
std::int64_t workspace_bytes(const Arguments<double>& arguments);
void evaluate(const Arguments<float>& arguments, std::uintptr_t stream);
void evaluate(const Arguments<double>& arguments, std::uintptr_t stream);
}  // namespace cuda

}  // namespace psf_convolve
}  // namespace bitlens
