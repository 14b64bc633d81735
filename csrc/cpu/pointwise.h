// 1×1 convolutions of pixels in scratch memory: dense matrix products of the shapes that cells have, with a block of
// pixels that fits the nearest cache and few channels.
//
// Both products keep a tile of sums in registers. Each step loads one row of the tile's other operand, a vector or two,
// and multiplies it by one value of every pixel (or input): enough sums in flight to hide the latency of an addition.
#pragma once

#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {

/// Rows of a tile that is `vectors` wide: as many sums as registers hold beside the operands.
template <int vectors>
constexpr int kTileRows = vectors == 1 || kVectorRegisters == 32 ? 8 : 6;

/// y[p, :] = Σ_ci weights[ci, :] · z[p, ci] for `rows` pixels and `vectors` vectors of outputs.
template <typename A, int rows, int vectors>
inline void pointwise_tile(const A* z, int64_t z_stride, int64_t inputs, const A* weights, int64_t outputs, A* y) {
  Vec<A> sum[rows][vectors] = {};
  for (int64_t ci = 0; ci < inputs; ++ci) {
    Vec<A> weight[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) weight[v] = load(weights + ci * outputs + v * kLanes<A>);
#pragma GCC unroll 8
    for (int p = 0; p < rows; ++p) {
      const Vec<A> value = broadcast(z[p * z_stride + ci]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[p][v] += weight[v] * value;
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < rows; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(y + p * outputs + v * kLanes<A>, sum[p][v]);
  }
}

template <typename A, int vectors>
inline void pointwise_columns(const A* z, int64_t z_stride, int64_t inputs, const A* weights, int64_t outputs,
                              int64_t pixels, A* y) {
  constexpr int rows = kTileRows<vectors>;
  int64_t p = 0;
  for (; p + rows <= pixels; p += rows) {
    pointwise_tile<A, rows, vectors>(z + p * z_stride, z_stride, inputs, weights, outputs, y + p * outputs);
  }
  if (p == pixels) return;
  if (pixels >= rows) {  // once more for some pixels, which get the same values again
    p = pixels - rows;
    pointwise_tile<A, rows, vectors>(z + p * z_stride, z_stride, inputs, weights, outputs, y + p * outputs);
    return;
  }
  for (; p < pixels; ++p) {
    pointwise_tile<A, 1, vectors>(z + p * z_stride, z_stride, inputs, weights, outputs, y + p * outputs);
  }
}

/// y[p, :] = Σ_ci weights[ci, :] · z[p, ci]: z [pixels, z_stride], weights [inputs, outputs] → y [pixels, outputs].
///
/// `outputs` is a multiple of the vector, `weights` and `y` are aligned; `z` need not be, and z_stride >= inputs. `y`
/// is overwritten and must not overlap the operands.
template <typename A>
inline void pointwise(const A* z, int64_t z_stride, int64_t inputs, const A* weights, int64_t outputs, int64_t pixels,
                      A* y) {
  int64_t c = 0;
  for (; c + 2 * kLanes<A> <= outputs; c += 2 * kLanes<A>) {
    pointwise_columns<A, 2>(z, z_stride, inputs, weights + c, outputs, pixels, y + c);
  }
  if (c < outputs) pointwise_columns<A, 1>(z, z_stride, inputs, weights + c, outputs, pixels, y + c);
}

/// grad[ci, :] += Σ_p z[p, ci] · g[p, :] for `rows` inputs and `vectors` vectors of outputs.
template <typename A, int rows, int vectors>
inline void pointwise_grad_tile(const A* z, int64_t z_stride, const A* g, int64_t outputs, int64_t pixels, A* grad) {
  Vec<A> sum[rows][vectors];
#pragma GCC unroll 8
  for (int ci = 0; ci < rows; ++ci) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[ci][v] = load(grad + ci * outputs + v * kLanes<A>);
  }
  for (int64_t p = 0; p < pixels; ++p) {
    Vec<A> gradient[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) gradient[v] = load(g + p * outputs + v * kLanes<A>);
#pragma GCC unroll 8
    for (int ci = 0; ci < rows; ++ci) {
      const Vec<A> value = broadcast(z[p * z_stride + ci]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[ci][v] += gradient[v] * value;
    }
  }
#pragma GCC unroll 8
  for (int ci = 0; ci < rows; ++ci) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(grad + ci * outputs + v * kLanes<A>, sum[ci][v]);
  }
}

template <typename A, int vectors>
inline void pointwise_grad_columns(const A* z, int64_t z_stride, int64_t inputs, const A* g, int64_t outputs,
                                   int64_t pixels, A* grad) {
  constexpr int rows = kTileRows<vectors>;
  int64_t ci = 0;
  for (; ci + rows <= inputs; ci += rows) {
    pointwise_grad_tile<A, rows, vectors>(z + ci, z_stride, g, outputs, pixels, grad + ci * outputs);
  }
  for (; ci + 4 <= inputs; ci += 4) {
    pointwise_grad_tile<A, 4, vectors>(z + ci, z_stride, g, outputs, pixels, grad + ci * outputs);
  }
  for (; ci < inputs; ++ci) {
    pointwise_grad_tile<A, 1, vectors>(z + ci, z_stride, g, outputs, pixels, grad + ci * outputs);
  }
}

/// grad[ci, :] += Σ_p z[p, ci] · g[p, :]: z [pixels, z_stride], g [pixels, outputs] → grad [inputs, outputs].
///
/// `outputs` is a multiple of the vector, `g` and `grad` are aligned; `z` need not be, and z_stride >= inputs.
template <typename A>
inline void pointwise_grad_weights(const A* z, int64_t z_stride, int64_t inputs, const A* g, int64_t outputs,
                                   int64_t pixels, A* grad) {
  int64_t c = 0;
  for (; c + 2 * kLanes<A> <= outputs; c += 2 * kLanes<A>) {
    pointwise_grad_columns<A, 2>(z, z_stride, inputs, g + c, outputs, pixels, grad + c);
  }
  if (c < outputs) pointwise_grad_columns<A, 1>(z, z_stride, inputs, g + c, outputs, pixels, grad + c);
}

}  // namespace fastnas::FASTNAS_ISA
