// What the kernels of csrc/cuda see of CUDA when they are compiled for the CPU. First on the include path there; the
// kernels need no line of their own for it. A function that is missing is one that no kernel has used so far: add it.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emulator.h"

// --- the language ----------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__ static
#define __shared__ static  // blocks run one after another
#define __align__(bytes) alignas(bytes)

constexpr int warpSize = emulator::kWarp;

using uint3 = emulator::Dim3;
struct dim3 : emulator::Dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : emulator::Dim3{x, y, z} {}
};

#define EMULATOR_VECTOR(T, name)                                                     \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                 \
  struct name##3 { T x, y, z; };                                                     \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }                      \
  constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }              \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTOR(float, float)
EMULATOR_VECTOR(double, double)
EMULATOR_VECTOR(int, int)
EMULATOR_VECTOR(short, short)
EMULATOR_VECTOR(unsigned short, ushort)
EMULATOR_VECTOR(long long, longlong)
#undef EMULATOR_VECTOR
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// --- barriers, shuffles, votes ---------------------------------------------------------------------------------------

// Every function that threads meet in takes the place where it was called.
#define EMULATOR_SITE emulator::Site site = emulator::Site::current()

inline void __syncthreads(EMULATOR_SITE) { emulator::barrier(site); }
inline int __syncthreads_count(int flag, EMULATOR_SITE) { return int(emulator::barrier_count(flag, site)); }
inline int __syncthreads_or(int flag, EMULATOR_SITE) { return emulator::barrier_count(flag, site) > 0; }
inline int __syncthreads_and(int flag, EMULATOR_SITE) {
  return emulator::barrier_count(flag, site) == blockDim.x * blockDim.y * blockDim.z;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) { emulator::warp_barrier(mask, site); }

namespace emulator {

template <typename T>
T exchange_value(unsigned mask, T value, unsigned source, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t), "shuffles move 1 to 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, site);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulator

// A lane whose source is outside of its group of `width` lanes keeps its own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, EMULATOR_SITE) {
  const unsigned lane = emulator::lane();
  return emulator::exchange_value(mask, value, lane / width * width + unsigned(source) % width, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_SITE) {
  const unsigned lane = emulator::lane();
  return emulator::exchange_value(mask, value, lane % width < delta ? lane : lane - delta, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_SITE) {
  const unsigned lane = emulator::lane();
  return emulator::exchange_value(mask, value, lane % width + delta < unsigned(width) ? lane + delta : lane, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize, EMULATOR_SITE) {
  const unsigned lane = emulator::lane(), source = lane ^ unsigned(lanes);
  return emulator::exchange_value(mask, value, source / width <= lane / width ? source : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, int flag, EMULATOR_SITE) { return emulator::ballot(mask, flag, site); }
inline int __any_sync(unsigned mask, int flag, EMULATOR_SITE) { return emulator::ballot(mask, flag, site) != 0; }
inline int __all_sync(unsigned mask, int flag, EMULATOR_SITE) { return emulator::ballot(mask, flag, site) == mask; }
#undef EMULATOR_SITE

inline void __threadfence() {}
inline void __threadfence_block() {}

// --- memory ----------------------------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}
template <typename T>
void __stcg(T* p, T value) {
  *p = value;
}

// Blocks and threads take turns, so these only have to look atomic to ThreadSanitizer.
namespace emulator {

template <typename T, typename Update>
T update(T* p, const Update& f) {
  T old;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  for (;;) {
    T next = f(old);
    if (__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return old;
  }
}

}  // namespace emulator

template <typename T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  return emulator::update(p, [=](T old) { return T(old + value); });
}
template <typename T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  return emulator::update(p, [=](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T* p, std::type_identity_t<T> value) {
  return emulator::update(p, [=](T old) { return std::min(old, value); });
}
template <typename T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return emulator::update(p, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return emulator::update(p, [=](T old) { return old == expected ? value : old; });
}

// --- arithmetic ------------------------------------------------------------------------------------------------------

using std::isfinite;
using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }

// --- the runtime -----------------------------------------------------------------------------------------------------

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                     ? "no error"
         : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                  : "invalid argument";
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlock,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxThreadsPerMultiProcessor,
};

struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace emulator {

inline cudaError_t last_error = cudaSuccess;

inline cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

/// Dynamic shared memory that kernels have asked for with cudaFuncSetAttribute; others may have 48 KiB.
inline std::map<const void*, size_t> shared_limits;

inline size_t shared_limit(const void* kernel) {
  const auto asked = shared_limits.find(kernel);
  return asked == shared_limits.end() ? kSharedBytes : asked->second;
}

inline bool fits(const cudaLaunchConfig_t& config, size_t shared_bytes) {
  const dim3 &g = config.gridDim, &b = config.blockDim;
  const uint64_t threads = uint64_t(b.x) * b.y * b.z;
  return g.x > 0 && g.y > 0 && g.z > 0 && g.x <= 0x7fffffffu && g.y <= 65535 && g.z <= 65535 && threads > 0 &&
         threads <= kMaxThreads && b.z <= 64 && config.dynamicSmemBytes <= shared_bytes;
}

}  // namespace emulator

inline cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error, cudaSuccess); }
inline cudaError_t cudaPeekAtLastError() { return emulator::last_error; }

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || size_t(value) > emulator::most_shared_bytes()) return emulator::report(cudaErrorInvalidValue);
  emulator::shared_limits[reinterpret_cast<const void*>(kernel)] = size_t(value);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (!emulator::fits(*config, emulator::shared_limit(reinterpret_cast<const void*>(kernel)))) {
    return emulator::report(cudaErrorInvalidConfiguration);
  }
  if (emulator::dry()) return cudaSuccess;
  // Copied here, as a launch does.
  const auto call = [kernel, copies = std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)] {
    std::apply(kernel, copies);
  };
  const auto run = [](const void* closure) { (*static_cast<const decltype(call)*>(closure))(); };
  emulator::run(config->gridDim, config->blockDim, config->dynamicSmemBytes, run, &call);
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  if (!emulator::dry()) std::memset(target, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = emulator::kMultiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = int(emulator::kSharedBytes);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = int(emulator::most_shared_bytes());
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = int(emulator::most_shared_bytes() + (1 << 10));
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
  }
  return cudaSuccess;
}
