// What the kernels of separable convolutions (stage, edge_sum) compute for a strip (cuda/tiles.h): the depthwise and
// the pointwise convolution, from weights in the order in which threads read them.
//
// A depthwise convolution goes down the columns of its window and uses each value it reads for every output row that it
// reaches. The threads of a strip are in one warp and exchange its channels for the pointwise convolution without a
// barrier of the block.
#pragma once

#include "cuda/tiles.h"

namespace fastnas::cuda {
namespace {

// --- the depthwise convolution of a strip ----------------------------------------------------------------------------

/// sum[r] += Σ taps ⊙ the window of row r. `window` is the first value of row 0's; `row` and `pixel` are the elements
/// between rows and pixels. taps [K · K], `channels` values apart; Flipped: by 180°, for the gradient of
/// the input.
template <int K, int D, int S, bool Flipped, int W, typename A>
__device__ __forceinline__ void slide(const A* window, int row, int pixel, const A* taps, int channels,
                                      A (&sum)[kRows][W]) {
#pragma unroll 1
  for (int kx = 0; kx < K; ++kx, window += D * pixel) {
    Vec<A, W> weight[K];
#pragma unroll
    for (int ky = 0; ky < K; ++ky) {
      const int tap = ky * K + kx;
      weight[ky] = load<W>(taps + (Flipped ? K * K - 1 - tap : tap) * channels);
    }
#pragma unroll
    for (int i = 0; i <= (kRows - 1) * S + (K - 1) * D; ++i) {
      const auto value = load<W>(window + i * row);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int ky = 0; ky < K; ++ky) {
          if (r * S + ky * D != i) continue;
#pragma unroll
          for (int w = 0; w < W; ++w) sum[r][w] += weight[ky].values[w] * value.values[w];
        }
      }
    }
  }
}

/// The same for any geometry.
template <bool Flipped, int W, typename A>
__device__ __forceinline__ void slide_any(const A* window, int row, int pixel, const A* taps, int channels, int kernel,
                                          int dilation, int stride, A (&sum)[kRows][W]) {
#pragma unroll 1
  for (int tap = 0; tap < kernel * kernel; ++tap) {
    const auto weight = load<W>(taps + (Flipped ? kernel * kernel - 1 - tap : tap) * channels);
    const A* const first = window + tap / kernel * dilation * row + tap % kernel * dilation * pixel;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const auto value = load<W>(first + r * stride * row);
#pragma unroll
      for (int w = 0; w < W; ++w) sum[r][w] += weight.values[w] * value.values[w];
    }
  }
}

/// Calls visit.template operator()<K, D>() for the geometries of the usual candidates; false for any other.
template <typename Visit>
__device__ __forceinline__ bool for_usual(int kernel, int dilation, const Visit& visit) {
  if (kernel == 3 && dilation == 1) {
    visit.template operator()<3, 1>();
  } else if (kernel == 5 && dilation == 1) {
    visit.template operator()<5, 1>();
  } else if (kernel == 3 && dilation == 2) {
    visit.template operator()<3, 2>();
  } else if (kernel == 5 && dilation == 2) {
    visit.template operator()<5, 2>();
  } else {
    return false;
  }
  return true;
}

/// slide() where it fits, slide_any() elsewhere; only slide_any(), with fewer registers, where tiles are not Shared.
template <bool Shared, bool Flipped, int W, typename A>
__device__ __forceinline__ void depthwise(const A* window, int row, int pixel, const A* taps, int channels, int kernel,
                                          int dilation, int stride, A (&sum)[kRows][W]) {
  bool done = false;
  if constexpr (Shared) {
    done = for_usual(kernel, dilation, [&]<int K, int D>() {
      if (stride == 1) {
        slide<K, D, 1, Flipped>(window, row, pixel, taps, channels, sum);
      } else {
        slide<K, D, 2, Flipped>(window, row, pixel, taps, channels, sum);
      }
    });
  }
  if (!done) slide_any<Flipped>(window, row, pixel, taps, channels, kernel, dilation, stride, sum);
}

// --- the pointwise convolution of a strip ----------------------------------------------------------------------------

/// sum[r] = Σ_i pixels[r][i] · matrix[i]. pixels [kRows, .., channels], rows `row` values apart; matrix [channels, ..],
/// its rows as far apart as pixels have channels.
template <int W, typename A>
__device__ __forceinline__ void pointwise(const A* pixels, int64_t row, const A* matrix, int channels,
                                          A (&sum)[kRows][W]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int w = 0; w < W; ++w) sum[r][w] = 0;
  }
#pragma unroll 1
  for (int i = 0; i < channels; i += W) {
    Vec<A, W> value[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) value[r] = load<W>(pixels + r * row + i);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const auto weight = load<W>(matrix + int64_t(i + k) * channels);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int w = 0; w < W; ++w) sum[r][w] += value[r].values[k] * weight.values[w];
      }
    }
  }
}

// --- weights in the order in which threads read them, [stages, taps + C, C] ------------------------------------------

constexpr int kMaxSeparable = 256;

template <typename A>
struct SeparableWeights {
  const A* depthwise[kMaxSeparable];  // [C, 1, kernel, kernel]
  const A* pointwise[kMaxSeparable];  // [C, C, 1, 1]
  int taps[kMaxSeparable];            // kernel · kernel
  int stages;
  int most_taps;  // of any stage
  int channels;
  bool transposed;  // pointwise as [in, out], which the forward pass reads; else [out, in]

  __host__ __device__ int64_t each() const { return int64_t(most_taps + channels) * channels; }
};

constexpr int kPrepareThreads = 256;

template <typename A>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_kernel(const __grid_constant__ SeparableWeights<A> weights, A* __restrict__ prepared) {
  const int channels = weights.channels, stage = blockIdx.y;
  A* const out = prepared + stage * weights.each();
  for (int64_t i = int64_t(blockIdx.x) * kPrepareThreads + threadIdx.x; i < weights.each();
       i += int64_t(gridDim.x) * kPrepareThreads) {
    const int64_t line = i / channels, c = i % channels, input = line - weights.most_taps;
    if (input >= 0) {
      out[i] = weights.pointwise[stage][weights.transposed ? c * channels + input : i - weights.most_taps * channels];
    } else if (line < weights.taps[stage]) {
      out[i] = weights.depthwise[stage][c * weights.taps[stage] + line];
    }
  }
}

template <typename A>
void prepare_weights(const char* name, const SeparableWeights<A>& weights, A* prepared, cudaStream_t stream) {
  const int64_t blocks = ceil_div(weights.each(), kPrepareThreads);
  launch(name, prepare_kernel<A>, dim3(static_cast<unsigned>(blocks < 1024 ? blocks : 1024), weights.stages),
         kPrepareThreads, 0, stream, weights, prepared);
}

}  // namespace
}  // namespace fastnas::cuda
