// The sum of math.h in single precision, for the case that makes up nearly all camera pixels: a summand at most a few
// electrons wide. Value and first derivatives; what does not fit is left to math.h.
//
// The sum starts from a count near its mode, which log(k / mean) ~ 2 (k - mean) / (k + mean) gives as the root of a
// quadratic. The terms below it need no division; those above it are added up as one fraction, so that a term costs
// multiplications only. Both run from the outermost term inwards (Horner). All square roots and normalisations go into
// the argument of one logarithm, so nothing large cancels; the deviance is Loader's (2000) in
// v = (k - mean) / (k + mean).
#pragma once

#include "math.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace poisson_gaussian {

constexpr float kNarrowCounts = 1e6f;   // photo-electrons; beyond, a step of one electron is lost in rounding
constexpr float kNarrowFaint = 1e-25f;  // photo-electrons; no more than none as long as kNarrowPull holds
constexpr float kNarrowPull = 40.0f;    // |log| of the ratio of the first terms, the mean left out
constexpr int kNarrowTerms = 40;        // on either side of the start: for sums up to 6 electrons wide
constexpr float kNarrowOff = 8.0f;      // electrons from the start of the sum to its mode
// Standard deviations of the summand that are summed on either side of the mode: a term beyond is below 3e-7 of the
// largest, and all of them are below 5e-8 of the sum.
constexpr float kNarrowReach = 5.5f;

// What depends on the sensor alone; computed once where the sensor is the same for a row of pixels. `_rest` is what
// single precision leaves of a parameter that is known to double precision.
template <class Value>
struct Sensor {
  Value gain, gain_rest, offset, offset_rest, inverse_read_std, inverse_read_std_rest;
  Value ratio, ratio_rest, a, a_rest, inverse_a, half_decay, scale;
  Value bad;  // 1 where the parameters are outside their domain, or too far apart for single precision
  int n_powers;
  Value powers[kNarrowTerms];  // exp(-a n) for n < n_powers, see extend_powers
};

template <class Value>
BITLENS_FUNCTION void set_sensor(Sensor<Value>& sensor, Value gain, Value gain_rest, Value offset, Value offset_rest,
                                 Value read_std, Value read_std_rest) {
  Value* const type = 0;
  const Value zero = broadcast(type, 0.0f), one = broadcast(type, 1.0f);
  const auto good = (gain > 1e-9f) & (gain < 1e9f) & (read_std > 1e-9f) & (read_std < 1e9f) &
                    (gain < read_std * 12.0f) & (read_std < gain * 1e4f) & (absolute(offset) < 1e30f);
  const Value std = select(good, read_std, one);
  sensor.gain = select(good, gain, one);
  sensor.gain_rest = select(good, gain_rest, zero);
  sensor.offset = select(good, offset, zero);
  sensor.offset_rest = select(good, offset_rest, zero);
  sensor.inverse_read_std = 1.0f / std;
  const Value left = multiply_add(-std, sensor.inverse_read_std, one) - read_std_rest * sensor.inverse_read_std;
  sensor.inverse_read_std_rest = select(good, left * sensor.inverse_read_std, zero);
  sensor.ratio = sensor.gain * sensor.inverse_read_std;
  sensor.ratio_rest = multiply_add(sensor.gain, sensor.inverse_read_std, -sensor.ratio) +
                      (sensor.gain * sensor.inverse_read_std_rest + sensor.gain_rest * sensor.inverse_read_std);
  sensor.a = sensor.ratio * sensor.ratio;
  sensor.a_rest = multiply_add(sensor.ratio, sensor.ratio, -sensor.a) + 2.0f * sensor.ratio * sensor.ratio_rest;
  sensor.inverse_a = 1.0f / sensor.a;
  const Value half_decay = exponential(-0.5f * sensor.a);
  sensor.half_decay = half_decay - half_decay * (0.5f * sensor.a_rest);
  // The square of the normal density's 1 / (read_std sqrt(2 pi)).
  sensor.scale = sensor.inverse_read_std * sensor.inverse_read_std * 0.159154943f;
  sensor.bad = select(good, zero, one);
  sensor.powers[0] = one;
  sensor.n_powers = 1;
}

