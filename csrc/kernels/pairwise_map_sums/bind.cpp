// Addresses in, no torch: compiled once for each device's module (BITLENS_DEVICE is cpu or cuda).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "../../common/bind.h"
#include "kernel.h"

namespace bitlens {
namespace {

using namespace pairwise_map_sums;
using Address = std::uintptr_t;
using Strides = std::array<std::vector<std::int64_t>, 2>;

// The last two strides of a matrix are its own, those before them walk the batch. `sizes` are n, m and d.
template <class T>
Inputs<T> inputs_of(const std::vector<std::int64_t>& batch, const std::array<std::int64_t, 3>& sizes,
                    const Strides& strides, const std::array<Address, 6>& addresses) {
  Inputs<T> inputs{};
  Strides batch_strides;
  for (int operand = 0; operand < 2; ++operand) {
    const auto& all = strides[operand];
    batch_strides[operand].assign(all.begin(), all.end() - 2);
    std::int64_t* inner = operand == 0 ? inputs.query_strides : inputs.key_strides;
    inner[0] = all[all.size() - 2];
    inner[1] = all[all.size() - 1];
  }
  inputs.layout = merged_layout<2>(batch, batch_strides);
  inputs.sizes = {inputs.layout.count, sizes[0], sizes[1], sizes[2]};
  inputs.query = reinterpret_cast<const T*>(addresses[0]);
  inputs.key = reinterpret_cast<const T*>(addresses[1]);
  inputs.positive = reinterpret_cast<const std::int64_t*>(addresses[2]);
  inputs.scale = reinterpret_cast<const T*>(addresses[3]);
  inputs.query_bias = reinterpret_cast<const T*>(addresses[4]);
  inputs.key_bias = reinterpret_cast<const T*>(addresses[5]);
  return inputs;
}

template <class T>
void forward(const std::vector<std::int64_t>& batch, const std::array<std::int64_t, 3>& sizes, const Strides& strides,
             const std::array<Address, 6>& inputs, int map, double limit, const std::array<Address, 2>& outputs,
             Address workspace, DeviceHandle handle) {
  Forward<T> arguments{};
  arguments.inputs = inputs_of<T>(batch, sizes, strides, inputs);
  arguments.map = {map, limit};
  arguments.positive = reinterpret_cast<T*>(outputs[0]);
  arguments.sum = reinterpret_cast<T*>(outputs[1]);
  arguments.workspace = reinterpret_cast<void*>(workspace);
  pybind11::gil_scoped_release released;
  BITLENS_DEVICE::forward(arguments, handle);
}

// `grads` are those of the two outputs.
template <class T>
void backward(const std::vector<std::int64_t>& batch, const std::array<std::int64_t, 3>& sizes, const Strides& strides,
              const std::array<Address, 6>& inputs, int map, double limit, const std::array<Address, 2>& grads,
              const std::array<Address, 5>& outputs, Address workspace, DeviceHandle handle) {
  Backward<T> arguments{};
  arguments.inputs = inputs_of<T>(batch, sizes, strides, inputs);
  arguments.map = {map, limit};
  arguments.grad_positive = reinterpret_cast<const T*>(grads[0]);
  arguments.grad_sum = reinterpret_cast<const T*>(grads[1]);
  arguments.query = reinterpret_cast<T*>(outputs[0]);
  arguments.key = reinterpret_cast<T*>(outputs[1]);
  arguments.scale = reinterpret_cast<T*>(outputs[2]);
  arguments.query_bias = reinterpret_cast<T*>(outputs[3]);
  arguments.key_bias = reinterpret_cast<T*>(outputs[4]);
  arguments.workspace = reinterpret_cast<void*>(workspace);
  pybind11::gil_scoped_release released;
  BITLENS_DEVICE::backward(arguments, handle);
}

std::int64_t workspace_bytes(std::int64_t batch, const std::array<std::int64_t, 3>& sizes, int value_bytes,
                             bool backward, bool query, bool key) {
  return BITLENS_DEVICE::workspace_bytes({batch, sizes[0], sizes[1], sizes[2]}, value_bytes, backward, query, key);
}

}  // namespace

void bind_pairwise_map_sums(pybind11::module_& module) {
  module.def("pairwise_map_sums_workspace_bytes", &workspace_bytes);
  module.def("pairwise_map_sums_forward_float", &forward<float>);
  module.def("pairwise_map_sums_forward_double", &forward<double>);
  module.def("pairwise_map_sums_backward_float", &backward<float>);
  module.def("pairwise_map_sums_backward_double", &backward<double>);
}

}  // namespace bitlens
