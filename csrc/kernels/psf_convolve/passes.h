// The passes over one image, one instruction set: columns forward (one column per lane), rows forward, times a
// spectrum and back (one row per lane, so that no padded plane is ever written), columns back. Tiles are transposed on
// the way in and out of the plane between them.
//
// Real images: columns c and c + half are the real and imaginary part of one transform. Of the spectra of the columns
// half is kept; their rows of frequency zero and size / 2 are real and share row 0 of the plane as its real and
// imaginary part. Row 0 of a product then is Z[q] S[q] + conj(Z[-q]) D[q], where S and D are half the sum and the
// difference of the filter's two rows.
#pragma once

#include "kernel.h"
#include "lanes.h"
#include "math.h"

namespace bitlens {
namespace psf_convolve {

// One axis of a problem: its transform, and where outputs lie in it.
template <class T>
struct Axis {
  Transform<T> transform;
  std::int64_t outputs;
  const std::int64_t* target;  // [size] output at each index or -1; null where an output is a sum of two or of none
  const std::int64_t* source;  // [outputs] index of each output, -1 where it is zero
  const std::int64_t* alias;   // [outputs] a second index that is added, or -1
};

// What one call shares among its images.
template <class T>
struct Problem {
  Kind kind;
  bool conjugate;
  Operand<T> image, filter;  // data is not used here
  Axis<T> row, column;       // transforms of columns, over row numbers, and of rows
  Operand<T> factor;         // of a companion, as are the two axes that follow; their transforms are the same
  Axis<T> companion_row, companion_column;
  std::int64_t plane_rows;   // of the half spectrum where operands are real
  std::int64_t plane_width;
  const std::int64_t* mirrored;  // [width] position of frequency -q at the position of q
  bool packed;                   // row 0 holds two real rows
  bool centered;                 // as in Arguments
};

// One step of the work on one image, and the memory it uses. Spectra are [group of rows][width], rows in lanes, with D
// as one group more; `sums` and `kept` have no such group.
enum class Step { direct_rows, image_columns, filter_columns, spectrum_rows, product_rows, sum_rows, keep_rows, sum_kept,
                  companion_rows, inverse_rows, inverse_columns, transfer, write_spectrum };

template <class T>
struct Job {
  const T* data;
  T* output;
  T* plane;     // [group][plane_width]
  T* spectrum;  // of the filter
  T* sums;      // of products
  T* kept;      // an image's spectrum
  T* buffer;    // two transforms, one for each lane
  bool first;   // sums begin here
  bool companion;  // a filter is a companion's factor, outputs are a companion
  T* factor;       // its spectrum
  const T* taps;  // of a direct sum: the filter's values, rows one after the other; the framed image is `plane`
  T poison;       // added to every direct sum: NaN for an image with a value that is not finite, otherwise zero
};

namespace BITLENS_ISA {
namespace {

namespace fourier = ::bitlens::BITLENS_ISA::fourier;
using fourier::Complex;

template <class T>
struct Passes {
  using Value = typename Vector<T>::Type;
  using Point = Complex<Value>;
  static constexpr int kCount = kLanes<T>;

  const Problem<T>& problem;
  const Job<T>& job;

  static inline __attribute__((always_inline)) Point zero() { return {Value{}, Value{}}; }
  static inline __attribute__((always_inline)) int64_t groups_of(int64_t rows) { return (rows + kCount - 1) / kCount; }
  inline __attribute__((always_inline)) Point* points(T* memory) const { return reinterpret_cast<Point*>(memory); }
  inline __attribute__((always_inline)) Point* buffer() const { return points(job.buffer); }
  inline __attribute__((always_inline)) Point* scratch() const {
    return buffer() + (problem.row.transform.inner > problem.column.transform.inner ? problem.row.transform.inner
                                                                                    : problem.column.transform.inner);
  }
  inline __attribute__((always_inline)) Point* plane_row(int64_t group) const {
    return points(job.plane) + group * problem.plane_width;
  }
  inline __attribute__((always_inline)) Point* group_of(T* spectrum, int64_t group) const {
    return points(spectrum) + group * problem.column.transform.size;
  }

  // ---- columns of real images ----

