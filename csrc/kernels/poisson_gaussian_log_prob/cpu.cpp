// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points.
#include <string.h>

#include "kernel.h"
#include "narrow.h"

#if defined(BITLENS_ENTRY_POINTS)
#include "../../common/instruction_set.h"
#include "../../common/parallel.h"
#endif

namespace bitlens {
namespace poisson_gaussian_log_prob {
namespace BITLENS_ISA {
namespace {

namespace formula = ::bitlens::BITLENS_ISA::poisson_gaussian;
using ::bitlens::BITLENS_ISA::any;
using ::bitlens::BITLENS_ISA::broadcast;
using ::bitlens::BITLENS_ISA::largest;
using ::bitlens::BITLENS_ISA::FloatPacks;
using ::bitlens::BITLENS_ISA::Two;
using ::bitlens::BITLENS_ISA::Pack;

constexpr int kWidth = BITLENS_PACK_WIDTH;

// `count` elements of one row: where each operand starts, and its stride there.
template <class T>
struct Row {
  const T* source[kInputs];
  const double* constant[kInputs];  // in place of source where not null
  std::int64_t stride[kInputs];
  std::int64_t start, count;  // of the outputs
};

// Lanes past `count` repeat the first.
template <class T>
BITLENS_FUNCTION Pack load(const Row<T>& row, int input, std::int64_t at, std::int64_t count) {
  if (row.constant[input] != nullptr) return broadcast((Pack*)0, *row.constant[input]);
  const T* source = row.source[input] + at * row.stride[input];
  double lanes[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) {
    lanes[lane] = static_cast<double>(source[(lane < count ? lane : 0) * row.stride[input]]);
  }
  Pack values;
  memcpy(&values, lanes, sizeof(values));
  return values;
}

template <class T>
BITLENS_FUNCTION void store(T* target, std::int64_t at, std::int64_t count, const Pack& values) {
  if (target == nullptr) return;
  for (std::int64_t lane = 0; lane < count; ++lane) target[at + lane] = static_cast<T>(values[lane]);
}

// One pack in double precision.
template <int Order, class T>
BITLENS_FUNCTION void evaluate_pack(const Arguments<T>& arguments, const Row<T>& row, std::int64_t at,
                                    std::int64_t count) {
  Pack values[kInputs];
  for (int input = 0; input < kInputs; ++input) values[input] = load(row, input, at, count);
  const auto result = formula::evaluate<Order, Pack>(values[0], values[1], values[2], values[3], values[4]);
  const std::int64_t target = row.start + at;
  store(arguments.outputs[0], target, count, result.value);
  for (int i = 0; i < 4 && Order >= 1; ++i) store(arguments.outputs[1 + i], target, count, result.first[i]);
  for (int i = 0; i < 10 && Order == 2; ++i) store(arguments.outputs[5 + i], target, count, result.second[i]);
}

template <int Order, class T>
BITLENS_FUNCTION void evaluate_row(const Arguments<T>& arguments, const Row<T>& row, std::int64_t begin,
                                   std::int64_t end) {
  for (std::int64_t at = begin; at < end; at += kWidth) {
    evaluate_pack<Order>(arguments, row, at, end - at < kWidth ? end - at : kWidth);
  }
}

constexpr int kBlock = sizeof(FloatPacks) / sizeof(float);

// Lanes past `count` repeat the first of all.
BITLENS_FUNCTION FloatPacks load_block(const Row<float>& row, int input, std::int64_t at, std::int64_t count) {
  const float* const source = row.source[input] + at * row.stride[input];
  FloatPacks values;
  if (row.stride[input] == 1 && count == kBlock) {
    memcpy(&values, source, sizeof(values));
    return values;
  }
  float lanes[kBlock];
  for (int lane = 0; lane < kBlock; ++lane) lanes[lane] = source[(lane < count ? lane : 0) * row.stride[input]];
  memcpy(&values, lanes, sizeof(values));
  return values;
}

BITLENS_FUNCTION void store_block(float* target, std::int64_t at, std::int64_t count, const FloatPacks& values) {
  if (target == nullptr) return;
  if (count == kBlock) {
    memcpy(target + at, &values, sizeof(values));
  } else {
    memcpy(target + at, &values, static_cast<std::size_t>(count) * sizeof(float));
  }
}

// A parameter in two parts: what single precision holds, and the rest of one that is known to double precision.
struct Split {
  FloatPacks value, rest;
};

BITLENS_FUNCTION Split load_split(const Row<float>& row, int input, std::int64_t at, std::int64_t count) {
  FloatPacks* const type = 0;
  if (row.constant[input] == nullptr) return {load_block(row, input, at, count), broadcast(type, 0.0f)};
  const double exact = *row.constant[input];
  const float value = static_cast<float>(exact);
  return {broadcast(type, value), broadcast(type, static_cast<float>(exact - value))};
}

BITLENS_FUNCTION void set_row_sensor(formula::Sensor<FloatPacks>& sensor, const Row<float>& row, std::int64_t at,
                                     std::int64_t count) {
  const Split gain = load_split(row, 2, at, count), offset = load_split(row, 3, at, count),
              read_std = load_split(row, 4, at, count);
  formula::set_sensor(sensor, gain.value, gain.rest, offset.value, offset.rest, read_std.value, read_std.rest);
}

template <int Moments, class Half>
BITLENS_FUNCTION formula::Sums<Moments, Two<Half>> sum_halves(const formula::Start<Two<Half>>& start,
                                                              const Two<Half>* powers, int terms) {
  const Half* const halves = &powers->first;
  const auto first = formula::sum_terms<Moments>(start.mode.first, start.up.first, start.down.first, halves, 2, terms);
  const auto second =
      formula::sum_terms<Moments>(start.mode.second, start.up.second, start.down.second, halves + 1, 2, terms);
  formula::Sums<Moments, Two<Half>> sums;
  sums.scale = {first.scale, second.scale};
  for (int moment = 0; moment <= Moments; ++moment) {
    sums.up[moment] = {first.up[moment], second.up[moment]};
    sums.down[moment] = {first.down[moment], second.down[moment]};
  }
  return sums;
}

// Single precision where it is as good, the double formula for the packs that need it.
template <int Moments>
BITLENS_FUNCTION void evaluate_float_row(const Arguments<float>& arguments, const Row<float>& row) {
  // The value depends on the mean too sharply for its rest to be left out; one number for all is rare.
  if (row.constant[0] != nullptr || row.constant[1] != nullptr) {
    return evaluate_row<(Moments > 0 ? 1 : 0)>(arguments, row, 0, row.count);
  }
  const bool one_sensor = row.stride[2] == 0 && row.stride[3] == 0 && row.stride[4] == 0;
  formula::Sensor<FloatPacks> sensor;
  set_row_sensor(sensor, row, 0, 1);
  for (std::int64_t at = 0; at < row.count; at += kBlock) {
    const std::int64_t count = row.count - at < kBlock ? row.count - at : kBlock;
    if (!one_sensor) set_row_sensor(sensor, row, at, count);
    const auto start = formula::start_of_sum(load_block(row, 0, at, count), load_block(row, 1, at, count), sensor);
    const int terms = static_cast<int>(__builtin_fmaxf(largest(start.reach), 1.0f));
    extend_powers(sensor, terms);
    formula::Sums<Moments, FloatPacks> sums;
    if (Moments == 0) {
      sums = formula::sum_terms<Moments>(start.mode, start.up, start.down, sensor.powers, 1, terms);
    } else {
      sums = sum_halves<Moments>(start, sensor.powers, terms);  // their moments would not fit the registers together
    }
    const auto result = formula::finish_sum<Moments>(start, sums, sensor);
    const std::int64_t target = row.start + at;
    store_block(arguments.outputs[0], target, count, result.value);
    if (Moments > 0) {
      store_block(arguments.outputs[1], target, count, result.first[0]);
      store_block(arguments.outputs[3], target, count, result.first[2]);
    }
    if (Moments > 1) {
      store_block(arguments.outputs[2], target, count, result.first[1]);
      store_block(arguments.outputs[4], target, count, result.first[3]);
    }
    if (any(start.reach < 0.5f)) {
      float reach[kBlock];
      memcpy(reach, &start.reach, sizeof(reach));
      for (int begin = 0; begin < count; begin += kWidth) {
        bool hard = false;
        for (int lane = begin; lane < begin + kWidth; ++lane) hard |= reach[lane] < 0.5f;
        if (!hard) continue;
        evaluate_pack<(Moments > 0 ? 1 : 0)>(arguments, row, at + begin, count - begin < kWidth ? count - begin : kWidth);
      }
    }
  }
}

template <int Order>
BITLENS_FUNCTION void evaluate_one_row(const Arguments<double>& arguments, const Row<double>& row) {
  evaluate_row<Order>(arguments, row, 0, row.count);
}
template <int Order>
BITLENS_FUNCTION void evaluate_one_row(const Arguments<float>& arguments, const Row<float>& row) {
  if (Order == 2) return evaluate_row<Order>(arguments, row, 0, row.count);
  if (Order == 0) return evaluate_float_row<0>(arguments, row);
  if (arguments.outputs[2] == nullptr && arguments.outputs[4] == nullptr) return evaluate_float_row<1>(arguments, row);
  evaluate_float_row<2>(arguments, row);
}

template <int Order, class T>
BITLENS_FUNCTION void evaluate_elements(const Arguments<T>& arguments, std::int64_t begin, std::int64_t end) {
  const auto& layout = arguments.layout;
  const int last = layout.ndim - 1;
  for (std::int64_t start = begin; start < end;) {
    const std::int64_t left_in_row = layout.shape[last] - start % layout.shape[last];
    std::int64_t offsets[kInputs];
    operand_offsets(layout, start, offsets);
    Row<T> row;
    row.start = start;
    row.count = end - start < left_in_row ? end - start : left_in_row;
    for (int input = 0; input < kInputs; ++input) {
      row.source[input] = arguments.inputs[input] + offsets[input];
      row.constant[input] = arguments.constants[input];
      row.stride[input] = layout.strides[input][last];
    }
    evaluate_one_row<Order>(arguments, row);
    start += row.count;
  }
}

template <class T>
BITLENS_FUNCTION void evaluate_by_order(const Arguments<T>& arguments, std::int64_t begin, std::int64_t end) {
  switch (arguments.order) {
    case 0: return evaluate_elements<0>(arguments, begin, end);
    case 1: return evaluate_elements<1>(arguments, begin, end);
    default: return evaluate_elements<2>(arguments, begin, end);
  }
}

}  // namespace

void evaluate_float(const Arguments<float>& arguments, std::int64_t begin, std::int64_t end) {
  evaluate_by_order(arguments, begin, end);
}

void evaluate_double(const Arguments<double>& arguments, std::int64_t begin, std::int64_t end) {
  evaluate_by_order(arguments, begin, end);
}

}  // namespace BITLENS_ISA

#if defined(BITLENS_ENTRY_POINTS)
BITLENS_DECLARE_PER_ISA(void evaluate_float(const Arguments<float>&, std::int64_t, std::int64_t))
BITLENS_DECLARE_PER_ISA(void evaluate_double(const Arguments<double>&, std::int64_t, std::int64_t))

namespace cpu {

constexpr std::int64_t kGrain = 2048;  // elements per piece of work, some 100 us

void evaluate(const Arguments<float>& arguments, int threads) {
  const auto evaluate_range = BITLENS_FOR_THIS_PROCESSOR(evaluate_float);
  parallel_for(arguments.layout.count, kGrain, threads,
               [&](std::int64_t begin, std::int64_t end) { evaluate_range(arguments, begin, end); });
}

void evaluate(const Arguments<double>& arguments, int threads) {
  const auto evaluate_range = BITLENS_FOR_THIS_PROCESSOR(evaluate_double);
  parallel_for(arguments.layout.count, kGrain, threads,
               [&](std::int64_t begin, std::int64_t end) { evaluate_range(arguments, begin, end); });
}

}  // namespace cpu
#endif

}  // namespace poisson_gaussian_log_prob
}  // namespace bitlens
