#include "instruction_set.h"

#include <atomic>
#include <stdexcept>

namespace bitlens {
namespace {

InstructionSet best() {
#if defined(BITLENS_HAS_X86_UNITS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd")) {
    return InstructionSet::avx512;
  }
  if (avx2) return InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

std::atomic<InstructionSet>& current() {
  static std::atomic<InstructionSet> set{best()};
  return set;
}

}  // namespace

InstructionSet instruction_set() { return current().load(std::memory_order_relaxed); }

const char* instruction_set_name(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx512: return "avx512";
    case InstructionSet::avx2: return "avx2";
    default: return "baseline";
  }
}

void set_instruction_set(const std::string& name) {
  for (InstructionSet set : {InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512}) {
    if (name == instruction_set_name(set)) {
      if (set > best()) throw std::invalid_argument("this processor lacks " + name);
      current() = set;
      return;
    }
  }
  throw std::invalid_argument("instruction set: need baseline, avx2 or avx512, got " + name);
}

}  // namespace bitlens
