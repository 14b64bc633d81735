// What every CUDA kernel file may include: the runtime, the launch, vectors and block-wide sums. Nothing of torch but
// its header-only scalar types, nothing of one operator. Kernels use full warps only, and no thread leaves before a
// barrier.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastnas::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr size_t kDefaultSharedBytes = 48 << 10;  // of a block; more must be asked for
constexpr int64_t kMaxBlocks = 1 << 20;           // in x; grids stride, so any size fits
constexpr int64_t kMaxBlocksBeside = 65535;       // in y and z

inline __host__ __device__ int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Blocks along a side of a grid whose blocks stride over `count` pieces of work.
inline unsigned blocks_of(int64_t count, int64_t most = kMaxBlocks) {
  return static_cast<unsigned>(count < 1 ? 1 : count < most ? count : most);
}

/// Of the current device.
inline int64_t device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
  if (error != cudaSuccess) {
    cudaGetLastError();  // clears the error, which is reported here
    throw std::runtime_error(std::string("fastnas: the GPU does not say what it allows: ") + cudaGetErrorString(error));
  }
  return value;
}

/// Called with the name of every kernel that is launched, where set: tests see what has run, benchmarks count.
inline void (*launch_observer)(const char* name) = nullptr;

/// Launches `kernel`, with more than the usual 48 KiB of dynamic shared memory where asked for. Throws
/// std::runtime_error, naming the kernel and the grid, where the launch is refused.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Arguments&&... arguments) {
  if (launch_observer) launch_observer(name);
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kDefaultSharedBytes) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    // Not <<<>>>: this also compiles for the CPU (tests/cuda_emulation).
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();  // clears the error, which is reported here
    throw std::runtime_error(std::string("fastnas: launch of ") + name + " with grid (" + std::to_string(grid.x) +
                             ", " + std::to_string(grid.y) + ", " + std::to_string(grid.z) + "), " +
                             std::to_string(block.x * block.y * block.z) + " threads and " +
                             std::to_string(shared_bytes) +
                             " bytes of shared memory failed: " + cudaGetErrorString(error));
  }
}

/// The block's dynamic shared memory, aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char memory[];
#else
  unsigned char* memory = emulator::dynamic_shared();
#endif
  return reinterpret_cast<T*>(memory);
}

/// Values of one access of 16 bytes, the widest.
template <typename T>
constexpr int kWide = 16 / sizeof(T);

/// `Width` values moved by one load or store.
template <typename T, int Width>
struct alignas(sizeof(T) * Width) Vec {
  T values[Width];
};

/// What the machine moves at once. Structures are moved member by member where the compiler sees fit.
template <int Bytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

/// `source` must be a multiple of sizeof(T) · Width bytes, 2 to 16.
template <int Width, typename T>
__device__ __forceinline__ Vec<T, Width> load(const T* source) {
  using W = typename Word<sizeof(T) * Width>::type;
  const W word = *reinterpret_cast<const W*>(source);
  Vec<T, Width> vec;
  memcpy(&vec, &word, sizeof(word));
  return vec;
}

/// `target` as for load().
template <typename T, int Width>
__device__ __forceinline__ void store(T* target, const Vec<T, Width>& vec) {
  using W = typename Word<sizeof(T) * Width>::type;
  W word;
  memcpy(&word, &vec, sizeof(word));
  size_t zero = 0;
#ifdef __CUDA_ARCH__
  // Before sm_100 the compiler otherwise mixes the four addresses into other arithmetic and stores word by word.
  asm("" : "+l"(zero));
#endif
  *reinterpret_cast<W*>(reinterpret_cast<char*>(target) + zero) = word;
}

/// Whether a pointer may be read 16 bytes at a time.
inline bool aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

/// ReLU; NaN stays.
template <typename A>
__device__ __forceinline__ A rectify(A value) {
  return value < 0 ? A(0) : value;
}

/// Sum over the block, valid in thread 0. `scratch` holds one value per warp and is free again when this returns.
template <int Threads, typename A>
__device__ __forceinline__ A block_sum(A value, A* scratch) {
  static_assert(Threads % kWarp == 0 && Threads / kWarp <= kWarp, "a block is 1 to 32 full warps");
  constexpr int kWarps = Threads / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_down_sync(kFullMask, value, offset);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  A total = 0;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kWarps; ++i) total += scratch[i];
  }
  __syncthreads();
  return total;
}

}  // namespace fastnas::cuda
