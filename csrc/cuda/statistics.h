// Mean and variance of channels: those of a thread, and of a block's threads.
//
// A thread sums deviations from its own first value. The rows of a block are merged in pairs, the blocks by
// `batch_stats.h`.
#pragma once

#include "cuda/batch_stats.h"
#include "cuda/pixels.h"

namespace fastnas::cuda {
namespace {

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

}  // namespace
}  // namespace fastnas::cuda
