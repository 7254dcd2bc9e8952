// Threads: OpenMP with an explicit count per call, one thread inside a parallel region or after a fork.
#pragma once

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <cstdint>

namespace bitlens {

inline bool& forked() {
  static bool flag = false;
  return flag;
}

// An OpenMP region started in a forked child waits for threads that the child does not have.
inline void guard_against_fork() { pthread_atfork(nullptr, nullptr, [] { forked() = true; }); }

// Calls body(begin, end) over [0, count) in pieces that are multiples of `grain`; which thread runs a piece is left
// to OpenMP, so body must not make its result depend on it.
template <class Body>
void parallel_for(std::int64_t count, std::int64_t grain, int threads, const Body& body) {
  if (count <= 0) return;
  const std::int64_t pieces = (count + grain - 1) / grain;
  if (threads <= 1 || pieces == 1 || forked() || omp_in_parallel()) {
    body(std::int64_t{0}, count);
    return;
  }
  const int team = static_cast<int>(std::min<std::int64_t>(threads, pieces));
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    body(piece * grain, std::min(count, (piece + 1) * grain));
  }
}

}  // namespace bitlens
