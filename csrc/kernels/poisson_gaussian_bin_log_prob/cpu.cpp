// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points. All arithmetic is
// in double precision: the difference of two tails has no digits to spare.
#include <string.h>

#include "kernel.h"
#include "math.h"

#if defined(BITLENS_ENTRY_POINTS)
#include "../../common/instruction_set.h"
#include "../../common/parallel.h"
#endif

namespace bitlens {
namespace poisson_gaussian_bin_log_prob {
namespace BITLENS_ISA {
namespace {

namespace formula = ::bitlens::BITLENS_ISA::poisson_gaussian_bin;
using ::bitlens::BITLENS_ISA::Pack;

constexpr int kWidth = BITLENS_PACK_WIDTH;

// One pack from the linear index `start` on; lanes past `count` repeat the first.
template <int Order, class T>
BITLENS_FUNCTION void evaluate_pack(const Arguments<T>& arguments, const T* const (&source)[kInputs],
                                    const std::int64_t (&stride)[kInputs], std::int64_t start, std::int64_t count) {
  Pack values[kInputs];
  for (int input = 0; input < kInputs; ++input) {
    if (arguments.constants[input] != nullptr) {
      values[input] = ::bitlens::BITLENS_ISA::broadcast((Pack*)0, *arguments.constants[input]);
      continue;
    }
    double lanes[kWidth];
    for (int lane = 0; lane < kWidth; ++lane) {
      lanes[lane] = static_cast<double>(source[input][(lane < count ? lane : 0) * stride[input]]);
    }
    memcpy(&values[input], lanes, sizeof(lanes));
  }
  const auto result = formula::evaluate<Order, Pack>(values[0], values[1], values[2], values[3], values[4], values[5],
                                                     values[6], values[7]);
  for (int output = 0; output < (Order == 0 ? 1 : kOutputs); ++output) {
    T* const target = arguments.outputs[output];
    if (target == nullptr) continue;
    const Pack& from = output == 0 ? result.value : result.first[output > 0 ? output - 1 : 0];
    for (int lane = 0; lane < count; ++lane) target[start + lane] = static_cast<T>(from[lane]);
  }
}

template <int Order, class T>
BITLENS_FUNCTION void evaluate_elements(const Arguments<T>& arguments, std::int64_t begin, std::int64_t end) {
  const auto& layout = arguments.layout;
  const int last = layout.ndim - 1;
  for (std::int64_t start = begin; start < end;) {
    const std::int64_t left_in_row = layout.shape[last] - start % layout.shape[last];
    const std::int64_t row_end = end - start < left_in_row ? end : start + left_in_row;
    std::int64_t offsets[kInputs], strides[kInputs];
    operand_offsets(layout, start, offsets);
    const T* source[kInputs];
    for (int input = 0; input < kInputs; ++input) {
      source[input] = arguments.inputs[input] + offsets[input];
      strides[input] = layout.strides[input][last];
    }
    while (start < row_end) {
      const std::int64_t count = row_end - start < kWidth ? row_end - start : kWidth;
      evaluate_pack<Order>(arguments, source, strides, start, count);
      for (int input = 0; input < kInputs; ++input) source[input] += count * strides[input];
      start += count;
    }
  }
}

template <class T>
BITLENS_FUNCTION void evaluate_by_order(const Arguments<T>& arguments, std::int64_t begin, std::int64_t end) {
  if (arguments.order == 0) return evaluate_elements<0>(arguments, begin, end);
  return evaluate_elements<1>(arguments, begin, end);
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

constexpr std::int64_t kGrain = 1024;  // elements per piece of work, some 100 us

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

}  // namespace poisson_gaussian_bin_log_prob
}  // namespace bitlens
