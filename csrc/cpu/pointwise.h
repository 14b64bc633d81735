// 1×1 convolutions of pixels in scratch memory: dense matrix products of the shapes that cells have, with a block of
// pixels that fits the nearest cache and few channels.
//
// Output channels lie in vectors, pixels go down the rows. Both products keep a tile of sums in registers, 4 to 8 rows
// of one to three vectors (kTileRows): as many as registers hold besides the operands, and enough sums in flight to
// hide the latency of an addition. Each step loads one row of the tile's other operand, up to three vectors, and
// multiplies it by one value of every pixel (or input), broadcast from memory. Nothing is repacked: the block is small
// and used once, so a general matrix product would spend more on copying than on computing. What the next block needs
// is prefetched one line a step (prefetcher.h).
#pragma once

#include "cpu/prefetcher.h"
#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {

/// Rows of a tile that is `vectors` wide: as many sums as registers hold besides the operands.
template <int vectors>
constexpr int kTileRows = vectors == 1 || kVectorRegisters == 32 ? 8
                          : vectors == 2                         ? 6
                                                                 : 4;

/// Calls f.operator()<n>(v) for all `vectors`, n from the v-th on at once: as many as tiles of registers take.
template <typename F>
inline void for_columns(int64_t vectors, const F& f) {
  int64_t v = 0;
  if constexpr (kVectorRegisters == 32) {
    for (; vectors - v >= 3 && vectors - v != 4; v += 3) f.template operator()<3>(v);
  } else if (vectors % 2 == 1 && vectors >= 3) {  // a tile of one vector would wait for its loads
    f.template operator()<3>(v);
    v += 3;
  }
  for (; v + 2 <= vectors; v += 2) f.template operator()<2>(v);
  if (v < vectors) f.template operator()<1>(v);
}

/// Rows of pixels that a product goes through: `lines` of `pixels`, the next line z_line and y_line elements further.
struct Lines {
  int64_t lines, pixels, z_line, y_line;
};

/// y[p, :] = Σ_ci weights[ci, :] · z[p, ci] for `rows` pixels and `vectors` vectors of outputs.
template <typename A, int rows, int vectors>
inline void pointwise_tile(const A* z, int64_t z_stride, int64_t inputs, const A* weights, int64_t outputs, A* y,
                           PrefetchLines lines) {
  Vec<A> sum[rows][vectors] = {};
  for (int64_t ci = 0; ci < inputs; ++ci) {
    lines.fetch_next();
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
                              int64_t pixels, A* y, Prefetcher& prefetcher) {
  constexpr int rows = kTileRows<vectors>;
  int64_t p = 0;
  for (; p + rows <= pixels; p += rows) {
    pointwise_tile<A, rows, vectors>(z + p * z_stride, z_stride, inputs, weights, outputs, y + p * outputs,
                                     prefetcher.take(inputs, weights));
  }
  if (p == pixels) return;
  if (pixels >= rows) {  // once more for some pixels, which get the same values again
    p = pixels - rows;
    pointwise_tile<A, rows, vectors>(z + p * z_stride, z_stride, inputs, weights, outputs, y + p * outputs,
                                     prefetcher.take(inputs, weights));
    return;
  }
  for (; p < pixels; ++p) {
    pointwise_tile<A, 1, vectors>(z + p * z_stride, z_stride, inputs, weights, outputs, y + p * outputs,
                                  prefetcher.take(inputs, weights));
  }
}

/// y[p, :] = Σ_ci weights[ci, :] · z[p, ci]: z [pixels, z_stride], weights [inputs, outputs] → y [pixels, outputs].
///
/// `outputs` is a multiple of the vector, `weights` and `y` are aligned; `z` need not be, and z_stride >= inputs. `y`
/// is overwritten and must not overlap the operands. Meanwhile the lines of `prefetcher` are fetched.
template <typename A>
inline void pointwise(const A* z, int64_t z_stride, int64_t inputs, const A* weights, int64_t outputs,
                      const Lines& rows, A* y, Prefetcher& prefetcher) {
  for_columns(outputs / kLanes<A>, [&]<int vectors>(int64_t v) {
    const int64_t c = v * kLanes<A>;
    for (int64_t line = 0; line < rows.lines; ++line) {
      pointwise_columns<A, vectors>(z + line * rows.z_line, z_stride, inputs, weights + c, outputs, rows.pixels,
                                    y + line * rows.y_line + c, prefetcher);
    }
  });
}

/// grad[ci, :] += Σ_p z[p, ci] · g[p, :] for `rows` inputs and `vectors` vectors of outputs.
template <typename A, int rows, int vectors>
inline void pointwise_grad_tile(const A* z, int64_t z_stride, const A* g, int64_t outputs, int64_t pixels, A* grad,
                                PrefetchLines lines) {
  Vec<A> sum[rows][vectors];
#pragma GCC unroll 8
  for (int ci = 0; ci < rows; ++ci) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[ci][v] = load(grad + ci * outputs + v * kLanes<A>);
  }
  for (int64_t p = 0; p < pixels; ++p) {
    lines.fetch_next();
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
                                   int64_t pixels, A* grad, Prefetcher& prefetcher) {
  constexpr int rows = kTileRows<vectors>;
  int64_t ci = 0;
  for (; ci + rows <= inputs; ci += rows) {
    pointwise_grad_tile<A, rows, vectors>(z + ci, z_stride, g, outputs, pixels, grad + ci * outputs,
                                          prefetcher.take(pixels, grad));
  }
  for (; ci + 4 <= inputs; ci += 4) {
    pointwise_grad_tile<A, 4, vectors>(z + ci, z_stride, g, outputs, pixels, grad + ci * outputs,
                                       prefetcher.take(pixels, grad));
  }
  for (; ci < inputs; ++ci) {
    pointwise_grad_tile<A, 1, vectors>(z + ci, z_stride, g, outputs, pixels, grad + ci * outputs,
                                       prefetcher.take(pixels, grad));
  }
}

/// grad[ci, :] += Σ_p z[p, ci] · g[p, :]: z [pixels, z_stride], g [pixels, outputs] → grad [inputs, outputs].
///
/// `outputs` is a multiple of the vector, `g` and `grad` are aligned; `z` need not be, and z_stride >= inputs.
/// Meanwhile the lines of `prefetcher` are fetched.
template <typename A>
inline void pointwise_grad_weights(const A* z, int64_t z_stride, int64_t inputs, const A* g, int64_t outputs,
                                   int64_t pixels, A* grad, Prefetcher& prefetcher) {
  for_columns(outputs / kLanes<A>, [&]<int vectors>(int64_t v) {
    const int64_t c = v * kLanes<A>;
    pointwise_grad_columns<A, vectors>(z, z_stride, inputs, g + c, outputs, pixels, grad + c, prefetcher);
  });
}

template <typename A>
inline void pointwise_grad_weights(const A* z, int64_t z_stride, int64_t inputs, const A* g, int64_t outputs,
                                   int64_t pixels, A* grad) {
  Prefetcher nothing;
  pointwise_grad_weights(z, z_stride, inputs, g, outputs, pixels, grad, nothing);
}

}  // namespace fastnas::FASTNAS_ISA
