// Arguments and entry points of poisson_gaussian_log_prob.
#pragma once

#include <cstdint>

#include "../../common/elementwise.h"

namespace bitlens {
namespace poisson_gaussian_log_prob {

constexpr int kInputs = 5;    // measured, mean, gain, offset, read_std
constexpr int kOutputs = 15;  // value; d/d(mean, gain, offset, read_std); upper triangle of the second derivatives

template <class T>
using Arguments = Elementwise<T, kInputs, kOutputs>;  // of order 0, 1 or 2

namespace cpu {
void evaluate(const Arguments<float>& arguments, int threads);
void evaluate(const Arguments<double>& arguments, int threads);
}  // namespace cpu

namespace cuda {
void evaluate(const Arguments<float>& arguments, std::uintptr_t stream);
void evaluate(const Arguments<double>& arguments, std::uintptr_t stream);
}  // namespace cuda

}  // namespace poisson_gaussian_log_prob
}  // namespace bitlens