// exp(-a n) from products of at most five exponentials, so that their errors do not add up along the sum.
template <class Value>
BITLENS_FUNCTION void extend_powers(Sensor<Value>& sensor, int count) {
  for (int n = sensor.n_powers; n < count; ++n) {
    const int first = n & (n - 1);
    if (first == 0) {
      const Value power = exponential(sensor.a * -static_cast<float>(n));
      sensor.powers[n] = power - power * (static_cast<float>(n) * sensor.a_rest);
    } else {
      sensor.powers[n] = sensor.powers[first] * sensor.powers[n - first];
    }
  }
  sensor.n_powers = count > sensor.n_powers ? count : sensor.n_powers;
}

// Where the sum of one element starts.
template <class Value>
struct Start {
  Value mean;
  Value mode;      // the count to start from, near the mode
  Value residual;  // measured - offset - gain mode
  Value rise;      // first ratio upwards times (mode + 1) / mean
  Value up;        // first ratio upwards times mode + 1
  Value down;      // first ratio downwards over mode
  Value reach;     // terms needed on either side; 0 where math.h has to do the element
};

template <class Value>
BITLENS_FUNCTION Start<Value> start_of_sum(Value measured, Value mean, const Sensor<Value>& sensor) {
  Value* const type = 0;
  const Value zero = broadcast(type, 0.0f);
  const auto good = (sensor.bad < 0.5f) & (mean >= 0.0f);
  // What is NaN, infinite or too large fails the comparisons at the end, whatever comes in between.
  const Value y = select(mean > kNarrowFaint, mean, zero), z = measured;
  const Value a = sensor.a;

  const Value signal = z - sensor.offset;
  const Value virtual_offset = z - signal;
  const Value signal_rest = ((z - (signal + virtual_offset)) + (virtual_offset - sensor.offset)) - sensor.offset_rest;

  // 2 (k - y) / (k + y) = a (c - k), the root without cancellation.
  const Value ac = sensor.ratio * (signal * sensor.inverse_read_std);
  const Value ay = a * y;
  const Value b = ac - ay - 2.0f;
  const Value pulled = 2.0f + ac;
  const Value root = rough_square_root(maximum(b * b + 4.0f * ay * pulled, broadcast(type, 1e-20f)));
  const auto falls = b < 0.0f;
  const Value guess =
      select(falls, 2.0f * y * pulled, b + root) * select(falls, reciprocal(root - b), 0.5f * sensor.inverse_a);

  Start<Value> start;
  start.mean = y;
  start.mode = round_to_integer(maximum(minimum(guess, broadcast(type, 2.0f * kNarrowCounts)), zero));
  start.residual = multiply_add(-sensor.gain, start.mode, signal) + (signal_rest - sensor.gain_rest * start.mode);
  // The exponent cancels against that of half_decay where two counts are equally likely: its rounding is put back.
  const Value normalised = start.residual * sensor.inverse_read_std;
  const Value normalised_rest = multiply_add(start.residual, sensor.inverse_read_std_rest,
                                             multiply_add(start.residual, sensor.inverse_read_std, -normalised));
  const Value pull = sensor.ratio * normalised;
  const Value pull_rest = multiply_add(sensor.ratio, normalised_rest,
                                       multiply_add(sensor.ratio_rest, normalised, multiply_add(sensor.ratio, normalised, -pull)));
  const Value rounded_slope = exponential(pull);
  const Value slope = multiply_add(rounded_slope, pull_rest, rounded_slope);
  start.rise = slope * sensor.half_decay;
  start.up = y * start.rise;
  const Value fall = sensor.half_decay * reciprocal(maximum(y * slope, broadcast(type, 1e-30f)));
  start.down = select(start.mode < 0.5f, zero, fall);

  // The width of the summand, and how far its mode may be from the start as the first ratios show.
  const Value variance = rough_reciprocal(a + rough_reciprocal(start.mode + 10.0f));
  const Value off = (maximum(start.up * rough_reciprocal(start.mode + 1.0f), start.down * start.mode) - 1.0f) * variance;
  const Value reach = maximum(off, zero) + (kNarrowReach * rough_square_root(variance) + 1.0f);
  const auto easy = good & (absolute(pull) < kNarrowPull) & (start.mode < kNarrowCounts) & (off < kNarrowOff) &
                    (reach < static_cast<float>(kNarrowTerms));
  start.reach = select(easy, reach, zero);
  return start;
}

