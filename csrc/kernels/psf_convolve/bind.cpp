// Addresses in, no torch: compiled once for each device's module (BITLENS_DEVICE is cpu or cuda).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <vector>

#include "../../common/bind.h"
#include "kernel.h"

namespace bitlens {
namespace {

using namespace psf_convolve;

using Shape = std::vector<std::int64_t>;
using Strides = std::array<Shape, 2>;

// The first `outer` axes of the batch have outputs, the others are summed over. sizes: rows, columns and row stride of
// an operand; window: start, count and period of the rows, then of the columns.
template <class T>
void run(int kind, bool conjugate, const Shape& batch_shape, const Strides& batch_strides, std::size_t outer,
         std::uintptr_t first, std::uintptr_t second, std::uintptr_t output,
         const std::array<std::array<std::int64_t, 3>, 2>& sizes, const std::array<std::int64_t, 6>& window,
         DeviceHandle handle) {
  const auto part = [&](bool inner) {
    const auto cut = [&](const Shape& all) {
      const auto middle = all.begin() + static_cast<std::ptrdiff_t>(outer);
      return inner ? Shape(middle, all.end()) : Shape(all.begin(), middle);
    };
    return merged_layout<2>(cut(batch_shape), {cut(batch_strides[0]), cut(batch_strides[1])});
  };
  Arguments<T> arguments{};
  arguments.kind = static_cast<Kind>(kind);
  arguments.conjugate = conjugate;
  arguments.batch = part(false);
  arguments.terms = part(true);
  arguments.first = {reinterpret_cast<const T*>(first), sizes[0][0], sizes[0][1], sizes[0][2]};
  arguments.second = {reinterpret_cast<const T*>(second), sizes[1][0], sizes[1][1], sizes[1][2]};
  arguments.row = {window[0], window[1], window[2]};
  arguments.column = {window[3], window[4], window[5]};
  arguments.output = reinterpret_cast<T*>(output);
  if (arguments.batch.count == 0 || arguments.terms.count == 0) return;
  for (const auto& operand : sizes) {
    if (operand[0] < 1 || operand[1] < 1) throw std::invalid_argument("operands need at least one row and column");
  }
  if (arguments.kind == Kind::convolve && (arguments.row.count < 1 || arguments.column.count < 1)) return;
  for (int axis = 0; axis < 2; ++axis) {
    const std::int64_t period = window[3 * axis + 2];
    if (period > 0 && std::max({sizes[0][axis], sizes[1][axis], window[3 * axis + 1]}) > period) {
      throw std::invalid_argument("operands and outputs of a circular convolution must not exceed its period");
    }
  }
  pybind11::gil_scoped_release released;
  BITLENS_DEVICE::evaluate(arguments, handle);
}

}  // namespace

void bind_psf_convolve(pybind11::module_& module) {
  module.def("psf_convolve_float", &run<float>);
  module.def("psf_convolve_double", &run<double>);
}

}  // namespace bitlens
