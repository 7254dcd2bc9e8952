// Arguments and entry points of poisson_gaussian_bin_log_prob.
#pragma once

#include <cstdint>

#include "../../common/elementwise.h"

namespace bitlens {
namespace poisson_gaussian_bin_log_prob {

constexpr int kInputs = 8;   // measured, mean, gain, offset, read_std, below, above, full_well
constexpr int kOutputs = 5;  // value; d/d(mean, gain, offset, read_std)

template <class T>
using Arguments = Elementwise<T, kInputs, kOutputs>;  // of order 0 or 1

namespace cpu {
void evaluate(const Arguments<float>& arguments, int threads);
void evaluate(const Arguments<double>& arguments, int threads);
}  // namespace cpu

namespace cuda {
void evaluate(const Arguments<float>& arguments, std::uintptr_t stream);
void evaluate(const Arguments<double>& arguments, std::uintptr_t stream);
}  // namespace cuda

}  // namespace poisson_gaussian_bin_log_prob
}  // namespace bitlens
