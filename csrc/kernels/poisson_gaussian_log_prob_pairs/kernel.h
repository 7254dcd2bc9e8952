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

// Log-sum-exps of S[i, j] = score + row_bias[i], with no score kept. A row's positive and the pairs of equal group are
// excluded from the sums of negatives. A positive that is no column leaves its score untouched and excludes nothing.
template <class T>
struct Statistics {
  const std::int64_t* positive;                    // [rows]
  const std::int64_t *row_group, *column_group;    // [rows], [columns], or null
  const double* row_bias;                          // [rows] or null
  T *positive_score, *row, *negatives;             // [rows] each
  T *column, *column_negatives;                    // [columns] each
};

// Sums of exponentials, each as its largest term and the sum relative to that.
struct LogSums {
  double *largest, *sum;
};

// What one tile needs of `Statistics`, and where its sums go; rows and columns count from those of the tile.
struct TileMasks {
  const std::int64_t *positive, *row_group, *column_group;
  const double* row_bias;
};
struct TileSums {
  double* positive;
  LogSums row, row_excluded, column, column_excluded;
};

namespace cpu {
void statistics(const Arguments<float>& arguments, const Statistics<float>& wanted, int threads);
void statistics(const Arguments<double>& arguments, const Statistics<double>& wanted, int threads);
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
