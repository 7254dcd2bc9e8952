// Addresses in, no torch: compiled once for each device's module (BITLENS_DEVICE is cpu or cuda).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "../../common/bind.h"
#include "kernel.h"

namespace bitlens {
namespace {

using namespace poisson_gaussian_bin_log_prob;

template <class T>
void run(const std::vector<std::int64_t>& shape, const std::array<std::vector<std::int64_t>, kInputs>& strides,
         const std::array<std::uintptr_t, kInputs>& inputs, const std::array<std::uintptr_t, kInputs>& constants,
         const std::array<std::uintptr_t, kOutputs>& outputs, int order, DeviceHandle handle) {
  const Arguments<T> arguments =
      elementwise_arguments<T, kInputs, kOutputs>(shape, strides, inputs, constants, outputs, order);
  if (arguments.layout.count == 0) return;
  pybind11::gil_scoped_release released;
  BITLENS_DEVICE::evaluate(arguments, handle);
}

}  // namespace

void bind_poisson_gaussian_bin_log_prob(pybind11::module_& module) {
  module.def("poisson_gaussian_bin_log_prob_float", &run<float>);
  module.def("poisson_gaussian_bin_log_prob_double", &run<double>);
}

}  // namespace bitlens
