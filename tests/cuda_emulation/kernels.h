// Kernels for the tests of the emulator: correct ones, and ones with a planted bug.
#pragma once

#include "cuda/device.h"

namespace fastnas::cuda {
namespace {

// y[row] = Σ x[row, :], with wide loads, shuffles, static shared memory and barriers.
template <int Threads, bool Forgetful = false>
__global__ void __launch_bounds__(Threads) row_sum(const float* x, float* y, int columns) {
  __shared__ float sums[Threads / kWarp];
  const float* row = x + int64_t(blockIdx.x) * columns;
  float sum = 0;
  for (int i = threadIdx.x * 4; i + 4 <= columns; i += Threads * 4) {
    const auto v = load<4>(row + i);
    sum += v.values[0] + v.values[1] + v.values[2] + v.values[3];
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kFullMask, sum, lanes);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
  if (!Forgetful) __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < Threads / kWarp; ++warp) sum += sums[warp];
    y[blockIdx.x] = sum;
  }
}

// y[row, :] = x[row, ::-1], through dynamic shared memory; `shift` moves what is written.
__global__ void reverse_rows(const float* x, float* y, int shared_shift, int global_shift) {
  float* row = dynamic_shared<float>();
  const int i = threadIdx.x, columns = blockDim.x;
  row[i + shared_shift] = x[blockIdx.x * columns + i];
  __syncthreads();
  y[blockIdx.x * columns + i + global_shift] = row[columns - 1 - i];
}

// A call, so that the compiler does not know the size of the array.
__device__ __noinline__ void clear(float* values, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) values[i] = 0;
}

// Counts of x in 16 bins; Size < 16 is one bin too few.
template <int Size, bool Atomic>
__global__ void histogram(const int* x, float* bins, int count) {
  __shared__ float counts[Size];
  clear(counts, 16);
  __syncthreads();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) {
    if (Atomic) {
      atomicAdd(&counts[x[i]], 1.0f);
    } else {
      counts[x[i]] += 1;
    }
  }
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&bins[threadIdx.x], counts[threadIdx.x]);
}

// Each lane hands its value to the next one through shared memory.
template <bool Forgetful>
__global__ void pass_on(float* values) {
  __shared__ float lanes[kWarp];
  lanes[threadIdx.x] = values[threadIdx.x];
  if (!Forgetful) __syncwarp();
  values[threadIdx.x] = lanes[(threadIdx.x + 1) % kWarp];
}

// Neighbouring blocks write the same value's place; the last one wins.
__global__ void last_block_wins(int* winner) { *winner = int(blockIdx.x); }

enum class Mistake { none, barrier, two_barriers, exit, shuffle, lane, mask, index };

// Meets with the others, but for threads from `from` on.
__global__ void meeting(Mistake mistake, unsigned from, float* y) {
  __shared__ float shared[8];
  const unsigned t = threadIdx.x;
  const bool other = t >= from;
  float value = float(t);
  if (mistake == Mistake::barrier && !other) __syncthreads();
  if (mistake == Mistake::two_barriers) {
    if (other) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (mistake == Mistake::exit && other) return;
  if (mistake == Mistake::shuffle && !other) value = __shfl_down_sync(kFullMask, value, 1);
  if (mistake == Mistake::lane) value = __shfl_sync(0x0000ffffu << (t % kWarp / 16 * 16), value, 20);
  if (mistake == Mistake::mask && other) value = __shfl_sync(0x1u, value, 0);
  if (mistake == Mistake::index) shared[t % 8 + from] = value;
  __syncthreads();
  y[t] = value + (mistake == Mistake::index ? shared[t % 8] : 0);
}

// What every shuffle and vote gives to every lane.
__global__ void exchanges(int* results) {  // [12, 32]
  const int lane = threadIdx.x;
  int next = 0;
  const auto put = [&](int value) { results[next++ * kWarp + lane] = value; };
  put(__shfl_sync(kFullMask, lane, 5));
  put(__shfl_sync(kFullMask, lane, lane + 1, 8));
  put(__shfl_up_sync(kFullMask, lane, 3));
  put(__shfl_up_sync(kFullMask, lane, 1, 4));
  put(__shfl_down_sync(kFullMask, lane, 3));
  put(__shfl_down_sync(kFullMask, lane, 1, 4));
  put(__shfl_xor_sync(kFullMask, lane, 16));
  put(__shfl_xor_sync(kFullMask, lane, 1, 2));
  put(int(__ballot_sync(kFullMask, lane % 2)));
  put(__any_sync(kFullMask, lane == 7) + 2 * __any_sync(kFullMask, lane == 32));
  put(__all_sync(kFullMask, lane < 32) + 2 * __all_sync(kFullMask, lane < 31));
  put(lane < 8 ? __shfl_xor_sync(0xffu, lane, 1) : __shfl_xor_sync(0xffffff00u, lane, 2));
}

__global__ void indices(unsigned* seen) {  // one count per thread of the grid
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  atomicAdd(&seen[block * blockDim.x * blockDim.y * blockDim.z + thread], 1u);
}

}  // namespace
}  // namespace fastnas::cuda
