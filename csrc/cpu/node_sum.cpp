// node_sum: the weighted sum of all normalised candidates of a node's incoming edges, and what bypasses them; forward,
// and the gradients of weights and candidates.
//
// Dozens of images are read once each and one is written, so the kernel is as fast as memory is. A thread takes a tile
// of pixels (node_tile.h), a flat run of values in which mean and scale repeat with a period (periodic.h); it holds
// some vectors of these tables in registers and goes over all periods of the tile, for several candidates at a time.
// Normalisation never makes a tensor: (y - mean)·scale is a multiply-add on the way into the sum. With partial channels
// the sum is group 0 of the result and the bypass is added up beside it; the channel shuffle is where both are stored
// (shuffle.h). Backward, one pass leaves Σ dy and Σ dy·(y_k - mean_k) of each image, merged by the caller in a fixed
// order, and a second one applies BatchNorm's backward (bn_backward.h).
#include "ops/node_sum.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <utility>

#include "cpu/bn_backward.h"
#include "cpu/node_tile.h"
#include "cpu/scratch_arena.h"
#include "cpu/shuffle.h"

namespace fastnas::FASTNAS_ISA {
namespace {

// --- loops over a tile of n values, whole blocks; coefficients stay in registers while a block repeats ---
//
// Several candidates are read in one pass: that is fewer passes over what all of them share, and more requests to
// memory in flight at a time. Their tables follow each other.

/// Candidates of one pass. `same`: all vectors of a table are alike, as C values fill a vector evenly.
template <bool same>
constexpr int kTogether = kVectorRegisters == 32 ? (same ? 4 : 2) : (same ? 2 : 1);

/// A block of a table, in registers: one vector where all are alike.
template <typename A, bool same>
struct Coefficients {
  static constexpr int kVectors = same ? 1 : kBlock;
  Vec<A> value[kVectors];

  explicit Coefficients(const A* table) {
    for (int v = 0; v < kVectors; ++v) value[v] = load(table + v * kLanes<A>);
  }
  const Vec<A>& operator[](int v) const { return value[same ? 0 : v]; }
};

/// sum = or += Σ_g (y_g - mean_g) scale_g over G candidates.
template <typename A, bool same, int G, size_t... g>
void add_scaled(const A* const* y, const A* mean, const A* scale, int64_t period, int64_t n, bool add, A* sum,
                std::index_sequence<g...>) {
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < period && j < n; j += kBlockValues<A>) {
    const Coefficients<A, same> m[G] = {Coefficients<A, same>(mean + g * period + j)...};
    const Coefficients<A, same> s[G] = {Coefficients<A, same>(scale + g * period + j)...};
    for (int64_t i = j; i < n; i += period) {
      for (int v = 0; v < kBlock; ++v) {
        const int64_t at = i + v * L;
        Vec<A> total = add ? load_unaligned(sum + at) : Vec<A>{};
        ((total += (load_unaligned(y[g] + at) - m[g][v]) * s[g][v]), ...);
        store_unaligned(sum + at, total);
      }
    }
  }
}

/// sum_g += grad (y_g - mean_g) for G candidates: rstd_g makes it sum_dy_xhat.
template <typename A, bool same, int G, size_t... g>
void add_products(const A* grad, const A* const* y, const A* mean, int64_t period, int64_t n, A* sum,
                  std::index_sequence<g...>) {
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < period && j < n; j += kBlockValues<A>) {
    const Coefficients<A, same> m[G] = {Coefficients<A, same>(mean + g * period + j)...};
    Coefficients<A, false> s[G] = {Coefficients<A, false>(sum + g * period + j)...};
    for (int64_t i = j; i < n; i += period) {
      for (int v = 0; v < kBlock; ++v) {
        const Vec<A> value = load_unaligned(grad + i + v * L);
        ((s[g].value[v] += value * (load_unaligned(y[g] + i + v * L) - m[g][v])), ...);
      }
    }
    for (int v = 0; v < kBlock; ++v) (store(sum + g * period + j + v * L, s[g].value[v]), ...);
  }
}

