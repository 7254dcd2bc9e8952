// Compiled once per instruction set (BITLENS_ISA); the baseline copy also holds the entry points.
//
// Images share no arithmetic but for sums over terms, so neither their neighbours in the batch nor the threads can
// change a result, and a NaN stays in its image.
#include "passes.h"

#if defined(BITLENS_ENTRY_POINTS)
#include "../../common/instruction_set.h"
#include "direct.h"
#include "schedule.h"
#endif

namespace bitlens {
namespace psf_convolve {
namespace BITLENS_ISA {

void step_float(const Problem<float>& problem, const Job<float>& job, Step step, std::int64_t begin, std::int64_t end) {
  Passes<float>{problem, job}.run(step, begin, end);
}

void step_double(const Problem<double>& problem, const Job<double>& job, Step step, std::int64_t begin,
                 std::int64_t end) {
  Passes<double>{problem, job}.run(step, begin, end);
}

}  // namespace BITLENS_ISA

#if defined(BITLENS_ENTRY_POINTS)
BITLENS_DECLARE_PER_ISA(void step_float(const Problem<float>&, const Job<float>&, Step, std::int64_t, std::int64_t))
BITLENS_DECLARE_PER_ISA(void step_double(const Problem<double>&, const Job<double>&, Step, std::int64_t, std::int64_t))

namespace cpu {

void evaluate(const Arguments<float>& arguments, int threads) {
  if (is_direct(arguments)) return run_direct(arguments, threads, BITLENS_FOR_THIS_PROCESSOR(step_float));
  Schedule<float>(arguments, threads, BITLENS_FOR_THIS_PROCESSOR(step_float)).run();
}

void evaluate(const Arguments<double>& arguments, int threads) {
  if (is_direct(arguments)) return run_direct(arguments, threads, BITLENS_FOR_THIS_PROCESSOR(step_double));
  Schedule<double>(arguments, threads, BITLENS_FOR_THIS_PROCESSOR(step_double)).run();
}

}  // namespace cpu
#endif

}  // namespace psf_convolve
}  // namespace bitlens
