// Arguments and entry points of poisson_gaussian_bin_log_prob.
#pragma once

#include <cstdint>

#include "../../common/broadcast.h"

namespace bitlens {
namespace poisson_gaussian_bin_log_prob {

constexpr int kInputs = 8;   // measured, mean, gain, offset, read_std, below, above, full_well
constexpr int kOutputs = 5;  // value; d/d(mean, gain, offset, read_std)

template <class T>
struct Arguments {
  Broadcast<kInputs> layout;
  const T* inputs[kInputs];  // each read through layout.strides, unless `constants` has it
  const double* constants[kInputs];  // one number in double precision whatever T is, or null
  T* outputs[kOutputs];      // each contiguous [layout.count], or null where not wanted
  int order;                 // highest derivative wanted: 0 or 1
};

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
