// One thread per score, and in the backward pass one per mean and pixel, or a block per pixel: every likelihood is
// evaluated where it is needed, in double precision, and summed in the order of the pixels, means or rows.
#include <stdexcept>
#include <string>

#include "../poisson_gaussian_log_prob/math.h"
#include "kernel.h"

namespace bitlens {
namespace poisson_gaussian_log_prob_pairs {
namespace {

constexpr int kBlock = 128;

namespace formula = scalar::poisson_gaussian;

template <int Order, class T>
__device__ formula::Result<double> likelihood(const Arguments<T>& arguments, std::int64_t i, std::int64_t j,
                                              std::int64_t p) {
  return formula::evaluate<Order, double>(static_cast<double>(arguments.measured[i * arguments.pixels + p]),
                                          static_cast<double>(arguments.mean[j * arguments.pixels + p]),
                                          arguments.gain[p], arguments.offset[p], arguments.read_std[p]);
}

template <class T>
__global__ void __launch_bounds__(kBlock) score_pairs(Arguments<T> arguments, T* output) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (std::int64_t pair = begin; pair < arguments.rows * arguments.columns; pair += stride) {
    const std::int64_t i = pair / arguments.columns, j = pair % arguments.columns;
    double total = 0.0;
    for (std::int64_t p = 0; p < arguments.pixels; ++p) total += likelihood<0>(arguments, i, j, p).value;
    output[pair] = static_cast<T>(total);
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock) differentiate_means(Arguments<T> arguments, Gradients<T> wanted) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (std::int64_t at = begin; at < arguments.columns * arguments.pixels; at += stride) {
    const std::int64_t j = at / arguments.pixels, p = at % arguments.pixels;
    double total = 0.0;
    for (std::int64_t i = 0; i < arguments.rows; ++i) {
      total += static_cast<double>(wanted.weight[j * arguments.rows + i]) * likelihood<1>(arguments, i, j, p).first[0];
    }
    wanted.mean[at] = static_cast<T>(total);
  }
}

// A block per pixel: its threads share the rows out, then add up what belongs to the sensor.
template <class T>
__global__ void __launch_bounds__(kBlock) differentiate_pixels(Arguments<T> arguments, Gradients<T> wanted) {
  BITLENS_DYNAMIC_SHARED(double, sums);  // [3, kBlock]
  double* const outputs[3] = {wanted.gain, wanted.offset, wanted.read_std};
  for (std::int64_t p = blockIdx.x; p < arguments.pixels; p += gridDim.x) {
    double sensor[3] = {0.0, 0.0, 0.0};
    for (std::int64_t i = threadIdx.x; i < arguments.rows; i += blockDim.x) {
      double row[3] = {0.0, 0.0, 0.0};
      for (std::int64_t j = 0; j < arguments.columns; ++j) {
        const double weight = static_cast<double>(wanted.weight[j * arguments.rows + i]);
        const auto result = likelihood<1>(arguments, i, j, p);
        for (int parameter = 0; parameter < 3; ++parameter) row[parameter] += weight * result.first[1 + parameter];
      }
      if (wanted.measured) wanted.measured[i * arguments.pixels + p] = static_cast<T>(-row[1]);
      for (int parameter = 0; parameter < 3; ++parameter) sensor[parameter] += row[parameter];
    }
    for (int parameter = 0; parameter < 3; ++parameter) sums[parameter * kBlock + threadIdx.x] = sensor[parameter];
    __syncthreads();
    for (unsigned half = kBlock / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) {
        for (int parameter = 0; parameter < 3; ++parameter) {
          sums[parameter * kBlock + threadIdx.x] += sums[parameter * kBlock + threadIdx.x + half];
        }
      }
      __syncthreads();
    }
    if (threadIdx.x < 3 && outputs[threadIdx.x]) outputs[threadIdx.x][p] = sums[threadIdx.x * kBlock];
    __syncthreads();
  }
}

unsigned grid_for(std::int64_t blocks) { return static_cast<unsigned>(blocks < 65535 ? blocks : 65535); }

void check_launch() {
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("poisson_gaussian_log_prob_pairs: ") + cudaGetErrorString(status));
  }
}

template <class T>
void launch_scores(const Arguments<T>& arguments, T* output, std::uintptr_t stream) {
  const std::int64_t pairs = arguments.rows * arguments.columns;
  void (*const kernel)(Arguments<T>, T*) = score_pairs<T>;
  BITLENS_LAUNCH(kernel, dim3(grid_for((pairs + kBlock - 1) / kBlock)), dim3(kBlock), 0,
                 reinterpret_cast<cudaStream_t>(stream), arguments, output);
  check_launch();
}

template <class T>
void launch_gradients(const Arguments<T>& arguments, const Gradients<T>& wanted, std::uintptr_t stream) {
  const std::int64_t means = arguments.columns * arguments.pixels;
  if (wanted.mean && means > 0) {
    void (*const kernel)(Arguments<T>, Gradients<T>) = differentiate_means<T>;
    BITLENS_LAUNCH(kernel, dim3(grid_for((means + kBlock - 1) / kBlock)), dim3(kBlock), 0,
                   reinterpret_cast<cudaStream_t>(stream), arguments, wanted);
    check_launch();
  }
  if (wanted.measured || wanted.gain || wanted.offset || wanted.read_std) {
    void (*const kernel)(Arguments<T>, Gradients<T>) = differentiate_pixels<T>;
    BITLENS_LAUNCH(kernel, dim3(grid_for(arguments.pixels)), dim3(kBlock), 3 * kBlock * sizeof(double),
                   reinterpret_cast<cudaStream_t>(stream), arguments, wanted);
    check_launch();
  }
}

}  // namespace

namespace cuda {

void scores(const Arguments<float>& arguments, float* output, std::uintptr_t stream) {
  launch_scores(arguments, output, stream);
}
void scores(const Arguments<double>& arguments, double* output, std::uintptr_t stream) {
  launch_scores(arguments, output, stream);
}
void gradients(const Arguments<float>& arguments, const Gradients<float>& wanted, std::uintptr_t stream) {
  launch_gradients(arguments, wanted, stream);
}
void gradients(const Arguments<double>& arguments, const Gradients<double>& wanted, std::uintptr_t stream) {
  launch_gradients(arguments, wanted, stream);
}

}  // namespace cuda

}  // namespace poisson_gaussian_log_prob_pairs
}  // namespace bitlens
