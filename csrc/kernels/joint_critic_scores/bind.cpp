// Addresses in, no torch: compiled once for each device's module (BITLENS_DEVICE is cpu).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "../../common/bind.h"
#include "kernel.h"

namespace bitlens {
namespace {

using namespace joint_critic_scores;
using Address = std::uintptr_t;
using SizeList = std::array<std::int64_t, 5>;

Sizes sizes_of(const SizeList& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}; }

template <class T>
Inputs<T> inputs_of(const SizeList& sizes, const std::array<Address, 6>& addresses) {
  Inputs<T> inputs{};
  inputs.sizes = sizes_of(sizes);
  inputs.query = reinterpret_cast<const T*>(addresses[0]);
  inputs.key = reinterpret_cast<const T*>(addresses[1]);
  inputs.positive = reinterpret_cast<const std::int64_t*>(addresses[2]);
  inputs.weight = reinterpret_cast<const T*>(addresses[3]);
  inputs.bias = reinterpret_cast<const T*>(addresses[4]);
  inputs.output = reinterpret_cast<const T*>(addresses[5]);
  return inputs;
}

template <class T>
void forward(const SizeList& sizes, const std::array<Address, 6>& inputs, const std::array<Address, 4>& outputs,
             Address workspace, DeviceHandle handle) {
  Forward<T> arguments{};
  arguments.inputs = inputs_of<T>(sizes, inputs);
  arguments.positive = reinterpret_cast<T*>(outputs[0]);
  arguments.row = reinterpret_cast<T*>(outputs[1]);
  arguments.negatives = reinterpret_cast<T*>(outputs[2]);
  arguments.column = reinterpret_cast<T*>(outputs[3]);
  arguments.workspace = reinterpret_cast<void*>(workspace);
  pybind11::gil_scoped_release released;
  BITLENS_DEVICE::forward(arguments, handle);
}

// `saved` are row_logsumexp, row_logsumexp_negatives and column_logsumexp; `grads` those of all four outputs.
template <class T>
void backward(const SizeList& sizes, const std::array<Address, 6>& inputs, const std::array<Address, 3>& saved,
              const std::array<Address, 4>& grads, const std::array<Address, 5>& outputs, Address workspace,
              DeviceHandle handle) {
  Backward<T> arguments{};
  arguments.inputs = inputs_of<T>(sizes, inputs);
  arguments.row = reinterpret_cast<const T*>(saved[0]);
  arguments.negatives = reinterpret_cast<const T*>(saved[1]);
  arguments.column = reinterpret_cast<const T*>(saved[2]);
  arguments.grad_positive = reinterpret_cast<const T*>(grads[0]);
  arguments.grad_row = reinterpret_cast<const T*>(grads[1]);
  arguments.grad_negatives = reinterpret_cast<const T*>(grads[2]);
  arguments.grad_column = reinterpret_cast<const T*>(grads[3]);
  arguments.query = reinterpret_cast<T*>(outputs[0]);
  arguments.key = reinterpret_cast<T*>(outputs[1]);
  arguments.weight = reinterpret_cast<T*>(outputs[2]);
  arguments.bias = reinterpret_cast<T*>(outputs[3]);
  arguments.output = reinterpret_cast<T*>(outputs[4]);
  arguments.workspace = reinterpret_cast<void*>(workspace);
  pybind11::gil_scoped_release released;
  BITLENS_DEVICE::backward(arguments, handle);
}

std::int64_t workspace_bytes(const SizeList& sizes, int value_bytes, bool backward, const std::array<bool, 5>& wanted) {
  return BITLENS_DEVICE::workspace_bytes(sizes_of(sizes), value_bytes, backward,
                                         {wanted[0], wanted[1], wanted[2], wanted[3], wanted[4]});
}

}  // namespace

void bind_joint_critic_scores(pybind11::module_& module) {
  module.def("joint_critic_scores_workspace_bytes", &workspace_bytes);
  module.def("joint_critic_scores_forward_float", &forward<float>);
  module.def("joint_critic_scores_forward_double", &forward<double>);
  module.def("joint_critic_scores_backward_float", &backward<float>);
  module.def("joint_critic_scores_backward_double", &backward<double>);
}

}  // namespace bitlens
