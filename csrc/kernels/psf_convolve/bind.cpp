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

using Sizes = std::array<std::array<std::int64_t, 3>, 2>;
using Windows = std::array<std::int64_t, 6>;

// The first `outer` axes of the batch have outputs, the others are summed over. sizes: rows, columns and row stride of
// an operand; windows: start, count and period of the rows, then of the columns.
template <class T>
Arguments<T> arguments_of(int kind, bool conjugate, const Shape& batch_shape, const Strides& batch_strides,
                          std::size_t outer, const Sizes& sizes, const Windows& windows) {
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
  arguments.first = {nullptr, sizes[0][0], sizes[0][1], sizes[0][2]};
  arguments.second = {nullptr, sizes[1][0], sizes[1][1], sizes[1][2]};
  arguments.row = {windows[0], windows[1], windows[2]};
  arguments.column = {windows[3], windows[4], windows[5]};
  return arguments;
}

// Whether there is anything to compute; throws where the arguments cannot be right.
template <class T>
bool has_work(const Arguments<T>& arguments) {
  if (arguments.batch.count == 0 || arguments.terms.count == 0) return false;
  for (const Operand<T>& operand : {arguments.first, arguments.second}) {
    if (operand.rows < 1 || operand.columns < 1) {
      throw std::invalid_argument("operands need at least one row and column");
    }
  }
  const Window &row = arguments.row, &column = arguments.column;
  if (arguments.kind == Kind::convolve && (row.count < 1 || column.count < 1)) return false;
  const auto fits = [](const Window& window, std::int64_t first, std::int64_t second) {
    return window.period == 0 || std::max({first, second, window.count}) <= window.period;
  };
  if (!fits(row, arguments.first.rows, arguments.second.rows) ||
      !fits(column, arguments.first.columns, arguments.second.columns)) {
    throw std::invalid_argument("operands and outputs of a circular convolution must not exceed its period");
  }
  return true;
}

template <class T>
void run(int kind, bool conjugate, const Shape& batch_shape, const Strides& batch_strides, std::size_t outer,
         std::uintptr_t first, std::uintptr_t second, std::uintptr_t output, std::uintptr_t workspace,
         std::array<std::uintptr_t, 2> companion, std::uintptr_t spectra, bool centered,
         std::int64_t outputs, const Sizes& sizes, const Windows& windows, DeviceHandle handle) {
  Arguments<T> arguments = arguments_of<T>(kind, conjugate, batch_shape, batch_strides, outer, sizes, windows);
  if (!has_work(arguments)) return;
  if (arguments.batch.count != outputs) throw std::invalid_argument("output: need one image for each of the batch");
  arguments.first.data = reinterpret_cast<const T*>(first);
  arguments.second.data = reinterpret_cast<const T*>(second);
  arguments.output = reinterpret_cast<T*>(output);
  arguments.workspace = reinterpret_cast<void*>(workspace);
  arguments.companion = {reinterpret_cast<const T*>(companion[0]), reinterpret_cast<T*>(companion[1])};
  arguments.spectra = reinterpret_cast<const T*>(spectra);
  arguments.centered = centered;
  pybind11::gil_scoped_release released;
  BITLENS_DEVICE::evaluate(arguments, handle);
}

template <class T>
std::int64_t workspace_bytes(int kind, bool conjugate, const Shape& batch_shape, const Strides& batch_strides,
                             std::size_t outer, const Sizes& sizes, const Windows& windows) {
  const Arguments<T> arguments = arguments_of<T>(kind, conjugate, batch_shape, batch_strides, outer, sizes, windows);
  return has_work(arguments) ? BITLENS_DEVICE::workspace_bytes(arguments) : 0;
}

#if !defined(BITLENS_DEVICE_IS_CUDA)
// For `count` contiguous PSFs and an image of such sizes and windows.
template <class T>
Arguments<T> plan_arguments(bool conjugate, std::int64_t count, const Sizes& sizes, const Windows& windows) {
  const Strides strides = {Shape{0}, Shape{sizes[1][0] * sizes[1][1]}};
  const int kind = static_cast<int>(Kind::convolve);
  return arguments_of<T>(kind, conjugate, Shape{count}, strides, 1, sizes, windows);
}

template <class T>
std::int64_t spectrum_numbers(bool conjugate, const Sizes& sizes, const Windows& windows) {
  const Arguments<T> arguments = plan_arguments<T>(conjugate, 1, sizes, windows);
  return has_work(arguments) ? cpu::spectrum_numbers(arguments) : 0;
}

template <class T>
void make_spectra(bool conjugate, std::int64_t count, std::uintptr_t psfs, std::uintptr_t spectra, const Sizes& sizes,
                  const Windows& windows, int threads) {
  Arguments<T> arguments = plan_arguments<T>(conjugate, count, sizes, windows);
  if (!has_work(arguments)) return;
  arguments.second.data = reinterpret_cast<const T*>(psfs);
  pybind11::gil_scoped_release released;
  cpu::make_spectra(arguments, reinterpret_cast<T*>(spectra), threads);
}
#endif

}  // namespace

void bind_psf_convolve(pybind11::module_& module) {
  module.def("psf_convolve_float", &run<float>);
  module.def("psf_convolve_double", &run<double>);
  module.def("psf_convolve_workspace_bytes_float", &workspace_bytes<float>);
  module.def("psf_convolve_workspace_bytes_double", &workspace_bytes<double>);
#if !defined(BITLENS_DEVICE_IS_CUDA)
  module.def("psf_convolve_spectrum_numbers_float", &spectrum_numbers<float>);
  module.def("psf_convolve_spectrum_numbers_double", &spectrum_numbers<double>);
  module.def("psf_convolve_make_spectra_float", &make_spectra<float>);
  module.def("psf_convolve_make_spectra_double", &make_spectra<double>);
#endif
}

}  // namespace bitlens
