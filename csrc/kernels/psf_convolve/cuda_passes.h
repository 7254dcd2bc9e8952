// What a block of threads does between the transforms: loads, the two spectra of a pair of real columns, products with
// a filter's spectrum, stores.
//
// A plane is [position of the column transform][pitch] points. Real images: columns 2c and 2c + 1 are the real and
// imaginary part of transform c, and the rows of the plane at frequencies k and -k together hold line k, the row of the
// half spectrum at frequency k: even points in one, odd points in the other. The lines of frequency zero and of
// size / 2 are real and share line 0 as its real and imaginary part. Row 0 of a product then is
// Z[q] S[q] + conj(Z[-q]) D[q], where S and D are half the sum and the difference of the filter's two rows. Complex
// images: transform c is column c, and line p is row p.
#pragma once

#include "cuda_lines.h"
#include "cuda_plan.h"

namespace bitlens {
namespace psf_convolve {
namespace cuda_passes {

using namespace cuda_lines;
using namespace cuda_plan;

// NaN in place of infinity, so that every output of an image that has one is NaN.
template <class T>
__device__ T finite_or_nan(T value) {
  return value + (value - value);
}

template <class T>
__device__ Complex<T> conjugate(Complex<T> a) {
  return {a.re, -a.im};
}

constexpr unsigned kUnbounded = ~0u;

enum class Task { filters, products, finish };

// Transforms of columns that an operand fills.
template <bool kReal, class T>
__device__ unsigned transforms_of(const Operand<T>& operand) {
  return static_cast<unsigned>(kReal ? (operand.columns + 1) / 2 : operand.columns);
}

// ---- one point of a plane or line ----

// Column pair c of a real image, or column c of a complex one, at one row.
template <bool kReal, class T>
__device__ Point<T> load(const Operand<T>& operand, const T* data, std::int64_t row, std::int64_t c) {
  if (row >= operand.rows || (kReal ? 2 * c : c) >= operand.columns) return {T(0), T(0)};
  const T* const source = data + row * operand.row_stride + 2 * c;
  const bool both = !kReal || 2 * c + 1 < operand.columns;
  return {finite_or_nan(source[0]), both ? finite_or_nan(source[1]) : T(0)};
}

template <class T>
struct Both {
  Complex<T> even, odd;
};

// Twice the two columns' spectra at frequency k, from those of the pair at k and -k; at frequency 0 from those at 0
// and size / 2 where lines are packed.
template <class T>
__device__ Both<T> unpaired(Complex<T> z, Complex<T> y, bool first, bool packed) {
  if (!first) return {{z.re + y.re, z.im - y.im}, {z.im + y.im, y.re - z.re}};
  return {{z.re + z.re, packed ? y.re + y.re : T(0)}, {z.im + z.im, packed ? y.im + y.im : T(0)}};
}

// The pair's spectra at k and -k from those of its columns; all with real and imaginary parts swapped.
template <class T>
__device__ Both<T> paired(Complex<T> a, Complex<T> b, bool first) {
  if (first) return {{b.im, a.im}, {b.re, a.re}};
  return {{a.re + b.im, a.im - b.re}, {b.im - a.re, a.im + b.re}};
}

// Rows of the plane that hold line k; where line 0 is alone, a row more than the transform has.
template <class T>
__device__ std::int64_t even_row(const Problem<T>& problem, std::int64_t k) {
  return problem.vertical.position[k];
}

template <class T>
__device__ std::int64_t odd_row(const Problem<T>& problem, std::int64_t k) {
  const std::int64_t size = problem.vertical.size;
  if (k > 0) return problem.vertical.position[size - k];
  return problem.packed ? problem.vertical.position[size / 2] : size;
}

// ---- spectra of filters and products ----

// The filter's spectrum with every constant factor in it; `lines` are transformed, the first is line k0.
template <bool kReal, class T, class Lines>
__device__ void store_spectrum(const Problem<T>& problem, const Lines& lines, std::int64_t k0, unsigned count,
                               Point<T>* spectrum) {
  const unsigned width = static_cast<unsigned>(problem.horizontal.size);
  const T scale = problem.scale, sign = problem.conjugate ? T(-1) : T(1);
  for_points(count, width, [&](unsigned line, unsigned q) {
    const std::int64_t k = k0 + line;
    const Complex<T> z = read(lines(line)[q]);
    if (!kReal || !problem.packed || k > 0) {
      spectrum[k * width + q] = {z.re * scale, sign * z.im * scale};
      return;
    }
    // The two real rows' spectra: a = (z + conj y) / 2 and b = (z - conj y) / 2i.
    const Complex<T> y = read(lines(line)[mirrored(problem, q)]);
    const T half = T(0.5) * scale;
    const T ar = half * (z.re + y.re), ai = half * (z.im - y.im), br = half * (z.im + y.im), bi = half * (y.re - z.re);
    spectrum[q] = {T(0.5) * (ar + br), T(0.5) * sign * (ai + bi)};
    spectrum[problem.lines * width + q] = {T(0.5) * (ar - br), T(0.5) * sign * (ai - bi)};
  });
}

// The factor at one point: of a stored spectrum, or of a transfer function in natural order.
template <class T>
struct Factor {
  const Point<T>* spectrum;  // null where there is a transfer function
  const T* transfer;
};

template <bool kReal, class T>
__device__ Complex<T> factor_at(const Problem<T>& problem, const Factor<T>& factor, std::int64_t k, unsigned q) {
  if (kReal || factor.spectrum != nullptr) return read(factor.spectrum[k * problem.horizontal.size + q]);
  const T* const source = factor.transfer + problem.vertical.frequency[k] * problem.filter.row_stride +
                          2 * problem.horizontal.frequency[q];
  const T imaginary = problem.conjugate ? -source[1] : source[1];
  return {finite_or_nan(source[0]) * problem.scale, finite_or_nan(imaginary) * problem.scale};
}

// write(line, q, product) at every point, after the points it is made of were read.
template <bool kReal, class T, class Lines, class Write>
__device__ void multiply(const Problem<T>& problem, const Factor<T>& factor, const Lines& lines, std::int64_t k0,
                         unsigned count, const Write& write) {
  const unsigned width = static_cast<unsigned>(problem.horizontal.size);
  for_points(count, width, [&](unsigned line, unsigned q) {
    const std::int64_t k = k0 + line;
    if (!kReal || !problem.packed || k > 0) {
      write(line, q, read(lines(line)[q]) * factor_at<kReal>(problem, factor, k, q));
      return;
    }
    const unsigned m = mirrored(problem, q);
    if (m < q) return;
    const Complex<T> z = read(lines(line)[q]);
    const Point<T>*const sum = factor.spectrum, *const difference = sum + problem.lines * width;
    const Complex<T> y = read(lines(line)[m]);
    write(line, q, z * read(sum[q]) + conjugate(y) * read(difference[q]));
    if (m != q) write(line, m, y * read(sum[m]) + conjugate(z) * read(difference[m]));
  });
}

// Adds products up in memory of this block, which are then its own lines; a point is always of the same thread.
template <class T>
__device__ void add(Point<T>& sum, Complex<T> value, bool first) {
  sum = Point<T>::of(first ? value : read(sum) + value);
}

// Calls visit(line, q, value of sums) for every point.
template <class T, class Visit>
__device__ void for_sums(const Problem<T>& problem, const Point<T>* sums, std::int64_t k0, unsigned count,
                         const Visit& visit) {
  const unsigned width = static_cast<unsigned>(problem.horizontal.size);
  for_points(count, width,
             [&](unsigned line, unsigned q) { visit(line, q, read(sums[(k0 + line) * width + q])); });
}

template <class T>
__device__ void write_cross_spectrum(const Problem<T>& problem, T* output, std::int64_t k, unsigned q,
                                     Complex<T> value) {
  T* const target = output + 2 * (problem.vertical.frequency[k] * problem.horizontal.size +
                                  problem.horizontal.frequency[q]);
  target[0] = value.re;
  target[1] = value.im;
}

// ---- outputs ----

// Sum of the values at the index and at the second index of an output, where it has them.
template <class At>
__device__ auto gathered(const Outputs& axis, std::int64_t output, const At& at) -> decltype(at(0)) {
  const std::int64_t source = source_of(axis, output), alias = alias_of(axis, output);
  decltype(at(0)) value{};
  if (source >= 0) value = at(source);
  if (alias >= 0) value = value + at(alias);
  return value;
}

}  // namespace cuda_passes
}  // namespace psf_convolve
}  // namespace bitlens
