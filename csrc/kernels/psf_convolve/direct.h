// Host only: convolution with a small PSF as a sum over its values, from an image in a frame of zeros.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../../common/parallel.h"
#include "passes.h"
#include "schedule.h"

namespace bitlens {
namespace psf_convolve {

// Up to this many values of a PSF a sum beats a transform: 7 x 7 on 128 x 128 takes 0.62 ms, 9 x 9 0.92, any by
// transform 0.66 (64 images, AVX-512, two threads).
constexpr std::int64_t kMostTaps = 49;

// Whether summing is faster than transforming. The second operand is the PSF; a convolution may exchange the two.
template <class T>
bool is_direct(const Arguments<T>& arguments) {
  if (arguments.kind != Kind::convolve || arguments.terms.count != 1) return false;
  if (arguments.companion.factor || arguments.spectra) return false;
  if (arguments.row.period != 0 || arguments.column.period != 0) return false;
  const auto taps = [](const Operand<T>& operand) { return operand.rows * operand.columns; };
  const std::int64_t least =
      arguments.conjugate ? taps(arguments.second) : std::min(taps(arguments.first), taps(arguments.second));
  return least <= kMostTaps && arguments.column.count >= kMaxVectorBytes / static_cast<std::int64_t>(sizeof(T));
}

// Zero, or NaN where a value is not finite; eight sums at a time, since one would wait for itself.
template <class T>
T zero_or_nan(const T* values, std::int64_t count) {
  T sums[8] = {}, total = T(0);
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) sums[lane] += values[i + lane] * T(0);
  }
  for (; i < count; ++i) total += values[i] * T(0);
  for (T sum : sums) total += sum;
  return total;
}

template <class T>
void run_direct(Arguments<T> arguments, int threads, typename Schedule<T>::RunStep step) {
  constexpr std::int64_t kMaxLanes = kMaxVectorBytes / sizeof(T), kVectors = 4;
  int image_operand = 0;
  if (!arguments.conjugate && arguments.first.rows * arguments.first.columns <
                                  arguments.second.rows * arguments.second.columns) {
    std::swap(arguments.first, arguments.second);
    image_operand = 1;
  }
  const Operand<T>&image = arguments.first, &psf = arguments.second;
  // Output r meets image rows r + start - (rows - 1) .. r + start, the PSF's last row first; in a correlation rows
  // r + start .. r + start + rows - 1, its first row first.
  const auto lead = [&](const Window& window, std::int64_t size) {
    return arguments.conjugate ? window.start : window.start - (size - 1);
  };
  const std::int64_t top = lead(arguments.row, psf.rows), left = lead(arguments.column, psf.columns);
  const std::int64_t height = arguments.row.count + psf.rows - 1;
  Problem<T> problem{};
  problem.kind = arguments.kind;
  problem.filter = psf;
  problem.row.outputs = arguments.row.count;
  problem.column.outputs = arguments.column.count;
  // Vectors of outputs are whole, so a row is read that far past its last output.
  problem.plane_width =
      (arguments.column.count + psf.columns - 1 + kVectors * kMaxLanes + kMaxLanes) / kMaxLanes * kMaxLanes;
  const std::int64_t taps = psf.rows * psf.columns, taps_padded = (taps + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  const std::int64_t each = taps_padded + height * problem.plane_width;
  const std::int64_t count = arguments.batch.count, outputs = arguments.row.count * arguments.column.count;

  const auto prepare = [&](std::int64_t b, T* memory) {
    std::int64_t offsets[2];
    operand_offsets(arguments.batch, b, offsets);
    const T* const source = image.data + offsets[image_operand];
    const T* const values = psf.data + offsets[1 - image_operand];
    for (std::int64_t i = 0; i < psf.rows; ++i) {
      for (std::int64_t j = 0; j < psf.columns; ++j) {
        const std::int64_t row = arguments.conjugate ? i : psf.rows - 1 - i;
        const std::int64_t column = arguments.conjugate ? j : psf.columns - 1 - j;
        const T value = values[row * psf.row_stride + column];
        memory[i * psf.columns + j] = value + (value - value);
      }
    }
    Job<T> job{};
    job.taps = memory;
    job.plane = memory + taps_padded;
    job.output = arguments.output + b * outputs;
    std::memset(job.plane, 0, sizeof(T) * static_cast<std::size_t>(height * problem.plane_width));
    const std::int64_t first = std::max<std::int64_t>(-left, 0);
    const std::int64_t last = std::min(arguments.column.count + psf.columns - 1, image.columns - left);
    for (std::int64_t r = 0; r < image.rows; ++r) {
      const T* const row = source + r * image.row_stride;
      job.poison += zero_or_nan(row, image.columns);  // rows and columns that no output meets count too
      if (r - top < 0 || r - top >= height || last <= first) continue;
      std::memcpy(job.plane + (r - top) * problem.plane_width + first, row + left + first,
                  sizeof(T) * static_cast<std::size_t>(last - first));
    }
    return job;
  };

  const std::int64_t workers = std::min<std::int64_t>(std::max(threads, 1), count);
  if (count < threads) {
    const Aligned<T> memory(each);
    for (std::int64_t b = 0; b < count; ++b) {
      const Job<T> job = prepare(b, memory.memory);
      parallel_for(arguments.row.count, (arguments.row.count + threads - 1) / threads, threads,
                   [&](std::int64_t begin, std::int64_t end) { step(problem, job, Step::direct_rows, begin, end); });
    }
    return;
  }
  const Aligned<T> memory(workers * each);
  const std::int64_t grain = std::max((count + workers - 1) / workers, 1 + (std::int64_t{1} << 18) / (outputs * taps));
  parallel_for(count, grain, threads, [&](std::int64_t begin, std::int64_t end) {
    T* const own = memory.memory + begin / grain * each;
    for (std::int64_t b = begin; b < end; ++b) {
      step(problem, prepare(b, own), Step::direct_rows, 0, arguments.row.count);
    }
  });
}

}  // namespace psf_convolve
}  // namespace bitlens
