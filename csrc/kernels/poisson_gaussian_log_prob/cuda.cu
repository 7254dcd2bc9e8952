// One thread per element: single precision where narrow.h allows it, else double.
#include <stdexcept>
#include <string>

#include "kernel.h"
#include "narrow.h"

namespace bitlens {
namespace poisson_gaussian_log_prob {
namespace {

constexpr int kBlock = 128;

namespace formula = scalar::poisson_gaussian;

template <int Order, class T>
__device__ void evaluate_double(const Arguments<T>& arguments, const std::int64_t* offsets, std::int64_t index) {
  double values[kInputs];
  for (int input = 0; input < kInputs; ++input) {
    values[input] = arguments.constants[input] ? *arguments.constants[input]
                                               : static_cast<double>(arguments.inputs[input][offsets[input]]);
  }
  const auto result = formula::evaluate<Order, double>(values[0], values[1], values[2], values[3], values[4]);
  if (arguments.outputs[0]) arguments.outputs[0][index] = static_cast<T>(result.value);
  if constexpr (Order >= 1) {
    for (int i = 0; i < 4; ++i) {
      if (arguments.outputs[1 + i]) arguments.outputs[1 + i][index] = static_cast<T>(result.first[i]);
    }
  }
  if constexpr (Order == 2) {
    for (int i = 0; i < 10; ++i) {
      if (arguments.outputs[5 + i]) arguments.outputs[5 + i][index] = static_cast<T>(result.second[i]);
    }
  }
}

// Whether single precision served; false leaves the element to evaluate_double.
template <int Order>
__device__ bool evaluate_single(const Arguments<float>& arguments, const std::int64_t* offsets, std::int64_t index) {
  if constexpr (Order == 2) {
    return false;
  } else {
    if (arguments.constants[0] || arguments.constants[1]) return false;
    float values[kInputs], rests[kInputs];
    for (int input = 0; input < kInputs; ++input) {
      const double* const constant = arguments.constants[input];
      values[input] = constant ? static_cast<float>(*constant) : arguments.inputs[input][offsets[input]];
      rests[input] = constant ? static_cast<float>(*constant - values[input]) : 0.0f;
    }
    formula::Sensor<float> sensor;
    formula::set_sensor(sensor, values[2], rests[2], values[3], rests[3], values[4], rests[4]);
    const auto start = formula::start_of_sum(values[0], values[1], sensor);
    if (start.reach < 0.5f) return false;
    const int terms = static_cast<int>(start.reach);
    formula::extend_powers(sensor, terms);
    constexpr int kMoments = Order == 0 ? 0 : 2;
    const auto sums = formula::sum_terms<kMoments>(start.mode, start.up, start.down, sensor.powers, 1, terms);
    const auto result = formula::finish_sum<kMoments>(start, sums, sensor);
    if (arguments.outputs[0]) arguments.outputs[0][index] = result.value;
    if constexpr (Order == 1) {
      for (int i = 0; i < 4; ++i) {
        if (arguments.outputs[1 + i]) arguments.outputs[1 + i][index] = result.first[i];
      }
    }
    return true;
  }
}
template <int Order>
__device__ bool evaluate_single(const Arguments<double>&, const std::int64_t*, std::int64_t) {
  return false;
}

template <int Order, class T>
__global__ void __launch_bounds__(kBlock) evaluate_elements(Arguments<T> arguments) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (std::int64_t index = first; index < arguments.layout.count; index += stride) {
    std::int64_t offsets[kInputs];
    operand_offsets(arguments.layout, index, offsets);
    if (!evaluate_single<Order>(arguments, offsets, index)) evaluate_double<Order>(arguments, offsets, index);
  }
}

template <int Order, class T>
void launch(const Arguments<T>& arguments, std::uintptr_t stream) {
  const std::int64_t blocks = (arguments.layout.count + kBlock - 1) / kBlock;
  const unsigned grid = static_cast<unsigned>(blocks < 65535 ? blocks : 65535);
  void (*const kernel)(Arguments<T>) = evaluate_elements<Order, T>;
  BITLENS_LAUNCH(kernel, dim3(grid), dim3(kBlock), 0, reinterpret_cast<cudaStream_t>(stream), arguments);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("poisson_gaussian_log_prob: ") + cudaGetErrorString(status));
  }
}

template <class T>
void launch_by_order(const Arguments<T>& arguments, std::uintptr_t stream) {
  switch (arguments.order) {
    case 0: return launch<0>(arguments, stream);
    case 1: return launch<1>(arguments, stream);
    default: return launch<2>(arguments, stream);
  }
}

}  // namespace

namespace cuda {

void evaluate(const Arguments<float>& arguments, std::uintptr_t stream) { launch_by_order(arguments, stream); }
void evaluate(const Arguments<double>& arguments, std::uintptr_t stream) { launch_by_order(arguments, stream); }

}  // namespace cuda

}  // namespace poisson_gaussian_log_prob
}  // namespace bitlens
