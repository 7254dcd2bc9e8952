// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points.
//
// One image at a time, in three passes over a half-transformed plane that stays in cache: columns forward (one column
// per lane, two real columns as one complex transform), rows forward times the filter's spectrum and back (one row
// per lane, so no padded plane is ever written), columns back. Tiles are transposed on the way in and out of the
// plane. Images share no arithmetic, so neither their neighbours in the batch nor the threads can change a result, and
// a NaN stays in its image.
#include "kernel.h"
#include "lanes.h"
#include "math.h"

#if defined(BITLENS_ENTRY_POINTS)
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "../../common/instruction_set.h"
#include "../../common/parallel.h"
#include "plan.h"
#endif

namespace bitlens {
namespace psf_convolve {

// What one call shares among its images.
template <class T>
struct Problem {
  Kind kind;
  Operand<T> image, filter;  // data is not used here
  Window row, column;
  Transform<T> vertical, horizontal;
  std::int64_t row_support, column_support;  // length of the full convolution, or the period where it is exact
  std::int64_t plane_width;
};

namespace BITLENS_ISA {
namespace {

namespace fourier = ::bitlens::BITLENS_ISA::fourier;
using fourier::Complex;

// Where output `index` of a convolution lies in the transform, and where its alias is; -1 for neither.
struct Source {
  int64_t index, alias;
};
BITLENS_FUNCTION Source source_of(const Window& window, int64_t support, int64_t index) {
  int64_t at = window.start + index;
  if (window.period == 0) return {at >= 0 && at < support ? at : -1, -1};
  at %= window.period;
  if (at < 0) at += window.period;
  return {at < support ? at : -1, at + window.period < support ? at + window.period : -1};
}

template <class Value>
BITLENS_FUNCTION Complex<Value> gather(const Complex<Value>* values, Source source) {
  Complex<Value> total{Value{}, Value{}};
  if (source.index >= 0) total = values[source.index];
  if (source.alias >= 0) total = total + values[source.alias];
  return total;
}

template <class T>
struct Workspace {
  using Value = typename Vector<T>::Type;
  Complex<Value>* buffer;   // one transform per lane
  Complex<Value>* scratch;  // Bluestein's padded transform
  Complex<Value>* plane;    // [group of rows][plane_width], rows in lanes