  void real_columns_forward(const Operand<T>& operand, int64_t begin, int64_t end) const {
    const Transform<T>& vertical = problem.row.transform;
    const int64_t half = (operand.columns + 1) / 2, size = vertical.size, kept = problem.plane_rows;
    Point* const spectra = buffer();
    for (int64_t c = begin * kCount; c < end * kCount && c < half; c += kCount) {
      const int64_t first_columns = half - c < kCount ? half - c : kCount;
      const int64_t rest = operand.columns - half - c;
      const int64_t second_columns = rest < 0 ? 0 : rest < kCount ? rest : kCount;
      fourier::forward(vertical, spectra, scratch(), [&](int64_t r) {
        if (r >= operand.rows) return zero();
        const T* const row = job.data + r * operand.row_stride + c;
        return Point{load(row, first_columns), load(row + half, second_columns)};
      });
      // Twice the spectra of the two columns, z[k] + conj z[-k] and (z[k] - conj z[-k]) / i.
      for (int64_t k = 0; k < kept; k += kCount) {
        Value tiles[4][kCount];
        for (int lane = 0; lane < kCount; ++lane) {
          Point z = zero(), y = zero();
          if (k + lane < kept) {
            z = spectra[vertical.position[k + lane]];
            y = spectra[vertical.position[k + lane == 0 ? 0 : size - k - lane]];
          }
          tiles[0][lane] = z.re + y.re;
          tiles[1][lane] = z.im - y.im;
          tiles[2][lane] = z.im + y.im;
          tiles[3][lane] = y.re - z.re;
        }
        if (k == 0 && problem.packed) {
          const Point last = spectra[vertical.position[size / 2]];
          tiles[1][0] = last.re + last.re;
          tiles[3][0] = last.im + last.im;
        }
        for (auto& tile : tiles) transpose<T>(tile);
        Point* const target = plane_row(k / kCount) + c;
        for (int64_t i = 0; i < first_columns; ++i) target[i] = {tiles[0][i], tiles[1][i]};
        for (int64_t i = 0; i < second_columns; ++i) target[half + i] = {tiles[2][i], tiles[3][i]};
      }
    }
  }

  inline __attribute__((always_inline)) const Operand<T>& filter() const {
    return job.companion ? problem.factor : problem.filter;
  }
  inline __attribute__((always_inline)) const Axis<T>& row_axis() const {
    return job.companion ? problem.companion_row : problem.row;
  }
  inline __attribute__((always_inline)) const Axis<T>& column_axis() const {
    return job.companion ? problem.companion_column : problem.column;
  }

  void real_columns_inverse(int64_t begin, int64_t end) const {
    const Transform<T>& vertical = problem.row.transform;
    const int64_t columns = column_axis().outputs, half = (columns + 1) / 2;
    const int64_t size = vertical.size, kept = problem.plane_rows;
    Point* const spectra = buffer();
    for (int64_t c = begin * kCount; c < end * kCount && c < half; c += kCount) {
      for (int64_t k = 0; k < kept; k += kCount) {
        Value tiles[4][kCount];
        const Point* const source = plane_row(k / kCount) + c;
        for (int i = 0; i < kCount; ++i) {
          const bool first = c + i < half, second = half + c + i < columns;
          tiles[0][i] = first ? source[i].re : Value{};
          tiles[1][i] = first ? source[i].im : Value{};
          tiles[2][i] = second ? source[half + i].re : Value{};
          tiles[3][i] = second ? source[half + i].im : Value{};
        }
        for (auto& tile : tiles) transpose<T>(tile);
        for (int lane = 0; lane < kCount && k + lane < kept; ++lane) {
          const int64_t frequency = k + lane;
          const Value ar = tiles[0][lane], ai = tiles[1][lane], br = tiles[2][lane], bi = tiles[3][lane];
          // z = a + i b and, at the mirrored frequency, conj a + i conj b; stored with the parts swapped.
          if (frequency == 0) {
            spectra[0] = {br, ar};
            if (problem.packed) spectra[vertical.position[size / 2]] = {bi, ai};
          } else {
            spectra[vertical.position[frequency]] = {ai + br, ar - bi};
            spectra[vertical.position[size - frequency]] = {br - ai, ar + bi};
          }
        }
      }
      T* const output = job.output + c;
      inverse(row_axis(), [&](int64_t r, Point value) {
        store(output + r * columns, value.re, half - c);
        store(output + r * columns + half, value.im, columns - half - c);
      });
    }
  }

