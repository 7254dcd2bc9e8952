// Which of the per-instruction-set copies of a kernel runs on this processor.
#pragma once

#include <string>

namespace bitlens {

enum class InstructionSet { baseline, avx2, avx512 };

InstructionSet instruction_set();
const char* instruction_set_name(InstructionSet set);
// Forces one, for tests and benchmarks; throws std::invalid_argument when the processor lacks it.
void set_instruction_set(const std::string& name);

template <class Function>
Function for_this_processor(Function baseline, Function avx2, Function avx512) {
#if defined(BITLENS_HAS_X86_UNITS)
  switch (instruction_set()) {
    case InstructionSet::avx512: return avx512;
    case InstructionSet::avx2: return avx2;
    default: return baseline;
  }
#else
  (void)avx2;
  (void)avx512;
  return baseline;
#endif
}

}  // namespace bitlens

// Declares a function once per instruction set; cpu.cpp defines it in the namespace that BITLENS_ISA names.
#define BITLENS_DECLARE_PER_ISA(declaration) \
  namespace baseline { declaration; }        \
  namespace avx2 { declaration; }            \
  namespace avx512 { declaration; }

#if defined(BITLENS_HAS_X86_UNITS)
#define BITLENS_FOR_THIS_PROCESSOR(function) \
  ::bitlens::for_this_processor(&baseline::function, &avx2::function, &avx512::function)
#else
#define BITLENS_FOR_THIS_PROCESSOR(function) (&baseline::function)
#endif
