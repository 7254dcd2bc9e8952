// Curves, tables and interpolation weights of the pairs kernel, in packs.
#pragma once

#include <string.h>

#include "../poisson_gaussian_log_prob/math.h"
#include "kernel.h"
#include "plan.h"

namespace bitlens {
namespace poisson_gaussian_log_prob_pairs {
namespace BITLENS_ISA {
namespace {

namespace formula = ::bitlens::BITLENS_ISA::poisson_gaussian;
using ::bitlens::BITLENS_ISA::absolute;
using ::bitlens::BITLENS_ISA::exponential;
using ::bitlens::BITLENS_ISA::FloatPack;
using ::bitlens::BITLENS_ISA::logarithm;
using ::bitlens::BITLENS_ISA::maximum;
using ::bitlens::BITLENS_ISA::Pack;
using ::bitlens::BITLENS_ISA::round_to_integer;

constexpr int kWidth = BITLENS_PACK_WIDTH;

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef FloatPack type;
};
template <>
struct Lanes<double> {
  typedef Pack type;
};

template <class V, class T>
BITLENS_FUNCTION V load(const T* source) {
  V value;
  memcpy(&value, source, sizeof(value));
  return value;
}

template <class V, class T>
BITLENS_FUNCTION void store(T* target, const V& value) {
  memcpy(target, &value, sizeof(value));
}

BITLENS_FUNCTION Pack spread(double value) { return ::bitlens::BITLENS_ISA::broadcast((Pack*)0, value); }

// 1 / prod_{l != k} (k - l), l = 0 .. Taps - 1.
template <int Taps>
struct LagrangeFactors {
  double of[Taps];
  constexpr LagrangeFactors() : of() {
    for (int k = 0; k < Taps; ++k) {
      of[k] = 1.0;
      for (int l = 0; l < Taps; ++l) of[k] /= l == k ? 1.0 : k - l;
    }
  }
};

// Weights of nodes 0 .. Taps - 1 at the place Taps / 2 - 1 + fraction.
template <int Taps, class V>
BITLENS_FUNCTION void lagrange_weights(V fraction, V* weights) {
  constexpr LagrangeFactors<Taps> factors;
  V before[Taps];
  before[0] = fraction - fraction + 1.0;
  for (int k = 1; k < Taps; ++k) before[k] = before[k - 1] * (fraction + static_cast<double>(Taps / 2 - 1 - (k - 1)));
  V after = fraction - fraction + 1.0;
  for (int k = Taps - 1; k >= 0; --k) {
    weights[k] = before[k] * after * factors.of[k];
    after = after * (fraction + static_cast<double>(Taps / 2 - 1 - k));
  }
}

// G and its first two derivatives at kWidth places from `t` on. G is read off the likelihood of z = mean with
// z / sigma^2 + log mean = t: there nothing is larger than G itself.
BITLENS_FUNCTION void fill_curve_pack(double sigma, double inverse_variance, Pack t, bool derivatives, double* value,
                                      double* mean, double* variance) {
  const Pack a = spread(inverse_variance), s = spread(sigma), one = spread(1.0), zero = spread(0.0);
  const Pack y = formula::wright_omega(t + logarithm(a)) / a;
  const Pack z = (t - logarithm(y)) / a;
  const double logs = 0.91893853320467274178;
  if (!derivatives) {
    const auto result = formula::evaluate<0, Pack>(z, y, one, zero, s);
    store(value, result.value + y + 0.5 * z * z * a + logarithm(s) + logs);
    return;
  }
  const auto result = formula::evaluate<1, Pack>(z, y, one, zero, s);
  const Pack residual = result.first[2] / a;
  const Pack count = (result.first[0] + 1.0) * y;
  store(value, result.value + y + 0.5 * z * z * a + logarithm(s) + logs);
  store(mean, count);
  store(variance, count * residual - result.first[1] / a);
}

// The rows of one tile in one pixel.
template <class T>
struct Rows {
  T measured[kRows];
  double signal[kRows];  // electrons
};

template <class T>
BITLENS_FUNCTION void load_rows(const Arguments<T>& arguments, const Pixel& pixel, std::int64_t p, std::int64_t begin,
                                std::int64_t end, Rows<T>* rows) {
  for (int i = 0; i < kRows; ++i) {
    const std::int64_t row = begin + i < end ? begin + i : end - 1;  // lanes past the end repeat the last row
    rows->measured[i] = arguments.measured[row * arguments.pixels + p];
    rows->signal[i] = (static_cast<double>(rows->measured[i]) - pixel.offset) / pixel.gain;
  }
}

// Tables [row][kRows] of what is interpolated; null where not wanted. `value` is log p. With k the count given both:
// `light` E[k] - mean (at no light d log p / d mean), `residual` z - E[k], `product` E[k (z - k)],
// `square` E[(z - k)^2] - sigma^2.
template <class T>
struct Tables {
  T *value, *light, *residual, *product, *square;
};

template <class T>
BITLENS_FUNCTION void put(T* table, std::int64_t at, double value) {
  if (table) table[at] = static_cast<T>(value);
}

template <int Order, class T>
BITLENS_FUNCTION void fill_dark_row(const Pixel& pixel, const Rows<T>& rows, const Tables<T>& tables) {
  const double a = pixel.inverse_variance;
  for (int i = 0; i < kRows; i += kWidth) {
    const Pack signal = load<Pack>(rows.signal + i);
    const Pack z = signal + (signal - signal);  // NaN for an infinity
    const Pack ratio = exponential(a * z - 0.5 * a) - 1.0;
    for (int lane = 0; lane < kWidth; ++lane) {
      put(tables.value, i + lane, pixel.constant - 0.5 * a * z[lane] * z[lane]);
      if (Order == 0) continue;
      put(tables.light, i + lane, ratio[lane]);
      put(tables.residual, i + lane, z[lane]);
      put(tables.product, i + lane, 0.0);
      put(tables.square, i + lane, z[lane] * z[lane] - pixel.sigma * pixel.sigma);
    }
  }
}

template <int Order, class T>
BITLENS_FUNCTION void fill_from_curve(const Plan<T>& plan, const Pixel& pixel, const Rows<T>& rows,
                                      const Tables<T>& tables) {
  const double a = pixel.inverse_variance;
  double weights[kCurveTaps][kRows], places[kRows];
  for (int i = 0; i < kRows; i += kWidth) {
    const Pack z = load<Pack>(rows.signal + i);
    const Pack place = (z * a + (pixel.first_log - pixel.first_t)) / pixel.step;
    const auto known = absolute(z) < INFINITY;
    const Pack safe = known ? place : spread(kCurveTaps / 2 - 1);
    const Pack lower = round_to_integer(safe - 0.5);
    Pack w[kCurveTaps];
    lagrange_weights<kCurveTaps>(known ? safe - lower : spread(NAN), w);
    for (int tap = 0; tap < kCurveTaps; ++tap) store(weights[tap] + i, w[tap]);
    store(places + i, lower - static_cast<double>(kCurveTaps / 2 - 1));
  }
  for (std::int64_t node = 0; node < pixel.nodes; node += kWidth) {
    Pack index;
    for (int lane = 0; lane < kWidth; ++lane) index[lane] = static_cast<double>(node + lane);
    const Pack mean = exponential(pixel.first_log + pixel.step * index);
    const std::int64_t left = pixel.nodes - node < kWidth ? pixel.nodes - node : kWidth;
    for (int i = 0; i < kRows; ++i) {
      const std::int64_t start = pixel.curve + static_cast<std::int64_t>(places[i]) + node;
      const double z = rows.signal[i];
      if (Order == 0) {
        Pack value = spread(pixel.constant - 0.5 * a * z * z) - mean;
        Pack sum = spread(0.0);
        for (int tap = 0; tap < kCurveTaps; ++tap) sum += weights[tap][i] * load<Pack>(plan.curve + start + tap);
        value += sum;
        for (std::int64_t lane = 0; lane < left; ++lane) put(tables.value, (1 + node + lane) * kRows + i, value[lane]);
      } else {
        Pack count = spread(0.0), variance = spread(0.0);
        for (int tap = 0; tap < kCurveTaps; ++tap) {
          count += weights[tap][i] * load<Pack>(plan.curve_mean + start + tap);
          variance += weights[tap][i] * load<Pack>(plan.curve_variance + start + tap);
        }
        const Pack light = count - mean, residual = z - count;
        const Pack product = count * residual - variance;
        const Pack square = residual * residual + variance - pixel.sigma * pixel.sigma;
        for (std::int64_t lane = 0; lane < left; ++lane) {
          const std::int64_t at = (1 + node + lane) * kRows + i;
          put(tables.light, at, light[lane]);
          put(tables.residual, at, residual[lane]);
          put(tables.product, at, product[lane]);
          put(tables.square, at, square[lane]);
        }
      }
    }
  }
}

template <int Order, class T>
BITLENS_FUNCTION void fill_exactly(const Pixel& pixel, const Rows<T>& rows, const Tables<T>& tables) {
  const Pack g = spread(pixel.gain), o = spread(pixel.offset), s = spread(pixel.read_std);
  const double variance = pixel.read_std * pixel.read_std / pixel.gain;
  for (std::int64_t node = 0; node < pixel.nodes; ++node) {
    const Pack mean = exponential(spread(pixel.first_log + pixel.step * static_cast<double>(node)));
    for (int i = 0; i < kRows; i += kWidth) {
      Pack z;
      for (int lane = 0; lane < kWidth; ++lane) z[lane] = static_cast<double>(rows.measured[i + lane]);
      const auto result = formula::evaluate<Order, Pack>(z, mean, g, o, s);
      for (int lane = 0; lane < kWidth; ++lane) {
        const std::int64_t at = (1 + node) * kRows + i + lane;
        put(tables.value, at, result.value[lane]);
        if (Order == 0) continue;
        put(tables.light, at, result.first[0][lane] * mean[lane]);
        put(tables.residual, at, result.first[2][lane] * variance);
        put(tables.product, at, result.first[1][lane] * variance);
        put(tables.square, at, result.first[3][lane] * variance * pixel.sigma);
      }
    }
  }
}

template <int Order, class T>
BITLENS_FUNCTION void fill_tables(const Plan<T>& plan, const Pixel& pixel, const Rows<T>& rows,
                                  const Tables<T>& tables) {
  fill_dark_row<Order>(pixel, rows, tables);
  if (pixel.kind == kCurve) {
    fill_from_curve<Order>(plan, pixel, rows, tables);
  } else {
    fill_exactly<Order>(pixel, rows, tables);
  }
}

// Interpolation weights of `count` columns, [taps][stride]; `count` need not be a multiple of a pack.
template <class T>
BITLENS_FUNCTION void column_weights(const T* fraction, std::int64_t count, std::int64_t stride, T* weights) {
  constexpr int kTaps = Interpolation<T>::kTaps;
  for (std::int64_t j = 0; j < count; j += kWidth) {
    const int left = static_cast<int>(count - j < kWidth ? count - j : kWidth);
    Pack f = spread(0.0), w[kTaps];
    for (int lane = 0; lane < left; ++lane) f[lane] = static_cast<double>(fraction[j + lane]);
    lagrange_weights<kTaps>(f, w);
    for (int tap = 0; tap < kTaps; ++tap) {
      for (int lane = 0; lane < left; ++lane) weights[tap * stride + j + lane] = static_cast<T>(w[tap][lane]);
    }
  }
}

}  // namespace
}  // namespace BITLENS_ISA
}  // namespace poisson_gaussian_log_prob_pairs
}  // namespace bitlens
