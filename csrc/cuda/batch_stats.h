// Mean and variance of channels: what threads, warps and blocks have seen, merged in an order that is always the same.
//
// Counts, means and Σ(y - mean)² are merged as Chan, Golub and LeVeque (1983) do, in float64; plain sums of squares
// would cancel where the mean is large. A block leaves a row of 1 + J·2·C values: how many pixels it saw, and for each
// of J outputs the means and the Σ(y - mean)² of its C channels.
#pragma once

#include "cuda/device.h"

namespace fastnas::cuda {
namespace {

struct BatchStats {
  double count, mean, square;  // square: Σ(y - mean)²

  __device__ void merge(const BatchStats& other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    const double both = count + other.count, difference = other.mean - mean;
    // Of infinities nothing but infinity is known.
    mean = isfinite(difference) ? mean + difference * (other.count / both) : mean + other.mean;
    square += other.square + difference * difference * (count * other.count / both);
    count = both;
  }
};

/// Values in a block's row.
inline __host__ __device__ int64_t statistics_row(int64_t outputs, int64_t channels) {
  return 1 + outputs * 2 * channels;
}

constexpr int kMergeThreads = 256;
constexpr int64_t kMaxMergedBeside = 65535;  // blocks in y

// Block (x, y): a warp of columns (output, channel), an individual. Warps take the individual's rows in turn.
template <typename A>
__global__ void __launch_bounds__(kMergeThreads, 1)
    merge_statistics_kernel(const double* __restrict__ table, int64_t blocks, int64_t individuals, int64_t outputs,
                            int64_t channels, A* __restrict__ mean, A* __restrict__ variance) {
  constexpr int kWarps = kMergeThreads / kWarp;
  __shared__ BatchStats seen[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t column = int64_t(blockIdx.x) * kWarp + lane, output = column / channels, c = column % channels;
  const bool active = column < outputs * channels;
  for (int64_t p = blockIdx.y; p < individuals; p += gridDim.y) {
    BatchStats sum{0, 0, 0};
    for (int64_t block = warp; block < blocks && active; block += kWarps) {
      const double* const row = table + (p * blocks + block) * statistics_row(outputs, channels);
      const double* const entry = row + 1 + output * 2 * channels + c;
      sum.merge({row[0], entry[0], entry[channels]});
    }
    seen[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && active) {
      for (int i = 1; i < kWarps; ++i) sum.merge(seen[i][lane]);
      const int64_t result = (output * individuals + p) * channels + c;
      const double square = sum.square < 0 ? 0 : sum.square;  // keeps NaN
      mean[result] = A(sum.mean);
      variance[result] = A(sum.count > 0 ? square / sum.count : 0);
    }
    __syncthreads();
  }
}

/// table [P, blocks, 1 + J·2·C] → mean and biased variance [J, P, C]; zeros where there are no pixels.
template <typename A>
void merge_statistics(const char* name, const double* table, int64_t blocks, int64_t individuals, int64_t outputs,
                      int64_t channels, A* mean, A* variance, cudaStream_t stream) {
  if (outputs * channels == 0 || individuals == 0) return;
  const dim3 grid(static_cast<unsigned>((outputs * channels + kWarp - 1) / kWarp),
                  static_cast<unsigned>(individuals < kMaxMergedBeside ? individuals : kMaxMergedBeside));
  launch(name, merge_statistics_kernel<A>, grid, kMergeThreads, 0, stream, table, blocks, individuals, outputs,
         channels, mean, variance);
}

}  // namespace
}  // namespace fastnas::cuda
