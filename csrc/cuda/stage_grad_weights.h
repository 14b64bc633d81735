// The gradients of the weights of `stage`, over the pixels of a tile. They are cut into jobs, each done by one warp: a
// column of taps, or blocks of the pointwise matrix.
#pragma once

#include "cuda/stage_grad_tile.h"

namespace fastnas::cuda {
namespace {

constexpr int kSplits = 2;  // jobs that share the pixels of a tile, so that all warps have some

template <int W, typename A>
__device__ __forceinline__ void add_to(A* target, const A (&values)[W], bool first) {
  Vec<A, W> sum = {};
  if (!first) sum = load<W>(target);
#pragma unroll
  for (int w = 0; w < W; ++w) sum.values[w] += values[w];
  store(target, sum);
}

/// What a job reads: the block's memory.
template <typename A>
struct Tiles {
  const A *x, *grad_z, *grad, *z;
};

/// Column kx of the gradient of the taps, over every kSplits-th set of strips. K = 0: any geometry.
template <int K, int D, int S, int W, typename A>
__device__ __forceinline__ void taps_job(const Tiles<A>& tiles, const Geometry& geometry, const Place& at, int width,
                                         int kernel, int dilation, int kx, int split, A* target, bool begin) {
  const Tiling& tiling = geometry.tiling;
  const int lanes = tiling.lanes, inner = geometry.inner, strips = tiling.strips;
  const int lane = threadIdx.x % lanes, sets = kWarp / lanes;
  const int inset = tiling.padding - padding_of(kernel, dilation);
  const int line = tiling.in_columns * inner, grad_line = geometry.grad_columns * inner;
  const bool wanted = lane * W < width;
  constexpr int kTaps = K ? K : 1;
  for (int ky = 0; ky < (K ? 1 : kernel); ++ky) {
    A sum[kTaps][W] = {};
    for (int s = split * sets + threadIdx.x % kWarp / lanes; s < strips && wanted; s += kSplits * sets) {
      const int rows = rows_in_image(tiling, at, s, strips);
      if (rows == 0) continue;
      const int row = s / tiling.columns * kRows, column = s % tiling.columns;
      const A* const own =
          tiles.grad_z + (row + geometry.halo) * grad_line + (column + geometry.halo) * inner + lane * W;
      const A* const window = tiles.x + (row * tiling.stride + inset + ky * dilation) * line +
                              (column * tiling.stride + inset + kx * dilation) * inner + lane * W;
      Vec<A, W> g[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) g[r] = load<W>(own + r * grad_line);
      if constexpr (K > 0) {
#pragma unroll
        for (int i = 0; i <= (kRows - 1) * S + (K - 1) * D; ++i) {
          const auto value = load<W>(window + i * line);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
              if (r * S + k * D != i || r >= rows) continue;  // beyond the image, 0 · NaN would be NaN
#pragma unroll
              for (int w = 0; w < W; ++w) sum[k][w] += g[r].values[w] * value.values[w];
            }
          }
        }
      } else {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (r >= rows) continue;
          const auto value = load<W>(window + r * tiling.stride * line);
#pragma unroll
          for (int w = 0; w < W; ++w) sum[0][w] += g[r].values[w] * value.values[w];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
#pragma unroll
      for (int w = 0; w < W; ++w) sum[k][w] = sum_over_strips(sum[k][w], lanes);
      if (wanted && int(threadIdx.x) % kWarp < lanes) {
        add_to(target + ((ky + k) * kernel + kx) * geometry.channels + lane * W, sum[k], begin);
      }
    }
  }
}

/// Blocks W × W of the gradient of the pointwise matrix, as many as there are pair_lanes, over every kSplits-th set of
/// pixels.
template <int W, typename A>
__device__ __forceinline__ void matrix_job(const Tiles<A>& tiles, const Geometry& geometry, int width, int job,
                                           int split, A* target, bool begin) {
  const int lanes = geometry.pair_lanes, sets = kWarp / lanes, pixels = kRows * geometry.tiling.strips;
  const int columns = width / W, pair = job * lanes + threadIdx.x % lanes;  // of the matrix, in vectors
  const bool wanted = pair < geometry.channels / W * columns;
  const int output = wanted ? pair / columns * W : 0, input = wanted ? pair % columns * W : 0;
  A sum[W][W] = {};
  for (int p = split * sets + threadIdx.x % kWarp / lanes; p < pixels && wanted; p += kSplits * sets) {
    const auto g = load<W>(tiles.grad + int64_t(p) * geometry.channels + output);
    const auto z = load<W>(tiles.z + int64_t(p) * geometry.inner + input);
#pragma unroll
    for (int a = 0; a < W; ++a) {
#pragma unroll
      for (int b = 0; b < W; ++b) sum[a][b] += g.values[a] * z.values[b];
    }
  }
#pragma unroll
  for (int a = 0; a < W; ++a) {
#pragma unroll
    for (int b = 0; b < W; ++b) sum[a][b] = sum_over_strips(sum[a][b], lanes);
    if (wanted && int(threadIdx.x) % kWarp < lanes) {
      add_to(target + int64_t(output + a) * geometry.channels + input, sum[a], begin);
    }
  }
}

}  // namespace
}  // namespace fastnas::cuda