  // The inverse of the swapped buffer: write(output, value) for every output of the axis.
  template <class Write>
  inline __attribute__((always_inline)) void inverse(const Axis<T>& axis, const Write& write) const {
    Point* const x = buffer();
    if (axis.target != nullptr) {
      fourier::inverse_of_swapped(axis.transform, x, scratch(), [&](int64_t index, Point value) {
        const int64_t output = axis.target[index];
        if (output >= 0) write(output, swapped(value));
      });
      return;
    }
    fourier::inverse_of_swapped(axis.transform, x, scratch());
    for (int64_t output = 0; output < axis.outputs; ++output) {
      Point total = axis.source[output] >= 0 ? x[axis.source[output]] : zero();
      if (axis.alias[output] >= 0) total = total + x[axis.alias[output]];
      write(output, swapped(total));
    }
  }

  // ---- columns of complex images: every position of the column transform is a row of the plane ----

  // The same rows of the next block of columns, while this one is transformed: the processor does not follow strides of
  // a row by itself, and rows of complex numbers are long. The last block asks for what nobody needs, which is
  // harmless; so many rows that they would drive the transform out of its cache are not.
  inline __attribute__((always_inline)) bool prefetches() const { return problem.row.transform.size <= 512; }
  static inline __attribute__((always_inline)) void prefetch(const T* next) { __builtin_prefetch(next); }
  static inline __attribute__((always_inline)) void prefetch_for_write(const T* next) { __builtin_prefetch(next, 1); }

  void complex_columns_forward(const Operand<T>& operand, int64_t begin, int64_t end) const {
    const int64_t rows = operand.rows, columns = operand.columns;
    const Point* const spectra = buffer();
    const bool ahead = prefetches();
    for (int64_t c = begin * kCount; c < end * kCount && c < columns; c += kCount) {
      const int64_t count = columns - c < kCount ? columns - c : kCount;
      fourier::forward(problem.row.transform, buffer(), scratch(), [&](int64_t r) {
        Point value;
        const T* const row = job.data + r * operand.row_stride + 2 * c;
        if (ahead) {
          prefetch(row + 2 * kCount);
          prefetch(row + 3 * kCount);
        }
        load_complex<T>(row, count, value.re, value.im);
        return value;
      });
      for (int64_t p = 0; p < rows; p += kCount) {
        Value tiles[2][kCount];
        for (int lane = 0; lane < kCount; ++lane) {
          tiles[0][lane] = p + lane < rows ? spectra[p + lane].re : Value{};
          tiles[1][lane] = p + lane < rows ? spectra[p + lane].im : Value{};
        }
        for (auto& tile : tiles) transpose<T>(tile);
        Point* const target = plane_row(p / kCount) + c;
        for (int64_t i = 0; i < count; ++i) target[i] = {tiles[0][i], tiles[1][i]};
      }
    }
  }

  void complex_columns_inverse(int64_t begin, int64_t end) const {
    const int64_t rows = problem.image.rows, columns = problem.image.columns;
    Point* const spectra = buffer();
    const bool ahead = prefetches();
    for (int64_t c = begin * kCount; c < end * kCount && c < columns; c += kCount) {
      const int64_t count = columns - c < kCount ? columns - c : kCount;
      for (int64_t p = 0; p < rows; p += kCount) {
        Value tiles[2][kCount];
        const Point* const source = plane_row(p / kCount) + c;
        for (int i = 0; i < kCount; ++i) {
          tiles[0][i] = i < count ? source[i].re : Value{};
          tiles[1][i] = i < count ? source[i].im : Value{};
        }
        for (auto& tile : tiles) transpose<T>(tile);
        for (int lane = 0; lane < kCount && p + lane < rows; ++lane) {
          spectra[p + lane] = {tiles[1][lane], tiles[0][lane]};
        }
      }
      inverse(problem.row, [&](int64_t r, Point value) {
        T* const row = job.output + 2 * (r * columns + c);
        if (ahead) {
          prefetch_for_write(row + 2 * kCount);
          prefetch_for_write(row + 3 * kCount);
        }
        store_complex<T>(row, value.re, value.im, count);
      });
    }
  }

