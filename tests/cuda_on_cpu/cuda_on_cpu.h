// CUDA's launch semantics on the CPU, for tests: each thread of a block is a fibre, and blocks run one after another.
// A fibre runs until it waits, exits or fails, so these faults stay hidden: a read-modify-write without an atomic,
// and a spin on another thread's store (which hangs). Fused operations and speed are not modelled; mma.h has what
// there is of tensor cores.
#pragma once

#include <math.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// swapcontext makes a system call per switch, which makes a barrier cost ten times as much.
#if !defined(__x86_64__) && !defined(CUDA_ON_CPU_UCONTEXT)
#define CUDA_ON_CPU_UCONTEXT
#endif
#if defined(CUDA_ON_CPU_UCONTEXT)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// One copy for all blocks, so a block sees what the one before it left; dynamic shared memory is filled with NaN.
#define __shared__ static

#define BITLENS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::cuda_on_cpu::launch(kernel, {#kernel, __FILE__, __LINE__, (grid), (block), size_t(shared_bytes)}, (stream))( \
      __VA_ARGS__)
#define BITLENS_DYNAMIC_SHARED(type, name) type* name = ::cuda_on_cpu::dynamic_shared<type>()

struct CUstream_st;
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

constexpr size_t stack_bytes = 256 << 10, stack_guard_bytes = 64 << 10;
constexpr size_t largest_shared_bytes = 227 << 10, default_shared_bytes = 48 << 10;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t shared_guard_bytes = 0;  // the sanitizer's own red zone has to follow the array at once
#else
constexpr size_t shared_guard_bytes = 4096;
#endif

#if defined(CUDA_ON_CPU_UCONTEXT)
using Context = ucontext_t;
inline void swap_context(Context& from, Context& to) { swapcontext(&from, &to); }
inline void make_context(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = stack_bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#else
using Context = void**;
// noipa: the callers may not assume that registers survive which the other fibre uses.
__attribute__((naked, noipa)) inline void swap_context(Context&, Context&) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi);"
      "movq (%rsi), %rsp; popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
inline void make_context(Context& context, char* stack, void (*entry)()) {
  // Six registers, the entry and no return address; the stack is then aligned as after a call.
  context = reinterpret_cast<void**>(stack + stack_bytes) - 8;
  std::memset(context, 0, 8 * sizeof(void*));
  context[6] = reinterpret_cast<void*>(entry);
}
#endif

struct Fibre {
  Context context;
  char* stack;
  bool fresh;
};

// Where a thread waits. The line tells two barriers apart; two barriers on one line, or two calls of one function
// that holds a barrier, look the same.
struct Site {
  std::string_view operation, file;
  int line = 0;
  unsigned mask = 0;  // of a warp operation
  auto key() const { return std::tie(operation, file, line, mask); }
  std::string text() const {
    char hexadecimal[24] = "";
    if (mask) snprintf(hexadecimal, sizeof hexadecimal, " with mask 0x%08x", mask);
    return std::string(operation) + hexadecimal + " at " + std::string(file) + ":" + std::to_string(line);
  }
};

enum class Status { ready, at_barrier, at_warp_operation, exited };

struct Thread {
  uint3 index{};
  unsigned number = 0;  // in the block, x fastest
  Status status = Status::ready;
  Fibre* fibre = nullptr;  // none before the thread starts
  Site site{};
  uint64_t given = 0, received = 0;
  unsigned source = 0, ballot = 0;
};

struct Warp {
  unsigned waiting = 0, exited = 0;
};

struct Configuration {
  const char* kernel;
  const char* file;
  int line;
  dim3 grid, block;
  size_t shared_bytes;
};

template <class Extent>
std::string text(const Extent& e) {
  return "(" + std::to_string(e.x) + ", " + std::to_string(e.y) + ", " + std::to_string(e.z) + ")";
}

class Emulator {
 public:
  static Emulator& instance() {
    static Emulator emulator;
    return emulator;
  }

  void set_seed(uint64_t seed) {
    std::lock_guard<std::mutex> lock(mutex_);
    seed_ = random_ = seed;
  }

  void allow_shared_bytes(const void* kernel, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    allowed_shared_bytes_[kernel] = bytes;
  }

  void* shared() { return shared_.data(); }

