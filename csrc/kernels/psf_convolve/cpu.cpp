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

namespace {

auto step_of(const Arguments<float>&) { return BITLENS_FOR_THIS_PROCESSOR(step_float); }
auto step_of(const Arguments<double>&) { return BITLENS_FOR_THIS_PROCESSOR(step_double); }

template <class T>
void evaluate_any(const Arguments<T>& arguments, int threads) {
  if (is_direct(arguments)) return run_direct(arguments, threads, step_of(arguments));
  Schedule<T>(arguments, threads, step_of(arguments)).run();
}

// `spectra` as if they were given keeps the operands in their roles.
template <class T>
Schedule<T> planned_schedule(Arguments<T> arguments, const T* spectra, int threads) {
  arguments.spectra = spectra;
  return Schedule<T>(arguments, threads, step_of(arguments));
}

template <class T>
std::int64_t spectrum_numbers_any(const Arguments<T>& arguments) {
  const T any{};
  return planned_schedule(arguments, &any, 1).spectrum_size();
}

}  // namespace

void evaluate(const Arguments<float>& arguments, int threads) { evaluate_any(arguments, threads); }
void evaluate(const Arguments<double>& arguments, int threads) { evaluate_any(arguments, threads); }

std::int64_t spectrum_numbers(const Arguments<float>& arguments) { return spectrum_numbers_any(arguments); }
std::int64_t spectrum_numbers(const Arguments<double>& arguments) { return spectrum_numbers_any(arguments); }

void make_spectra(const Arguments<float>& arguments, float* spectra, int threads) {
  planned_schedule(arguments, spectra, threads).make_planned(spectra);
}
void make_spectra(const Arguments<double>& arguments, double* spectra, int threads) {
  planned_schedule(arguments, spectra, threads).make_planned(spectra);
}

}  // namespace cpu
#endif

}  // namespace psf_convolve
}  // namespace bitlens
