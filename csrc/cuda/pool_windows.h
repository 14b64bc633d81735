// What pool and pool_grad agree on about a window.
#pragma once

#include <cstdint>

#include "cuda/device.h"

namespace fastnas::cuda {
namespace {

/// As torch: the first of equals stays, and any NaN takes over.
template <typename A>
__device__ __forceinline__ bool replaces(A value, A maximum) {
  return value > maximum || value != value;
}

/// Pixels of a window along a side, around `centre`.
__device__ __forceinline__ int reach(int64_t centre, int64_t size) { return 1 + (centre > 0) + (centre + 1 < size); }

}  // namespace
}  // namespace fastnas::cuda