  void run(const Configuration& configuration, const void* kernel, std::function<void()> body) {
    // Static shared arrays and threadIdx exist once, so launches of several host threads take turns.
    std::lock_guard<std::mutex> lock(mutex_);
    configuration_ = configuration;
    blockIdx = {};
    check_configuration(kernel);
    body_ = std::move(body);
    failure_ = nullptr;
    gridDim = configuration.grid;
    blockDim = configuration.block;
    const size_t shared_bytes = configuration.shared_bytes;
    shared_ = std::vector<unsigned char>(shared_bytes + shared_guard_bytes);  // no spare capacity
    // A failed launch leaves fibres in the middle of a kernel, so every launch starts them afresh.
    idle_.clear();
    for (auto& fibre : fibres_) {
      fibre->fresh = true;
      idle_.push_back(fibre.get());
    }
    std::vector<uint32_t> blocks(size_t(gridDim.x) * gridDim.y * gridDim.z);
    for (size_t i = 0; i < blocks.size(); ++i) {  // shuffles while it fills
      const size_t j = below(i + 1);
      blocks[i] = blocks[j];
      blocks[j] = uint32_t(i);
    }
    for (const uint32_t block : blocks) {
      blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
      std::fill(shared_.begin(), shared_.end(), 0xFF);
      run_block();
      for (size_t i = shared_bytes; i < shared_.size(); ++i)
        if (shared_[i] != 0xFF)
          throw error("wrote past its " + std::to_string(shared_bytes) + " bytes of dynamic shared memory, at byte " +
                      std::to_string(i));
    }
  }

  // Called by a thread: all of the block meet here.
  void barrier(const Site& site) {
    current_->status = Status::at_barrier;
    current_->site = site;
    leave(*current_->fibre);
  }

  // Called by a thread: the lanes of the mask meet here; returns the bits given by the source lane, all ones where
  // that lane takes no part, and the lanes that gave other bits than zero.
  std::pair<uint64_t, unsigned> exchange(uint64_t given, unsigned source, const Site& site) {
    Thread& self = *current_;
    const unsigned bit = 1u << self.number % warpSize;
    if (!(site.mask & bit)) fail("lane " + std::to_string(lane()) + " calls " + site.text() + ", which leaves it out");
    self.status = Status::at_warp_operation;
    self.site = site;
    self.given = given;
    self.source = source;
    warps_[self.number / warpSize].waiting |= bit;
    complete(self.number / warpSize, site.mask);
    leave(*self.fibre);
    return {self.received, self.ballot};
  }

  unsigned lane() const { return current_->number % warpSize; }

 private:
  // The launch ends when the thread leaves its fibre. Nothing is thrown through the kernel, which may be noexcept.
  void fail(const std::string& message) { failure_ = std::make_exception_ptr(error(message)); }

  std::runtime_error error(const std::string& message) const {
    return std::runtime_error("kernel " + std::string(configuration_.kernel) + ", launched at " + configuration_.file +
                              ":" + std::to_string(configuration_.line) + ", block " +
                              text(blockIdx) + ", seed " + std::to_string(seed_) + ": " +
                              message);
  }

