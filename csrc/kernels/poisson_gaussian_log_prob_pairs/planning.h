// Makes a Plan, with the functions that cpu.cpp declares for each instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../../common/parallel.h"
#include "plan.h"

namespace bitlens {
namespace poisson_gaussian_log_prob_pairs {

template <class T>
struct OwnedPlan {
  std::vector<Pixel> pixels;
  std::vector<std::int32_t> first;
  std::vector<T> fraction, bias;
  std::vector<double> curve, curve_mean, curve_variance;

  Plan<T> view() const {
    auto* self = const_cast<OwnedPlan*>(this);
    return {self->pixels.data(), self->first.data(), self->fraction.data(),      self->bias.data(),
            self->curve.data(),  self->curve_mean.data(), self->curve_variance.data()};
  }
  std::int64_t most_nodes() const {
    std::int64_t most = 0;
    for (const Pixel& pixel : pixels) most = std::max(most, pixel.kind == kDirect ? 0 : pixel.nodes);
    return most;
  }
};

// Nanoseconds, measured on one AVX-512 core: what a choice between table and direct evaluation rests on.
constexpr double kDirectCost = 60.0;  // of one likelihood in double precision
constexpr double kEntryCost = 1.5;    // of one table entry from the curve
constexpr double kPairCost = 1.0;     // of one interpolated pair: 0.4 in float, 1.5 in double

// Below a mean of exp(-kDarkest) times the likelihood ratio of one photon to none, a mean is none to 1e-20.
constexpr double kDarkest = 46.0;

// The positive x with x + log x = level, to a few per cent.
inline double rough_wright_omega(double level) {
  double x = level > 1.0 ? level : std::exp(std::max(level, -700.0));
  for (int step = 0; step < 6; ++step) x = std::max(x * (1.0 + level - std::log(x)) / (1.0 + x), 1e-300);
  return x;
}

// Ranges of the measured values and the means of pixels [begin, end).
template <class T>
void find_ranges(const Arguments<T>& arguments, Pixel* pixels, std::int64_t begin, std::int64_t end) {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::int64_t count = end - begin;
  std::vector<double> low(count, infinity), high(count, -infinity);
  for (std::int64_t i = 0; i < arguments.rows; ++i) {
    const T* row = arguments.measured + i * arguments.pixels + begin;
    for (std::int64_t q = 0; q < count; ++q) {
      const double value = static_cast<double>(row[q]);
      if (!std::isfinite(value)) continue;
      low[q] = std::min(low[q], value);
      high[q] = std::max(high[q], value);
    }
  }
  for (std::int64_t q = 0; q < count; ++q) {
    Pixel& pixel = pixels[begin + q];
    pixel.gain = arguments.gain[begin + q];
    pixel.offset = arguments.offset[begin + q];
    pixel.read_std = arguments.read_std[begin + q];
    pixel.sigma = pixel.read_std / pixel.gain;
    pixel.inverse_variance = 1.0 / (pixel.sigma * pixel.sigma);
    pixel.constant = -std::log(pixel.read_std) - 0.91893853320467274178;
    const bool any = low[q] <= high[q];
    const double least = any ? (low[q] - pixel.offset) / pixel.gain : 0.0;
    const double most = any ? (high[q] - pixel.offset) / pixel.gain : 0.0;
    pixel.largest_signal = std::max(std::abs(least), std::abs(most));
    pixel.least_x = least * pixel.inverse_variance;
    pixel.most_x = most * pixel.inverse_variance;
    const double darkest = std::exp(-kDarkest - std::max(pixel.most_x, 0.0));
    low[q] = infinity;
    high[q] = -infinity;
    pixel.least_log = darkest;  // until the means are seen
  }
  for (std::int64_t j = 0; j < arguments.columns; ++j) {
    const T* row = arguments.mean + j * arguments.pixels + begin;
    for (std::int64_t q = 0; q < count; ++q) {
      const double value = static_cast<double>(row[q]);
      if (!(value > pixels[begin + q].least_log && value <= 1e15)) continue;
      low[q] = std::min(low[q], value);
      high[q] = std::max(high[q], value);
    }
  }
  for (std::int64_t q = 0; q < count; ++q) {
    Pixel& pixel = pixels[begin + q];
    const bool any = low[q] <= high[q];
    // Rounded outwards: the packs' logarithm may differ in its last digit.
    pixel.least_log = any ? std::log(low[q]) - 1e-9 : 0.0;
    pixel.most_log = any ? std::log(high[q]) : 0.0;
  }
}

// Spacing of the nodes, for means up to exp(most_log).
template <class T>
double node_step(double sigma, double most_log) {
  const double shorter = std::pow(std::max(1.0, sigma * sigma), 1.0 / Interpolation<T>::kTaps);
  const double mean = std::exp(std::max(most_log, 0.0));
  return std::min(Interpolation<T>::kStep / shorter, Interpolation<T>::kSpreads / std::sqrt(mean));
}

// Nodes, and whether the pixel's table comes from a curve shared by `sharing` pixels, or is worth while at all.
template <class T>
void choose_table(const Arguments<T>& arguments, Pixel* pixel, double step, double sharing) {
  pixel->kind = kDirect;
  pixel->curve = pixel->curve_size = pixel->nodes = 0;
  if (!(pixel->gain > 0.0 && pixel->read_std > 0.0 && std::isfinite(pixel->offset) && std::isfinite(pixel->constant) &&
        std::isfinite(pixel->inverse_variance) && pixel->inverse_variance > 0.0)) {
    return;
  }
  pixel->step = step;
  const double span = (pixel->most_log - pixel->least_log) / step;
  if (!(span < kMostNodes - Interpolation<T>::kTaps - 2) || pixel->largest_signal > 1e12 ||
      pixel->most_log > Interpolation<T>::kMostLog) {
    return;
  }
  pixel->first_log = pixel->least_log - (Interpolation<T>::kTaps / 2 - 1) * step;
  pixel->nodes = static_cast<std::int64_t>(span) + Interpolation<T>::kTaps + 1;
  // Tables are made for whole tiles.
  const double nodes = static_cast<double>(pixel->nodes), columns = static_cast<double>(arguments.columns);
  const double rows = static_cast<double>((arguments.rows + kRows - 1) / kRows * kRows);
  pixel->first_t = pixel->least_x + pixel->first_log - (kCurveTaps / 2) * step;
  const double curve_size = std::ceil((pixel->most_x - pixel->least_x) / step) + nodes + kCurveMargin;

  const double count = rough_wright_omega(pixel->most_x + pixel->most_log + std::log(pixel->inverse_variance)) /
                       pixel->inverse_variance;
  const double largest = count + 0.5 * count * count * pixel->inverse_variance +
                         0.5 * pixel->largest_signal * pixel->largest_signal * pixel->inverse_variance;
  const double by_curve = curve_size / sharing * kDirectCost + rows * (nodes * kEntryCost + columns * kPairCost);
  const double exactly = rows * (nodes * kDirectCost + columns * kPairCost);
  const double direct = static_cast<double>(arguments.rows) * columns * kDirectCost;
  if (largest <= Interpolation<T>::kLargest && curve_size < 1e7 && by_curve <= std::min(exactly, direct)) {
    pixel->kind = kCurve;
    pixel->curve_size = static_cast<std::int64_t>(curve_size);
  } else if (exactly <= direct) {
    pixel->kind = kExact;
  }
}

// One curve for all pixels when they have the same read noise in electrons, else one for each.
template <class T>
std::int64_t choose_tables(const Arguments<T>& arguments, std::vector<Pixel>* pixels) {
  bool uniform = true;
  double most_log = -std::numeric_limits<double>::infinity();
  for (const Pixel& pixel : *pixels) {
    uniform = uniform && pixel.sigma == pixels->front().sigma;
    most_log = std::max(most_log, pixel.most_log);
  }
  const double sharing = uniform ? static_cast<double>(pixels->size()) : 1.0;
  std::int64_t total = 0;
  double first_t = std::numeric_limits<double>::infinity(), last_t = -first_t, step = 0.0;
  for (Pixel& pixel : *pixels) {
    choose_table(arguments, &pixel, node_step<T>(pixel.sigma, uniform ? most_log : pixel.most_log), sharing);
    if (pixel.kind != kCurve) continue;
    pixel.curve_size = (pixel.curve_size + 7) / 8 * 8;
    pixel.curve = total;
    step = pixel.step;
    first_t = std::min(first_t, pixel.first_t);
    last_t = std::max(last_t, pixel.first_t + step * static_cast<double>(pixel.curve_size));
    if (!uniform) total += pixel.curve_size;
  }
  if (!uniform || step == 0.0) return total;
  total = (static_cast<std::int64_t>((last_t - first_t) / step) + 9) / 8 * 8;
  for (Pixel& pixel : *pixels) {
    pixel.first_t = first_t;
    pixel.curve_size = total;
  }
  return total;
}

template <class T>
OwnedPlan<T> make_plan(const Arguments<T>& arguments, bool derivatives, int threads) {
  OwnedPlan<T> plan;
  plan.pixels.resize(arguments.pixels);
  parallel_for(arguments.pixels, 16, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; p += 16) {
      find_ranges(arguments, plan.pixels.data(), p, std::min(p + 16, end));
    }
  });
  const std::int64_t total = plan.pixels.empty() ? 0 : choose_tables(arguments, &plan.pixels);
  plan.curve.resize(total);
  plan.curve_mean.resize(derivatives ? total : 0);
  plan.curve_variance.resize(derivatives ? total : 0);

