// Small kernels, right ones and ones with a planted fault, and the launches that show what the emulator makes of them.
// Usage: faults CASE SEED_COUNT; prints one line for each seed: the values, or "error: " and the message.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <exception>
#include <string>
#include <vector>

#include "portable.h"

namespace {

constexpr int n_threads = 256;

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = warpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xFFFFFFFF, value, offset);
  return value;
}

template <class T, bool with_barrier>
__global__ void __launch_bounds__(n_threads) sum_kernel(const T* __restrict__ values, int n, T* total) {
  BITLENS_DYNAMIC_SHARED(T, partial);
  T own = 0;
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x)) own += values[i];
  own = warp_sum(own);
  if (threadIdx.x % warpSize == 0) partial[threadIdx.x / warpSize] = own;
  if (with_barrier) __syncthreads();
  if (threadIdx.x < warpSize) {
    own = warp_sum(threadIdx.x < blockDim.x / warpSize ? partial[threadIdx.x] : T(0));
    if (threadIdx.x == 0) atomicAdd(total, own);
  }
}

__global__ void static_shared_kernel(float* out) {
  __shared__ float values[n_threads];
  values[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void reused_tile_kernel(float* out, bool with_barrier) {
  BITLENS_DYNAMIC_SHARED(float, tile);
  float sum = 0;
  for (int step = 0; step < 4; ++step) {
    tile[threadIdx.x] = float(step);
    __syncthreads();
    sum += tile[(threadIdx.x + 1) % blockDim.x];
    if (with_barrier) __syncthreads();
  }
  atomicAdd(out, sum);
}

__global__ void early_exit_kernel(float* out) {
  if (threadIdx.x >= 192) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void two_barriers_kernel(float* out) {
  if (threadIdx.x < 64) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void divergent_warp_kernel(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_down_sync(0xFFFFFFFF, 1.0f, 1);
  } else {
    __syncthreads();
  }
}

__global__ void different_warp_operations_kernel(int* out) {
  if (threadIdx.x % 2) {
    out[threadIdx.x] = __any_sync(0xFFFFFFFF, 1);
  } else {
    out[threadIdx.x] = __all_sync(0xFFFFFFFF, 1);
  }
}

__global__ void left_out_kernel() {
  __syncwarp(0x0000FFFF);
}

__global__ void unwritten_kernel(float* out) {
  BITLENS_DYNAMIC_SHARED(float, values);
  if (blockIdx.x == 0) values[threadIdx.x] = 1;
  atomicAdd(out + blockIdx.x, values[threadIdx.x]);
}

__global__ void out_of_bounds_kernel(float* out, int index, bool write) {
  BITLENS_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (write) values[index] = 1;
    out[0] = write ? 0 : values[index];
  }
}

__global__ void atomics_kernel(float* f, double* d, int* i, unsigned* u, unsigned long long* l, int* extremes,
                               int* cas) {
  atomicAdd(f, 1);
  atomicAdd(d, 0.5);
  atomicAdd(i, -2);
  atomicAdd(u, 3);
  atomicAdd(l, 1ull << 32);
  const int number = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicMax(extremes, number);
  atomicMin(extremes + 1, -number);
  int seen = *cas, expected;
  do {
    expected = seen;
    seen = atomicCAS(cas, expected, expected + 1);
  } while (seen != expected);
}

__global__ void shuffle_kernel(float* out) {
  const int lane = int(threadIdx.x) % warpSize;
  const float value = float(threadIdx.x);
  float* row = out + threadIdx.x;
  row[0 * n_threads] = __shfl_sync(0xFFFFFFFF, value, lane + 3);
  row[1 * n_threads] = __shfl_sync(0xFFFFFFFF, value, 5, 8);
  row[2 * n_threads] = __shfl_up_sync(0xFFFFFFFF, value, 3, 16);
  row[3 * n_threads] = __shfl_down_sync(0xFFFFFFFF, value, 3, 16);
  row[4 * n_threads] = __shfl_xor_sync(0xFFFFFFFF, value, 5);
  row[5 * n_threads] = float(__shfl_xor_sync(0xFFFFFFFF, double(value), 16, 16));
}

__global__ void half_warp_kernel(float* out) {
  out[threadIdx.x] = 0;
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_down_sync(0x0000FFFF, float(threadIdx.x), 8);
    out[warpSize + threadIdx.x] = float(__shfl_sync(0x0000FFFF, int(threadIdx.x), 16));
  }
}

__global__ void votes_kernel(unsigned* out) {
  const bool low = threadIdx.x < 4;
  const unsigned votes = __ballot_sync(0xFFFFFFFF, low);
  const int any = __any_sync(0xFFFFFFFF, low), all = __all_sync(0xFFFFFFFF, low);
  const int all_lanes = __all_sync(0xFFFFFFFF, threadIdx.x < 1000);
  if (threadIdx.x % warpSize == 0) {
    out[threadIdx.x / warpSize * 2] = votes;
    out[threadIdx.x / warpSize * 2 + 1] = unsigned(any + 2 * all + 4 * all_lanes);
  }
}

__global__ void neighbour_kernel(float* out, bool with_barrier) {
  BITLENS_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = 1;
  if (with_barrier) __syncwarp();
  atomicAdd(out, values[threadIdx.x ^ 1]);
}

__global__ void indices_kernel(int* count) {
  const unsigned column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
  const unsigned plane = blockIdx.z * blockDim.z + threadIdx.z;
  const unsigned columns = gridDim.x * blockDim.x, rows = gridDim.y * blockDim.y;
  ++count[(plane * rows + row) * columns + column];
}

__global__ void order_kernel(int* order, int* next) {
  order[atomicAdd(next, 1)] = int(blockIdx.x * blockDim.x + threadIdx.x);
}

__global__ void device_functions_kernel(double* out, const float* not_a_number, int* exchanged) {
  *out++ = min(__ldg(not_a_number), 1.0f);
  *out++ = max(2.0f, 3.5);
  *out++ = max(-1, 1u);
  *out++ = __popc(7) + 10 * __clz(1) + 1000 * __ffs(8);
  *out++ = __float_as_int(1.0f);
  *out++ = __uint_as_float(__float_as_uint(0.1f)) == 0.1f && __int_as_float(1 << 30) == 2.0f;
  *out++ = __longlong_as_double(__double_as_longlong(0.1));
  const float4 four = make_float4(1, 2, 3, 4);
  const double2 two = make_double2(0.5, 0.25);
  *out++ = double(four.x + four.y * four.z * four.w) + two.x + two.y;
  *out++ = fma(2.0, 3.0, 4.0) + double(__logf(__expf(1.0f)) + __sinf(0.0f) + __cosf(0.0f));
  *out++ = atomicExch(exchanged, 5);
}

__global__ void many_barriers_kernel(float* out) {
  for (int i = 0; i < 16; ++i) __syncthreads();
  atomicAdd(out, 1);
}

__global__ void nothing_kernel() {}

using Values = std::vector<double>;

template <class T>
Values widen(const std::vector<T>& values) {
  return Values(values.begin(), values.end());
}

template <class T, bool with_barrier>
Values sum() {
  std::vector<T> values(5000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = T(i % 7);
  T total = 0;
  BITLENS_LAUNCH((sum_kernel<T, with_barrier>), 3, n_threads, n_threads / warpSize * sizeof(T), nullptr, values.data(),
                 int(values.size()), &total);
  return {double(total)};
}

Values configuration(dim3 grid, dim3 block, size_t shared_bytes) {
  const cudaStream_t stream = nullptr;
  BITLENS_LAUNCH(nothing_kernel, grid, block, shared_bytes, stream);
  return {};
}

double seconds(clock_t since) { return double(clock() - since) / CLOCKS_PER_SEC; }

Values run(const std::string& name) {
  std::vector<float> out(6 * n_threads, 0.0f);
  if (name == "sum_float") return sum<float, true>();
  if (name == "sum_double") return sum<double, true>();
  if (name == "sum_without_barrier") return sum<float, false>();
  if (name == "sum_after_failure") {
    try {
      BITLENS_LAUNCH(two_barriers_kernel, 1, n_threads, 0, nullptr, out.data());
    } catch (const std::exception&) {
      return sum<float, true>();
    }
    return {};
  }
  if (name == "static_shared") {
    BITLENS_LAUNCH(static_shared_kernel, 2, n_threads, 0, nullptr, out.data());
    return Values(out.begin(), out.begin() + n_threads);
  }
  if (name == "reused_tile" || name == "reused_tile_without_barrier") {
    BITLENS_LAUNCH(reused_tile_kernel, 1, n_threads, n_threads * sizeof(float), nullptr, out.data(),
                   name == "reused_tile");
    return {out[0]};
  }
  if (name == "early_exit") BITLENS_LAUNCH(early_exit_kernel, 2, n_threads, 0, nullptr, out.data());
  if (name == "two_barriers") BITLENS_LAUNCH(two_barriers_kernel, 2, n_threads, 0, nullptr, out.data());
  if (name == "divergent_warp") BITLENS_LAUNCH(divergent_warp_kernel, 1, 64, 0, nullptr, out.data());
  if (name == "left_out") BITLENS_LAUNCH(left_out_kernel, 1, 32, 0, nullptr);
  if (name == "different_warp_operations") {
    std::vector<int> result(32);
    BITLENS_LAUNCH(different_warp_operations_kernel, 1, 32, 0, nullptr, result.data());
    return widen(result);
  }
  if (name == "unwritten") {
    BITLENS_LAUNCH(unwritten_kernel, 2, n_threads, n_threads * sizeof(float), nullptr, out.data());
    return {out[0], out[1]};
  }
  if (name == "out_of_bounds_write" || name == "out_of_bounds_read" || name == "within_bounds") {
    BITLENS_LAUNCH(out_of_bounds_kernel, 1, 64, 64 * sizeof(float), nullptr, out.data(),
                   name == "within_bounds" ? 63 : 64, name == "out_of_bounds_write");
    return {out[0]};
  }
  if (name == "atomics") {
    float f = 0;
    double d = 0;
    int i = 0, extremes[2] = {}, cas = 0;
    unsigned u = 0;
    unsigned long long l = 0;
    BITLENS_LAUNCH(atomics_kernel, 10, 100, 0, nullptr, &f, &d, &i, &u, &l, extremes, &cas);
    return {f, d, double(i), double(u), double(l), double(extremes[0]), double(extremes[1]), double(cas)};
  }
  if (name == "shuffles") {
    BITLENS_LAUNCH(shuffle_kernel, 1, n_threads, 0, nullptr, out.data());
    return widen(out);
  }
  if (name == "partial_warp_shuffles") {
    BITLENS_LAUNCH(shuffle_kernel, 1, 40, 0, nullptr, out.data());
    return widen(out);
  }
  if (name == "half_warp") {
    BITLENS_LAUNCH(half_warp_kernel, 1, 32, 0, nullptr, out.data());
    return Values(out.begin(), out.begin() + 48);
  }
  if (name == "votes") {
    std::vector<unsigned> votes(4);
    BITLENS_LAUNCH(votes_kernel, 1, 40, 0, nullptr, votes.data());
    return widen(votes);
  }
  if (name == "neighbour" || name == "neighbour_without_barrier") {
    BITLENS_LAUNCH(neighbour_kernel, 1, 64, 64 * sizeof(float), nullptr, out.data(), name == "neighbour");
    return {out[0]};
  }
  if (name == "indices") {
    std::vector<int> count(6 * 12 * 2);
    BITLENS_LAUNCH(indices_kernel, dim3(2, 3, 1), dim3(3, 4, 2), 0, nullptr, count.data());
    return widen(count);
  }
  if (name == "order") {
    std::vector<int> order(5 * 40);
    int next = 0;
    BITLENS_LAUNCH(order_kernel, 5, 40, 0, nullptr, order.data(), &next);
    return widen(order);
  }
  if (name == "device_functions") {
    Values values(10);
    const float not_a_number = NAN;
    int exchanged = 4;
    BITLENS_LAUNCH(device_functions_kernel, 1, 1, 0, nullptr, values.data(), &not_a_number, &exchanged);
    values.push_back(exchanged);
    return values;
  }
  if (name == "zero_grid") return configuration(0, 32, 0);
  if (name == "zero_block") return configuration(1, dim3(32, 0), 0);
  if (name == "large_block") return configuration(1, 1025, 0);
  if (name == "large_block_product") return configuration(1, dim3(32, 33), 0);
  if (name == "deep_block") return configuration(1, dim3(1, 1, 65), 0);
  if (name == "largest_block") return configuration(1, dim3(32, 32), 48 << 10);
  if (name == "large_shared") {
    cudaFuncSetAttribute(nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 256 << 10);
    return configuration(1, 32, (227 << 10) + 1);
  }
  if (name == "shared_not_allowed") return configuration(1, 32, (48 << 10) + 1);
  if (name == "shared_allowed") {
    cudaFuncSetAttribute(nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 << 10);
    return configuration(1, 32, 227 << 10);
  }
  if (name == "seconds") {
    const clock_t begin = clock();
    BITLENS_LAUNCH(order_kernel, 400, n_threads, 0, nullptr, std::vector<int>(400 * n_threads).data(),
                   std::vector<int>(1).data());
    const double without_barriers = seconds(begin);
    BITLENS_LAUNCH(many_barriers_kernel, 40, n_threads, 0, nullptr, out.data());
    return {without_barriers, seconds(begin) - without_barriers};
  }
  return {};
}

}  // namespace

int main(int, char** arguments) {
  for (int seed = 0; seed < std::stoi(arguments[2]); ++seed) {
    cuda_on_cpu::set_seed(uint64_t(seed));
    try {
      for (const double value : run(arguments[1])) std::printf("%.17g ", value);
      std::printf("%s\n", cudaGetErrorString(cudaGetLastError()));
    } catch (const std::exception& exception) {
      std::printf("error: %s\n", exception.what());
    }
  }
}
