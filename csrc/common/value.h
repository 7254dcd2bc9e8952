// The elementary functions on the value type of this unit: a pack on a CPU, one number in a CUDA thread.
#pragma once

#include "portable.h"

#if defined(__CUDACC__) || defined(BITLENS_CUDA_ON_CPU)
#include "scalar_math.h"
#else
#include "simd.h"
#include "simd_float.h"
#include "interleaved.h"
#endif
