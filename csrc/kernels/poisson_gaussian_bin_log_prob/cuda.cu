// One thread per element, in double precision.
#include <stdexcept>
#include <string>

#include "kernel.h"
#include "math.h"

namespace bitlens {
namespace poisson_gaussian_bin_log_prob {
namespace {

constexpr int kBlock = 128;

namespace formula = scalar::poisson_gaussian_bin;

template <int Order, class T>
__global__ void __launch_bounds__(kBlock) evaluate_elements(Arguments<T> arguments) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (std::int64_t index = first; index < arguments.layout.count; index += stride) {
    std::int64_t offsets[kInputs];
    operand_offsets(arguments.layout, index, offsets);
    double values[kInputs];
    for (int input = 0; input < kInputs; ++input) {
      values[input] = arguments.constants[input] ? *arguments.constants[input]
                                                 : static_cast<double>(arguments.inputs[input][offsets[input]]);
    }
    const auto result = formula::evaluate<Order, double>(values[0], values[1], values[2], values[3], values[4],
                                                         values[5], values[6], values[7]);
    if (arguments.outputs[0]) arguments.outputs[0][index] = static_cast<T>(result.value);
    if constexpr (Order == 1) {
      for (int i = 0; i < 4; ++i) {
        if (arguments.outputs[1 + i]) arguments.outputs[1 + i][index] = static_cast<T>(result.first[i]);
      }
    }
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
    throw std::runtime_error(std::string("poisson_gaussian_bin_log_prob: ") + cudaGetErrorString(status));
  }
}

template <class T>
void launch_by_order(const Arguments<T>& arguments, std::uintptr_t stream) {
  if (arguments.order == 0) return launch<0>(arguments, stream);
  return launch<1>(arguments, stream);
}

}  // namespace

namespace cuda {

void evaluate(const Arguments<float>& arguments, std::uintptr_t stream) { launch_by_order(arguments, stream); }
void evaluate(const Arguments<double>& arguments, std::uintptr_t stream) { launch_by_order(arguments, stream); }

}  // namespace cuda

}  // namespace poisson_gaussian_bin_log_prob
}  // namespace bitlens