// Moments: 0 for the value, 1 also for the derivatives in mean and offset, 2 for all four.
template <int Moments, class Value>
struct Sums {
  // Sums over d = |k - mode| of term, term d, term d^2 relative to the term at the mode: above it (the mode included)
  // as up[] / scale, below it (the mode included in the first) as down[].
  Value up[Moments + 1], scale, down[Moments + 1];
};

// Terms up to `terms` away from the start, 1 or more; exp(-a n) is at powers[n step].
template <int Moments, class Value>
BITLENS_FUNCTION Sums<Moments, Value> sum_terms(const Value& mode, const Value& up, const Value& down,
                                                const Value* powers, int step, int terms) {
  Value* const type = 0;
  const Value zero = broadcast(type, 0.0f), one = broadcast(type, 1.0f);
  // Factors of the denominator are scaled to about 1.
  const Value scaling = reciprocal(mode + 0.5f * static_cast<float>(terms + 1));
  const Value up_scaled = up * scaling;
  Value up0 = one, up1 = zero, up2 = zero, scale = one, down0 = one, down1 = zero, down2 = zero;
  Value up_k = mode + static_cast<float>(terms), down_k = mode - static_cast<float>(terms - 1);
  for (int term = terms - 1; term >= 0; --term) {
    const Value power = powers[term * step];
    const Value up_ratio = up_scaled * power;
    scale = scale * (up_k * scaling);
    if (Moments > 1) up2 = up_ratio * (up2 + 2.0f * up1 + up0);
    if (Moments > 0) up1 = up_ratio * (up1 + up0);
    up0 = up_ratio * up0 + scale;
    const Value down_ratio = (down * power) * maximum(down_k, zero);
    if (Moments > 1) down2 = down_ratio * (down2 + 2.0f * down1 + down0);
    if (Moments > 0) down1 = down_ratio * (down1 + down0);
    down0 = down_ratio * down0 + 1.0f;
    up_k = up_k - 1.0f;
    down_k = down_k + 1.0f;
  }
  Sums<Moments, Value> sums;
  sums.scale = scale;
  sums.up[0] = up0;
  sums.down[0] = down0;
  if (Moments > 0) sums.up[Moments > 0 ? 1 : 0] = up1, sums.down[Moments > 0 ? 1 : 0] = down1;
  if (Moments > 1) sums.up[Moments > 1 ? 2 : 0] = up2, sums.down[Moments > 1 ? 2 : 0] = down2;
  return sums;
}

template <class Value>
struct NarrowResult {
  Value value;
  Value first[4];  // mean, gain, offset, read_std
};