  // ---- rows, one per lane; functions of their own, since every pass over rows has the same transforms ----

  BITLENS_OUT_OF_LINE void row_forward(int64_t columns, int64_t group) const {
    const Point* const source = plane_row(group);
    fourier::forward(problem.column.transform, buffer(), scratch(),
                     [&](int64_t c) { return c < columns ? source[c] : zero(); });
  }

  // The filter's spectrum with every constant factor in it. Real operands come doubled from their columns, both.
  void spectrum_rows(int64_t begin, int64_t end) const {
    const int64_t width = problem.column.transform.size;
    const double points = static_cast<double>(problem.row.transform.size) * static_cast<double>(width);
    const T scale = static_cast<T>((problem.kind == Kind::convolve ? 0.25 : 1.0) / points);
    const T turn = problem.conjugate ? -scale : scale;
    for (int64_t group = begin; group < end; ++group) {
      row_forward(filter().columns, group);
      Point* const target = group_of(job.spectrum, group);
      for (int64_t q = 0; q < width; ++q) target[q] = {buffer()[q].re * scale, buffer()[q].im * turn};
      if (group > 0 || !problem.packed) continue;
      Point* const difference = group_of(job.spectrum, groups_of(problem.plane_rows));
      for (int64_t q = 0; q < width; ++q) {
        const int64_t m = problem.mirrored[q];
        const T zr = buffer()[q].re[0] * scale, zi = buffer()[q].im[0] * scale;
        const T mr = buffer()[m].re[0] * scale, mi = buffer()[m].im[0] * scale;
        // The two real rows' spectra: a = (z + conj m) / 2 and b = (z - conj m) / 2i.
        const T ar = T(0.5) * (zr + mr), ai = T(0.5) * (zi - mi), br = T(0.5) * (zi + mi), bi = T(0.5) * (mr - zr);
        const T sign = problem.conjugate ? T(-1) : T(1);
        target[q].re[0] = T(0.5) * (ar + br);
        target[q].im[0] = T(0.5) * sign * (ai + bi);
        difference[q] = zero();
        difference[q].re[0] = T(0.5) * (ar - br);
        difference[q].im[0] = T(0.5) * sign * (ai - bi);
      }
    }
  }

  // write(q, product of values and a filter's spectrum) at every position, after the values there were read.
  template <class Write>
  inline __attribute__((always_inline)) void multiply(T* spectrum, int64_t group, const Point* values,
                                                      const Write& write) const {
    const int64_t width = problem.column.transform.size;
    const Point* const factor = group_of(spectrum, group);
    if (group > 0 || !problem.packed) {
      for (int64_t q = 0; q < width; ++q) write(q, values[q] * factor[q]);
      return;
    }
    const Point* const difference = group_of(spectrum, groups_of(problem.plane_rows));
    for (int64_t q = 0; q < width; ++q) {
      const int64_t m = problem.mirrored[q];
      if (m < q) continue;
      const Point z = values[q], y = values[m];
      write(q, z * factor[q] + Point{y.re, -y.im} * difference[q]);
      if (m != q) write(m, y * factor[m] + Point{z.re, -z.im} * difference[m]);
    }
  }

  BITLENS_OUT_OF_LINE void row_inverse(const Axis<T>& axis, int64_t group) const {
    Point* const target = plane_row(group);
    inverse(axis, [target](int64_t c, Point value) { target[c] = value; });
  }

  void product_rows(int64_t begin, int64_t end) const {
    Point* const x = buffer();
    for (int64_t group = begin; group < end; ++group) {
      row_forward(problem.image.columns, group);
      multiply(job.spectrum, group, x, [x](int64_t q, Point value) { x[q] = swapped(value); });
      row_inverse(problem.column, group);
    }
  }

