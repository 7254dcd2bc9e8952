// Arguments and entry points of poisson_gaussian_log_prob_pairs.
#pragma once

#include <cstdint>

namespace bitlens {
namespace poisson_gaussian_log_prob_pairs {

// The sensor is double whatever T is: a gain rounded to single precision would shift a bright pixel's likelihood.
template <class T>
struct Arguments {
  std::int64_t rows, columns, pixels;
  const T* measured;       // [rows, pixels]
  const T* mean;           // [columns, pixels]
  const double* gain;      // [pixels]
  const double* offset;    // [pixels]
  const double* read_std;  // [pixels]
};

// Gradient of sum_ij weight_ij scores_ij; a null output is not wanted.
template <class T>
struct Gradients {
  const T* weight;           // [columns, rows]
  T* measured;               // [rows, pixels]
  T* mean;                   // [columns, pixels]
  double *gain, *offset, *read_std;  // [pixels] each
};

namespace cpu {
void scores(const Arguments<float>& arguments, float* output, int threads);  // output [rows, columns]
void scores(const Arguments<double>& arguments, double* output, int threads);
void gradients(const Arguments<float>& arguments, const Gradients<float>& wanted, int threads);
void gradients(const Arguments<double>& arguments, const Gradients<double>& wanted, int threads);
}  // namespace cpu

namespace cuda {
void scores(const Arguments<float>& arguments, float* output, std::uintptr_t stream);
void scores(const Arguments<double>& arguments, double* output, std::uintptr_t stream);
void gradients(const Arguments<float>& arguments, const Gradients<float>& wanted, std::uintptr_t stream);
void gradients(const Arguments<double>& arguments, const Gradients<double>& wanted, std::uintptr_t stream);
}  // namespace cuda

}  // namespace poisson_gaussian_log_prob_pairs
}  // namespace bitlens