template <int Moments, class Value>
BITLENS_FUNCTION NarrowResult<Value> finish_sum(const Start<Value>& start, const Sums<Moments, Value>& sums,
                                                const Sensor<Value>& sensor) {
  Value* const type = 0;
  const Value zero = broadcast(type, 0.0f), one = broadcast(type, 1.0f);
  const Value half = broadcast(type, 0.5f);
  const Value y = start.mean, mode = start.mode, residual = start.residual;
  const auto no_count = mode < 0.5f;
  const Value k = maximum(mode, one);

  // Deviance y ((1+x) log(1+x) - x), x = k/y - 1, without cancellation: atanh(v) / v - 1 as a minimax
  // polynomial in v^2 (relative error 4e-9 to |v| = 1/2).
  const Value v = (k - y) / (k + y);
  const Value v2 = v * v;
  Value series = 0.156587446f * v2 + 0.0407138586f;
  series = series * v2 + 0.0975708431f;
  series = series * v2 + 0.110502348f;
  series = series * v2 + 0.142883168f;
  series = series * v2 + 0.199999588f;
  series = series * v2 + 0.333333334f;
  series = series * v2;
  Value deviance = (k + y) * v * multiply_add(1.0f + v, series, v);
  const Value far_from_mean = select(no_count, zero, absolute(v));
  if (any(far_from_mean > 0.5f)) {
    const Value by_log = k * logarithm(k / maximum(y, broadcast(type, 1e-30f))) + (y - k);
    deviance = select(far_from_mean > 0.5f, by_log, deviance);
  }
  const Value inverse_k = reciprocal(k);
  // log k! less Stirling's formula, fitted in 1/k at k = 1, 2, ...: within 5e-10.
  Value correction = -0.000336943526f * inverse_k + 0.000828855641f;
  correction = correction * inverse_k + 1.90160063e-05f;
  correction = correction * inverse_k - 0.00278324005f;
  correction = correction * inverse_k + 4.55557999e-07f;
  correction = (correction * inverse_k + 0.0833333232f) * inverse_k;
  const Value normalised = residual * sensor.inverse_read_std;
  const Value rest = multiply_add(residual, sensor.inverse_read_std_rest,
                                  multiply_add(residual, sensor.inverse_read_std, -normalised));
  const Value square = (0.5f * normalised) * normalised;
  const Value square_rest = multiply_add(normalised, rest, multiply_add(0.5f * normalised, normalised, -square));
  const Value poisson = select(no_count, y, deviance + correction);
  const Value stirling = select(no_count, one, 0.159154943f * inverse_k);  // square of 1 / sqrt(2 pi k)

  NarrowResult<Value> result;
  const Value total = sums.up[0] + sums.scale * (sums.down[0] - 1.0f);
  const Value sum = total * reciprocal(sums.scale);
  // The logarithm may cancel against the exponents: its large part is exact and joins them first.
  Value small_part;
  const Value large_part = logarithm_parts(sum * sum * (stirling * sensor.scale), small_part);
  result.value = (multiply_add(half, large_part, -square) - poisson) + multiply_add(half, small_part, -square_rest);
  if (Moments == 0) return result;

  constexpr int kFirst = Moments > 0 ? 1 : 0, kSecond = Moments > 1 ? 2 : 0;
  const Value inverse_total = reciprocal(total);
  const Value shift = (sums.up[kFirst] - sums.scale * sums.down[kFirst]) * inverse_total;
  const Value r_mean = multiply_add(-sensor.gain, shift, residual);
  const Value inverse_s2 = sensor.inverse_read_std * sensor.inverse_read_std;
  // (k - y) / y keeps the digits that k / y - 1 would lose.
  result.first[0] = select(y > 0.0f, ((mode - y) + shift) / maximum(y, broadcast(type, 1e-30f)), start.rise - 1.0f);
  result.first[2] = r_mean * inverse_s2;
  if (Moments == 1) return result;

  const Value c2 = maximum((sums.up[kSecond] + sums.scale * sums.down[kSecond]) * inverse_total - shift * shift, zero);
  result.first[1] = ((mode + shift) * r_mean - sensor.gain * c2) * inverse_s2;
  result.first[3] = ((r_mean * r_mean + sensor.gain * sensor.gain * c2) * inverse_s2 - 1.0f) * sensor.inverse_read_std;
  return result;
}

}  // namespace poisson_gaussian
}  // namespace BITLENS_ISA
}  // namespace bitlens