/// Calls f.operator()<same, G>(k) for all K candidates, G at a time.
template <typename A, typename F>
void for_candidates(int64_t count, int64_t channels, const F& f) {
  const auto run = [&]<bool same>() {
    constexpr int G = kTogether<same>;
    int64_t k = 0;
    for (; k + G <= count; k += G) f.template operator()<same, G>(k);
    for (; k < count; ++k) f.template operator()<same, 1>(k);
  };
  if (kLanes<A> % channels == 0) return run.template operator()<true>();
  run.template operator()<false>();
}

/// sum += grad
template <typename A>
void add_run(const A* grad, int64_t period, int64_t n, A* sum) {
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < period && j < n; j += L) {
    Vec<A> s = load(sum + j);
    for (int64_t i = j; i < n; i += period) s += load_unaligned(grad + i);
    store(sum + j, s);
  }
}

/// The gradient of a candidate with the statistics of the batch, whose coefficients are tables [period].
template <typename A>
void apply_bn_backward(const BnBackwardSums<const A*>& tables, const A* grad, const A* y, int64_t period, int64_t n,
                       A* result) {
  constexpr int L = kLanes<A>, V = kVectorRegisters == 32 ? 4 : 2;
  for (int64_t j = 0; j < period && j < n; j += V * L) {
    BnBackwardSums<Vec<A>> bn_backward[V];
    for (int v = 0; v < V; ++v) {
      const int64_t at = j + v * L;
      bn_backward[v] = {load(tables.scale + at), load(tables.mean_dy + at), load(tables.slope + at),
                        load(tables.mean + at)};
    }
    for (int64_t i = j; i < n; i += period) {
      for (int v = 0; v < V; ++v) {
        const int64_t at = i + v * L;
        store_unaligned(result + at, bn_backward[v](load_unaligned(grad + at), load_unaligned(y + at)));
      }
    }
  }
}

/// The same with constant statistics: scale · grad.
template <typename A>
void apply_scale(const A* scale, const A* grad, int64_t period, int64_t n, A* result) {
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < period && j < n; j += L) {
    const Vec<A> s = load(scale + j);
    for (int64_t i = j; i < n; i += period) store_unaligned(result + i, s * load_unaligned(grad + i));
  }
}

}  // namespace

template <typename T>
void node_sum_forward(const NodeSum<T>& args, T* result, int64_t stride, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, W = C * s.groups, R = W - C, K = args.candidate_count, P = s.individuals;
  const int64_t period = period_of<A, kBlock>(C);
  cpu::ScratchArena scratch;
  A* const means = scratch.take<A>(P * K * period);
  A* const scales = scratch.take<A>(P * K * period);
  A* const sum_buffer = scratch.take<A>(whole<A>(s.tile * C));
  A* const bypass_buffer = scratch.take<A>(s.tile * R);
  A* const input = scratch.take<A>(kTogether<true> * whole<A>(s.tile * C));
  A* const output_buffer = scratch.take<A>(R ? s.tile * W : 0);
  for (int64_t p = 0; p < P; ++p) {
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t c = 0; c < C; ++c) {
        const int64_t from = (k * P + p) * C + c, to = (p * K + k) * period;
        fill_channel(means + to, args.mean[from], c, C, period);
        fill_channel(scales + to, A(args.weights[p * K + k] * args.rstd[from]), c, C, period);
      }
    }
  }

  for (int64_t item = first; item < last; ++item) {
    const int64_t p = item % P, image = item / P / s.tiles, batch_image = p * s.images + image;
    const Tile tile = tile_of(s, item / P % s.tiles);
    const int64_t n = whole<A>(tile.count * C);
    T* const out = result + (batch_image * s.pixels + tile.begin) * stride;
    A* sum = sum_buffer;
    if constexpr (std::is_same_v<T, A>) {
      if (R == 0 && stride == C && n == tile.count * C) sum = out;
    }
    if (K == 0) std::memset(sum, 0, n * sizeof(A));
    for_candidates<A>(K, C, [&]<bool same, int G>(int64_t k) {
      const A* y[G];
      for (int g = 0; g < G; ++g) {
        const NodePixels<T>& from = args.candidates[k + g];
        const T* data = tile_data(from, s, from.shared ? image : batch_image, tile);
        y[g] = dense(data, from.stride, C, tile.count, input + g * n);
      }
      const int64_t table = (p * K + k) * period;
      add_scaled<A, same, G>(y, means + table, scales + table, period, n, k > 0, sum, std::make_index_sequence<G>{});
    });
    if (R == 0) {
      if (sum == sum_buffer) store_rows(sum, C, tile.count, out, stride);
      continue;
    }
    const NodePixels<T>& prev = args.prev_node;
    const T* prev_node = prev.data ? tile_data(prev, s, prev.shared ? image : batch_image, tile) : nullptr;
    const A* bypass = bypass_buffer;
    int64_t bypass_stride = R;
    if constexpr (std::is_same_v<T, A>) {
      if (prev_node && args.bypass_count == 0) {
        bypass = prev_node + C;
        bypass_stride = prev.stride;
      }
    }
    if (bypass == bypass_buffer) std::memset(bypass_buffer, 0, tile.count * R * sizeof(A));
    for (int64_t e = 0; e < args.bypass_count; ++e) {
      const NodePixels<T>& x = args.bypass[e];
      const T* data = tile_data(x, s, x.shared ? image : batch_image, tile);
      const A weight = args.bypass_weights ? args.bypass_weights[p * args.bypass_count + e] : A(1);
      add_channels(data, x.stride, weight, R, tile.count, bypass_buffer, R);
    }
    if (prev_node && bypass == bypass_buffer) {
      add_channels(prev_node + C, prev.stride, A(1), R, tile.count, bypass_buffer, R);
    }
    A* output = output_buffer;
    int64_t output_stride = W;
    if constexpr (std::is_same_v<T, A>) {
      output = out;
      output_stride = stride;
    }
    shuffle(sum, bypass, bypass_stride, prev_node, prev.stride, C, s.groups, tile.count, output, output_stride);
    if constexpr (!std::is_same_v<T, A>) store_rows(output_buffer, W, tile.count, out, stride);
  }
}

