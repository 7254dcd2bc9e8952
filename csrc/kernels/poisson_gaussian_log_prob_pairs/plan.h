// What is known of a block of pairs before any score: for each pixel the table that serves it, for each mean its place.
//
// In electrons, z = (measured - offset) / gain and s = read_std / gain, the likelihood is
//     log p = -z^2 / (2 s^2) - mean + G(z / s^2 + log mean) - log(s gain sqrt(2 pi)),
//     G(t) = log sum_k exp(t k - k^2 / (2 s^2)) / k!,
// one curve for each s. The zeros of the sum over k are real and negative as a function of e^t (Laguerre's theorem on
// multiplier sequences), so G is analytic for |Im t| < pi: equidistant nodes in log mean with Lagrange's polynomial
// through the nearest ones reach any accuracy at a spacing that does not depend on the data. The term -mean, which is
// not so tame, is put back exactly: `bias` is what interpolation makes of it, less what it is.
#pragma once

#include <cstdint>

namespace bitlens {
namespace poisson_gaussian_log_prob_pairs {

constexpr int kRows = 64;        // rows of a tile
constexpr int kCurveTaps = 12;   // nodes of the curve that one entry of a table is interpolated from
constexpr int kCurveMargin = 28;  // entries of a curve besides its range: half a stencil and the overhang of packs
constexpr int kMostNodes = 2048;

// Accuracy of an interpolated score, relative to max(1, |score|) of a pixel: 1e-7 for float and 1e-12 for double. The
// derivatives of G are below 2 (order - 1)! / pi^order times max(1, s^2), hence the spacing, in log mean.
template <class T>
struct Interpolation;
template <>
struct Interpolation<float> {
  static constexpr int kTaps = 6;
  static constexpr int kGroup = 4;  // pixels added up in T before the sum goes to double
  static constexpr double kStep = 0.2;
  static constexpr double kSpreads = 8.0;  // longest step in standard deviations of a count: rounding of far nodes
  static constexpr double kLargest = 1e8;  // largest G whose cancellation against z^2 / (2 s^2) is harmless
  static constexpr double kMostLog = 27.0;  // of a mean whose rounded node is near enough to its place
};
template <>
struct Interpolation<double> {
  static constexpr int kTaps = 12;
  static constexpr int kGroup = 4;
  static constexpr double kStep = 0.125;
  static constexpr double kSpreads = 5.0;
  static constexpr double kLargest = 4e3;
  static constexpr double kMostLog = 14.0;
};

enum Kind : int {
  kCurve,   // table entries come from the curve of G
  kExact,   // table entries are likelihoods, where differences of G would lose digits
  kDirect,  // no table: too few pairs for one, or means too far apart
};

struct Pixel {
  double gain, offset, read_std;
  double sigma, inverse_variance;  // of the read noise, electrons
  double constant;                 // -log(sigma gain sqrt(2 pi))
  double least_log, most_log;      // of the means that are not dark
  double least_x, most_x;          // of z / sigma^2
  double largest_signal;           // |z|
  double first_log, step;          // log mean of node 0, and between nodes
  double first_t;                  // of the pixel's curve
  std::int64_t curve, curve_size;  // where its entries start, and how many
  std::int64_t nodes;
  Kind kind;
};

// Row 0 of a pixel's table stands for no light, row 1 + i for node i. Below, [pixels, columns] arrays.
template <class T>
struct Plan {
  Pixel* pixels;
  std::int32_t* first;  // first of the kTaps table rows
  T* fraction;          // of a step past the middle-left one of them; NaN for a mean outside the domain
  T* bias;
  double *curve, *curve_mean, *curve_variance;  // G, G' = E[k] and G'' = Var[k] at the nodes of all curves
};

}  // namespace poisson_gaussian_log_prob_pairs
}  // namespace bitlens
