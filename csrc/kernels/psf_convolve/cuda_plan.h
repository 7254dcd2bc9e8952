// Which transforms serve a call on a GPU, what fits in shared memory, and who works on what; shared with the kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "kernel.h"
#include "plan.h"

namespace bitlens {
namespace psf_convolve {
namespace cuda_plan {

// Where the outputs of one axis lie in its transform. Positions are counted in the full convolution; a correlation is
// one with the second operand flipped, whose result lies `shift` further on.
struct Outputs {
  std::int64_t count, size;  // outputs; points of the transform
  std::int64_t start, shift, full, period;
  bool exact;  // the transform has the period
};

BITLENS_FUNCTION std::int64_t position_of(const Outputs& axis, std::int64_t output) {
  const std::int64_t position = axis.start + output;
  return axis.period > 0 && position >= axis.period ? position - axis.period : position;
}

BITLENS_FUNCTION std::int64_t index_of(const Outputs& axis, std::int64_t position) {
  const std::int64_t index = position - axis.shift;
  return index < 0 ? index + axis.size : index;
}

// Index of an output, -1 where it is zero.
BITLENS_FUNCTION std::int64_t source_of(const Outputs& axis, std::int64_t output) {
  const std::int64_t position = position_of(axis, output);
  return axis.exact || (position >= 0 && position < axis.full) ? index_of(axis, position) : -1;
}

// A second index that is added, or -1.
BITLENS_FUNCTION std::int64_t alias_of(const Outputs& axis, std::int64_t output) {
  if (axis.exact || axis.period == 0) return -1;
  const std::int64_t position = position_of(axis, output) + axis.period;
  return position < axis.full ? index_of(axis, position) : -1;
}

// The shortest good transform in which no alias falls on a wanted output, as in the schedule of the CPU.
inline Outputs outputs_of(const Window& window, std::int64_t first, std::int64_t second, bool correlation) {
  Outputs axis{};
  axis.count = window.count;
  axis.period = window.period;
  axis.full = first + second - 1;
  axis.shift = correlation ? second - 1 : 0;
  axis.start = window.start + axis.shift;
  axis.exact = axis.period > 0 && is_smooth(axis.period);
  if (axis.period > 0) {
    axis.start = (axis.start % axis.period + axis.period) % axis.period;
    axis.size = axis.exact ? axis.period : good_size(axis.full);
  } else {
    const std::int64_t begin = std::max<std::int64_t>(axis.start, 0);
    const std::int64_t end = std::min(axis.start + axis.count, axis.full);
    axis.size = good_size(std::max({first, second, end, axis.full - begin}));
  }
  return axis;
}

inline Outputs all_of(std::int64_t size) { return {size, size, 0, 0, size, size, true}; }

// What one call shares among its images; the kernels' argument.
template <class T>
struct Problem {
  Kind kind;
  bool conjugate;              // of the filter
  bool packed;                 // line 0 holds two real lines
  T scale;                     // of the filter's spectrum
  Operand<T> image, filter;    // data is that of the first image
  Outputs row, column;
  Transform<T> vertical, horizontal;  // of columns, over row numbers, and of rows; tables on the device
  std::int64_t lines;          // rows of the spectrum that are kept
  std::int64_t pitch;          // of a plane
  std::int64_t plane_points, spectrum_points;
  std::int64_t output_size;    // of one image, in numbers
  std::int64_t transforms;     // of columns that hold an output, from first_transform on, modulo half the width
  std::int64_t first_transform;
  Broadcast<3> batch, terms;   // image, filter, and the filter's number among the distinct ones
  Broadcast<1> distinct;       // distinct filters
  T* output;
};

// Position of frequency -q at the position of q, in a line.
template <class T>
BITLENS_FUNCTION unsigned mirrored(const Problem<T>& problem, unsigned q) {
  const Transform<T>& line = problem.horizontal;
  const std::int64_t frequency = line.frequency[q];
  return static_cast<unsigned>(line.position[frequency == 0 ? 0 : line.size - frequency]);
}

inline std::int64_t distinct(const Broadcast<2>& layout, int operand) {
  std::int64_t count = 1;
  for (int dim = 0; dim < layout.ndim; ++dim) count *= layout.strides[operand][dim] != 0 ? layout.shape[dim] : 1;
  return count;
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// How a call is cut into launches, and what lies where in the work space, in points. No sum depends on the device's
// size: only whether an image fits in shared memory does.
template <class T>
class Schedule {
 public:
  static constexpr std::int64_t kPointBytes = 2 * sizeof(T);
  static constexpr std::int64_t kBlocks = 1024;        // that walk images in shared memory
  static constexpr std::int64_t kPieces = 256;         // partial sums, about, where outputs are few
  static constexpr std::int64_t kHeldBytes = std::int64_t{256} << 20;   // of spectra of filters, of planes at a time
  static constexpr std::int64_t kTileBytes = 72 << 10;  // of lines in shared memory: several blocks fit
  static constexpr std::int64_t kLongBlocks = 128;     // that each have a line in the work space

  Schedule(const Arguments<T>& given, std::int64_t shared_limit) : arguments_(given) {
    choose_roles();
    make_problem();
    make_items();
    const Arguments<T>& a = arguments_;
    outputs = a.batch.count;
    terms = a.terms.count;
    const bool spectra_needed = a.kind != Kind::filter;
    held = spectra_needed && filters < outputs * terms &&
           (filters == 1 || filters * problem.spectrum_points * kPointBytes <= kHeldBytes);
    const bool any_size = problem.vertical.chirp == nullptr && problem.horizontal.chirp == nullptr;
    shared_bytes = problem.plane_points * kPointBytes + 2 * problem.lines * 4;
    in_shared = any_size && shared_bytes <= shared_limit;
    if (in_shared) {
      pieces = terms > 1 && outputs < kPieces ? std::min(terms, ceil_div(kPieces, outputs)) : 1;
      blocks = std::min(outputs * pieces, kBlocks);
      spectra_at = 0;
      sums_at = spectra_needed ? (held ? filters : blocks) * problem.spectrum_points : 0;
      planes_at = sums_at + (terms == 1 ? 0 : pieces > 1 ? outputs * pieces : blocks) * problem.spectrum_points;
      points = planes_at;
      return;
    }
    plan_tiles(shared_limit);
    const std::int64_t each = problem.plane_points + (spectra_needed && !held ? problem.spectrum_points : 0);
    const std::int64_t at_once = std::max<std::int64_t>(1, kHeldBytes / (each * kPointBytes));
    terms_at_once = std::min(terms, at_once);
    outputs_at_once = terms_at_once < terms ? 1 : std::min(outputs, std::max<std::int64_t>(1, at_once / terms));
    planes = outputs_at_once * terms_at_once;
    if (held) planes = std::max(planes, std::min(filters, at_once));
    spectra_at = 0;
    sums_at = spectra_needed ? (held ? filters : planes) * problem.spectrum_points : 0;
    planes_at = sums_at + (terms > 1 ? outputs_at_once * problem.spectrum_points : 0);
    stages_at = planes_at + planes * problem.plane_points;
    points = stages_at + (columns_in_shared && rows_in_shared ? 0 : kLongBlocks * long_line());
  }

  // Addresses of tables that a transform of this size has; made by the caller, on the device.
  template <class Tables>
  void set_tables(const Tables& tables) {
    problem.vertical = tables(problem.row.size);
    problem.horizontal = tables(problem.column.size);
  }

  Problem<T> problem{};
  std::int64_t outputs, terms, filters;
  bool held, in_shared;
  std::int64_t shared_bytes;
  std::int64_t pieces = 1, blocks = 1;  // in shared memory
  std::int64_t outputs_at_once = 0, terms_at_once = 0, planes = 0, column_tile = 1, row_tile = 1;  // beyond it
  bool columns_in_shared = true, rows_in_shared = true;
  std::int64_t spectra_at = 0, sums_at = 0, planes_at = 0, stages_at = 0, points = 0;

  std::int64_t long_line() const { return std::max(problem.vertical.inner, problem.horizontal.inner); }
  // Points between two lines in shared memory: an odd number.
  static std::int64_t pitch_of(const Transform<T>& transform) { return transform.inner | 1; }

 private:
  bool real() const { return arguments_.kind == Kind::convolve; }

  // A convolution is symmetric: the operand that repeats is the filter, transformed once.
  void choose_roles() {
    if (!real() || arguments_.conjugate) return;
    const auto count = [&](int operand) {
      return distinct(arguments_.batch, operand) * distinct(arguments_.terms, operand);
    };
    if (count(0) >= count(1)) return;
    std::swap(arguments_.first, arguments_.second);
    for (Broadcast<2>* layout : {&arguments_.batch, &arguments_.terms}) {
      for (int dim = 0; dim < layout->ndim; ++dim) std::swap(layout->strides[0][dim], layout->strides[1][dim]);
    }
  }

  void make_problem() {
    const Arguments<T>& a = arguments_;
    Problem<T>& p = problem;
    p.kind = a.kind;
    p.conjugate = a.conjugate || a.kind == Kind::cross_spectrum;
    p.image = a.first;
    p.filter = a.second;
    p.output = a.output;
    p.row = real() ? outputs_of(a.row, a.first.rows, a.second.rows, a.conjugate) : all_of(a.first.rows);
    p.column = real() ? outputs_of(a.column, a.first.columns, a.second.columns, a.conjugate) : all_of(a.first.columns);
    p.vertical = plan_of<T>(p.row.size)->transform();
    p.horizontal = plan_of<T>(p.column.size)->transform();
    p.packed = real() && p.row.size % 2 == 0;
    p.lines = real() ? (p.row.size + 1) / 2 : p.row.size;
    // Operands of real transforms come doubled from their columns, both.
    p.scale = static_cast<T>((real() ? 0.25 : 1.0) / (static_cast<double>(p.row.size) *
                                                      static_cast<double>(p.column.size)));
    p.pitch = (real() ? (p.column.size + 1) / 2 : p.column.size) | 1;
    p.plane_points = (p.row.size + (real() && !p.packed ? 1 : 0)) * p.pitch;
    p.spectrum_points = (p.lines + (p.packed ? 1 : 0)) * p.column.size;
    p.output_size = (real() ? 1 : 2) * p.row.count * p.column.count;
    choose_transforms();
  }

  // Pairs of columns that hold an output: a range that may go past the last pair.
  void choose_transforms() {
    Problem<T>& p = problem;
    const Outputs& c = p.column;
    const std::int64_t half = (c.size + 1) / 2;
    p.first_transform = 0;
    p.transforms = real() ? half : c.size;
    if (!real() || (c.period > 0 && !c.exact)) return;
    const std::int64_t begin = std::max<std::int64_t>(0, c.exact ? 0 : -c.start);
    const std::int64_t end = c.exact ? c.count : std::min(c.count, c.full - c.start);
    if (end <= begin) return;
    const std::int64_t first = source_of(c, begin), last = source_of(c, end - 1);
    p.first_transform = first / 2;
    p.transforms = last >= first && end - begin < c.size
                       ? last / 2 - first / 2 + 1
                       : std::min(half, half - first / 2 + last / 2 + 1);
  }

  void make_items() {
    const Arguments<T>& a = arguments_;
    filters = distinct(a.batch, 1) * distinct(a.terms, 1);
    Broadcast<1>& list = problem.distinct;
    list.count = filters;
    std::int64_t weight = filters;
    for (const bool inner : {false, true}) {
      const Broadcast<2>& from = inner ? a.terms : a.batch;
      Broadcast<3>& to = inner ? problem.terms : problem.batch;
      to.ndim = from.ndim;
      to.count = from.count;
      for (int dim = 0; dim < from.ndim; ++dim) {
        to.shape[dim] = from.shape[dim];
        to.strides[0][dim] = from.strides[0][dim];
        to.strides[1][dim] = from.strides[1][dim];
        to.strides[2][dim] = 0;
        if (from.strides[1][dim] == 0 || from.shape[dim] == 1) continue;
        weight /= from.shape[dim];
        to.strides[2][dim] = weight;
        if (list.ndim == kMaxDims) throw std::invalid_argument("more than 12 axes that cannot be merged");
        list.shape[list.ndim] = from.shape[dim];
        list.strides[0][list.ndim++] = from.strides[1][dim];
      }
    }
    if (list.ndim == 0) list.shape[list.ndim++] = 1;
  }

  void plan_tiles(std::int64_t shared_limit) {
    Problem<T>& p = problem;
    const auto tile_of = [&](const Transform<T>& transform, std::int64_t most, bool& fits) {
      const std::int64_t bytes = pitch_of(transform) * kPointBytes;
      fits = bytes <= shared_limit;
      return fits ? std::max<std::int64_t>(1, std::min(most, std::min(kTileBytes, shared_limit) / bytes)) : 1;
    };
    column_tile = tile_of(p.vertical, 16, columns_in_shared);
    row_tile = tile_of(p.horizontal, 8, rows_in_shared);
    if (!real()) return;
    // Between rows and columns a plane holds the outputs of the columns, two in a point.
    p.pitch = std::max({(p.image.columns + 1) / 2, (p.filter.columns + 1) / 2, (p.column.count + 1) / 2});
    p.plane_points = p.row.size * p.pitch;
  }

  Arguments<T> arguments_;
};

}  // namespace cuda_plan
}  // namespace psf_convolve
}  // namespace bitlens