template <typename T>
void node_sum_grad(const NodeSum<T>& args, const NodePixels<T>& grad, T* grad_group0, double* partial, int64_t first,
                   int64_t last) {
  using A = accumulate_t<T>;
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, W = C * s.groups, R = W - C, K = args.candidate_count, E = args.bypass_count;
  const int64_t period = period_of<A, kBlock>(C), block = kBlockValues<A>;
  const int64_t entries = (1 + K) * period + E * block;
  cpu::ScratchArena scratch;
  A* const means = scratch.take<A>(K * period);
  A* const table = scratch.take<A>(entries);
  A* const sum_dy = table;                           // [period], Σ dy
  A* const products = sum_dy + period;               // [K, period], Σ dy (y_k - mean_k)
  A* const bypass_products = products + K * period;  // [E, block], Σ dy · bypass_e over the groups from 1 on
  A* const zeros = scratch.take<A>(block);
  A* const grad_buffer = scratch.take<A>(whole<A>(s.tile * C));
  A* const grad_bypass = scratch.take<A>(whole<A>(s.tile * R));
  A* const input = scratch.take<A>(std::max(whole<A>(s.tile * W), kTogether<true> * whole<A>(s.tile * C)));
  std::memset(zeros, 0, block * sizeof(A));
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t c = 0; c < C; ++c) fill_channel(means + k * period, args.mean[k * C + c], c, C, period);
  }

  for (int64_t image = first; image < last; ++image) {
    std::memset(table, 0, entries * sizeof(A));
    for (int64_t t = 0; t < s.tiles; ++t) {
      const Tile tile = tile_of(s, t);
      const T* data = tile_data(grad, s, image, tile);
      const int64_t n = whole<A>(tile.count * C), bypass_n = whole<A>(tile.count * R);
      const A* dy = grad_buffer;  // of group 0
      if (R == 0) {
        dy = dense(data, grad.stride, C, tile.count, grad_buffer);
      } else {
        T* const to = grad_group0 + (image * s.pixels + tile.begin) * C;
        A* values = grad_buffer;
        if constexpr (std::is_same_v<T, A>) {
          if (n == tile.count * C) dy = values = to;
          unshuffle(data, grad.stride, C, s.groups, tile.count, values, grad_bypass);
        } else {
          gather(data, grad.stride, W, tile.count, input);
          unshuffle<A>(input, W, C, s.groups, tile.count, values, grad_bypass);
        }
        if (dy == grad_buffer) {
          for (int64_t i = tile.count * C; i < n; ++i) grad_buffer[i] = 0;
          store_row(grad_buffer, tile.count * C, to);
        }
        for (int64_t i = tile.count * R; i < bypass_n; ++i) grad_bypass[i] = 0;
      }
      add_run(dy, period, n, sum_dy);
      for_candidates<A>(K, C, [&]<bool same, int G>(int64_t k) {
        const A* y[G];
        for (int i = 0; i < G; ++i) {
          const NodePixels<T>& from = args.candidates[k + i];
          y[i] = dense(tile_data(from, s, image, tile), from.stride, C, tile.count, input + i * n);
        }
        add_products<A, same, G>(dy, y, means + k * period, period, n, products + k * period,
                                 std::make_index_sequence<G>{});
      });
      for (int64_t e = 0; e < E; ++e) {
        const NodePixels<T>& x = args.bypass[e];
        const A* values = dense(tile_data(x, s, image, tile), x.stride, R, tile.count, input);
        add_products<A, false, 1>(grad_bypass, &values, zeros, block, bypass_n, bypass_products + e * block,
                                  std::index_sequence<0>{});
      }
    }
    double* row = partial + image * (C + K * C + E);
    for (int64_t k = 0; k <= K; ++k) sum_channels(table + k * period, C, period, row + k * C);
    for (int64_t e = 0; e < E; ++e) sum_channels(bypass_products + e * block, int64_t{1}, block, row + C + K * C + e);
  }
}

