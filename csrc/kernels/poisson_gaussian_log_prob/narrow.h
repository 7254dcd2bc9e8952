// The sum of math.h in single precision, for the case that makes up nearly all camera pixels: a summand at most a few
// electrons wide. Value and first derivatives; `hard` marks the elements that math.h has to do in double precision.
//
// The start of the sum need not be its mode: one Newton step from the Gaussian guess comes close, and the sum runs on
// either side until its terms no longer count. All square roots and normalisations go into the argument of one
// logarithm, so nothing large cancels; the deviance is Loader's (2000) in v = (k - mean) / (k + mean).
#pragma once

#include "math.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace poisson_gaussian {

// What depends on the sensor alone; computed once where the sensor is the same for a row of pixels.
template <class Value>
struct Sensor {
  Value gain, offset, read_std, inverse_read_std, ratio, a, decay, half_decay;
  Value bad;  // 1 where the parameters are outside their domain, or too far apart for single precision
};

template <class Value>
BITLENS_FUNCTION Sensor<Value> sensor(Value gain, Value offset, Value read_std) {
  Value* const type = 0;
  const Value one = broadcast(type, 1.0f);
  const auto good = (gain > 1e-10f) & (gain < 1e10f) & (read_std > 1e-10f) & (read_std < 1e10f) &
                    (gain < read_std * 12.0f) & (absolute(offset) < 1e30f);
  Sensor<Value> result;
  result.gain = select(good, gain, one);
  result.offset = select(good, offset, broadcast(type, 0.0f));
  result.read_std = select(good, read_std, one);
  result.inverse_read_std = 1.0f / result.read_std;
  result.ratio = result.gain * result.inverse_read_std;
  result.a = result.ratio * result.ratio;
  result.half_decay = exponential(-0.5f * result.a);
  result.decay = exponential(-result.a);
  result.bad = select(good, broadcast(type, 0.0f), one);
  return result;
}

template <class Value>
struct NarrowResult {
  Value value;
  Value first[4];  // mean, gain, offset, read_std
  Value hard;      // 1 where the element is left to math.h
};

constexpr float kNarrowTail = 2e-9f;       // a term below this share of the sum ends its side
constexpr float kNarrowWidth = 6.0f;       // electrons; wider sums go to math.h
constexpr float kNarrowCounts = 1e6f;      // photo-electrons; beyond, a step of one electron is lost in rounding
constexpr float kNarrowExponent = 40.0f;   // |log| of the ratio of the first terms

