// An image whose padded half spectrum fits in shared memory never leaves its block between the load and the store:
// columns forward, lines forward, times the filter's spectrum, sums over terms, lines back, columns back. Larger images
// lie in the work space and pass through three kernels; a block then has a tile of columns or lines in shared memory,
// or one line in the work space where not even that fits. Sums over terms are added up in the order of the terms,
// pieces of them in the order of the pieces, so that every run has the same bits.
#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_long.h"
#include "cuda_plan.h"
#include "cuda_shared.h"
#include "kernel.h"

namespace bitlens {
namespace psf_convolve {
namespace {

using namespace cuda_long;
using namespace cuda_shared;

// ---- launches ----

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("psf_convolve: ") + cudaGetErrorString(status));
}

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device));
  return device;
}

std::int64_t shared_limit() {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, current_device()));
  return bytes;
}

template <class Value>
const Value* uploaded(const Value* values, std::int64_t count) {
  if (values == nullptr || count == 0) return nullptr;
  void* memory = nullptr;
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(Value);
  check(cudaMalloc(&memory, bytes));
  check(cudaMemcpy(memory, values, bytes, cudaMemcpyHostToDevice));
  return static_cast<const Value*>(memory);
}

// The tables of a length on the current device. They are never freed: kernels of any stream may still read them, and
// good sizes are few.
template <class T>
Transform<T> tables_of(std::int64_t size) {
  static std::mutex mutex;
  static std::map<std::pair<int, std::int64_t>, Transform<T>> kept;
  const std::pair<int, std::int64_t> key{current_device(), size};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = kept.find(key);
  if (found != kept.end()) return found->second;
  const auto plan = plan_of<T>(size);
  Transform<T> transform = plan->transform();
  transform.twiddles = uploaded(transform.twiddles, transform.twiddle_count);
  transform.frequency = uploaded(transform.frequency, size);
  transform.position = uploaded(transform.position, size);
  transform.chirp = uploaded(transform.chirp, 2 * size);
  transform.chirp_spectrum = uploaded(transform.chirp_spectrum, 2 * transform.inner);
  check(cudaStreamSynchronize(nullptr));  // a copy from pageable memory may return before it has arrived
  return kept[key] = transform;
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::int64_t shared_bytes,
            std::uintptr_t stream, Parameters... parameters) {
  if (shared_bytes > 48 << 10) {  // above that a kernel has to ask
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(blocks, 1 << 20));
  BITLENS_LAUNCH(kernel, dim3(grid), dim3(static_cast<unsigned>(threads)), static_cast<std::size_t>(shared_bytes),
                 reinterpret_cast<cudaStream_t>(stream), parameters...);
  check(cudaGetLastError());
}

template <class T, bool kReal>
void run_in_shared(const Schedule<T>& schedule, Point<T>* workspace, std::uintptr_t stream) {
  const Problem<T>& problem = schedule.problem;
  // About a butterfly of radix 8 for each thread and stage.
  const std::int64_t wanted = ceil_div(problem.plane_points / 8, 32) * 32;
  const int threads = static_cast<int>(std::max<std::int64_t>(64, std::min<std::int64_t>(wanted, kMaxThreads)));
  SharedJob<T> job{Task::filters,  schedule.filters, schedule.pieces, schedule.held, workspace + schedule.spectra_at,
                   workspace + schedule.sums_at};
  const auto run = [&](Task task, std::int64_t items, std::int64_t blocks) {
    job.task = task;
    job.items = items;
    launch(work_in_shared<T, kReal>, blocks, threads, schedule.shared_bytes, stream, problem, job);
  };
  if (schedule.held) run(Task::filters, schedule.filters, schedule.filters);
  run(Task::products, schedule.outputs * schedule.pieces, schedule.blocks);
  if (schedule.pieces == 1) return;
  launch(merge_pieces<T>, ceil_div(schedule.outputs * problem.spectrum_points, kFlatThreads), kFlatThreads, 0, stream,
         job.sums, schedule.outputs, schedule.pieces, problem.spectrum_points);
  run(Task::finish, schedule.outputs, schedule.outputs);
}

template <class T, bool kReal>
class LongRun {
 public:
  LongRun(const Schedule<T>& schedule, Point<T>* workspace, std::uintptr_t stream)
      : schedule_(schedule), problem_(schedule.problem), stream_(stream) {
    job_.planes = workspace + schedule.planes_at;
    job_.spectra = workspace + schedule.spectra_at;
    job_.sums = workspace + schedule.sums_at;
    job_.stages = workspace + schedule.stages_at;
    job_.long_line = schedule.long_line();
    job_.held = schedule.held;
    job_.terms = 1;
  }

