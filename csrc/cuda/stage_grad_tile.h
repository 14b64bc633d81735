// The gradients of pixels in the backward pass of `stage`: from that of the outputs to that of the depthwise
// convolution's output, and from there to that of the input.
#pragma once

#include "cuda/stage_input.h"
#include "ops/bn_backward.h"

namespace fastnas::cuda {
namespace {

/// Geometry of a launch. Channels are those of the inputs; a block works on up to a warp of vectors of them.
struct Geometry {
  Tiling tiling;
  int channels, inner;  // inner: those that a block computes
  int halo;             // output pixels around the tile that its inputs reach
  int pair_lanes;       // lanes that take different blocks of the pointwise matrix
  int most_taps;

  int grad_rows, grad_columns;              // of g_z
  int64_t grad_z, grad, exchanged, values;  // where in a block's memory these begin, and its end
  int64_t
      row;  // of the partial sums of a stage: taps [taps, C], pointwise [C out, C in], sum_dy and sum_dy_xhat [2, C]

  void finish() {
    grad_rows = tiling.rows + 2 * halo;
    grad_columns = tiling.columns + 2 * halo;
    grad_z = padded(int64_t(tiling.in_rows) * tiling.in_columns * inner);
    grad = grad_z + padded(int64_t(grad_rows) * grad_columns * inner);
    exchanged = grad + padded(int64_t(kRows) * tiling.strips * channels);
    values = exchanged + padded(int64_t(kRows) * tiling.strips_at_once * channels);
    row = int64_t(most_taps + channels + 2) * channels;
  }
};

// --- gradient of the outputs -----------------------------------------------------------------------------------------

/// W channels of the gradient of a pixel of output j.
template <int W, typename T>
__device__ __forceinline__ Vec<accumulate_t<T>, W> output_gradient(const StageGrads<T>& grads, int j, int64_t pixel,
                                                                   int c, int channels) {
  using A = accumulate_t<T>;
  auto value = load_wide<W>(grads.grad[j] + pixel * grads.grad_stride[j] + c);
  if (!grads.bn_coeffs) return value;
  const auto y = load_wide<W>(grads.y[j] + pixel * grads.y_stride[j] + c);
  const A* const of_stage = grads.bn_coeffs + j * 4 * channels + c;
  const auto scale = load<W>(of_stage), slope = load<W>(of_stage + channels);
  const auto mean = load<W>(of_stage + 2 * channels), offset = load<W>(of_stage + 3 * channels);
#pragma unroll
  for (int w = 0; w < W; ++w) {
    value.values[w] =
        bn_backward(value.values[w], y.values[w], scale.values[w], slope.values[w], mean.values[w], offset.values[w]);
  }
  return value;
}

/// Fills g_z [grad_rows, grad_columns, inner], zeros outside of the image, and g [kRows, strips, C].
template <bool Shared, int W, typename T>
__device__ __forceinline__ void fill_gradients(const StageGrads<T>& grads, const Geometry& geometry, const Place& at,
                                               int j, int first, const accumulate_t<T>* matrix,
                                               accumulate_t<T>* exchanged, accumulate_t<T>* grad_z,
                                               accumulate_t<T>* grad) {
  using A = accumulate_t<T>;
  const Tiling& tiling = geometry.tiling;
  const int channels = geometry.channels, inner = geometry.inner, strips = tiling.strips;
  const int at_once = geometry.tiling.strips_at_once, lane = threadIdx.x % tiling.lanes,
            slot = threadIdx.x / tiling.lanes;
  const int pixels = geometry.grad_rows * geometry.grad_columns;
  const int quarter = (pixels + kRows - 1) / kRows;
  for (int base = 0; base < quarter; base += at_once) {
    unsigned in_image = 0;                                        // a bit for each row
#pragma unroll(Shared && sizeof(A) == sizeof(float) ? kRows : 1)  // otherwise registers run out
    for (int r = 0; r < kRows; ++r) {
      const int p = r * quarter + base + slot;
      const int row = p / geometry.grad_columns - geometry.halo, column = p % geometry.grad_columns - geometry.halo;
      const int64_t y = at.top + row, x = at.left + column;
      const bool inside =
          base + slot < quarter && p < pixels && y >= 0 && y < tiling.height && x >= 0 && x < tiling.width;
      in_image |= unsigned(inside) << r;
      const bool own = base + slot < quarter && row >= 0 && row < tiling.rows && column >= 0 && column < tiling.columns;
      const int64_t pixel = (at.image * tiling.height + y) * tiling.width + x;
      const int64_t mine = (row % kRows * strips + row / kRows * tiling.columns + column) * int64_t(channels);
      for (int c = lane * W; c < channels; c += tiling.lanes * W) {
        Vec<A, W> value = {};
        if (inside) value = output_gradient<W>(grads, j, pixel, c, channels);
        store(exchanged + (r * at_once + slot) * channels + c, value);
        if (own) store(grad + mine + c, value);
      }
    }
    __syncwarp();
    if (lane * W < inner && first + lane * W < channels) {
      A sum[kRows][W];
      pointwise(exchanged + slot * channels, int64_t(at_once) * channels, matrix + first + lane * W, channels, sum);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int p = r * quarter + base + slot;
        if (base + slot >= quarter || p >= pixels) continue;
#pragma unroll
        for (int w = 0; w < W; ++w) sum[r][w] = in_image >> r & 1 ? sum[r][w] : A(0);
        store_values(grad_z + int64_t(p) * inner + lane * W, sum[r]);
      }
    }
    __syncwarp();
  }
}

// --- gradient of the input -------------------------------------------------------------------------------------------

/// Adds what flows back through a stage of stride 2 to a strip of input pixels at (row, column) of the tile.
template <int W, typename A>
__device__ __forceinline__ void scatter_back(const A* grad_z, const Geometry& geometry, int row, int column,
                                             const A* taps, int kernel, int dilation, A (&sum)[kRows][W]) {
  const int padding = padding_of(kernel, dilation), line = geometry.grad_columns * geometry.inner;
#pragma unroll 1
  for (int tap = 0; tap < kernel * kernel; ++tap) {
    const int x = column + padding - tap % kernel * dilation, y = row + padding - tap / kernel * dilation;
    if (x & 1) continue;  // another output column's
    const auto weight = load<W>(taps + tap * geometry.channels);
    const A* const of_column = grad_z + (x / 2 + geometry.halo) * geometry.inner;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if ((y + r) & 1) continue;
      const auto value = load<W>(of_column + ((y + r) / 2 + geometry.halo) * line);
#pragma unroll
      for (int w = 0; w < W; ++w) sum[r][w] += weight.values[w] * value.values[w];
    }
  }
}

}  // namespace
}  // namespace fastnas::cuda
