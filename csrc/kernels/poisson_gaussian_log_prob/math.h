// log sum_k Poisson(k; mean) Normal(measured; gain k + offset, read_std^2) and its derivatives, for one value.
//
// The summand is log-concave in k. With a = (gain / read_std)^2 and c = (measured - offset) / gain its mode solves
// log(mean / k) + a (c - k) = 0, that is x + log x = log(a mean) + a c for x = a k, and its width there is
// 1 / sqrt(1/k + a). Terms are taken relative to the mode, so nothing overflows and log p keeps its relative accuracy
// far from the mean. A narrow summand (width below 8) is summed over every k by multiplying up the ratio of
// neighbours. A wide one is summed with stride floor(width / 4): by Poisson's summation formula the strided sum of
// so smooth a function differs by exp(-2 pi^2 (width / stride)^2) < exp(-300), so the cost has a bound whatever the
// mean and the read noise are.
#pragma once

#include "../../common/value.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace poisson_gaussian {

// Derivatives in the order mean, gain, offset, read_std; second derivatives are the upper triangle by rows.
// The derivative in `measured` is minus the one in `offset`.
template <class Value>
struct Result {
  Value value;
  Value first[4];
  Value second[10];
};

// stirling_error(k) = log k! - (k + 1/2) log k + k - log(2 pi)/2 for k = 1..15; the series serves from 16 on (1e-17).
BITLENS_FUNCTION const double* stirling_table() {
  static const double table[16] = {0.0,
                                   0.08106146679532725821967026,
                                   0.04134069595540929409382208,
                                   0.02767792568499833914878929,
                                   0.02079067210376509311152277,
                                   0.01664469118982119216319487,
                                   0.01387612882307074799874573,
                                   0.01189670994589177009505572,
                                   0.01041126526197209649747857,
                                   0.009255462182712732917728637,
                                   0.008330563433362871256469318,
                                   0.007573675487951840794972024,
                                   0.006942840107209529865664152,
                                   0.006408994188004207068439631,
                                   0.005951370112758847735624416,
                                   0.005554733551962801371038690};
  return table;
}

template <class Value>
BITLENS_FUNCTION Value stirling_error(Value k) {
  const Value inverse = 1.0 / maximum(k, broadcast((Value*)0, 16.0));
  const Value square = inverse * inverse;
  Value series = 1.0 / 1188.0 * square - 1.0 / 1680.0;
  series = series * square + 1.0 / 1260.0;
  series = series * square - 1.0 / 360.0;
  series = series * square + 1.0 / 12.0;
  const Value small = table_lookup(stirling_table(), minimum(k, broadcast((Value*)0, 15.0)));
  return select(k < 15.5, small, series * inverse);
}

// The x > 0 with x + log x = level (Wright's omega), to a relative 1e-12.
template <class Value>
BITLENS_FUNCTION Value wright_omega(Value level) {
  const Value exponent = exponential(minimum(level, broadcast((Value*)0, 1.0)));
  const Value large = maximum(level, broadcast((Value*)0, 1.0));
  Value x = select(level > 1.0, large - logarithm(large), exponent / (1.0 + exponent));
  x = maximum(x, broadcast((Value*)0, 1e-300));
  for (int step = 0; step < 3; ++step) {  // Fritsch, Shafer and Crowley (1973): fourth order
    const Value residual = level - x - logarithm(x);
    const Value one = 1.0 + x;
    const Value two = 2.0 * one * (one + residual * (2.0 / 3.0));
    x = x * (1.0 + residual / one * ((two - residual) / (two - 2.0 * residual)));
    x = maximum(x, broadcast((Value*)0, 1e-300));
  }
  return x;
}

// How many sums of weight * d^power, d = k - mode, the derivatives of an order need.
BITLENS_FUNCTION constexpr int moment_count(int order) { return order == 0 ? 1 : order == 1 ? 3 : 5; }

template <int Count, class Value>
BITLENS_FUNCTION void add_term(Value (&sums)[Count], Value weight, Value d) {
  sums[0] = sums[0] + weight;
  for (int power = 1; power < Count; ++power) {
    weight = weight * d;
    sums[power] = sums[power] + weight;
  }
}

constexpr double kLargestMean = 1e15;  // beyond, neighbouring counts are no longer distinct doubles
constexpr double kLargestMode = 9e15;
constexpr double kDistinctMode = 1e9;  // below, the start is the mode itself or a neighbour
// Weight of one photon against none below which the first or the second derivatives in the mean are those at none: the
// error that this adds, against the digits that E[k] / mean and c2 - E[k] lose.
constexpr double kFaintFirst = 1e-13, kFaintSecond = 1e-8;
constexpr double kTail = 1e-20;  // weight, relative to the mode's, below which a side of the sum ends