  void check_configuration(const void* kernel) const {
    const dim3 &grid = configuration_.grid, &block = configuration_.block;
    const size_t bytes = configuration_.shared_bytes;
    const auto allowed = allowed_shared_bytes_.find(kernel);
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535 ||
        uint64_t(grid.x) * grid.y > UINT32_MAX / grid.z)
      throw error("invalid configuration: grid " + text(grid));
    if (!block.x || !block.y || !block.z || block.x > 1024 || block.y > 1024 || block.z > 64 ||
        block.x * block.y * block.z > 1024)
      throw error("invalid configuration: block " + text(block));
    if (bytes > largest_shared_bytes)
      throw error("invalid configuration: " + std::to_string(bytes) + " bytes of dynamic shared memory");
    if (bytes > (allowed == allowed_shared_bytes_.end() ? default_shared_bytes : allowed->second))
      throw error("invalid configuration: " + std::to_string(bytes) +
                  " bytes of dynamic shared memory, more than cudaFuncSetAttribute allowed");
  }

  // splitmix64 (Steele, Lea and Flood, 2014).
  size_t below(size_t bound) {
    uint64_t z = (random_ += 0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return size_t(((z ^ (z >> 31)) >> 32) * bound >> 32);
  }

  void run_block() {
    const unsigned count = blockDim.x * blockDim.y * blockDim.z;
    threads_.assign(count, Thread{});
    warps_.assign((count + warpSize - 1) / warpSize, Warp{});
    if (count % warpSize) warps_.back().exited = ~0u << count % warpSize;
    ready_.clear();
    for (unsigned i = 0; i < count; ++i) {
      threads_[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
      threads_[i].number = i;
      ready_.push_back(&threads_[i]);
    }
    for (;;) {
      while (!ready_.empty()) {
        const size_t chosen = below(ready_.size());
        Fibre* fibre = ready_[chosen]->fibre;
        start(chosen, fibre ? fibre : idle_fibre());
        enter(*current_->fibre);
        if (failure_) std::rethrow_exception(failure_);
      }
      unsigned at_barrier = 0, exited = 0;
      bool same_site = true;
      for (const Thread& thread : threads_) {
        exited += thread.status == Status::exited;
        at_barrier += thread.status == Status::at_barrier;
        same_site &= thread.site.key() == threads_[0].site.key();
      }
      if (exited == count) return;
      if (at_barrier < count || !same_site) throw error(stuck(exited));
      for (Thread& thread : threads_) make_ready(thread);
    }
  }

  std::string stuck(unsigned exited) const {
    std::map<std::string, unsigned> waiting;
    for (const Thread& thread : threads_)
      if (thread.status != Status::exited) ++waiting[thread.site.text()];
    std::string message = "its " + std::to_string(threads_.size()) + " threads are stuck:";
    for (const auto& [site, count] : waiting) message += " " + std::to_string(count) + " wait in " + site + ",";
    return message + " " + std::to_string(exited) + " have exited";
  }

  void make_ready(Thread& thread) {
    thread.status = Status::ready;
    ready_.push_back(&thread);
  }

  // Lanes that have exited no longer take part, as CUDA documents for the warp operations.
  void complete(unsigned warp_number, unsigned mask) {
    Warp& warp = warps_[warp_number];
    Thread* lanes = &threads_[warp_number * warpSize];
    const unsigned active = mask & ~warp.exited;
    if (!active || (warp.waiting & active) != active) return;
    const Site& site = lanes[__builtin_ctz(active)].site;
    unsigned ballot = 0;
    for (unsigned left = active; left; left &= left - 1)
      if (lanes[__builtin_ctz(left)].site.mask != mask) return;
    for (unsigned left = active; left; left &= left - 1) {
      const Thread& thread = lanes[__builtin_ctz(left)];
      if (thread.site.key() != site.key())
        return fail("lanes of one warp meet in " + site.text() + " and in " + thread.site.text());
      ballot |= unsigned(thread.given != 0) << __builtin_ctz(left);
    }
    for (unsigned left = active; left; left &= left - 1) {
      Thread& thread = lanes[__builtin_ctz(left)];
      thread.received = active >> thread.source & 1 ? lanes[thread.source].given : ~uint64_t(0);
      thread.ballot = ballot;
      make_ready(thread);
    }
    warp.waiting &= ~active;
  }

  void start(size_t chosen, Fibre* fibre) {
    current_ = ready_[chosen];
    ready_[chosen] = ready_.back();
    ready_.pop_back();
    current_->fibre = fibre;
    threadIdx = current_->index;
  }

  void exit_thread() {
    Thread& self = *current_;
    Warp& warp = warps_[self.number / warpSize];
    self.status = Status::exited;
    warp.exited |= 1u << self.number % warpSize;
    for (unsigned left = warp.waiting; left; left &= left - 1) {
      const Thread& thread = threads_[self.number / warpSize * warpSize + __builtin_ctz(left)];
      if (thread.status == Status::at_warp_operation) complete(self.number / warpSize, thread.site.mask);
    }
  }

  static void fibre_entry() {
    Emulator& emulator = instance();
    emulator.arrived_in_fibre(nullptr);
    for (;;) {
      Fibre* fibre = emulator.current_->fibre;
      // A thread that never waits costs no switch: the next one takes over its fibre.
      for (;;) {
        try {
          emulator.body_();
        } catch (...) {
          emulator.failure_ = std::current_exception();
          break;
        }
        emulator.exit_thread();
        if (emulator.failure_ || emulator.ready_.empty()) break;
        const size_t chosen = emulator.below(emulator.ready_.size());
        if (emulator.ready_[chosen]->fibre) break;
        emulator.start(chosen, fibre);
      }
      emulator.idle_.push_back(fibre);
      emulator.leave(*fibre);
    }
  }

  Fibre* idle_fibre() {
    if (idle_.empty()) {
      // Stacks are kept until the process ends; a guard page turns an overflow into a crash at its cause.
      void* memory = mmap(nullptr, stack_guard_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      mprotect(memory, stack_guard_bytes, PROT_NONE);
      fibres_.push_back(std::make_unique<Fibre>());
      fibres_.back()->stack = static_cast<char*>(memory) + stack_guard_bytes;
      fibres_.back()->fresh = true;
      idle_.push_back(fibres_.back().get());
    }
    Fibre* fibre = idle_.back();
    idle_.pop_back();
    if (fibre->fresh) {
#if defined(__SANITIZE_ADDRESS__)
      ASAN_UNPOISON_MEMORY_REGION(fibre->stack, stack_bytes);  // frames that a failed launch abandoned
#endif
      make_context(fibre->context, fibre->stack, fibre_entry);
      fibre->fresh = false;
    }
    return fibre;
  }

#if defined(__SANITIZE_ADDRESS__)
  void enter(Fibre& fibre) {
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fibre.stack, stack_bytes);
    swap_context(launcher_, fibre.context);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
  }
  void leave(Fibre& fibre) {
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, launcher_stack_, launcher_stack_bytes_);
    swap_context(fibre.context, launcher_);
    arrived_in_fibre(fake_stack);
  }
  void arrived_in_fibre(void* fake_stack) {
    __sanitizer_finish_switch_fiber(fake_stack, &launcher_stack_, &launcher_stack_bytes_);
  }
  const void* launcher_stack_ = nullptr;
  size_t launcher_stack_bytes_ = 0;
#else
  void enter(Fibre& fibre) { swap_context(launcher_, fibre.context); }
  void leave(Fibre& fibre) { swap_context(fibre.context, launcher_); }
  void arrived_in_fibre(void*) {}
#endif

  std::mutex mutex_;
  uint64_t seed_ = 0, random_ = 0;
  Configuration configuration_{};
  std::map<const void*, size_t> allowed_shared_bytes_;
  std::function<void()> body_;
  std::vector<unsigned char> shared_;
  std::exception_ptr failure_;
  std::vector<std::unique_ptr<Fibre>> fibres_;
  std::vector<Fibre*> idle_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Thread*> ready_;
  Thread* current_ = nullptr;
  Context launcher_{};
};