  void run() {
    if (schedule_.held) {
      for (std::int64_t i = 0; i < schedule_.filters; i += schedule_.planes) {
        job_.first_filter = i;
        make_spectra(std::min(schedule_.planes, schedule_.filters - i));
      }
    }
    for (std::int64_t b = 0; b < schedule_.outputs; b += schedule_.outputs_at_once) {
      job_.first_output = b;
      job_.outputs = std::min(schedule_.outputs_at_once, schedule_.outputs - b);
      for (std::int64_t term = 0; term < schedule_.terms; term += schedule_.terms_at_once) {
        job_.first_term = term;
        job_.terms = std::min(schedule_.terms_at_once, schedule_.terms - term);
        if (!schedule_.held && problem_.kind != Kind::filter) make_spectra(job_.outputs * job_.terms);
        job_.filter = false;
        job_.images = job_.outputs * job_.terms;
        columns(columns_forward<T, kReal>, job_.images, transforms(problem_.image.columns));
        lines(Task::products, job_.outputs);
      }
      if (schedule_.terms > 1) lines(Task::finish, job_.outputs);
      if (problem_.kind == Kind::cross_spectrum) continue;
      columns(columns_inverse<T, kReal>, job_.outputs, transforms(problem_.column.count));
    }
  }

 private:
  using Kernel = void (*)(Problem<T>, LongJob<T>);

  static std::int64_t transforms(std::int64_t columns) { return kReal ? (columns + 1) / 2 : columns; }

  void make_spectra(std::int64_t images) {
    job_.filter = true;
    job_.images = images;
    columns(columns_forward<T, kReal>, images, transforms(problem_.filter.columns));
    lines(Task::filters, images);
  }

  void columns(Kernel kernel, std::int64_t images, std::int64_t count) {
    start(kernel, images, count, problem_.vertical, schedule_.column_tile, schedule_.columns_in_shared);
  }

  void lines(Task task, std::int64_t images) {
    job_.task = task;
    start(transform_lines<T, kReal>, images, problem_.lines, problem_.horizontal, schedule_.row_tile,
          schedule_.rows_in_shared);
  }

  void start(Kernel kernel, std::int64_t images, std::int64_t count, const Transform<T>& transform, std::int64_t tile,
             bool in_shared) {
    job_.tile = tile;
    job_.in_shared = in_shared;
    job_.pitch = schedule_.pitch_of(transform);
    const std::int64_t items = images * ceil_div(count, tile);
    launch(kernel, in_shared ? items : std::min(items, schedule_.kLongBlocks), kTileThreads,
           in_shared ? tile * job_.pitch * schedule_.kPointBytes : 0, stream_, problem_, job_);
  }

  const Schedule<T>& schedule_;
  const Problem<T>& problem_;
  const std::uintptr_t stream_;
  LongJob<T> job_{};
};

template <class T, bool kReal>
void run(const Schedule<T>& schedule, Point<T>* workspace, std::uintptr_t stream) {
  if (schedule.in_shared) {
    run_in_shared<T, kReal>(schedule, workspace, stream);
  } else {
    LongRun<T, kReal>(schedule, workspace, stream).run();
  }
}

template <class T>
void evaluate_on_device(const Arguments<T>& arguments, std::uintptr_t stream) {
  if (arguments.companion.factor || arguments.spectra || arguments.centered) {
    throw std::invalid_argument("companion, spectra and centered: not offered on this device");
  }
  Schedule<T> schedule(arguments, shared_limit());
  schedule.set_tables(tables_of<T>);
  Point<T>* const workspace = static_cast<Point<T>*>(arguments.workspace);
  if (arguments.kind == Kind::convolve) {
    run<T, true>(schedule, workspace, stream);
  } else {
    run<T, false>(schedule, workspace, stream);
  }
}

template <class T>
std::int64_t bytes_of(const Arguments<T>& arguments) {
  const Schedule<T> schedule(arguments, shared_limit());
  return schedule.points * schedule.kPointBytes;
}

}  // namespace

namespace cuda {

std::int64_t workspace_bytes(const Arguments<float>& arguments) { return bytes_of(arguments); }
std::int64_t workspace_bytes(const Arguments<double>& arguments) { return bytes_of(arguments); }
void evaluate(const Arguments<float>& arguments, std::uintptr_t stream) { evaluate_on_device(arguments, stream); }
void evaluate(const Arguments<double>& arguments, std::uintptr_t stream) { evaluate_on_device(arguments, stream); }

}  // namespace cuda

}  // namespace psf_convolve
}  // namespace bitlens