  inline __attribute__((always_inline)) void add_product(int64_t group, const Point* values) const {
    Point* const sums = group_of(job.sums, group);
    if (job.first) {
      multiply(job.spectrum, group, values, [sums](int64_t q, Point value) { sums[q] = value; });
    } else {
      multiply(job.spectrum, group, values, [sums](int64_t q, Point value) { sums[q] = sums[q] + value; });
    }
  }

  void sum_rows(int64_t begin, int64_t end) const {
    for (int64_t group = begin; group < end; ++group) {
      row_forward(problem.image.columns, group);
      add_product(group, buffer());
    }
  }

  void companion_rows(int64_t begin, int64_t end) const {
    Point* const x = buffer();
    for (int64_t group = begin; group < end; ++group) {
      row_forward(problem.image.columns, group);
      add_product(group, x);
      multiply(job.factor, group, x, [x](int64_t q, Point value) { x[q] = swapped(value); });
      row_inverse(problem.companion_column, group);
    }
  }

  void keep_rows(int64_t begin, int64_t end) const {
    for (int64_t group = begin; group < end; ++group) {
      row_forward(problem.image.columns, group);
      Point* const target = group_of(job.kept, group);
      for (int64_t q = 0; q < problem.column.transform.size; ++q) target[q] = buffer()[q];
    }
  }

  void sum_kept(int64_t begin, int64_t end) const {
    for (int64_t group = begin; group < end; ++group) add_product(group, group_of(job.kept, group));
  }

  void inverse_rows(int64_t begin, int64_t end) const {
    Point* const x = buffer();
    for (int64_t group = begin; group < end; ++group) {
      const Point* const sums = group_of(job.sums, group);
      for (int64_t q = 0; q < problem.column.transform.size; ++q) x[q] = swapped(sums[q]);
      row_inverse(problem.column, group);
    }
  }

  // ---- transfer functions in natural order ----

  // Where frequency k of an axis lies in a transfer function, and the frequency that lies at a place.
  inline __attribute__((always_inline)) int64_t place_of(int64_t frequency, int64_t size) const {
    if (!problem.centered) return frequency;
    const int64_t place = frequency + size / 2;
    return place < size ? place : place - size;
  }
  inline __attribute__((always_inline)) int64_t frequency_at(int64_t place, int64_t size) const {
    if (!problem.centered) return place;
    const int64_t frequency = place - size / 2;
    return frequency < 0 ? frequency + size : frequency;
  }

  // A given transfer function as the row pass reads it.
  void transfer(int64_t begin, int64_t end) const {
    const Transform<T>&vertical = problem.row.transform, &horizontal = problem.column.transform;
    const T scale = static_cast<T>(1.0 / (static_cast<double>(vertical.size) * static_cast<double>(horizontal.size)));
    const T turn = problem.conjugate ? -scale : scale;
    for (int64_t group = begin; group < end; ++group) {
      Point* const target = group_of(job.spectrum, group);
      for (int64_t c = 0; c < horizontal.size; c += kCount) {
        const int64_t count = horizontal.size - c < kCount ? horizontal.size - c : kCount;
        Value tiles[2][kCount];
        for (int lane = 0; lane < kCount; ++lane) {
          const int64_t p = group * kCount + lane;
          tiles[0][lane] = tiles[1][lane] = Value{};
          if (p >= vertical.size) continue;
          const int64_t row = place_of(vertical.frequency[p], vertical.size);
          load_complex<T>(job.data + row * filter().row_stride + 2 * c, count, tiles[0][lane], tiles[1][lane]);
        }
        for (auto& tile : tiles) transpose<T>(tile);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t q = horizontal.position[frequency_at(c + i, horizontal.size)];
          target[q] = {tiles[0][i] * scale, tiles[1][i] * turn};
        }
      }
    }
  }

