// Mean and variance of channels: strips of a warp, warps of a block, tiles of a batch, merged in a fixed order.
//
// A warp sums deviations from one of its own values; plain sums of squares would cancel where the mean is large. From
// there on counts, means and Σ(y - mean)² are merged as Chan, Golub and LeVeque (1983) do, in float64.
#pragma once

#include "cuda/separable.h"

namespace fastnas::cuda {
namespace {

struct Moments {
  double count, mean, square;  // square: Σ(y - mean)²

  __device__ void merge(const Moments& other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    const double both = count + other.count, difference = other.mean - mean;
    mean = isfinite(difference) ? mean + difference * (other.count / both) : mean + other.mean;
    square += other.square + difference * difference * (count * other.count / both);
    count = both;
  }
};

/// Mean and Σ(y - mean)² of the first `rows` rows of every strip of a warp, for `lanes` vectors of channels: to mean
/// and square in the first `lanes` lanes, where `wanted`. values: `rows` of all strips together. All lanes take part.
template <int W, typename A>
__device__ __forceinline__ void warp_moments(const A (&y)[kRows][W], int rows, int values, int lanes, bool wanted,
                                             double* mean, double* square) {
  const unsigned used = __ballot_sync(kFullMask, rows > 0);
  const int lane = threadIdx.x % kWarp;
  const int source = used ? (__ffs(static_cast<int>(used)) - 1) / lanes * lanes + lane % lanes : lane;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    A shift = __shfl_sync(kFullMask, y[0][w], source);
    if (!isfinite(shift)) shift = 0;  // so that infinity minus infinity is not the mean
    A sum = 0, squares = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) continue;
      const A deviation = y[r][w] - shift;
      sum += deviation;
      squares += deviation * deviation;
    }
    sum = sum_over_strips(sum, lanes);
    squares = sum_over_strips(squares, lanes);
    if (lane >= lanes || !wanted) continue;
    const double average = values > 0 ? double(sum) / values : 0;
    mean[w] = shift + average;
    square[w] = squares - average * sum;
  }
}

constexpr int kMergeThreads = 256;

// One block for an output, an individual and up to a warp of channels: threads take tiles in turn, then merge in pairs.
template <typename A>
__global__ void __launch_bounds__(kMergeThreads)
    merge_moments_kernel(const double* __restrict__ table, const __grid_constant__ Tiling tiling, int64_t tiles,
                         int outputs, int64_t individuals, int channels, int lanes, A* __restrict__ mean,
                         A* __restrict__ variance) {
  __shared__ Moments all[kMergeThreads];
  const int64_t output = blockIdx.x / individuals, individual = blockIdx.x % individuals;
  const int slots = kMergeThreads / lanes, slot = threadIdx.x / lanes;
  const int c = blockIdx.y * lanes + threadIdx.x % lanes;
  Moments sum{0, 0, 0};
  for (int64_t i = slot; i < tiles && c < channels; i += slots) {
    const int64_t tile = individual * tiles + i;
    const double* entry = table + (tile * outputs + output) * 2 * channels + c;
    sum.merge({double(tiling.pixels(tiling.place(tile))), entry[0], entry[channels]});
  }
  all[threadIdx.x] = sum;
  for (int half = slots / 2; half > 0; half /= 2) {
    __syncthreads();
    if (slot < half) all[threadIdx.x].merge(all[threadIdx.x + half * lanes]);
  }
  if (slot > 0 || c >= channels) return;
  const Moments& total = all[threadIdx.x];
  const int64_t result = (output * individuals + individual) * channels + c;
  mean[result] = A(total.mean);
  const double square = total.square < 0 ? 0 : total.square;  // keeps NaN
  variance[result] = A(total.count > 0 ? square / total.count : 0);
}

/// table [tiles, outputs, 2, C] of mean and Σ(y - mean)² → mean and biased variance [outputs, P, C]; zeros of nothing.
template <typename A>
void merge_moments(const char* name, const double* table, const Tiling& tiling, int outputs, int64_t individuals,
                   int channels, A* mean, A* variance, cudaStream_t stream) {
  const int lanes = power_of_two(channels, kWarp);
  const dim3 grid(static_cast<unsigned>(outputs * individuals), static_cast<unsigned>(ceil_div(channels, lanes)));
  launch(name, merge_moments_kernel<A>, grid, kMergeThreads, 0, stream, table, tiling, tiling.tiles / individuals,
         outputs, individuals, channels, lanes, mean, variance);
}

}  // namespace
}  // namespace fastnas::cuda
