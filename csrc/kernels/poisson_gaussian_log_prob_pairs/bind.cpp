// Addresses in, no torch: compiled once for each device's module (BITLENS_DEVICE is cpu or cuda).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "../../common/bind.h"
#include "kernel.h"

namespace bitlens {
namespace {

using namespace poisson_gaussian_log_prob_pairs;

// inputs: measured, mean, gain, offset, read_std.
template <class T>
Arguments<T> make_arguments(const std::array<std::int64_t, 3>& sizes, const std::array<std::uintptr_t, 5>& inputs) {
  Arguments<T> arguments{};
  arguments.rows = sizes[0];
  arguments.columns = sizes[1];
  arguments.pixels = sizes[2];
  arguments.measured = reinterpret_cast<const T*>(inputs[0]);
  arguments.mean = reinterpret_cast<const T*>(inputs[1]);
  arguments.gain = reinterpret_cast<const double*>(inputs[2]);
  arguments.offset = reinterpret_cast<const double*>(inputs[3]);
  arguments.read_std = reinterpret_cast<const double*>(inputs[4]);
  return arguments;
}

template <class T>
void run_scores(const std::array<std::int64_t, 3>& sizes, const std::array<std::uintptr_t, 5>& inputs,
                std::uintptr_t output, DeviceHandle handle) {
  const Arguments<T> arguments = make_arguments<T>(sizes, inputs);
  if (arguments.rows == 0 || arguments.columns == 0) return;
  pybind11::gil_scoped_release released;
  BITLENS_DEVICE::scores(arguments, reinterpret_cast<T*>(output), handle);
}

// outputs: measured, mean, gain, offset, read_std; 0 where not wanted.
template <class T>
void run_gradients(const std::array<std::int64_t, 3>& sizes, const std::array<std::uintptr_t, 5>& inputs,
                   std::uintptr_t weight, const std::array<std::uintptr_t, 5>& outputs, DeviceHandle handle) {
  const Arguments<T> arguments = make_arguments<T>(sizes, inputs);
  Gradients<T> wanted{};
  wanted.weight = reinterpret_cast<const T*>(weight);
  wanted.measured = reinterpret_cast<T*>(outputs[0]);
  wanted.mean = reinterpret_cast<T*>(outputs[1]);
  wanted.gain = reinterpret_cast<double*>(outputs[2]);
  wanted.offset = reinterpret_cast<double*>(outputs[3]);
  wanted.read_std = reinterpret_cast<double*>(outputs[4]);
  if (arguments.pixels == 0) return;
  pybind11::gil_scoped_release released;
  BITLENS_DEVICE::gradients(arguments, wanted, handle);
}

#if !defined(BITLENS_DEVICE_IS_CUDA)
// masks: positive, row_group, column_group, row_bias; outputs: positive, row, negatives, column, column negatives.
template <class T>
void run_statistics(const std::array<std::int64_t, 3>& sizes, const std::array<std::uintptr_t, 5>& inputs,
                    const std::array<std::uintptr_t, 4>& masks, const std::array<std::uintptr_t, 5>& outputs,
                    DeviceHandle handle) {
  const Arguments<T> arguments = make_arguments<T>(sizes, inputs);
  Statistics<T> wanted{};
  wanted.positive = reinterpret_cast<const std::int64_t*>(masks[0]);
  wanted.row_group = reinterpret_cast<const std::int64_t*>(masks[1]);
  wanted.column_group = reinterpret_cast<const std::int64_t*>(masks[2]);
  wanted.row_bias = reinterpret_cast<const double*>(masks[3]);
  wanted.positive_score = reinterpret_cast<T*>(outputs[0]);
  wanted.row = reinterpret_cast<T*>(outputs[1]);
  wanted.negatives = reinterpret_cast<T*>(outputs[2]);
  wanted.column = reinterpret_cast<T*>(outputs[3]);
  wanted.column_negatives = reinterpret_cast<T*>(outputs[4]);
  pybind11::gil_scoped_release released;
  BITLENS_DEVICE::statistics(arguments, wanted, handle);
}
#endif

}  // namespace

void bind_poisson_gaussian_log_prob_pairs(pybind11::module_& module) {
  module.def("poisson_gaussian_log_prob_pairs_scores_float", &run_scores<float>);
  module.def("poisson_gaussian_log_prob_pairs_scores_double", &run_scores<double>);
  module.def("poisson_gaussian_log_prob_pairs_gradients_float", &run_gradients<float>);
  module.def("poisson_gaussian_log_prob_pairs_gradients_double", &run_gradients<double>);
#if !defined(BITLENS_DEVICE_IS_CUDA)
  module.def("poisson_gaussian_log_prob_pairs_statistics_float", &run_statistics<float>);
  module.def("poisson_gaussian_log_prob_pairs_statistics_double", &run_statistics<double>);
#endif
}

}  // namespace bitlens
