// log P(lower < gain min(N, full_well) + offset + read_std n <= upper), N ~ Poisson(mean), n ~ Normal(0, 1), and its
// derivatives, for one value; with lower = upper the density there.
//
// P = sum_{k < F} Pois(k) D(k) + P(N >= F) D(F), D(k) the normal mass of the bin for k electrons. Both Pois and D are
// log-concave in k, so the sum runs outward from a count near its largest term until terms are negligible and fall.
// D(k) is kept as exp(-n^2/2) S(k), n the distance of k's signal from the bin in units of read_std and S a
// difference of Mills ratios on the side where the tails are small: nothing underflows or cancels however far the bin.
// Bins below half a read_std take a series around their middle instead, whose limit is the density. A bin that is
// open on the side of the signal is one less the probability of the other side. Wide summands have a stride, as in
// poisson_gaussian_log_prob, unless the full well cuts them.
#pragma once

#include "../poisson_gaussian_log_prob/math.h"

namespace bitlens {
namespace BITLENS_ISA {
namespace poisson_gaussian_bin {

using poisson_gaussian::stirling_error;
using poisson_gaussian::wright_omega;

// Derivatives in the order mean, gain, offset, read_std; the one in `measured` is minus that in `offset`.
template <class Value>
struct Result {
  Value value;
  Value first[4];
};

constexpr double kLargestMean = 1e9;  // the sums take some 20 sqrt(mean) terms at worst
constexpr double kTail = 1e-19;       // weight, relative to the sum so far, below which a falling side ends
constexpr int kMostTerms = 1 << 21;
constexpr double kFaint = 1e-290;     // photo-electrons that count as none
constexpr double kRootTwoPi = 2.5066282746310005024;
constexpr double kLogRootTwoPi = 0.91893853320467274178;

// (1 - Phi(x)) / phi(x) for x >= 0, to 3e-16: (1 + x) times it is a polynomial in (x - 5) / (x + 5)
// (Shepherd and Laframboise 1981).
BITLENS_FUNCTION const double* mills_table() {
  static const double table[24] = {1.1568486282918946,     -0.22948753825211315,   0.07778159886873769,
                                   0.0250721793016388,     -0.0661776007790963,    0.0615050458401865,
                                   -0.03802659218584139,   0.01634823128102938,    -0.004201290329187307,
                                   1.9530638370790786e-05, 0.00045704392357953655, -0.0001343742785571135,
                                   -2.480583845192319e-05, 2.270961270923768e-05,  -1.7633239265736746e-07,
                                   -3.277287633208865e-06, 3.2054316652589574e-07, 4.91996233147834e-07,
                                   -6.588974491108954e-08, -7.758520236786343e-08, 9.092476134019147e-09,
                                   1.1032071151574336e-08, -7.073898575561589e-10, -9.564832934712551e-10};
  return table;
}

template <class Value>
BITLENS_FUNCTION Value mills_ratio(Value x) {
  const double* table = mills_table();
  const Value t = (x - 5.0) / (x + 5.0);
  Value sum = broadcast((Value*)0, table[23]);
  for (int power = 22; power >= 0; --power) sum = sum * t + table[power];
  return sum / (1.0 + x);
}

// One bin as the sum sees it, in units of read_std.
template <class Value, class Condition>
struct Bin {
  Value half;       // half its width; 0 where open or a density
  Value unit;       // width, or 1 for a density
  Value slope;      // of the distance `m` per electron
  Value side;       // for an open bin: +1 when it lies above its edge, -1 below
  Condition open;
  Condition narrow;  // the series serves near the middle
};

// Normal mass of the bin sqrt(2 pi) exp(n^2/2), and what the derivatives need in the same unit, a < b the edges:
// edge = (phi(a) - phi(b)), moment = b phi(b) - a phi(a).
template <class Value>
struct Mass {
  Value n, mass, edge, moment;
};

template <int Order, class Value, class Condition>
BITLENS_FUNCTION Mass<Value> bin_mass(const Bin<Value, Condition>& bin, Value m) {
  Value* const type = 0;
  const Value zero = broadcast(type, 0.0), one = broadcast(type, 1.0);
  const Value side = select(bin.open, bin.side, select(m < 0.0, zero - 1.0, one));
  const Value distance = select(bin.open, m, absolute(m));
  const Value near = distance - bin.half, far = distance + bin.half;
  Mass<Value> result;
  result.n = maximum(near, zero);
  const auto series = bin.narrow & (distance * bin.half <= 2.0);
  const auto difference = !series;
  result.mass = result.edge = result.moment = zero;
  if (any(difference)) {
    const auto outside = near > 0.0;
    const Value at_near = select(outside, one, exponential(-0.5 * near * near));
    const Value at_far =
        select(bin.open, zero, exponential(select(outside, -2.0 * distance * bin.half, -0.5 * far * far)));
    const Value tail = at_near * mills_ratio(absolute(near));
    const Value beyond = at_far * mills_ratio(select(bin.open, one, far));
    result.mass = select(outside, tail, kRootTwoPi - tail) - beyond;
    if (Order >= 1) {
      result.edge = side * (at_near - at_far);
      result.moment = select(bin.open, zero, far * at_far) - near * at_near;
    }
  }
  if (any(series)) {
    // Hermite's generating function: the terms h^n He_n(m) / n!, the odd ones over h.
    const Value h = bin.half, square = h * h;
    const Value scale = bin.unit * exponential(-0.5 * (distance - result.n) * (distance + result.n));
    Value even = one, odd = distance, sum = one, sum_even = one, sum_odd = distance;
    for (int order = 2; order <= 26; order += 2) {
      even = square * (distance * odd - even) * (1.0 / order);
      odd = (distance * even - square * odd) * (1.0 / (order + 1));
      sum = sum + even * (1.0 / (order + 1));
      sum_even = sum_even + even;
      sum_odd = sum_odd + odd;
    }
    result.mass = select(series, scale * sum, result.mass);
    if (Order >= 1) {
      result.edge = select(series, scale * side * sum_odd, result.edge);
      result.moment = select(series, scale * (sum_even - distance * sum_odd), result.moment);
    }
  }
  return result;
}

// log Poisson(k; y) in deviance form, k >= 1, less the log(2 pi) / 2.
template <class Value>
BITLENS_FUNCTION Value log_poisson(Value k, Value y, Value log_y) {
  const Value excess = (k - y) / y;
  const Value small = select(absolute(excess) < 0.5, excess, broadcast((Value*)0, 0.0));
  const Value deviance = select(absolute(excess) < 0.5, y * ((1.0 + small) * logarithm_of_one_plus(small) - small),
                                k * (logarithm(k) - log_y) + (y - k));
  return -deviance - stirling_error(k) - 0.5 * logarithm(k);
}

// P(N >= count), in logarithm, and P(N = count - 1) over it.
template <class Value>
struct Tail {
  Value log_probability, hazard;
};

template <class Value, class Condition>
BITLENS_FUNCTION Tail<Value> poisson_tail(Value count, Value y, Value log_y, Condition wanted) {
  Value* const type = 0;
  const Value zero = broadcast(type, 0.0), one = broadcast(type, 1.0);
  const auto above = count >= y;  // sum whichever side is small
  const Value below = count - 1.0;
  const Value first = select(below > 0.5, log_poisson(maximum(below, one), y, log_y) - kLogRootTwoPi, -y);
  Value k = select(above, count, below), term = select(wanted, one, zero), sum = term;
  for (int index = 0; index < kMostTerms && any(term > 1e-18 * sum); ++index) {
    k = select(above, k + 1.0, k);
    term = term * select(above, y / k, maximum(k, zero) / y);
    k = select(above, k, k - 1.0);
    sum = sum + term;
  }
  // Above: P(N = count) sum = P(N = count - 1) y / count sum. Below: 1 - P(N = count - 1) sum.
  const Value rest = logarithm_of_one_plus(-exponential(first) * select(above, zero, sum));
  Tail<Value> tail;
  tail.log_probability = select(above, first + log_y - logarithm(count) + logarithm(maximum(sum, one)), rest);
  tail.hazard = select(above, count / (y * maximum(sum, one)), exponential(first - rest));
  return tail;
}

template <class Value>
struct Sums {
  Value weight, shift, edge, edge_charge, moment;
  Value reference;  // the logarithm of what one unit of weight stands for, above the first term's
};

// Adds a term of weight exp(exponent) mass; moves the unit when the term would overflow.
template <int Order, class Value, class Condition>
BITLENS_FUNCTION Value add_term(Sums<Value>& sums, Value exponent, const Mass<Value>& mass, Value shift, Value charge,
                                Condition wanted) {
  Value* const type = 0;
  const Value zero = broadcast(type, 0.0);
  const auto over = wanted & (exponent - sums.reference > 200.0);
  if (any(over)) {
    const Value move = select(over, exponent - sums.reference, zero);
    const Value factor = exponential(-move);
    sums.weight = sums.weight * factor;
    sums.shift = sums.shift * factor;
    sums.edge = sums.edge * factor;
    sums.edge_charge = sums.edge_charge * factor;
    sums.moment = sums.moment * factor;
    sums.reference = sums.reference + move;
  }
  const Value unit = select(wanted, exponential(select(wanted, exponent - sums.reference, zero)), zero);
  const Value weight = unit * mass.mass;
  sums.weight = sums.weight + weight;
  if (Order >= 1) {
    sums.shift = sums.shift + weight * shift;
    sums.edge = sums.edge + unit * mass.edge;
    sums.edge_charge = sums.edge_charge + unit * mass.edge * charge;
    sums.moment = sums.moment + unit * mass.moment;
  }
  return weight;
}

template <int Order, class Value>
BITLENS_FUNCTION Result<Value> evaluate(Value measured, Value mean, Value gain, Value offset, Value read_std,
                                        Value below, Value above, Value full_well) {
  Value* const type = 0;
  const Value zero = broadcast(type, 0.0), one = broadcast(type, 1.0), infinity = broadcast(type, INFINITY);
  const Value nan = broadcast(type, NAN);

  const auto open_below = below == infinity;
  const auto open_above = above == infinity;
  const auto valid = (mean >= 0.0) & (mean <= kLargestMean) & (gain > 0.0) & (gain < infinity) & (read_std > 0.0) &
                     (read_std < infinity) & (absolute(measured) < infinity) & (absolute(offset) < infinity) &
                     (below >= 0.0) & (above >= 0.0) & (!(open_below & open_above)) & (full_well > 0.0);
  auto dark = mean < kFaint;
  // Elements outside the domain run as a harmless one, so that they cannot stall the rest of a pack.
  const Value y = select(valid & (!dark), mean, one);
  const Value g = select(valid, gain, one), s = select(valid, read_std, one);
  const Value z = select(valid, measured, zero), o = select(valid, offset, zero);
  const Value down = select(valid & (!open_below), below, zero), up = select(valid & (!open_above), above, zero);
  const Value well = select(valid, full_well, one);
  const Value log_y = logarithm(y), inverse_s = 1.0 / s, ratio = g * inverse_s, a = ratio * ratio;

  Bin<Value, decltype(dark)> bin;
  bin.open = valid & (open_below | open_above);
  const Value width = down + up;
  const auto density = valid & (width == 0.0) & (!bin.open);
  bin.half = select(bin.open, zero, 0.5 * width * inverse_s);
  bin.unit = select(density, one, width * inverse_s);
  bin.narrow = (!bin.open) & (bin.half <= 0.25);

  // The middle of the bin (the edge of an open one) less the offset, with its rounding error.
  const Value middle = select(bin.open, select(open_below, up, -down), 0.5 * (up - down));
  const Value signal = z - o;
  const Value virtual_o = z - signal;
  const Value signal_error = (z - (signal + virtual_o)) + (virtual_o - o);

  const Value expected = g * minimum(select(dark, zero, y), well);
  // An open bin that holds the expected signal: its complement is summed.
  const Value to_edge = signal + middle - expected;
  const Value own_side = select(open_above, one, zero - 1.0);
  bin.side = select(to_edge >= 0.0, one, zero - 1.0);
  const auto complement = bin.open & (bin.side != own_side);
  bin.slope = select(bin.open, bin.side * ratio, ratio);

  // Start: the mode for the density at the point of the bin nearest to the signal expected without a full well.
  const Value reach = select(bin.open, zero, 0.5 * width);
  const Value centre = signal + middle;
  const Value nearest = maximum(centre - reach, minimum(centre + reach, g * y));
  const Value solution = round_to_integer(wright_omega(logarithm(a) + log_y + ratio * (nearest * inverse_s)) / a);
  const Value count = round_to_integer(minimum(well, broadcast(type, 1e15)) + 0.5 - 1e-9);
  // The smallest count that fills the well: round_to_integer takes halves to even.
  const Value lumped = select(count - 1.0 >= well, count - 1.0, select(count < well, count + 1.0, count));
  Value start = minimum(maximum(solution, zero), lumped - 1.0);
  start = select(valid & (!dark), minimum(start, broadcast(type, 9e15)), zero);

  const Value m0 =
      (multiply_add(-g, start, signal) + (middle + signal_error)) * inverse_s * select(bin.open, bin.side, one);
  const Mass<Value> first = bin_mass<Order>(bin, m0);
  Sums<Value> sums;
  sums.weight = sums.shift = sums.edge = sums.edge_charge = sums.moment = sums.reference = zero;
  add_term<Order>(sums, zero, first, zero, start, first.n == first.n);

  const Value reference = maximum(start, one);  // Poisson weights relative to this count
  const Value log_reference = logarithm(reference);
  const Value from_y = (reference - y) / y;
  const auto close = absolute(from_y) < 0.5;
  const Value pull = select(close, logarithm_of_one_plus(select(close, from_y, zero)), log_reference - log_y);
  const Value base = stirling_error(reference);
  const Value at_start = select(start > 0.5, log_poisson(reference, y, log_y) - kLogRootTwoPi, select(dark, zero, -y));
  const Value of_one = select(start > 0.5, zero, log_y);  // log Pois(1) / Pois(0)

  const Value spread = 1.0 / square_root(1.0 / reference + a);
  const Value strided = maximum(one, round_to_integer(spread * 0.25 - 0.5));
  const Value stride = select(start + 40.0 * spread + 40.0 < lumped, strided, one);

  const auto lit = valid & (!dark);
  for (int direction = 1; direction >= -1; direction -= 2) {
    Value k = start, weight = select(lit, sums.weight, zero);
    auto running = lit;
    for (int term = 0; term < kMostTerms; ++term) {
      k = k + direction * stride;
      running = running & (k >= 0.0) & (k < lumped);
      if (!any(running)) break;
      const Value safe = maximum(k, one), d = safe - reference;
      const Value growth = logarithm_of_one_plus(maximum(d / reference, 1.0 / reference - 1.0));
      const Value poisson =
          select(k > 0.5,
                 of_one - (safe * growth - d + d * pull + 0.5 * growth + stirling_error(safe) - base), -y - at_start);
      const Mass<Value> mass = bin_mass<Order>(bin, m0 - bin.slope * (k - start));
      const Value exponent = poisson + 0.5 * (first.n - mass.n) * (first.n + mass.n);
      const Value added = add_term<Order>(sums, exponent, mass, k - start, k, running);
      running = running & !((added <= kTail * sums.weight) & (added <= weight));
      weight = added;
    }
  }
  sums.weight = sums.weight * stride;
  sums.shift = sums.shift * stride;
  sums.edge = sums.edge * stride;
  sums.edge_charge = sums.edge_charge * stride;
  sums.moment = sums.moment * stride;

  const Value inverse = 1.0 / sums.weight;
  Value log_sum = at_start - 0.5 * first.n * first.n + sums.reference + logarithm(sums.weight);
  Value by_mean = select(lit, (start - y) / y + sums.shift * inverse / y, zero);
  Value edge_charge = sums.edge_charge * inverse, edge = sums.edge * inverse, moment = sums.moment * inverse;

  // Everything at or above the full well, unless even a bound of its weight is negligible. In logarithms of its own:
  // far beyond saturation the counts below weigh exp(-mean), whose digits must not enter the sum.
  const auto finite_well = lit & (lumped < 1e15);
  if (any(finite_well)) {
    const Value ahead = lumped - y;
    const Mass<Value> full = bin_mass<Order>(bin, m0 - bin.slope * (select(finite_well, well, zero) - start));
    const Value log_mass = logarithm(maximum(full.mass, broadcast(type, 1e-300))) - 0.5 * full.n * full.n;
    const Value bound = select(ahead > 0.0, -0.5 * ahead * ahead / (y + ahead), zero) + log_mass;
    const auto reached = finite_well & (bound > log_sum - 60.0);
    if (any(reached)) {
      const Tail<Value> tail = poisson_tail(select(reached, lumped, one), select(reached, y, one),
                                            select(reached, log_y, zero), reached);
      const Value log_full = select(reached, tail.log_probability + log_mass, log_sum - 100.0);
      const Value top = maximum(log_sum, log_full);
      const Value below_share = exponential(log_sum - top), full_share = exponential(log_full - top);
      const Value total = below_share + full_share;
      const Value kept = below_share / total, added = select(reached, full_share / total, zero);
      const Value scale = added / maximum(full.mass, broadcast(type, 1e-300));
      log_sum = top + logarithm(total);
      by_mean = kept * by_mean + added * select(reached, tail.hazard, zero);
      if (Order >= 1) {
        edge_charge = kept * edge_charge + scale * full.edge * select(reached, well, zero);
        edge = kept * edge + scale * full.edge;
        moment = kept * moment + scale * full.moment;
      }
    }
  }
  log_sum = log_sum - (kLogRootTwoPi + select(density, logarithm(s), zero));

  const Value part = exponential(minimum(log_sum, zero));
  Result<Value> result;
  const Value taken = select(complement, minimum(part, broadcast(type, 1.0 - 1e-15)), zero);
  const Value rest = 1.0 - taken;
  result.value = select(valid, select(complement, logarithm_of_one_plus(-taken),
                                       select(density, log_sum, minimum(log_sum, zero))), nan);
  if (Order == 0) return result;

  // Without light one electron is the only other count that a little light would bring. In logarithms: its bin may hold
  // all where that of no electron holds nothing.
  const Mass<Value> one_electron = bin_mass<0>(bin, m0 - bin.slope * minimum(one, well));
  const Value one_log = logarithm(maximum(one_electron.mass, broadcast(type, 1e-300))) -
                        0.5 * one_electron.n * one_electron.n - (kLogRootTwoPi + select(density, logarithm(s), zero));
  const Value dark_slope = select(complement, (part - exponential(minimum(one_log, zero))) / rest,
                                  exponential(minimum(one_log - log_sum, broadcast(type, 708.0))) - 1.0);
  Value derivative[4];
  derivative[0] = by_mean;
  derivative[1] = edge_charge * inverse_s;
  derivative[2] = edge * inverse_s;
  derivative[3] = -(moment * inverse_s);
  const Value factor = select(complement, -part / rest, one);
  for (int i = 0; i < 4; ++i) {
    // The `moment` of a density is 1 - m^2 per unit of mass, which has the derivative of its 1 / read_std in it.
    result.first[i] = select(valid, derivative[i] * factor, nan);
  }
  result.first[0] = select(valid & dark, dark_slope, result.first[0]);
  return result;
}

}  // namespace poisson_gaussian_bin
}  // namespace BITLENS_ISA
}  // namespace bitlens