  BITLENS_FUNCTION Workspace make(const Problem<T>& problem, T* memory) {
    const int64_t inner =
        problem.vertical.inner > problem.horizontal.inner ? problem.vertical.inner : problem.horizontal.inner;
    auto* const values = reinterpret_cast<Complex<Value>*>(memory);
    const bool padded = problem.vertical.chirp || problem.horizontal.chirp;
    return {values, values + inner, values + inner * (padded ? 2 : 1)};
  }
};

// ---- real operands: columns c and c + half are the real and imaginary part of one transform ----

template <class T>
BITLENS_FUNCTION void real_columns_forward(const Problem<T>& problem, const Operand<T>& operand, const T* data,
                                           const Workspace<T>& work) {
  using Value = typename Vector<T>::Type;
  constexpr int kCount = kLanes<T>;
  const int64_t half = (operand.columns + 1) / 2, size = problem.vertical.size, kept = size / 2 + 1;
  for (int64_t c = 0; c < half; c += kCount) {
    for (int64_t r = 0; r < operand.rows; ++r) {
      const T* const row = data + r * operand.row_stride;
      work.buffer[r] = {load(row + c, half - c), load(row + half + c, operand.columns - half - c)};
    }
    for (int64_t r = operand.rows; r < size; ++r) work.buffer[r] = {Value{}, Value{}};
    fourier::forward(problem.vertical, work.buffer, work.scratch);

    // Twice the spectra of the two columns, z[k] + conj z[-k] and (z[k] - conj z[-k]) / i.
    const int64_t first_columns = half - c < kCount ? half - c : kCount;
    const int64_t rest = operand.columns - half - c;
    const int64_t second_columns = rest < 0 ? 0 : rest < kCount ? rest : kCount;
    for (int64_t k = 0; k < kept; k += kCount) {
      Value tiles[4][kCount];
      for (int lane = 0; lane < kCount; ++lane) {
        Complex<Value> z{Value{}, Value{}}, y{Value{}, Value{}};
        if (k + lane < kept) {
          z = work.buffer[problem.vertical.position[k + lane]];
          y = work.buffer[problem.vertical.position[k + lane == 0 ? 0 : size - k - lane]];
        }
        tiles[0][lane] = z.re + y.re;
        tiles[1][lane] = z.im - y.im;
        tiles[2][lane] = z.im + y.im;
        tiles[3][lane] = y.re - z.re;
      }
      for (auto& tile : tiles) transpose<T>(tile);
      Complex<Value>* const target = work.plane + k / kCount * problem.plane_width + c;
      for (int64_t i = 0; i < first_columns; ++i) target[i] = {tiles[0][i], tiles[1][i]};
      for (int64_t i = 0; i < second_columns; ++i) target[half + i] = {tiles[2][i], tiles[3][i]};
    }
  }
}

template <class T>
BITLENS_FUNCTION void real_columns_inverse(const Problem<T>& problem, T* output, const Workspace<T>& work) {
  using Value = typename Vector<T>::Type;
  constexpr int kCount = kLanes<T>;
  const int64_t columns = problem.column.count, half = (columns + 1) / 2;
  const int64_t size = problem.vertical.size, kept = size / 2 + 1;
  for (int64_t c = 0; c < half; c += kCount) {
    for (int64_t k = 0; k < kept; k += kCount) {
      Value tiles[4][kCount];
      const Complex<Value>* const source = work.plane + k / kCount * problem.plane_width + c;
      for (int i = 0; i < kCount; ++i) {
        const bool first = c + i < half, second = half + c + i < columns;
        tiles[0][i] = first ? source[i].re : Value{};
        tiles[1][i] = first ? source[i].im : Value{};
        tiles[2][i] = second ? source[half + i].re : Value{};
        tiles[3][i] = second ? source[half + i].im : Value{};
      }
      for (auto& tile : tiles) transpose<T>(tile);
      for (int lane = 0; lane < kCount && k + lane < kept; ++lane) {
        const int64_t frequency = k + lane, mirrored = frequency == 0 ? 0 : size - frequency;
        const Value ar = tiles[0][lane], ai = tiles[1][lane], br = tiles[2][lane], bi = tiles[3][lane];
        // z = a + i b and, at the mirrored frequency, conj a + i conj b; stored with the parts swapped.
        if (frequency == mirrored) {
          work.buffer[problem.vertical.position[frequency]] = {br, ar};
        } else {
          work.buffer[problem.vertical.position[frequency]] = {ai + br, ar - bi};
          work.buffer[problem.vertical.position[mirrored]] = {br - ai, ar + bi};
        }
      }
    }
    fourier::inverse_of_swapped(problem.vertical, work.buffer, work.scratch);
    for (int64_t r = 0; r < problem.row.count; ++r) {
      const Complex<Value> value = gather(work.buffer, source_of(problem.row, problem.row_support, r));
      store(output + r * columns + c, value.im, half - c);
      store(output + r * columns + half + c, value.re, columns - half - c);
    }
  }
}

// ---- complex operands of the exact size: every position of the column transform is a row of the plane ----

template <class T>
BITLENS_FUNCTION void complex_columns_forward(const Problem<T>& problem, const Operand<T>& operand, const T* data,
                                              const Workspace<T>& work) {
  using Value = typename Vector<T>::Type;
  constexpr int kCount = kLanes<T>;
  const int64_t rows = operand.rows, columns = operand.columns;
  for (int64_t c = 0; c < columns; c += kCount) {
    const int64_t count = columns - c < kCount ? columns - c : kCount;
    for (int64_t r = 0; r < rows; ++r) {
      const T* const row = data + r * operand.row_stride + 2 * c;
      Complex<Value> value{Value{}, Value{}};
      for (int64_t lane = 0; lane < count; ++lane) {
        value.re[lane] = row[2 * lane];
        value.im[lane] = row[2 * lane + 1];
      }
      work.buffer[r] = {value.re + value.re * T(0), value.im + value.im * T(0)};
    }
    fourier::forward(problem.vertical, work.buffer, work.scratch);
    for (int64_t p = 0; p < rows; p += kCount) {
      Value tiles[2][kCount];
      for (int lane = 0; lane < kCount; ++lane) {
        tiles[0][lane] = p + lane < rows ? work.buffer[p + lane].re : Value{};
        tiles[1][lane] = p + lane < rows ? work.buffer[p + lane].im : Value{};
      }
      for (auto& tile : tiles) transpose<T>(tile);
      Complex<Value>* const target = work.plane + p / kCount * problem.plane_width + c;
      for (int64_t i = 0; i < count; ++i) target[i] = {tiles[0][i], tiles[1][i]};
    }
  }
}

template <class T>
BITLENS_FUNCTION void complex_columns_inverse(const Problem<T>& problem, T* output, const Workspace<T>& work) {
  using Value = typename Vector<T>::Type;
  constexpr int kCount = kLanes<T>;
  const int64_t rows = problem.image.rows, columns = problem.image.columns;
  for (int64_t c = 0; c < columns; c += kCount) {
    const int64_t count = columns - c < kCount ? columns - c : kCount;
    for (int64_t p = 0; p < rows; p += kCount) {
      Value tiles[2][kCount];
      const Complex<Value>* const source = work.plane + p / kCount * problem.plane_width + c;
      for (int i = 0; i < kCount; ++i) {
        tiles[0][i] = i < count ? source[i].re : Value{};
        tiles[1][i] = i < count ? source[i].im : Value{};
      }
      for (auto& tile : tiles) transpose<T>(tile);
      for (int lane = 0; lane < kCount && p + lane < rows; ++lane) {
        work.buffer[p + lane] = {tiles[1][lane], tiles[0][lane]};
      }
    }
    fourier::inverse_of_swapped(problem.vertical, work.buffer, work.scratch);
    for (int64_t r = 0; r < rows; ++r) {
      T* const row = output + 2 * (r * columns + c);
      for (int64_t lane = 0; lane < count; ++lane) {
        row[2 * lane] = work.buffer[r].im[lane];
        row[2 * lane + 1] = work.buffer[r].re[lane];
      }
    }
  }
}

// ---- rows, one per lane ----

template <class T>
BITLENS_FUNCTION int64_t plane_rows(const Problem<T>& problem) {
  return problem.kind == Kind::convolve ? problem.vertical.size / 2 + 1 : problem.vertical.size;
}

template <class T>
BITLENS_FUNCTION void row_forward(const Problem<T>& problem, int64_t columns, int64_t group,
                                  const Workspace<T>& work) {
  using Value = typename Vector<T>::Type;
  const Complex<Value>* const source = work.plane + group * problem.plane_width;
  for (int64_t c = 0; c < columns; ++c) work.buffer[c] = source[c];
  for (int64_t c = columns; c < problem.horizontal.size; ++c) work.buffer[c] = {Value{}, Value{}};
  fourier::forward(problem.horizontal, work.buffer, work.scratch);
}

template <class T>
BITLENS_FUNCTION void columns_forward(const Problem<T>& problem, const Operand<T>& operand, const T* data,
                                      const Workspace<T>& work) {
  if (problem.kind == Kind::convolve) {
    real_columns_forward(problem, operand, data, work);
  } else {
    complex_columns_forward(problem, operand, data, work);
  }
}

// The filter's spectrum as the row pass reads it, [group][position], with every constant factor in it.
template <class T>
BITLENS_FUNCTION void make_spectrum(const Problem<T>& problem, const T* data, T* spectrum, T* memory) {
  using Value = typename Vector<T>::Type;
  constexpr int kCount = kLanes<T>;
  const int64_t rows = plane_rows(problem), width = problem.horizontal.size;
  const double points = static_cast<double>(problem.vertical.size) * static_cast<double>(width);
  auto* const target = reinterpret_cast<Complex<Value>*>(spectrum);
  if (problem.kind == Kind::filter) {
    const T scale = static_cast<T>(1.0 / points);
    for (int64_t group = 0; group * kCount < rows; ++group) {
      for (int64_t q = 0; q < width; ++q) {
        Complex<Value> value{Value{}, Value{}};
        for (int64_t lane = 0; lane < kCount && group * kCount + lane < rows; ++lane) {
          const T* const at = data + problem.vertical.frequency[group * kCount + lane] * problem.filter.row_stride +
                              2 * problem.horizontal.frequency[q];
          value.re[lane] = at[0];
          value.im[lane] = at[1];
        }
        value = {value.re + value.re * T(0), value.im + value.im * T(0)};
        target[group * width + q] = {value.re * scale, value.im * scale};
      }
    }
    return;
  }
  // Real operands come doubled from real_columns_forward, both of them.
  const T scale = static_cast<T>((problem.kind == Kind::convolve ? 0.25 : 1.0) / points);
  const Workspace<T> work = Workspace<T>::make(problem, memory);
  columns_forward(problem, problem.filter, data, work);
  for (int64_t group = 0; group * kCount < rows; ++group) {
    row_forward(problem, problem.filter.columns, group, work);
    for (int64_t q = 0; q < width; ++q) {
      target[group * width + q] = {work.buffer[q].re * scale, work.buffer[q].im * scale};
    }
  }
}

template <class T>
BITLENS_FUNCTION void apply_spectrum(const Problem<T>& problem, const T* data, const T* spectrum, T* output,
                                     T* memory) {
  using Value = typename Vector<T>::Type;
  constexpr int kCount = kLanes<T>;
  const int64_t rows = plane_rows(problem), width = problem.horizontal.size;
  const Workspace<T> work = Workspace<T>::make(problem, memory);
  columns_forward(problem, problem.image, data, work);
  for (int64_t group = 0; group * kCount < rows; ++group) {
    row_forward(problem, problem.image.columns, group, work);
    const Complex<Value>* const factor = reinterpret_cast<const Complex<Value>*>(spectrum) + group * width;
    if (problem.kind == Kind::cross_spectrum) {
      for (int64_t q = 0; q < width; ++q) {
        const Complex<Value> value = work.buffer[q] * Complex<Value>{factor[q].re, -factor[q].im};
        for (int64_t lane = 0; lane < kCount && group * kCount + lane < rows; ++lane) {
          T* const at = output + 2 * (problem.vertical.frequency[group * kCount + lane] * width +
                                      problem.horizontal.frequency[q]);
          at[0] = value.re[lane];
          at[1] = value.im[lane];
        }
      }
      continue;
    }
    for (int64_t q = 0; q < width; ++q) work.buffer[q] = swapped(work.buffer[q] * factor[q]);
    fourier::inverse_of_swapped(problem.horizontal, work.buffer, work.scratch);
    Complex<Value>* const target = work.plane + group * problem.plane_width;
    for (int64_t c = 0; c < problem.column.count; ++c) {
      target[c] = swapped(gather(work.buffer, source_of(problem.column, problem.column_support, c)));
    }
  }
  if (problem.kind == Kind::convolve) {
    real_columns_inverse(problem, output, work);
  } else if (problem.kind == Kind::filter) {
    complex_columns_inverse(problem, output, work);
  }
}

}  // namespace

void spectrum_float(const Problem<float>& problem, const float* data, float* spectrum, float* memory) {
  make_spectrum(problem, data, spectrum, memory);
}

void spectrum_double(const Problem<double>& problem, const double* data, double* spectrum, double* memory) {
  make_spectrum(problem, data, spectrum, memory);
}

void apply_float(const Problem<float>& problem, const float* data, const float* spectrum, float* output,
                 float* memory) {
  apply_spectrum(problem, data, spectrum, output, memory);
}

void apply_double(const Problem<double>& problem, const double* data, const double* spectrum, double* output,
                  double* memory) {
  apply_spectrum(problem, data, spectrum, output, memory);
}

}  // namespace BITLENS_ISA

#if defined(BITLENS_ENTRY_POINTS)
BITLENS_DECLARE_PER_ISA(void spectrum_float(const Problem<float>&, const float*, float*, float*))
BITLENS_DECLARE_PER_ISA(void spectrum_double(const Problem<double>&, const double*, double*, double*))
BITLENS_DECLARE_PER_ISA(void apply_float(const Problem<float>&, const float*, const float*, float*, float*))
BITLENS_DECLARE_PER_ISA(void apply_double(const Problem<double>&, const double*, const double*, double*, double*))

namespace cpu {
namespace {

struct Axis {
  std::int64_t size;     // transform length
  std::int64_t support;  // length of the full convolution, or the period where the transform has exactly that length
};

// The shortest good transform in which no alias falls on a wanted output.
Axis axis_of(const Window& window, std::int64_t first, std::int64_t second) {
  const std::int64_t full = first + second - 1;
  if (window.period > 0) {
    if (is_smooth(window.period)) return {window.period, window.period};
    return {good_size(full), full};
  }
  const std::int64_t begin = std::max<std::int64_t>(window.start, 0);
  const std::int64_t end = std::min(window.start + window.count, full);
  return {good_size(std::max({first, second, end, full - begin})), full};
}

template <class T>
struct Aligned {
  explicit Aligned(std::int64_t count)
      : memory(static_cast<T*>(::operator new(sizeof(T) * static_cast<std::size_t>(count), std::align_val_t{64}))) {}
  ~Aligned() { ::operator delete(memory, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* memory;
};

constexpr std::int64_t kSpectraBytes = std::int64_t{64} << 20;  // of filters held at a time
constexpr std::int64_t kLeastPiece = 1 << 16;  // numbers of spectrum per piece of work, some 50 us

template <class T, class MakeSpectrum, class Apply>
void run(Arguments<T> arguments, int threads, MakeSpectrum make_spectrum, Apply apply) {
  const std::int64_t count = arguments.batch.count;
  std::vector<std::int64_t> images(count), filters(count);
  for (std::int64_t b = 0; b < count; ++b) {
    std::int64_t offsets[2];
    operand_offsets(arguments.batch, b, offsets);
    images[b] = offsets[0];
    filters[b] = offsets[1];
  }
  const auto distinct = [](std::vector<std::int64_t> offsets) {
    std::sort(offsets.begin(), offsets.end());
    offsets.erase(std::unique(offsets.begin(), offsets.end()), offsets.end());
    return offsets;
  };
  std::vector<std::int64_t> distinct_filters = distinct(filters);
  if (arguments.kind == Kind::convolve) {
    // Convolution is symmetric: the operand that repeats is transformed once.
    std::vector<std::int64_t> distinct_images = distinct(images);
    if (distinct_images.size() < distinct_filters.size()) {
      std::swap(images, filters);
      std::swap(arguments.first, arguments.second);
      distinct_filters = std::move(distinct_images);
    }
  } else {
    arguments.row = {0, arguments.first.rows, arguments.first.rows};
    arguments.column = {0, arguments.first.columns, arguments.first.columns};
  }

  const bool real = arguments.kind == Kind::convolve;
  const Axis row = real ? axis_of(arguments.row, arguments.first.rows, arguments.second.rows)
                        : Axis{arguments.first.rows, arguments.first.rows};
  const Axis column = real ? axis_of(arguments.column, arguments.first.columns, arguments.second.columns)
                           : Axis{arguments.first.columns, arguments.first.columns};
  const Plan<T> vertical(row.size), horizontal(column.size);
  Problem<T> problem{arguments.kind,          arguments.first,  arguments.second, arguments.row, arguments.column,
                     vertical.transform(),    horizontal.transform(), row.support, column.support, 0};
  problem.plane_width = std::max({arguments.first.columns, arguments.second.columns, arguments.column.count});

  constexpr std::int64_t kMaxLanes = kMaxVectorBytes / sizeof(T);
  const std::int64_t plane_rows = real ? row.size / 2 + 1 : row.size;
  const std::int64_t padded_rows = (plane_rows + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  const std::int64_t spectrum_size = 2 * padded_rows * column.size;
  const std::int64_t inner = std::max(problem.vertical.inner, problem.horizontal.inner);
  const std::int64_t memory_size = 2 * (2 * kMaxLanes * inner + padded_rows * problem.plane_width);

  // Outputs in the order of their filters; each is written by one thread, whatever the order.
  std::vector<std::int64_t> order(count);
  for (std::int64_t b = 0; b < count; ++b) order[b] = b;
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return filters[a] < filters[b]; });

  const std::int64_t n_filters = static_cast<std::int64_t>(distinct_filters.size());
  const std::int64_t held = std::min(
      n_filters, std::max<std::int64_t>(std::max(threads, 1),
                                        kSpectraBytes / (spectrum_size * static_cast<std::int64_t>(sizeof(T)))));
  const Aligned<T> spectra(held * spectrum_size);
  const std::int64_t output_size = (real ? 1 : 2) * arguments.row.count * arguments.column.count;
  // One piece and one workspace per thread, made before the parallel region, out of which nothing may throw.
  const std::int64_t pieces = std::min<std::int64_t>(std::max(threads, 1), count);
  const Aligned<T> memory(pieces * memory_size);
  const auto grain_of = [&](std::int64_t items) {
    return std::max((items + pieces - 1) / pieces, (kLeastPiece + spectrum_size - 1) / spectrum_size);
  };
  std::int64_t next = 0;
  for (std::int64_t begin = 0; begin < n_filters; begin += held) {
    const std::int64_t end = std::min(begin + held, n_filters);
    parallel_for(end - begin, grain_of(end - begin), threads, [&](std::int64_t from, std::int64_t to) {
      T* const workspace = memory.memory + from / grain_of(end - begin) * memory_size;
      for (std::int64_t i = from; i < to; ++i) {
        make_spectrum(problem, arguments.second.data + distinct_filters[begin + i], spectra.memory + i * spectrum_size,
                      workspace);
      }
    });
    std::int64_t last = next;
    while (last < count && (end == n_filters || filters[order[last]] < distinct_filters[end])) ++last;
    parallel_for(last - next, grain_of(last - next), threads, [&](std::int64_t from, std::int64_t to) {
      T* const workspace = memory.memory + from / grain_of(last - next) * memory_size;
      for (std::int64_t i = next + from; i < next + to; ++i) {
        const std::int64_t b = order[i];
        const auto found = std::lower_bound(distinct_filters.begin() + begin, distinct_filters.begin() + end, filters[b]);
        const std::int64_t slot = found - (distinct_filters.begin() + begin);
        apply(problem, arguments.first.data + images[b], spectra.memory + slot * spectrum_size,
              arguments.output + b * output_size, workspace);
      }
    });
    next = last;
  }
}

}  // namespace

void evaluate(const Arguments<float>& arguments, int threads) {
  run(arguments, threads, BITLENS_FOR_THIS_PROCESSOR(spectrum_float), BITLENS_FOR_THIS_PROCESSOR(apply_float));
}

void evaluate(const Arguments<double>& arguments, int threads) {
  run(arguments, threads, BITLENS_FOR_THIS_PROCESSOR(spectrum_double), BITLENS_FOR_THIS_PROCESSOR(apply_double));
}

}  // namespace cpu
#endif

}  // namespace psf_convolve
}  // namespace bitlens
