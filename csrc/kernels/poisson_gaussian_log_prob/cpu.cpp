// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points.
#include <string.h>

#include "kernel.h"
#include "math.h"

#if defined(BITLENS_ENTRY_POINTS)
#include "../../common/instruction_set.h"
#include "../../common/parallel.h"
#endif

namespace bitlens {
namespace poisson_gaussian_log_prob {
namespace BITLENS_ISA {
namespace {

constexpr int kWidth = BITLENS_PACK_WIDTH;
using Pack = ::bitlens::BITLENS_ISA::Pack;

template <int Order, class T>
BITLENS_FUNCTION void evaluate_elements(const Arguments<T>& arguments, std::int64_t begin, std::int64_t end) {
  const auto& layout = arguments.layout;
  const int last = layout.ndim - 1;
  const std::int64_t row = layout.shape[last];
  for (std::int64_t start = begin; start < end;) {
    // One pack never crosses a row, so each operand advances by one stride.
    const std::int64_t left_in_row = row - start % row;
    std::int64_t count = end - start < left_in_row ? end - start : left_in_row;
    if (count > kWidth) count = kWidth;
    std::int64_t offsets[kInputs];
    operand_offsets(layout, start, offsets);
    Pack values[kInputs];
    for (int input = 0; input < kInputs; ++input) {
      const T* source = arguments.inputs[input] + offsets[input];
      const std::int64_t stride = layout.strides[input][last];
      double lanes[kWidth];  // lanes past the end repeat the first
      for (int lane = 0; lane < kWidth; ++lane) {
        lanes[lane] = static_cast<double>(source[(lane < count ? lane : 0) * stride]);
      }
      memcpy(&values[input], lanes, sizeof(lanes));
    }
    const auto result = ::bitlens::BITLENS_ISA::poisson_gaussian::evaluate<Order, Pack>(values[0], values[1], values[2],
                                                                                        values[3], values[4]);
    const auto store = [&](int output, const Pack& pack) {
      if (T* target = arguments.outputs[output]) {
        for (int lane = 0; lane < count; ++lane) target[start + lane] = static_cast<T>(pack[lane]);
      }
    };
    store(0, result.value);
    if (Order >= 1) {
      for (int i = 0; i < 4; ++i) store(1 + i, result.first[i]);
    }
    if (Order == 2) {
      for (int i = 0; i < 10; ++i) store(5 + i, result.second[i]);
    }
    start += count;
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