  // The sums as an output in natural order.
  void write_spectrum(int64_t begin, int64_t end) const {
    const Transform<T>&vertical = problem.row.transform, &horizontal = problem.column.transform;
    for (int64_t group = begin; group < end; ++group) {
      const Point* const sums = group_of(job.sums, group);
      for (int64_t c = 0; c < horizontal.size; c += kCount) {
        const int64_t count = horizontal.size - c < kCount ? horizontal.size - c : kCount;
        Value tiles[2][kCount];
        for (int i = 0; i < kCount; ++i) {
          const Point value = i < count ? sums[horizontal.position[frequency_at(c + i, horizontal.size)]] : zero();
          tiles[0][i] = value.re;
          tiles[1][i] = value.im;
        }
        for (auto& tile : tiles) transpose<T>(tile);
        for (int lane = 0; lane < kCount && group * kCount + lane < vertical.size; ++lane) {
          const int64_t row = place_of(vertical.frequency[group * kCount + lane], vertical.size);
          store_complex<T>(job.output + 2 * (row * horizontal.size + c), tiles[0][lane], tiles[1][lane], count);
        }
      }
    }
  }

  // ---- direct sums ----

  // Rows begin .. end of the outputs from the image in a frame of zeros: output (r, c) is the sum over taps (i, j) of
  // taps[i][j] times padded(r + i, c + j). Taps are in the order in which they meet the image.
  void direct_rows(int64_t begin, int64_t end) const {
    constexpr int kVectors = 4;
    const int64_t columns = problem.column.outputs, width = problem.plane_width;
    for (int64_t r = begin; r < end; ++r) {
      const T* const top = job.plane + r * width;
      T* const output = job.output + r * columns;
      int64_t c = 0;
      for (; c + (kVectors - 1) * kCount < columns; c += kVectors * kCount) direct<kVectors>(top + c, output + c, columns - c);
      for (; c < columns; c += kCount) direct<1>(top + c, output + c, columns - c);
    }
  }

  template <int Vectors>
  inline __attribute__((always_inline)) void direct(const T* top, T* output, int64_t count) const {
    Value sums[Vectors];
    for (int v = 0; v < Vectors; ++v) sums[v] = Value{};
    const T* tap = job.taps;
    for (int64_t i = 0; i < problem.filter.rows; ++i) {
      const T* const row = top + i * problem.plane_width;
      for (int64_t j = 0; j < problem.filter.columns; ++j) {
        const T weight = *tap++;
        for (int v = 0; v < Vectors; ++v) sums[v] += weight * load_some(row + j + v * kCount, kCount);
      }
    }
    for (int v = 0; v < Vectors; ++v) store(output + v * kCount, sums[v] + job.poison, count - v * kCount);
  }

  // ---- one step ----

  void columns_forward(const Operand<T>& operand, int64_t begin, int64_t end) const {
    if (problem.kind == Kind::convolve) return real_columns_forward(operand, begin, end);
    complex_columns_forward(operand, begin, end);
  }

  // Begin and end count output rows of a direct sum; otherwise the widest vectors of any instruction set, over columns
  // or over rows of the plane.
  void run(Step step, int64_t begin, int64_t end) const {
    if (step == Step::direct_rows) return direct_rows(begin, end);
    constexpr int64_t kShare = kMaxVectorBytes / BITLENS_VECTOR_BYTES;
    begin *= kShare;
    end *= kShare;
    const bool columns =
        step == Step::image_columns || step == Step::filter_columns || step == Step::inverse_columns;
    if (!columns && end > groups_of(problem.plane_rows)) end = groups_of(problem.plane_rows);
    switch (step) {
      case Step::image_columns: return columns_forward(problem.image, begin, end);
      case Step::filter_columns: return columns_forward(filter(), begin, end);
      case Step::spectrum_rows: return spectrum_rows(begin, end);
      case Step::product_rows: return product_rows(begin, end);
      case Step::sum_rows: return sum_rows(begin, end);
      case Step::keep_rows: return keep_rows(begin, end);
      case Step::sum_kept: return sum_kept(begin, end);
      case Step::companion_rows: return companion_rows(begin, end);
      case Step::inverse_rows: return inverse_rows(begin, end);
      case Step::inverse_columns:
        if (problem.kind == Kind::convolve) return real_columns_inverse(begin, end);
        return complex_columns_inverse(begin, end);
      case Step::transfer: return transfer(begin, end);
      case Step::write_spectrum: return write_spectrum(begin, end);
      case Step::direct_rows: return;
    }
  }
};

}  // namespace
}  // namespace BITLENS_ISA
}  // namespace psf_convolve
}  // namespace bitlens