template <typename T>
void node_sum_grad_candidates(const NodeSum<T>& args, const NodePixels<T>& grad_group0, const NodeSumGrads<T>& grads,
                              int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, K = args.candidate_count, period = period_of<A, kBlock>(C);
  cpu::ScratchArena scratch;
  A* const mean = scratch.take<A>(K * period);
  A* const scale = scratch.take<A>(K * period);
  A* const mean_dy = scratch.take<A>(K * period);
  A* const slope = scratch.take<A>(K * period);
  A* const grad_buffer = scratch.take<A>(whole<A>(s.tile * C));
  A* const input = scratch.take<A>(whole<A>(s.tile * C));
  A* const output = scratch.take<A>(whole<A>(s.tile * C));
  const double count = double(s.images) * double(s.pixels);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t c = 0; c < C; ++c) {
      const int64_t from = k * C + c, to = k * period;
      const double sum_dy = grads.sum_dy[c], sum_dy_xhat = grads.sum_dy_xhat[from];
      const double rstd = args.rstd[from], weighted_rstd = args.weights[k] * rstd;
      fill_channel(mean + to, args.mean[from], c, C, period);
      fill_channel(scale + to, A(weighted_rstd), c, C, period);
      fill_channel(mean_dy + to, A(sum_dy / count), c, C, period);
      fill_channel(slope + to, A(weighted_rstd * rstd * sum_dy_xhat / count), c, C, period);
    }
  }

  for (int64_t item = first; item < last; ++item) {
    const int64_t image = item / s.tiles;
    const Tile tile = tile_of(s, item % s.tiles);
    const int64_t n = whole<A>(tile.count * C);
    const T* data = tile_data(grad_group0, s, image, tile);
    const A* dy = dense(data, grad_group0.stride, C, tile.count, grad_buffer);
    for (int64_t k = 0; k < K; ++k) {
      T* out = grads.candidates[k] + (image * s.pixels + tile.begin) * C;
      A* values = output;
      if constexpr (std::is_same_v<T, A>) {
        if (n == tile.count * C) values = out;
      }
      const int64_t at = k * period;
      if (grads.normalized[k]) {
        const NodePixels<T>& y = args.candidates[k];
        const A* y_values = dense(tile_data(y, s, image, tile), y.stride, C, tile.count, input);
        apply_bn_backward<A>({scale + at, mean_dy + at, slope + at, mean + at}, dy, y_values, period, n, values);
      } else {
        apply_scale(scale + at, dy, period, n, values);
      }
      if (values == output) store_row(values, tile.count * C, out);
    }
  }
}

#define INSTANTIATE(T)                                                                                             \
  template void node_sum_forward(const NodeSum<T>&, T*, int64_t, int64_t, int64_t);                                \
  template void node_sum_grad(const NodeSum<T>&, const NodePixels<T>&, T*, double*, int64_t, int64_t);             \
  template void node_sum_grad_candidates(const NodeSum<T>&, const NodePixels<T>&, const NodeSumGrads<T>&, int64_t, \
                                         int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
