// Images whose plane fits in the shared memory of one block, which does everything.
#pragma once

#include "cuda_passes.h"

namespace bitlens {
namespace psf_convolve {
namespace cuda_shared {

using namespace cuda_passes;

constexpr int kMaxThreads = 512, kFlatThreads = 256;

template <class T>
struct SharedJob {
  Task task;
  std::int64_t items;   // filters, or outputs times pieces, or outputs
  std::int64_t pieces;  // of the terms of one output
  bool held;            // spectra are those of all filters; else one for each block
  Point<T>* spectra;
  Point<T>* sums;  // one for each item where there are pieces, else one for each block
};

template <class T>
struct Image {
  Point<T>* plane;
  const unsigned* offsets;  // [line][2] of the rows that hold it; real images

  __device__ Halves<T> halves() const { return {plane, offsets}; }
};

template <bool kReal, class T>
__device__ auto lines_of(const Problem<T>& problem, const Image<T>& image) {
  if constexpr (kReal) {
    (void)problem;
    return image.halves();
  } else {
    return Strided<T>{image.plane, static_cast<unsigned>(problem.pitch), 1, 0, kUnbounded};
  }
}

// The spectrum of one image, from memory to the lines of the plane.
template <bool kReal, class T>
__device__ __forceinline__ void forward_image(const Problem<T>& problem, const Image<T>& image,
                                              const Operand<T>& operand, const T* data) {
  const unsigned pitch = static_cast<unsigned>(problem.pitch);
  const unsigned rows = static_cast<unsigned>(problem.vertical.size), lines = static_cast<unsigned>(problem.lines);
  const unsigned width = static_cast<unsigned>(problem.horizontal.size), across = kReal ? (width + 1) / 2 : width;
  const unsigned transforms = transforms_of<kReal>(operand);
  for_points(kReal && !problem.packed ? rows + 1 : rows, across, [&](unsigned row, unsigned c) {
    image.plane[row * pitch + c] = load<kReal>(operand, data, row, c);
  });
  __syncthreads();
  split(problem.vertical, Strided<T>{image.plane, 1, pitch, 0, kUnbounded}, transforms);
  if constexpr (kReal) {
    for_points(lines, transforms, [&](unsigned k, unsigned c) {
      Point<T>&even = image.plane[image.offsets[2 * k] + c], &odd = image.plane[image.offsets[2 * k + 1] + c];
      const Both<T> columns = unpaired(read(even), read(odd), k == 0, problem.packed);
      even = Point<T>::of(columns.even);
      odd = Point<T>::of(columns.odd);
    });
    __syncthreads();
  }
  split(problem.horizontal, lines_of<kReal>(problem, image), lines);
}

// From the swapped spectrum in the lines of the plane to the output.
template <bool kReal, class T>
__device__ __forceinline__ void inverse_image(const Problem<T>& problem, const Image<T>& image, T* output) {
  const unsigned pitch = static_cast<unsigned>(problem.pitch), lines = static_cast<unsigned>(problem.lines);
  const unsigned width = static_cast<unsigned>(problem.horizontal.size), across = kReal ? (width + 1) / 2 : width;
  merge(problem.horizontal, lines_of<kReal>(problem, image), lines);
  if constexpr (kReal) {
    for_points(lines, across, [&](unsigned k, unsigned c) {
      Point<T>&even = image.plane[image.offsets[2 * k] + c], &odd = image.plane[image.offsets[2 * k + 1] + c];
      const Complex<T> none{T(0), T(0)};  // an odd width leaves the last odd point unused
      const Both<T> pair = paired(read(even), 2 * c + 1 < width ? read(odd) : none, k == 0);
      even = Point<T>::of(pair.even);
      odd = Point<T>::of(pair.odd);
    });
    __syncthreads();
  }
  merge(problem.vertical,
        Strided<T>{image.plane, 1, pitch, static_cast<unsigned>(problem.first_transform), across},
        static_cast<unsigned>(problem.transforms));
  const unsigned columns = static_cast<unsigned>(problem.column.count);
  for_points(static_cast<unsigned>(problem.row.count), columns, [&](unsigned r, unsigned c) {
    const auto value = gathered(problem.row, r, [&](std::int64_t row) {
      return gathered(problem.column, c, [&](std::int64_t column) {
        if constexpr (kReal) {
          const Point<T>& pair = image.plane[row * pitch + column / 2];
          return column % 2 != 0 ? pair.re : pair.im;
        } else {
          return fourier::swapped(read(image.plane[row * pitch + column]));
        }
      });
    });
    if constexpr (kReal) {
      output[r * columns + c] = value;
    } else {
      reinterpret_cast<Point<T>*>(output)[r * columns + c] = Point<T>::of(value);
    }
  });
  __syncthreads();
}

// Writes what `sums` holds, which only this block reads or writes.
template <bool kReal, class T>
__device__ __forceinline__ void finish_image(const Problem<T>& problem, const Image<T>& image, const Point<T>* sums,
                                             T* output) {
  const unsigned lines = static_cast<unsigned>(problem.lines);
  if (problem.kind == Kind::cross_spectrum) {
    for_sums(problem, sums, 0, lines, [&](unsigned line, unsigned q, Complex<T> value) {
      write_cross_spectrum(problem, output, line, q, value);
    });
    __syncthreads();
    return;
  }
  const auto points = lines_of<kReal>(problem, image);
  for_sums(problem, sums, 0, lines, [&](unsigned line, unsigned q, Complex<T> value) {
    points(line)[q] = Point<T>::of(fourier::swapped(value));
  });
  __syncthreads();
  inverse_image<kReal>(problem, image, output);
}

// Output b, or a piece of its terms.
template <bool kReal, class T>
__device__ __forceinline__ void make_products(const Problem<T>& problem, const SharedJob<T>& job,
                                              const Image<T>& image, std::int64_t item) {
  const unsigned lines = static_cast<unsigned>(problem.lines), width = static_cast<unsigned>(problem.horizontal.size);
  const auto points = lines_of<kReal>(problem, image);
  const std::int64_t b = item / job.pieces, piece = item - b * job.pieces, terms = problem.terms.count;
  const std::int64_t begin = terms * piece / job.pieces, end = terms * (piece + 1) / job.pieces;
  T* const output = problem.output + b * problem.output_size;
  Point<T>* const sums = job.sums + (job.pieces > 1 ? item : blockIdx.x) * problem.spectrum_points;
  std::int64_t first[3];
  operand_offsets(problem.batch, b, first);
  for (std::int64_t term = begin; term < end; ++term) {
    std::int64_t offsets[3];
    operand_offsets(problem.terms, term, offsets);
    Factor<T> factor{nullptr, problem.filter.data + first[1] + offsets[1]};
    if (problem.kind != Kind::filter) {
      Point<T>* const spectrum =
          job.spectra + (job.held ? first[2] + offsets[2] : blockIdx.x) * problem.spectrum_points;
      if (!job.held) {
        forward_image<kReal>(problem, image, problem.filter, factor.transfer);
        store_spectrum<kReal>(problem, points, 0, lines, spectrum);
        __syncthreads();
      }
      factor.spectrum = spectrum;
    }
    forward_image<kReal>(problem, image, problem.image, problem.image.data + first[0] + offsets[0]);
    multiply<kReal>(problem, factor, points, 0, lines, [&](unsigned line, unsigned q, Complex<T> value) {
      if (terms > 1) {
        add(sums[line * width + q], value, term == begin);
      } else if (problem.kind == Kind::cross_spectrum) {
        write_cross_spectrum(problem, output, line, q, value);
      } else {
        points(line)[q] = Point<T>::of(fourier::swapped(value));
      }
    });
    __syncthreads();
  }
  if (terms == 1) {
    if (problem.kind != Kind::cross_spectrum) inverse_image<kReal>(problem, image, output);
  } else if (job.pieces == 1) {
    finish_image<kReal>(problem, image, sums, output);
  }
}

template <class T, bool kReal>
__global__ void __launch_bounds__(kMaxThreads)
    work_in_shared(const __grid_constant__ Problem<T> problem, const __grid_constant__ SharedJob<T> job) {
  BITLENS_DYNAMIC_SHARED(Point<T>, plane);
  unsigned* const offsets = reinterpret_cast<unsigned*>(plane + problem.plane_points);
  if constexpr (kReal) {
    for (unsigned k = threadIdx.x; k < problem.lines; k += blockDim.x) {
      offsets[2 * k] = static_cast<unsigned>(even_row(problem, k) * problem.pitch);
      offsets[2 * k + 1] = static_cast<unsigned>(odd_row(problem, k) * problem.pitch);
    }
    __syncthreads();
  }
  const Image<T> image{plane, offsets};
  for (std::int64_t item = blockIdx.x; item < job.items; item += gridDim.x) {
    if (job.task == Task::products) {
      make_products<kReal>(problem, job, image, item);
    } else if (job.task == Task::finish) {
      finish_image<kReal>(problem, image, job.sums + item * job.pieces * problem.spectrum_points,
                          problem.output + item * problem.output_size);
    } else {
      std::int64_t offset[1];
      operand_offsets(problem.distinct, item, offset);
      forward_image<kReal>(problem, image, problem.filter, problem.filter.data + offset[0]);
      store_spectrum<kReal>(problem, lines_of<kReal>(problem, image), 0, static_cast<unsigned>(problem.lines),
                            job.spectra + item * problem.spectrum_points);
      __syncthreads();
    }
  }
}

// The pieces of each output, in their order, into the first.
template <class T>
__global__ void __launch_bounds__(kFlatThreads)
    merge_pieces(Point<T>* sums, std::int64_t outputs, std::int64_t pieces, std::int64_t each) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < outputs * each;
       i += stride) {
    Point<T>* const first = sums + i / each * pieces * each + i % each;
    double re = 0.0, im = 0.0;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      const Complex<T> part = read(first[piece * each]);
      re += static_cast<double>(part.re);
      im += static_cast<double>(part.im);
    }
    *first = {static_cast<T>(re), static_cast<T>(im)};
  }
}

}  // namespace cuda_shared
}  // namespace psf_convolve
}  // namespace bitlens