template <int Order, class Value>
BITLENS_FUNCTION NarrowResult<Value> evaluate_narrow(Value measured, Value mean, const Sensor<Value>& sensor) {
  Value* const type = 0;
  const Value zero = broadcast(type, 0.0f), one = broadcast(type, 1.0f);
  const auto good = (sensor.bad < 0.5f) & (mean >= 0.0f) & (mean < kNarrowCounts) & (absolute(measured) < 1e30f);
  const Value y = select(good, mean, one);
  const Value z = select(good, measured, sensor.offset);
  const Value a = sensor.a;

  const Value signal = z - sensor.offset;
  const Value virtual_offset = z - signal;
  const Value signal_error = (z - (signal + virtual_offset)) + (virtual_offset - sensor.offset);

  // Newton for u = log(k / y) in u + a y exp(u) = a c, from the posterior mean of a Gaussian of the same variance.
  const Value ac = sensor.ratio * (signal * sensor.inverse_read_std);
  const Value ay = a * y;
  const Value start = maximum((1.0f + ac) / (1.0f + ay), broadcast(type, 0.05f));
  const Value curve = ay * start;
  Value change = (ac - curve - logarithm(start)) / (1.0f + curve);
  change = maximum(minimum(change, one), -one);
  const Value guess = y * start * (1.0f + change * (1.0f + change * (0.5f + change * 0.16666667f)));
  const Value mode = round_to_integer(minimum(guess, broadcast(type, 2.0f * kNarrowCounts)));
  const auto no_count = mode < 0.5f;
  const Value safe_mode = maximum(mode, one);
  const Value safe_y = maximum(y, broadcast(type, 1e-30f));

  const Value residual = multiply_add(-sensor.gain, mode, signal) + signal_error;
  const Value pull = sensor.ratio * (residual * sensor.inverse_read_std);
  // width^2 = 1 / (1/k + a)
  const auto hard = (absolute(pull) > kNarrowExponent) | (mode > kNarrowCounts) |
                    (mode > (kNarrowWidth * kNarrowWidth) * (1.0f + a * mode));
  const Value rise = exponential(pull) * sensor.half_decay;
  const Value fall = exponential(-pull) * sensor.half_decay;

  constexpr int kMoments = Order == 0 ? 1 : 3;
  Value moments[kMoments];
  moments[0] = one;
  for (int power = 1; power < kMoments; ++power) moments[power] = zero;
  // Both sides at once, two terms for each look at what is left: the chains of products overlap.
  Value up = select(hard, zero, one), down = select(hard | no_count, zero, one);
  Value up_k = mode + 1.0f, down_k = mode, d = zero;
  Value up_factor = y * rise, down_factor = fall / safe_y;
  for (int term = 0; term < 400 && any(maximum(up, down) > kNarrowTail * moments[0]); term += 2) {
    for (int step = 0; step < 2; ++step) {
      d = d + 1.0f;
      up = up * (up_factor / up_k);
      down = down * (down_factor * down_k);
      up_k = up_k + 1.0f;
      down_k = maximum(down_k - 1.0f, zero);
      up_factor = up_factor * sensor.decay;
      down_factor = down_factor * sensor.decay;
      moments[0] = moments[0] + (up + down);
      if (Order > 0) {
        const Value first = (up - down) * d;
        moments[kMoments > 1 ? 1 : 0] = moments[kMoments > 1 ? 1 : 0] + first;
        moments[kMoments > 1 ? 2 : 0] = moments[kMoments > 1 ? 2 : 0] + (up + down) * (d * d);
      }
    }
  }

  // Deviance y ((1+x) log(1+x) - x), x = k/y - 1, without cancellation: atanh(v) / v - 1 as a minimax
  // polynomial in v^2 (relative error 4e-9 to |v| = 1/2).
  const Value v = (safe_mode - y) / (safe_mode + y);
  const Value v2 = v * v;
  Value series = 0.156587446f * v2 + 0.0407138586f;
  series = series * v2 + 0.0975708431f;
  series = series * v2 + 0.110502348f;
  series = series * v2 + 0.142883168f;
  series = series * v2 + 0.199999588f;
  series = series * v2 + 0.333333334f;
  series = series * v2;
  Value deviance = (safe_mode + y) * v * multiply_add(1.0f + v, series, v);
  const auto far_from_mean = absolute(v) > 0.5f;
  if (any(far_from_mean)) {
    const Value by_log = safe_mode * logarithm(safe_mode / safe_y) + (y - safe_mode);
    deviance = select(far_from_mean, by_log, deviance);
  }
  const Value inverse_mode = 1.0f / safe_mode;
  // log k! less Stirling's formula, fitted in 1/k at k = 1, 2, ...: within 5e-10.
  Value correction = -0.000336943526f * inverse_mode + 0.000828855641f;
  correction = correction * inverse_mode + 1.90160063e-05f;
  correction = correction * inverse_mode - 0.00278324005f;
  correction = correction * inverse_mode + 4.55557999e-07f;
  correction = (correction * inverse_mode + 0.0833333232f) * inverse_mode;
  const Value normalised = residual / sensor.read_std;  // divided: the product with the inverse would round twice
  const Value exponent = multiply_add(0.5f * normalised, normalised, select(no_count, y, deviance + correction));
  // 1 / sqrt(2 pi) of the normal density, and 1 / sqrt(2 pi k) of Stirling's formula.
  const Value scale = sensor.inverse_read_std * 0.39894228f;
  const Value root = select(no_count, one, square_root(inverse_mode) * 0.39894228f);

  NarrowResult<Value> result;
  const Value left_out = select(good, zero, one);
  result.hard = select(hard, one, left_out);
  result.value = logarithm(moments[0] * (root * scale)) - exponent;
  if (Order == 0) return result;

  const Value total = 1.0f / moments[0];
  const Value shift = moments[kMoments > 1 ? 1 : 0] * total;
  const Value c2 = maximum(moments[kMoments > 1 ? 2 : 0] * total - shift * shift, zero);
  const Value k_mean = mode + shift;
  const Value r_mean = multiply_add(-sensor.gain, shift, residual);
  const Value inverse_s2 = sensor.inverse_read_std * sensor.inverse_read_std;
  // (k - y) / y keeps the digits that k / y - 1 would lose.
  result.first[0] = select(mean > 0.0f, ((mode - y) + shift) / safe_y, rise - 1.0f);
  result.first[1] = (k_mean * r_mean - sensor.gain * c2) * inverse_s2;
  result.first[2] = r_mean * inverse_s2;
  result.first[3] = ((r_mean * r_mean + sensor.gain * sensor.gain * c2) * inverse_s2 - 1.0f) * sensor.inverse_read_std;
  return result;
}

}  // namespace poisson_gaussian
}  // namespace BITLENS_ISA
}  // namespace bitlens
