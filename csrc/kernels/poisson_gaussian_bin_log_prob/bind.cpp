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
  Arguments<T> arguments{};
  arguments.layout = merged_layout<kInputs>(shape, strides);
  for (int i = 0; i < kInputs; ++i) arguments.inputs[i] = reinterpret_cast<const T*>(inputs[i]);
  for (int i = 0; i < kInputs; ++i) arguments.constants[i] = reinterpret_cast<const double*>(constants[i]);
  for (int i = 0; i < kOutputs; ++i) arguments.outputs[i] = reinterpret_cast<T*>(outputs[i]);
  arguments.order = order;
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
