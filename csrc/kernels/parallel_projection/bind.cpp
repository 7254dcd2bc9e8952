// Addresses in, no torch: compiled once for each device's module (BITLENS_DEVICE is cpu or cuda).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "../../common/bind.h"
#include "kernel.h"

namespace bitlens {
namespace {

using namespace parallel_projection;
using Address = std::uintptr_t;
using Numbers = std::array<std::int64_t, 5>;

Sizes sizes_of(const Numbers& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}; }

template <class T>
void run(bool adjoint, const Numbers& sizes, const std::array<Address, 5>& views, Address input, Address output,
         Address workspace, DeviceHandle handle) {
  Arguments<T> arguments{};
  arguments.sizes = sizes_of(sizes);
  arguments.views = {reinterpret_cast<const double*>(views[0]), reinterpret_cast<const double*>(views[1]),
                     reinterpret_cast<const double*>(views[2]), reinterpret_cast<const unsigned char*>(views[3]),
                     reinterpret_cast<const double*>(views[4])};
  arguments.input = reinterpret_cast<const T*>(input);
  arguments.output = reinterpret_cast<T*>(output);
  arguments.workspace = reinterpret_cast<double*>(workspace);
  pybind11::gil_scoped_release released;
  if (adjoint) {
    BITLENS_DEVICE::backproject(arguments, handle);
  } else {
    BITLENS_DEVICE::project(arguments, handle);
  }
}

std::int64_t workspace_bytes(bool adjoint, const Numbers& sizes) {
  return BITLENS_DEVICE::workspace_bytes(sizes_of(sizes), adjoint);
}

}  // namespace

void bind_parallel_projection(pybind11::module_& module) {
  module.def("parallel_projection_workspace_bytes", &workspace_bytes);
  module.def("parallel_projection_float", &run<float>);
  module.def("parallel_projection_double", &run<double>);
}

}  // namespace bitlens
