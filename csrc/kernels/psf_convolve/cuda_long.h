// Images beyond shared memory: planes in the work space, one kernel for columns forward, one for lines, one for columns
// back. A block has a tile of lines in shared memory, or one line in the work space where not even that fits.
#pragma once

#include "cuda_passes.h"

namespace bitlens {
namespace psf_convolve {
namespace cuda_long {

using namespace cuda_passes;

constexpr int kTileThreads = 256;

template <class T>
struct LongJob {
  Task task;
  bool filter;  // planes and offsets are those of filters
  bool held;    // spectra are those of all filters; else one for each plane
  std::int64_t first_filter, first_output, first_term;
  std::int64_t images, outputs, terms;  // planes in this launch; of products it has outputs * terms
  std::int64_t tile;                    // lines that a block has at one time
  bool in_shared;                       // the block's lines
  std::int64_t pitch, long_line;        // between lines in shared memory; of a line in the work space
  Point<T>*planes, *spectra, *sums, *stages;
};

template <class T>
__device__ Strided<T> stage_of(const LongJob<T>& job, Point<T>* shared) {
  return {job.in_shared ? shared : job.stages + blockIdx.x * job.long_line, static_cast<unsigned>(job.pitch), 1, 0,
          kUnbounded};
}

// Offset of the image or filter of plane i.
template <class T>
__device__ std::int64_t offset_of(const Problem<T>& problem, const LongJob<T>& job, std::int64_t i) {
  if (job.filter && job.held) {
    std::int64_t offset[1];
    operand_offsets(problem.distinct, job.first_filter + i, offset);
    return offset[0];
  }
  std::int64_t first[3], offsets[3];
  operand_offsets(problem.batch, job.first_output + i / job.terms, first);
  operand_offsets(problem.terms, job.first_term + i % job.terms, offsets);
  return job.filter ? first[1] + offsets[1] : first[0] + offsets[0];
}

__device__ inline std::int64_t tiles_of(std::int64_t count, std::int64_t tile) { return (count + tile - 1) / tile; }

__device__ inline unsigned at_most(std::int64_t tile, std::int64_t left) {
  return static_cast<unsigned>(left < tile ? left : tile);
}

template <class T, bool kReal>
__global__ void __launch_bounds__(kTileThreads)
    columns_forward(const __grid_constant__ Problem<T> problem, const __grid_constant__ LongJob<T> job) {
  BITLENS_DYNAMIC_SHARED(Point<T>, shared);
  const Strided<T> stage = stage_of(job, shared);
  const Operand<T>& operand = job.filter ? problem.filter : problem.image;
  const std::int64_t transforms = transforms_of<kReal>(operand), tiles = tiles_of(transforms, job.tile);
  const unsigned rows = static_cast<unsigned>(problem.vertical.size);
  for (std::int64_t item = blockIdx.x; item < job.images * tiles; item += gridDim.x) {
    const std::int64_t i = item / tiles, c = (item - i * tiles) * job.tile;
    const unsigned count = at_most(job.tile, transforms - c);
    const T* const data = operand.data + offset_of(problem, job, i);
    Point<T>* const plane = job.planes + i * problem.plane_points + c;
    for_points(rows, count, [&](unsigned row, unsigned line) {
      stage(line)[row] = load<kReal>(operand, data, row, c + line);
    });
    __syncthreads();
    forward(problem.vertical, stage, count);
    for_points(rows, count, [&](unsigned p, unsigned line) { plane[p * problem.pitch + line] = stage(line)[p]; });
    __syncthreads();
  }
}

// Lines k ... of a plane that columns_forward left.
template <bool kReal, class T>
__device__ void load_lines(const Problem<T>& problem, const Strided<T>& stage, const Point<T>* plane,
                           const Operand<T>& operand, std::int64_t k0, unsigned count) {
  const unsigned width = static_cast<unsigned>(problem.horizontal.size), given = transforms_of<kReal>(operand);
  if constexpr (kReal) {
    for_points(count, (width + 1) / 2, [&](unsigned line, unsigned c) {
      const std::int64_t k = k0 + line;
      Both<T> columns{{T(0), T(0)}, {T(0), T(0)}};
      if (c < given) {
        const Complex<T> z = read(plane[even_row(problem, k) * problem.pitch + c]);
        const bool other = k > 0 || problem.packed;
        columns = unpaired(z, other ? read(plane[odd_row(problem, k) * problem.pitch + c]) : z, k == 0, problem.packed);
      }
      stage(line)[2 * c] = Point<T>::of(columns.even);
      if (2 * c + 1 < width) stage(line)[2 * c + 1] = Point<T>::of(columns.odd);
    });
  } else {
    for_points(count, width,
               [&](unsigned line, unsigned q) { stage(line)[q] = plane[(k0 + line) * problem.pitch + q]; });
  }
  __syncthreads();
}

// Lines back, and of them what columns_inverse reads.
template <bool kReal, class T>
__device__ void inverse_lines(const Problem<T>& problem, const Strided<T>& stage, Point<T>* plane, std::int64_t k0,
                              unsigned count) {
  inverse_of_swapped(problem.horizontal, stage, count);
  const unsigned columns = static_cast<unsigned>(problem.column.count);
  if constexpr (kReal) {
    for_points(count, (columns + 1) / 2, [&](unsigned line, unsigned c) {
      const std::int64_t k = k0 + line;
      const auto at = [&](std::int64_t column) { return read(stage(line)[static_cast<unsigned>(column)]); };
      const Complex<T> none{T(0), T(0)};
      const Both<T> pair = paired(gathered(problem.column, 2 * c, at),
                                  2 * c + 1 < columns ? gathered(problem.column, 2 * c + 1, at) : none, k == 0);
      plane[even_row(problem, k) * problem.pitch + c] = Point<T>::of(pair.even);
      if (k > 0 || problem.packed) plane[odd_row(problem, k) * problem.pitch + c] = Point<T>::of(pair.odd);
    });
  } else {
    for_points(count, columns, [&](unsigned line, unsigned c) {
      plane[(k0 + line) * problem.pitch + c] = stage(line)[c];
    });
  }
  __syncthreads();
}

template <class T, bool kReal>
__global__ void __launch_bounds__(kTileThreads)
    transform_lines(const __grid_constant__ Problem<T> problem, const __grid_constant__ LongJob<T> job) {
  BITLENS_DYNAMIC_SHARED(Point<T>, shared);
  const Strided<T> stage = stage_of(job, shared);
  const unsigned width = static_cast<unsigned>(problem.horizontal.size);
  const std::int64_t tiles = tiles_of(problem.lines, job.tile), images = job.filter ? job.images : job.outputs;
  const bool spectrum_is_output = problem.kind == Kind::cross_spectrum;
  for (std::int64_t item = blockIdx.x; item < images * tiles; item += gridDim.x) {
    const std::int64_t i = item / tiles, k = (item - i * tiles) * job.tile;
    const unsigned count = at_most(job.tile, problem.lines - k);
    if (job.filter) {
      load_lines<kReal>(problem, stage, job.planes + i * problem.plane_points, problem.filter, k, count);
      forward(problem.horizontal, stage, count);
      store_spectrum<kReal>(problem, stage, k, count,
                            job.spectra + (job.held ? job.first_filter + i : i) * problem.spectrum_points);
      __syncthreads();
      continue;
    }
    Point<T>* const sums = job.sums + i * problem.spectrum_points;
    Point<T>* const planes = job.planes + i * job.terms * problem.plane_points;
    T* const output = problem.output + (job.first_output + i) * problem.output_size;
    const auto write = [&](unsigned line, unsigned q, Complex<T> value) {
      if (spectrum_is_output) {
        write_cross_spectrum(problem, output, k + line, q, value);
      } else {
        stage(line)[q] = Point<T>::of(fourier::swapped(value));
      }
    };
    if (job.task == Task::finish) {
      for_sums(problem, sums, k, count, write);
      __syncthreads();
    } else {
      std::int64_t first[3];
      operand_offsets(problem.batch, job.first_output + i, first);
      for (std::int64_t term = 0; term < job.terms; ++term) {
        std::int64_t offsets[3];
        operand_offsets(problem.terms, job.first_term + term, offsets);
        Factor<T> factor{nullptr, problem.filter.data + first[1] + offsets[1]};
        if (problem.kind != Kind::filter) {
          factor.spectrum =
              job.spectra + (job.held ? first[2] + offsets[2] : i * job.terms + term) * problem.spectrum_points;
        }
        load_lines<kReal>(problem, stage, planes + term * problem.plane_points, problem.image, k, count);
        forward(problem.horizontal, stage, count);
        if (problem.terms.count == 1) {
          multiply<kReal>(problem, factor, stage, k, count, write);
        } else {
          multiply<kReal>(problem, factor, stage, k, count, [&](unsigned line, unsigned q, Complex<T> value) {
            add(sums[(k + line) * width + q], value, job.first_term + term == 0);
          });
        }
        __syncthreads();
      }
      if (problem.terms.count > 1) continue;
    }
    if (!spectrum_is_output) inverse_lines<kReal>(problem, stage, planes, k, count);
  }
}

template <class T, bool kReal>
__global__ void __launch_bounds__(kTileThreads)
    columns_inverse(const __grid_constant__ Problem<T> problem, const __grid_constant__ LongJob<T> job) {
  BITLENS_DYNAMIC_SHARED(Point<T>, shared);
  const Strided<T> stage = stage_of(job, shared);
  const std::int64_t columns = problem.column.count, transforms = kReal ? (columns + 1) / 2 : columns;
  const std::int64_t tiles = tiles_of(transforms, job.tile);
  const unsigned rows = static_cast<unsigned>(problem.vertical.size);
  for (std::int64_t item = blockIdx.x; item < job.outputs * tiles; item += gridDim.x) {
    const std::int64_t i = item / tiles, c = (item - i * tiles) * job.tile;
    const unsigned count = at_most(job.tile, transforms - c);
    const Point<T>* const plane = job.planes + i * job.terms * problem.plane_points + c;
    T* const output = problem.output + (job.first_output + i) * problem.output_size;
    for_points(rows, count, [&](unsigned p, unsigned line) { stage(line)[p] = plane[p * problem.pitch + line]; });
    __syncthreads();
    inverse_of_swapped(problem.vertical, stage, count);
    for_points(static_cast<unsigned>(problem.row.count), count, [&](unsigned r, unsigned line) {
      const Complex<T> value = fourier::swapped(gathered(problem.row, r, [&](std::int64_t row) {
        return read(stage(line)[static_cast<unsigned>(row)]);
      }));
      const std::int64_t at = r * columns + (kReal ? 2 : 1) * (c + line);
      if constexpr (kReal) {
        output[at] = value.re;
        if (2 * (c + line) + 1 < columns) output[at + 1] = value.im;
      } else {
        reinterpret_cast<Point<T>*>(output)[at] = Point<T>::of(value);
      }
    });
    __syncthreads();
  }
}

}  // namespace cuda_long
}  // namespace psf_convolve
}  // namespace bitlens