template <int Order, class Value>
BITLENS_FUNCTION Result<Value> evaluate(Value measured, Value mean, Value gain, Value offset, Value read_std) {
  Value* const type = 0;
  const Value zero = broadcast(type, 0.0), one = broadcast(type, 1.0), infinity = broadcast(type, INFINITY);
  const Value nan = broadcast(type, NAN);

  auto valid = (mean >= 0.0) & (mean <= kLargestMean) & (gain > 0.0) & (gain < infinity) & (read_std > 0.0) &
                     (read_std < infinity) & (absolute(measured) < infinity) & (absolute(offset) < infinity);
  // Elements outside the domain run as a harmless one, so that they cannot stall the rest of a pack.
  const Value y = select(valid & (mean > 0.0), mean, one);
  const Value g = select(valid, gain, one);
  const Value s = select(valid, read_std, one);
  const auto dark = mean == 0.0;

  // measured - offset with its rounding error, so that a small residual keeps its digits.
  const Value z = select(valid, measured, zero), o = select(valid, offset, zero);
  const Value signal = z - o;
  const Value virtual_o = z - signal;
  const Value signal_error = (z - (signal + virtual_o)) + (virtual_o - o);

  const Value inverse_s = 1.0 / s;
  const Value ratio = g * inverse_s;
  const Value a = ratio * ratio;
  const Value log_y = logarithm(y);

  const Value omega = wright_omega(logarithm(a) + log_y + ratio * (signal * inverse_s));
  const Value solution = round_to_integer(omega / a);
  const auto countable = solution < kLargestMode;
  valid = valid & (dark | countable);
  Value mode = select((mean > 0.0) & countable, maximum(solution, zero), zero);
  if (any(mode > kDistinctMode)) {  // a relative 1e-12 is many counts there: Newton with the exact residual
    const Value left = multiply_add(-g, mode, signal) + signal_error;
    const Value slope = ratio * (left * inverse_s) + (log_y - logarithm(maximum(mode, one)));
    const Value refined = mode + round_to_integer(slope / (1.0 / maximum(mode, one) + a));
    mode = select(mode > kDistinctMode, minimum(maximum(refined, zero), broadcast(type, kLargestMode)), mode);
  }
  const Value residual = multiply_add(-g, mode, signal) + signal_error;  // ADU left at the mode
  const Value pull = ratio * (residual * inverse_s);                     // a (c - mode)
  const Value log_mode = logarithm(maximum(mode, one));

  const Value width = 1.0 / square_root(1.0 / maximum(mode, one) + a);
  const Value stride = maximum(one, round_to_integer(width * 0.25 - 0.5));
  const auto narrow = (stride < 1.5) | dark;
  const auto wide = (stride > 1.5) & (mean > 0.0) & valid;

  constexpr int kMoments = moment_count(Order);
  Value moments[kMoments];
  for (int power = 0; power < kMoments; ++power) moments[power] = zero;
  add_term(moments, one, zero);

  {  // narrow: neighbours' ratios, one exponential for each direction
    const Value decay = exponential(-a);
    Value k = mode, d = zero;
    Value weight = select(narrow & (mean > 0.0) & valid, one, zero);
    Value step = exponential(minimum(log_y - logarithm(mode + 1.0) + pull - 0.5 * a, broadcast(type, 700.0)));
    for (int term = 0; term < 2000 && any(weight > kTail); ++term) {
      weight = weight * step;
      k = k + 1.0;
      d = d + 1.0;
      step = step * (decay * (k / (k + 1.0)));
      add_term(moments, weight, d);
    }
    k = mode;
    d = zero;
    weight = select(narrow & (mean > 0.0) & valid & (mode > 0.0), one, zero);
    step = exponential(minimum(log_mode - log_y - pull - 0.5 * a, broadcast(type, 700.0)));
    for (int term = 0; term < 2000 && any(weight > kTail); ++term) {
      weight = weight * step;
      const Value lower = maximum(k - 1.0, zero);
      step = step * (decay * (lower / maximum(k, one)));
      k = lower;
      d = d - 1.0;
      add_term(moments, weight, d);
    }
  }
  if (any(wide)) {
    const Value reference = maximum(mode, one);
    const Value slope = log_mode - log_y - pull;
    const Value base = stirling_error(reference);
    for (int side = -1; side <= 1; side += 2) {
      Value d = zero;
      Value weight = select(wide, one, zero);
      for (int term = 0; term < 2000 && any(weight > kTail); ++term) {
        d = d + side * stride;
        const Value k = mode + d;
        const Value safe = maximum(k, one);
        const Value growth = logarithm_of_one_plus(maximum(d / reference, 1.0 / reference - 1.0));
        const Value exponent = -(safe * growth - d + d * (slope + 0.5 * a * d) + 0.5 * growth + stirling_error(safe) -
                                 base);
        weight = select(wide & (k > 0.5), exponential(minimum(exponent, zero + 1.0)), zero);
        add_term(moments, weight, d);
      }
    }
  }

  // log Poisson(mode; mean) in deviance form, which does not cancel for large counts.
  const Value safe_mode = maximum(mode, one);
  const Value excess = (safe_mode - y) / y;
  const Value deviance = select(absolute(excess) < 0.5, y * ((1.0 + excess) * logarithm_of_one_plus(excess) - excess),
                                safe_mode * (log_mode - log_y) + (y - safe_mode));
  const Value log_poisson = select(mode > 0.5, -deviance - stirling_error(safe_mode) - 0.5 * (log_mode + 1.8378770664093454836),
                                   select(dark, zero, -y));
  const Value normalised = residual * inverse_s;
  const Value log_normal = -0.5 * normalised * normalised - logarithm(s) - 0.91893853320467274178;

  Result<Value> result;
  result.value = select(valid, log_poisson + log_normal + logarithm(moments[0] * select(wide, stride, one)), nan);
  if (Order == 0) return result;

  const Value total = 1.0 / moments[0];
  const Value shift = moments[kMoments > 1 ? 1 : 0] * total;
  const Value raw2 = moments[kMoments > 2 ? 2 : 0] * total;
  const Value c2 = maximum(raw2 - shift * shift, zero);
  const Value k_mean = mode + shift;
  const Value r_mean = multiply_add(-g, shift, residual);
  const Value inverse_s2 = inverse_s * inverse_s;
  const Value inverse_s3 = inverse_s2 * inverse_s;
  const Value r_square = r_mean * r_mean + g * g * c2;

  // At mean = 0 only k = 0 contributes; the one-photon term's ratio gives the derivative in the mean.
  const Value q0 = exponential(pull - 0.5 * a);
  const Value inverse_y = 1.0 / y;
  result.first[0] = select(valid, select(dark | ((mode < 0.5) & (mean * q0 < kFaintFirst)), q0, k_mean / y) - 1.0, nan);
  result.first[1] = select(valid, (k_mean * r_mean - g * c2) * inverse_s2, nan);
  result.first[2] = select(valid, r_mean * inverse_s2, nan);
  result.first[3] = select(valid, r_square * inverse_s3 - inverse_s, nan);
  if (Order == 1) return result;

  // Louis' identity: second derivative = E[second derivative of the joint] + covariance of the joint's scores. The
  // scores are linear[i] delta + square[i] delta^2 + constant in delta = k - E[k].
  const Value raw3 = moments[kMoments > 3 ? 3 : 0] * total;
  const Value raw4 = moments[kMoments > 4 ? 4 : 0] * total;
  const Value c3 = raw3 - 3.0 * shift * raw2 + 2.0 * shift * shift * shift;
  const Value c4 = raw4 - 4.0 * shift * raw3 + 6.0 * shift * shift * raw2 - 3.0 * shift * shift * shift * shift;
  const Value spread = c4 - c2 * c2;
  const Value linear[4] = {inverse_y, (r_mean - g * k_mean) * inverse_s2, -g * inverse_s2,
                           -2.0 * g * r_mean * inverse_s3};
  const Value square[4] = {zero, -g * inverse_s2, zero, g * g * inverse_s3};
  const Value kr = k_mean * r_mean - g * c2;
  const Value expected[10] = {-k_mean * inverse_y * inverse_y,
                              zero,
                              zero,
                              zero,
                              -(k_mean * k_mean + c2) * inverse_s2,
                              -k_mean * inverse_s2,
                              -2.0 * kr * inverse_s3,
                              -inverse_s2,
                              -2.0 * r_mean * inverse_s3,
                              inverse_s2 - 3.0 * r_square * inverse_s2 * inverse_s2};
  const auto faint = dark | ((mode < 0.5) & (mean * q0 < kFaintSecond));
  const Value r_one = residual - g;
  const Value at_dark[4] = {q0 * exponential(pull - 1.5 * a) - q0 * q0, q0 * r_one * inverse_s2, -q0 * g * inverse_s2,
                            q0 * (r_one * r_one - residual * residual) * inverse_s3};
  int index = 0;
  for (int row = 0; row < 4; ++row) {
    for (int column = row; column < 4; ++column, ++index) {
      Value second = expected[index] + linear[row] * linear[column] * c2 +
                     (linear[row] * square[column] + square[row] * linear[column]) * c3 +
                     square[row] * square[column] * spread;
      if (row == 0) second = select(faint, at_dark[column], second);
      result.second[index] = select(valid, second, nan);
    }
  }
  return result;
}

}  // namespace poisson_gaussian
}  // namespace BITLENS_ISA
}  // namespace bitlens
