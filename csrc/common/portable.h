// One spelling for the host compiler, nvcc, and the tests' CUDA-on-CPU header.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#elif defined(BITLENS_CUDA_ON_CPU)
#include "cuda_on_cpu.h"
#endif

// Before a loop whose arrays are to live in registers; a device function of which there shall be one copy.
#if defined(__CUDACC__)
#define BITLENS_UNROLL _Pragma("unroll")
#define BITLENS_OUT_OF_LINE __noinline__
#else
#define BITLENS_UNROLL
#define BITLENS_OUT_OF_LINE __attribute__((noinline))
#endif

#if defined(__CUDACC__)
#define BITLENS_FUNCTION __host__ __device__ static __forceinline__
// The same for functions that take the host's lambdas.
#define BITLENS_HOST_FUNCTION static __forceinline__
// Launch with dynamic shared memory; the caller checks cudaGetLastError().
#define BITLENS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
// The block's dynamic shared memory as an array of a plain type.
#define BITLENS_DYNAMIC_SHARED(type, name)                        \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  type* name = reinterpret_cast<type*>(name##_bytes)
#elif defined(__GNUC__)
// Inlined everywhere and internal, so that a unit compiled for one instruction set leaves no symbol
// that the linker could pick for another.
#define BITLENS_FUNCTION static inline __attribute__((always_inline))
#else
#define BITLENS_FUNCTION static inline
#endif
#if !defined(BITLENS_HOST_FUNCTION)
#define BITLENS_HOST_FUNCTION BITLENS_FUNCTION
#endif

// Namespace of the code that is compiled once per instruction set; a CUDA thread works on single values.
#if defined(__CUDACC__) || defined(BITLENS_CUDA_ON_CPU)
#define BITLENS_ISA scalar
#elif !defined(BITLENS_ISA)
#define BITLENS_ISA baseline
#endif