  const auto fill = BITLENS_FOR_THIS_PROCESSOR(fill_curve);
  const auto fill_range = [&](const Pixel& pixel, std::int64_t begin, std::int64_t end) {
    double* mean = derivatives ? plan.curve_mean.data() + pixel.curve : nullptr;
    double* variance = derivatives ? plan.curve_variance.data() + pixel.curve : nullptr;
    fill(pixel, begin, end, derivatives, plan.curve.data() + pixel.curve, mean, variance);
  };
  const Pixel* shared = nullptr;
  for (const Pixel& pixel : plan.pixels) {
    if (pixel.kind == kCurve && pixel.curve_size == total) shared = &pixel;
  }
  if (shared != nullptr) {
    parallel_for(total, 64, threads, [&](std::int64_t begin, std::int64_t end) { fill_range(*shared, begin, end); });
  } else {
    parallel_for(arguments.pixels, 1, threads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p) {
        if (plan.pixels[p].kind == kCurve) fill_range(plan.pixels[p], 0, plan.pixels[p].curve_size);
      }
    });
  }

  const std::int64_t places = arguments.pixels * arguments.columns;
  plan.first.resize(places);
  plan.fraction.resize(places);
  plan.bias.resize(places);
  const Plan<T> view = plan.view();
  const auto place = place_columns_for(static_cast<T*>(nullptr));
  parallel_for(arguments.pixels, 4, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      if (plan.pixels[p].kind != kDirect) place(arguments, view, p);
    }
  });
  return plan;
}

}  // namespace poisson_gaussian_log_prob_pairs
}  // namespace bitlens