// The order of blocks and threads in the launches that follow, of all threads of the host.
inline void set_seed(uint64_t seed) { Emulator::instance().set_seed(seed); }

template <class T>
T* dynamic_shared() {
  static_assert(alignof(T) <= 16 && std::is_trivially_copyable_v<T>, "shared memory holds plain types");
  return static_cast<T*>(Emulator::instance().shared());
}

template <class... Parameters>
struct Launch {
  void (*kernel)(Parameters...);
  Configuration configuration;
  void operator()(Parameters... parameters) const {
    static_assert((std::is_trivially_copyable_v<Parameters> && ...), "a kernel takes plain values");
    Emulator::instance().run(configuration, reinterpret_cast<const void*>(kernel), [&] { kernel(parameters...); });
  }
};

template <class... Parameters>
Launch<Parameters...> launch(void (*kernel)(Parameters...), const Configuration& configuration, CUstream_st*) {
  return {kernel, configuration};
}

}  // namespace cuda_on_cpu

// The part of the runtime that the launching code uses. Errors throw, so there is never one to fetch.
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1 };
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = int(cuda_on_cpu::largest_shared_bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = ::operator new(bytes, std::align_val_t(256));
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  cuda_on_cpu::Emulator::instance().allow_shared_bytes(reinterpret_cast<const void*>(kernel), size_t(bytes));
  return cudaSuccess;
}

// Every operation at which threads meet takes its caller's place in the source.
#define CUDA_ON_CPU_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_ON_CPU_PLACE) {
  cuda_on_cpu::Emulator::instance().barrier({"__syncthreads", file, line});
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFF, CUDA_ON_CPU_PLACE) {
  cuda_on_cpu::Emulator::instance().exchange(0, 0, {"__syncwarp", file, line, mask});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::Emulator::instance().exchange(predicate != 0, 0, {"__ballot_sync", file, line, mask}).second;
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::Emulator::instance().exchange(predicate != 0, 0, {"__any_sync", file, line, mask}).second != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::Emulator::instance().exchange(predicate == 0, 0, {"__all_sync", file, line, mask}).second == 0;
}

