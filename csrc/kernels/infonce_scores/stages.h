// Host only: runs the stages of a pass over slabs. Stage 0 packs, stages 1 .. phases visit tiles, the last one writes.
#pragma once

#include <atomic>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

#include "../../common/parallel.h"
#include "kernel.h"

namespace bitlens {
namespace infonce_scores {

// Slabs of `items` problems of one size that are worked on together.
struct Slabs {
  std::int64_t items, row_slabs, column_slabs, phases;
};

// Waits until another thread has come as far; the core goes to whoever needs it when that takes long.
inline void wait_for(const std::atomic<std::int64_t>& progress, std::int64_t phase) {
  for (int tries = 0; progress.load(std::memory_order_acquire) < phase; ++tries) {
    if (tries >= 1000) sched_yield();
#if defined(__x86_64__)
    _mm_pause();
#endif
  }
}

// The tiles of all phases without a barrier between phases. A task follows the last one that used its row slab, which
// is that slab's in the phase before, and the last one that used its column slab: row slab r + q, q phases before, for
// the least q at which there is such a row. Tasks are handed out phase by phase, so what a task waits for has begun.
template <class Run>
void run_tiles(const Slabs& slabs, int threads, const Run& run) {
  const std::int64_t per_phase = slabs.items * slabs.row_slabs, tasks = per_phase * slabs.phases;
  std::vector<std::atomic<std::int64_t>> done(static_cast<std::size_t>(per_phase));  // phases that a row slab has behind it
  for (auto& count : done) count.store(0, std::memory_order_relaxed);
  std::atomic<std::int64_t> next{0};
  const auto work = [&](std::int64_t, std::int64_t) {
    for (std::int64_t task = next++; task < tasks; task = next++) {
      const std::int64_t phase = task / per_phase, at = task % per_phase, slab = at % slabs.row_slabs;
      wait_for(done[at], phase);
      if ((slab + phase) % slabs.phases < slabs.column_slabs) {
        for (std::int64_t before = 1; before <= phase; ++before) {
          const std::int64_t other = (slab + before) % slabs.phases;
          if (other >= slabs.row_slabs) continue;
          wait_for(done[at - slab + other], phase - before + 1);
          break;
        }
        run(phase + 1, at, at + 1);
      }
      done[at].store(phase + 1, std::memory_order_release);
    }
  };
  parallel_for(std::min<std::int64_t>(per_phase, threads), 1, threads, work);
}

// Calls run(stage, begin, end) for all tasks of every stage: one for each row slab of an item in the stages of tiles,
// one for each slab of either side in the first and the last.
template <class Run>
void run_stages(const Slabs& slabs, int threads, const Run& run) {
  const auto all = [&](std::int64_t stage, std::int64_t per_item) {
    const std::int64_t tasks = slabs.items * per_item;
    // Many small items: a few hundred pieces are enough to share out.
    parallel_for(tasks, tasks < 512 ? 1 : tasks / 256, threads,
                 [&](std::int64_t begin, std::int64_t end) { run(stage, begin, end); });
  };
  all(0, slabs.phases);
  if (slabs.phases <= 1 || threads <= 1) {
    for (std::int64_t phase = 0; phase < slabs.phases; ++phase) all(phase + 1, slabs.row_slabs);
  } else {
    run_tiles(slabs, threads, run);
  }
  all(slabs.phases + 1, slabs.phases);
}

// The same over a batch, `chunk` items at a time; run(stage, begin, end) has the first item of the chunk in its stage.
template <class Plan, class Run>
void run_chunks(const Plan& plan, std::int64_t batch, int threads, const Run& run) {
  for (std::int64_t first = 0; first < batch; first += plan.chunk) {
    const Slabs slabs{std::min(plan.chunk, batch - first), plan.row_slabs, plan.column_slabs, plan.phases};
    run_stages(slabs, threads, [&](std::int64_t stage, std::int64_t begin, std::int64_t end) {
      run(Stage{first, stage}, begin, end);
    });
  }
}

}  // namespace infonce_scores
}  // namespace bitlens
