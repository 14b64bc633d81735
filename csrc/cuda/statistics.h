// Mean and variance of channels: of a thread, of a block, of the batch, merged in an order that is always the same.
//
// A thread sums deviations from its own first value; plain sums of squares would cancel where the mean is large. From
// there on counts, means and Σ(y - mean)² are merged as Chan, Golub and LeVeque (1983) do: the rows of a block in
// pairs, the blocks in float64 by a second kernel. A block leaves a row of 1 + J·2·C numbers: how many pixels it saw,
// and for each of J outputs the means and the Σ(y - mean)² of its C channels.
#pragma once

#include "cuda/pixels.h"

namespace fastnas::cuda {
namespace {

/// Numbers in a block's row.
inline __host__ __device__ int64_t statistics_row(int64_t outputs, int64_t channels) {
  return 1 + outputs * 2 * channels;
}

/// The values of Width channels that one thread sees.
template <int Width, typename A>
class Deviations {
 public:
  __device__ __forceinline__ void add(const A (&y)[Width]) {
#pragma unroll
    for (int j = 0; j < Width; ++j) {
      if (count_ == 0) shift_[j] = y[j];
      const A deviation = y[j] - shift_[j];
      sum_[j] += deviation;
      square_[j] += deviation * deviation;
    }
    count_ += 1;
  }
  __device__ A count() const { return count_; }
  __device__ A shift(int j) const { return shift_[j]; }
  __device__ A mean(int j, A origin) const { return count_ > 0 ? shift_[j] - origin + sum_[j] / count_ : A(0); }
  __device__ A square(int j) const { return count_ > 0 ? square_[j] - sum_[j] * (sum_[j] / count_) : A(0); }

 private:
  A count_ = 0, shift_[Width] = {}, sum_[Width] = {}, square_[Width] = {};
};

/// Statistics of Width channels of J outputs for every thread of a block, in shared memory.
template <int J, int Width, typename A>
struct BlockStatistics {
  A count[kThreads];
  A mean[J * Width][kThreads];  // less the first value of row 0
  A square[J * Width][kThreads];

  /// Merges what the threads have seen. Every thread of the block calls this. In row 0, put(j, i, mean, square) is then
  /// called for channel i of output j of the thread's lane. Returns the number of pixels of the block.
  template <typename Put>
  __device__ __forceinline__ A merge(const Rows& rows, const Deviations<Width, A> (&seen)[J], const Put& put) {
    const int own = threadIdx.x;
    count[own] = seen[0].count();
#pragma unroll
    for (int k = 0; k < J * Width; ++k) mean[k][own] = seen[k / Width].shift(k % Width);
    __syncthreads();
    A origin[J * Width];
#pragma unroll
    for (int k = 0; k < J * Width; ++k) origin[k] = mean[k][rows.lane];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < J * Width; ++k) {
      mean[k][own] = seen[k / Width].mean(k % Width, origin[k]);
      square[k][own] = seen[k / Width].square(k % Width);
    }
    rows.fold([this](int to, int from) { add(to, from); });
    if (rows.row == 0) {
#pragma unroll
      for (int k = 0; k < J * Width; ++k) {
        put(k / Width, k % Width, double(origin[k]) + double(mean[k][own]), double(square[k][own]));
      }
    }
    return count[0];
  }

 private:
  __device__ __forceinline__ void add(int to, int from) {
    if (count[from] == 0) return;
    const A both = count[to] + count[from], share = count[from] / both;
#pragma unroll
    for (int k = 0; k < J * Width; ++k) {
      const A difference = mean[k][from] - mean[k][to];
      square[k][to] += square[k][from] + difference * difference * (count[to] * share);
      mean[k][to] += difference * share;
    }
    count[to] = both;
  }
};

// Block (x, y): a warp of columns (output, channel), an individual. Warps take the individual's rows in turn.
template <typename A>
__global__ void __launch_bounds__(kThreads, 1)
    merge_statistics_kernel(const double* __restrict__ table, int64_t blocks, int64_t individuals, int64_t outputs,
                            int64_t channels, A* __restrict__ mean, A* __restrict__ variance) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ double counts[kWarps][kWarp], means[kWarps][kWarp], squares[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto merge = [&](double count, double average, double square) {
    if (count == 0) return;
    const double both = counts[warp][lane] + count, difference = average - means[warp][lane];
    squares[warp][lane] += square + difference * difference * (counts[warp][lane] * count / both);
    means[warp][lane] += difference * (count / both);
    counts[warp][lane] = both;
  };
  for (int64_t p = blockIdx.y; p < individuals; p += gridDim.y) {
    const int64_t column = int64_t(blockIdx.x) * kWarp + lane, output = column / channels, c = column % channels;
    const bool active = column < outputs * channels;
    counts[warp][lane] = means[warp][lane] = squares[warp][lane] = 0;
    for (int64_t block = warp; block < blocks && active; block += kWarps) {
      const double* const row = table + (p * blocks + block) * statistics_row(outputs, channels);
      const double* const entry = row + 1 + output * 2 * channels + c;
      merge(row[0], entry[0], entry[channels]);
    }
    __syncthreads();
    if (warp == 0 && active) {
      for (int i = 1; i < kWarps; ++i) merge(counts[i][lane], means[i][lane], squares[i][lane]);
      const int64_t result = (output * individuals + p) * channels + c;
      const double square = squares[0][lane] < 0 ? 0 : squares[0][lane];  // keeps NaN
      mean[result] = A(means[0][lane]);
      variance[result] = A(counts[0][lane] > 0 ? square / counts[0][lane] : 0);
    }
    __syncthreads();
  }
}

/// table [P, blocks, 1 + J·2·C] → mean and biased variance [J, P, C]; zeros of nothing.
template <typename A>
void merge_statistics(const char* name, const double* table, int64_t blocks, int64_t individuals, int64_t outputs,
                      int64_t channels, A* mean, A* variance, cudaStream_t stream) {
  if (outputs * channels == 0 || individuals == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(outputs * channels, kWarp)), blocks_of(individuals, kMaxBlocksBeside));
  launch(name, merge_statistics_kernel<A>, grid, kThreads, 0, stream, table, blocks, individuals, outputs, channels,
         mean, variance);
}

}  // namespace
}  // namespace fastnas::cuda