namespace cuda_on_cpu {

// A source outside of the lane's segment of `width` lanes is replaced by the lane itself.
template <class T>
T shuffle(T value, int source, bool inside, const Site& site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a shuffle moves 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  Emulator& emulator = Emulator::instance();
  bits = emulator.exchange(bits, inside ? unsigned(source) : emulator.lane(), site).first;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
inline int lane() { return int(Emulator::instance().lane()); }

}  // namespace cuda_on_cpu

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, CUDA_ON_CPU_PLACE) {
  const int first = cuda_on_cpu::lane() & -width;
  return cuda_on_cpu::shuffle(value, first + (source & (width - 1)), true, {"__shfl_sync", file, line, mask});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_ON_CPU_PLACE) {
  const int lane = cuda_on_cpu::lane(), source = lane - int(delta & 31);
  return cuda_on_cpu::shuffle(value, source, source >= (lane & -width), {"__shfl_up_sync", file, line, mask});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_ON_CPU_PLACE) {
  const int lane = cuda_on_cpu::lane(), source = lane + int(delta & 31);
  return cuda_on_cpu::shuffle(value, source, source <= (lane | (width - 1)), {"__shfl_down_sync", file, line, mask});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, CUDA_ON_CPU_PLACE) {
  // As on the device, the segments before this one can be read and those after it cannot.
  const int lane = cuda_on_cpu::lane(), source = lane ^ (lane_mask & 31);
  return cuda_on_cpu::shuffle(value, source, source <= (lane | (width - 1)), {"__shfl_xor_sync", file, line, mask});
}

// One fibre runs at a time, so plain operations are atomic. The value's type follows the address's, as in CUDA.
template <class T>
using CudaOnCpuValue = std::enable_if_t<
    std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long> ||
        std::is_same_v<T, float> || std::is_same_v<T, double>,
    T>;
template <class T>
using CudaOnCpuInteger = std::enable_if_t<std::is_integral_v<T>, CudaOnCpuValue<T>>;
#define CUDA_ON_CPU_ATOMIC(name, value_type, expression)  \
  template <class T>                                      \
  T name(T* address, value_type<T> value) {               \
    const T old = *address;                               \
    *address = T(expression);                             \
    return old;                                           \
  }
CUDA_ON_CPU_ATOMIC(atomicAdd, CudaOnCpuValue, old + value)
CUDA_ON_CPU_ATOMIC(atomicExch, CudaOnCpuValue, value)
CUDA_ON_CPU_ATOMIC(atomicMin, CudaOnCpuInteger, value < old ? value : old)
CUDA_ON_CPU_ATOMIC(atomicMax, CudaOnCpuInteger, value > old ? value : old)
template <class T>
T atomicCAS(T* address, CudaOnCpuInteger<T> compare, CudaOnCpuInteger<T> value) {
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* address) {
  return *address;
}

// As in CUDA, min and max of floating-point values pass over a NaN.
template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  static_assert(std::is_floating_point_v<A> == std::is_floating_point_v<B>, "ambiguous in CUDA");
  if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  static_assert(std::is_floating_point_v<A> == std::is_floating_point_v<B>, "ambiguous in CUDA");
  if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}

// Macros, because the C library keeps the names for itself.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
#define CUDA_ON_CPU_BIT_CAST(name, to, from)              \
  inline to name(from value) {                            \
    static_assert(sizeof(to) == sizeof(from));            \
    to result;                                            \
    std::memcpy(&result, &value, sizeof result);          \
    return result;                                        \
  }
CUDA_ON_CPU_BIT_CAST(__float_as_int, int, float)
CUDA_ON_CPU_BIT_CAST(__int_as_float, float, int)
CUDA_ON_CPU_BIT_CAST(__float_as_uint, unsigned, float)
CUDA_ON_CPU_BIT_CAST(__uint_as_float, float, unsigned)
CUDA_ON_CPU_BIT_CAST(__double_as_longlong, long long, double)
CUDA_ON_CPU_BIT_CAST(__longlong_as_double, double, long long)

#define CUDA_ON_CPU_VECTORS(scalar, name)                                                        \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };                                   \
  struct alignas(16) name##4 { scalar x, y, z, w; };                                             \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                           \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
CUDA_ON_CPU_VECTORS(float, float)
CUDA_ON_CPU_VECTORS(double, double)
CUDA_ON_CPU_VECTORS(int, int)
