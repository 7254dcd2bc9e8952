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
using ::bitlens::BITLENS_ISA::FloatPack;
using ::bitlens::BITLENS_ISA::Pack;

constexpr int kWidth = BITLENS_PACK_WIDTH;
constexpr int kFloatWidth = BITLENS_FLOAT_PACK_WIDTH;

// `count` elements of one row: where each operand starts, and its stride there.
template <class T>
struct Row {
  const T* source[kInputs];
  std::int64_t stride[kInputs];
  std::int64_t start, count;  // of the outputs
};

// Lanes past `count` repeat the first.
template <class Lanes, class Element, int Width, class T>
BITLENS_FUNCTION Lanes load(const Row<T>& row, int input, std::int64_t at, std::int64_t count) {
  const T* source = row.source[input] + at * row.stride[input];
  Element lanes[Width];
  if (row.stride[input] == 1 && count == Width) {
    for (int lane = 0; lane < Width; ++lane) lanes[lane] = static_cast<Element>(source[lane]);
  } else {
    for (int lane = 0; lane < Width; ++lane) {
      lanes[lane] = static_cast<Element>(source[(lane < count ? lane : 0) * row.stride[input]]);
    }
  }
  Lanes values;
  memcpy(&values, lanes, sizeof(values));
  return values;
}

template <class T, class Lanes>
BITLENS_FUNCTION void store(T* target, std::int64_t at, std::int64_t count, const Lanes& values) {
  if (target == nullptr) return;
  constexpr int kLanes = static_cast<int>(sizeof(Lanes) / sizeof(values[0]));
  if (count == kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) target[at + lane] = static_cast<T>(values[lane]);
    return;
  }
  for (std::int64_t lane = 0; lane < count; ++lane) target[at + lane] = static_cast<T>(values[lane]);
}

// One pack in double precision.
template <int Order, class T>
BITLENS_FUNCTION void evaluate_pack(const Arguments<T>& arguments, const Row<T>& row, std::int64_t at,
                                    std::int64_t count) {
  Pack values[kInputs];
  for (int input = 0; input < kInputs; ++input) values[input] = load<Pack, double, kWidth>(row, input, at, count);
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

BITLENS_FUNCTION formula::Sensor<FloatPack> row_sensor(const Row<float>& row, std::int64_t at, std::int64_t count) {
  return formula::sensor(load<FloatPack, float, kFloatWidth>(row, 2, at, count),
                         load<FloatPack, float, kFloatWidth>(row, 3, at, count),
                         load<FloatPack, float, kFloatWidth>(row, 4, at, count));
}

// Single precision where it is as good, the double formula for the packs that need it.
template <int Order>
BITLENS_FUNCTION void evaluate_float_row(const Arguments<float>& arguments, const Row<float>& row) {
  const bool one_sensor = row.stride[2] == 0 && row.stride[3] == 0 && row.stride[4] == 0;
  formula::Sensor<FloatPack> sensor = row_sensor(row, 0, 1);
  for (std::int64_t at = 0; at < row.count; at += kFloatWidth) {
    const std::int64_t count = row.count - at < kFloatWidth ? row.count - at : kFloatWidth;
    if (!one_sensor) sensor = row_sensor(row, at, count);
    const auto result =
        formula::evaluate_narrow<Order, FloatPack>(load<FloatPack, float, kFloatWidth>(row, 0, at, count),
                                                   load<FloatPack, float, kFloatWidth>(row, 1, at, count), sensor);
    if (any(result.hard > 0.5f)) {
      evaluate_row<Order>(arguments, row, at, at + count);
      continue;
    }
    const std::int64_t target = row.start + at;
    store(arguments.outputs[0], target, count, result.value);
    for (int i = 0; i < 4 && Order == 1; ++i) store(arguments.outputs[1 + i], target, count, result.first[i]);
  }
}

template <int Order>
BITLENS_FUNCTION void evaluate_one_row(const Arguments<double>& arguments, const Row<double>& row) {
  evaluate_row<Order>(arguments, row, 0, row.count);
}
template <int Order>
BITLENS_FUNCTION void evaluate_one_row(const Arguments<float>& arguments, const Row<float>& row) {
  if (Order == 2) return evaluate_row<Order>(arguments, row, 0, row.count);
  evaluate_float_row<Order == 2 ? 1 : Order>(arguments, row);
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
