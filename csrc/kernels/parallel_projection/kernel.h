// Arguments and entry points of parallel_projection: the sums over pixels between the edges of bins, and their adjoint.
#pragma once

#include <cstdint>

namespace bitlens {
namespace parallel_projection {

struct Sizes {
  std::int64_t batch, rows, columns, views, bins;
};

// Where the edges of bins cross the lines of an image: its rows in part 0, its columns in part 1. Edge b of a view
// crosses line i at start + width b + slope i, in pixels from the first pixel's outer edge.
struct Views {
  const double* start;         // [2, views]
  const double* width;         // [2, views], not 0
  const double* slope;         // [2, views]
  const unsigned char* inside; // [2, views]: each view is in one part, or in none
  const double* factor;        // [views]
};

// sums[v, b] = factor_v sum_i (P_i(edge b + 1) - P_i(edge b)), P_i the integral of line i, linear within a pixel.
template <class T>
struct Arguments {
  Sizes sizes;
  Views views;
  const T* input;  // [batch, rows, columns]; of the adjoint [batch, views, bins]
  T* output;       // [batch, views, bins]; of the adjoint [batch, rows, columns]
  double* workspace;  // workspace_bytes of it on a GPU; on a CPU the kernel takes its own
};

namespace cpu {
std::int64_t workspace_bytes(const Sizes& sizes, bool adjoint);  // 0
void project(const Arguments<float>& arguments, int threads);
void project(const Arguments<double>& arguments, int threads);
void backproject(const Arguments<float>& arguments, int threads);
void backproject(const Arguments<double>& arguments, int threads);
}  // namespace cpu

namespace cuda {
std::int64_t workspace_bytes(const Sizes& sizes, bool adjoint);
void project(const Arguments<float>& arguments, std::uintptr_t stream);
void project(const Arguments<double>& arguments, std::uintptr_t stream);
void backproject(const Arguments<float>& arguments, std::uintptr_t stream);
void backproject(const Arguments<double>& arguments, std::uintptr_t stream);
}  // namespace cuda

}  // namespace parallel_projection
}  // namespace bitlens
