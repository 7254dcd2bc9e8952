// Addresses in, no torch: compiled once for each device's module (BITLENS_DEVICE is cpu or cuda).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "../../common/bind.h"
#include "kernel.h"

namespace bitlens {
namespace {

using namespace infonce_scores;
using Address = std::uintptr_t;

// The last two strides of a matrix are its own, those before them walk the batch.
template <class T>
Inputs<T> inputs_of(const std::vector<std::int64_t>& batch, std::int64_t queries, std::int64_t keys,
                    std::int64_t features, const std::array<std::vector<std::int64_t>, 2>& strides,
                    const std::array<Address, 6>& addresses, int precision) {
  Inputs<T> inputs{};
  std::array<std::vector<std::int64_t>, 2> batch_strides;
  for (int operand = 0; operand < 2; ++operand) {
    const auto& all = strides[operand];
    batch_strides[operand].assign(all.begin(), all.end() - 2);
    std::int64_t* inner = operand == 0 ? inputs.query_strides : inputs.key_strides;
    inner[0] = all[all.size() - 2];
    inner[1] = all[all.size() - 1];
  }
  inputs.layout = merged_layout<2>(batch, batch_strides);
  inputs.sizes = {inputs.layout.count, queries, keys, features};
  inputs.query = reinterpret_cast<const T*>(addresses[0]);
  inputs.key = reinterpret_cast<const T*>(addresses[1]);
  inputs.positive = reinterpret_cast<const std::int64_t*>(addresses[2]);
  inputs.scale = reinterpret_cast<const T*>(addresses[3]);
  inputs.query_bias = reinterpret_cast<const T*>(addresses[4]);
  inputs.key_bias = reinterpret_cast<const T*>(addresses[5]);
  inputs.precision = precision;
  return inputs;
}

template <class T>
void forward(const std::vector<std::int64_t>& batch, std::int64_t queries, std::int64_t keys, std::int64_t features,
             const std::array<std::vector<std::int64_t>, 2>& strides, const std::array<Address, 6>& inputs,
             const std::array<Address, 4>& outputs, Address workspace, int precision, DeviceHandle handle) {
  Forward<T> arguments{};
  arguments.inputs = inputs_of<T>(batch, queries, keys, features, strides, inputs, precision);
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
void backward(const std::vector<std::int64_t>& batch, std::int64_t queries, std::int64_t keys, std::int64_t features,
              const std::array<std::vector<std::int64_t>, 2>& strides, const std::array<Address, 6>& inputs,
              const std::array<Address, 3>& saved, const std::array<Address, 4>& grads,
              const std::array<Address, 5>& outputs, Address workspace, int precision, DeviceHandle handle) {
  Backward<T> arguments{};
  arguments.inputs = inputs_of<T>(batch, queries, keys, features, strides, inputs, precision);
  arguments.row = reinterpret_cast<const T*>(saved[0]);
  arguments.negatives = reinterpret_cast<const T*>(saved[1]);
  arguments.column = reinterpret_cast<const T*>(saved[2]);
  arguments.grad_positive = reinterpret_cast<const T*>(grads[0]);
  arguments.grad_row = reinterpret_cast<const T*>(grads[1]);
  arguments.grad_negatives = reinterpret_cast<const T*>(grads[2]);
  arguments.grad_column = reinterpret_cast<const T*>(grads[3]);
  arguments.query = reinterpret_cast<T*>(outputs[0]);
  arguments.key = reinterpret_cast<T*>(outputs[1]);
  arguments.scale = reinterpret_cast<T*>(outputs[2]);
  arguments.query_bias = reinterpret_cast<T*>(outputs[3]);
  arguments.key_bias = reinterpret_cast<T*>(outputs[4]);
  arguments.workspace = reinterpret_cast<void*>(workspace);
  pybind11::gil_scoped_release released;
  BITLENS_DEVICE::backward(arguments, handle);
}

std::int64_t workspace_bytes(std::int64_t batch, std::int64_t queries, std::int64_t keys, std::int64_t features,
                             int value_bytes, bool backward, bool query, bool key) {
  return BITLENS_DEVICE::workspace_bytes({batch, queries, keys, features}, value_bytes, backward, query, key);
}

}  // namespace

void bind_infonce_scores(pybind11::module_& module) {
  module.def("infonce_scores_workspace_bytes", &workspace_bytes);
  module.def("infonce_scores_forward_float", &forward<float>);
  module.def("infonce_scores_forward_double", &forward<double>);
  module.def("infonce_scores_backward_float", &backward<float>);
  module.def("infonce_scores_backward_double", &backward<double>);
}

}  // namespace bitlens
