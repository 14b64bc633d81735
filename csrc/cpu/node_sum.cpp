#include "ops/node_sum.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <utility>

#include "cpu/memory.h"
#include "cpu/node_tile.h"
#include "cpu/shuffle.h"

namespace fastnas::FASTNAS_ISA {
namespace {

template <typename A>
void repeat(A value, A* table, int64_t channel, int64_t channels, int64_t period) {
  for (int64_t i = channel; i < period; i += channels) table[i] = value;
}

/// result[c] = Σ of the values of channel c in a table that is `period` long.
template <typename A>
void fold(A* table, int64_t channels, int64_t period, double* result) {
  while (period % (2 * kLanes<A>) == 0 && period / 2 % channels == 0) {
    period /= 2;
    for (int64_t i = 0; i < period; i += kLanes<A>) store(table + i, load(table + i) + load(table + period + i));
  }
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t i = c; i < period; i += channels) sum += table[i];
    result[c] = sum;
  }
}

// --- loops over a tile of n values, whole blocks; coefficients stay in registers while a block repeats ---
//
// Several candidates are read in one pass: that is fewer passes over what all of them share, and more requests to
// memory on the way at a time. Their tables follow each other.

/// Candidates of one pass. `same`: all vectors of a table are alike, as C values fill a vector evenly.
template <bool same>
constexpr int kTogether = kVectorRegisters == 32 ? (same ? 4 : 2) : (same ? 2 : 1);

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

/// dots_g += grad (y_g - mean_g) for G candidates.
template <typename A, bool same, int G, size_t... g>
void add_dots(const A* grad, const A* const* y, const A* mean, int64_t period, int64_t n, A* dots,
              std::index_sequence<g...>) {
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < period && j < n; j += kBlockValues<A>) {
    const Coefficients<A, same> m[G] = {Coefficients<A, same>(mean + g * period + j)...};
    Coefficients<A, false> d[G] = {Coefficients<A, false>(dots + g * period + j)...};
    for (int64_t i = j; i < n; i += period) {
      for (int v = 0; v < kBlock; ++v) {
        const Vec<A> value = load_unaligned(grad + i + v * L);
        ((d[g].value[v] += value * (load_unaligned(y[g] + i + v * L) - m[g][v])), ...);
      }
    }
    for (int v = 0; v < kBlock; ++v) (store(dots + g * period + j + v * L, d[g].value[v]), ...);
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

/// sums += grad
template <typename A>
void add_sums(const A* grad, int64_t period, int64_t n, A* sums) {
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < period && j < n; j += L) {
    Vec<A> s = load(sums + j);
    for (int64_t i = j; i < n; i += period) s += load_unaligned(grad + i);
    store(sums + j, s);
  }
}

/// What grad_candidates needs of one candidate, tables of `period` values: the gradient is
/// scale (G - shift) - slope (y - mean).
template <typename A>
struct Line {
  const A *mean, *scale, *shift, *slope;
};

template <typename A>
void line(const A* grad, const A* y, const Line<A>& line, int64_t period, int64_t n, A* result) {
  constexpr int L = kLanes<A>, V = kVectorRegisters == 32 ? 4 : 2;
  for (int64_t j = 0; j < period && j < n; j += V * L) {
    Vec<A> mean[V], scale[V], shift[V], slope[V];
    for (int v = 0; v < V; ++v) {
      mean[v] = load(line.mean + j + v * L);
      scale[v] = load(line.scale + j + v * L);
      shift[v] = load(line.shift + j + v * L);
      slope[v] = load(line.slope + j + v * L);
    }
    for (int64_t i = j; i < n; i += period) {
      for (int v = 0; v < V; ++v) {
        const Vec<A> g = load_unaligned(grad + i + v * L), d = load_unaligned(y + i + v * L) - mean[v];
        store_unaligned(result + i + v * L, scale[v] * (g - shift[v]) - slope[v] * d);
      }
    }
  }
}

/// Where the statistics are constants: the gradient is scale G.
template <typename A>
void scaled(const A* grad, const A* scale, int64_t period, int64_t n, A* result) {
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
  const int64_t period = period_of<A>(C);
  struct Buffers {
    A *mean, *scale, *sum, *rest, *input, *output;
  };
  const auto lay_out = [&](Layout layout, Buffers& b) {
    b.mean = layout.take<A>(P * K * period);
    b.scale = layout.take<A>(P * K * period);
    b.sum = layout.take<A>(whole<A>(s.tile * C));
    b.rest = layout.take<A>(s.tile * R);
    b.input = layout.take<A>(kTogether<true> * whole<A>(s.tile * C));
    b.output = layout.take<A>(R ? s.tile * W : 0);
    return layout.bytes();
  };
  Buffers b;
  lay_out(Layout(cpu::scratch(lay_out(Layout(nullptr), b))), b);
  for (int64_t p = 0; p < P; ++p) {
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t c = 0; c < C; ++c) {
        const int64_t from = (k * P + p) * C + c, to = (p * K + k) * period;
        repeat(args.mean[from], b.mean + to, c, C, period);
        repeat(A(args.weights[p * K + k] * args.rstd[from]), b.scale + to, c, C, period);
      }
    }
  }

  for (int64_t item = first; item < last; ++item) {
    const int64_t p = item % P, image = item / P / s.tiles, own = p * s.images + image;
    const Tile tile = tile_of(s, item / P % s.tiles);
    const int64_t n = whole<A>(tile.count * C);
    T* const out = result + (own * s.pixels + tile.begin) * stride;
    A* sum = b.sum;
    if constexpr (std::is_same_v<T, A>) {
      if (R == 0 && stride == C && n == tile.count * C) sum = out;
    }
    if (K == 0) std::memset(sum, 0, n * sizeof(A));
    for_candidates<A>(K, C, [&]<bool same, int G>(int64_t k) {
      const A* y[G];
      for (int g = 0; g < G; ++g) {
        const NodePixels<T>& from = args.candidates[k + g];
        const T* data = tile_data(from, s, from.shared ? image : own, tile);
        y[g] = dense(data, from.stride, C, tile.count, b.input + g * n);
      }
      const int64_t table = (p * K + k) * period;
      add_scaled<A, same, G>(y, b.mean + table, b.scale + table, period, n, k > 0, sum, std::make_index_sequence<G>{});
    });
    if (R == 0) {
      if (sum == b.sum) write_pixels(sum, C, tile.count, out, stride);
      continue;
    }
    const NodePixels<T>& before = args.prev_node;
    const T* previous = before.data ? tile_data(before, s, before.shared ? image : own, tile) : nullptr;
    const A* rest = b.rest;
    int64_t rest_stride = R;
    if constexpr (std::is_same_v<T, A>) {
      if (previous && args.bypass_count == 0) {
        rest = previous + C;
        rest_stride = before.stride;
      }
    }
    if (rest == b.rest) std::memset(b.rest, 0, tile.count * R * sizeof(A));
    for (int64_t e = 0; e < args.bypass_count; ++e) {
      const NodePixels<T>& x = args.bypass[e];
      const T* data = tile_data(x, s, x.shared ? image : own, tile);
      const A weight = args.bypass_weights ? args.bypass_weights[p * args.bypass_count + e] : A(1);
      add_channels(data, x.stride, weight, R, tile.count, b.rest, R);
    }
    if (previous && rest == b.rest) add_channels(previous + C, before.stride, A(1), R, tile.count, b.rest, R);
    A* output = b.output;
    int64_t output_stride = W;
    if constexpr (std::is_same_v<T, A>) {
      output = out;
      output_stride = stride;
    }
    shuffle(sum, rest, rest_stride, previous, before.stride, C, s.groups, tile.count, output, output_stride);
    if constexpr (!std::is_same_v<T, A>) write_pixels(b.output, W, tile.count, out, stride);
  }
}

template <typename T>
void node_sum_grad(const NodeSum<T>& args, const NodePixels<T>& grad, T* processed, double* partial, int64_t first,
                   int64_t last) {
  using A = accumulate_t<T>;
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, W = C * s.groups, R = W - C, K = args.candidate_count, E = args.bypass_count;
  const int64_t period = period_of<A>(C), block = kBlockValues<A>;
  struct Buffers {
    A *mean, *table, *zeros, *grad, *rest, *input;
  };
  const int64_t entries = (1 + K) * period + E * block;  // Σ G, Σ G (y_k - μ_k), Σ G_rest · bypass_e
  const auto lay_out = [&](Layout layout, Buffers& b) {
    b.mean = layout.take<A>(K * period);
    b.table = layout.take<A>(entries);
    b.zeros = layout.take<A>(block);
    b.grad = layout.take<A>(whole<A>(s.tile * C));
    b.rest = layout.take<A>(whole<A>(s.tile * R));
    b.input = layout.take<A>(std::max(whole<A>(s.tile * W), kTogether<true> * whole<A>(s.tile * C)));
    return layout.bytes();
  };
  Buffers b;
  lay_out(Layout(cpu::scratch(lay_out(Layout(nullptr), b))), b);
  std::memset(b.zeros, 0, block * sizeof(A));
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t c = 0; c < C; ++c) repeat(args.mean[k * C + c], b.mean + k * period, c, C, period);
  }

  for (int64_t image = first; image < last; ++image) {
    A *sums = b.table, *dots = sums + period, *bypass_dots = dots + K * period;
    std::memset(b.table, 0, entries * sizeof(A));
    for (int64_t t = 0; t < s.tiles; ++t) {
      const Tile tile = tile_of(s, t);
      const T* data = tile_data(grad, s, image, tile);
      const int64_t n = whole<A>(tile.count * C), rest = whole<A>(tile.count * R);
      const A* g = b.grad;
      if (R == 0) {
        g = dense(data, grad.stride, C, tile.count, b.grad);
      } else {
        T* const to = processed + (image * s.pixels + tile.begin) * C;
        A* values = b.grad;
        if constexpr (std::is_same_v<T, A>) {
          if (n == tile.count * C) g = values = to;
          unshuffle(data, grad.stride, C, s.groups, tile.count, values, b.rest);
        } else {
          gather(data, grad.stride, W, tile.count, b.input);
          unshuffle<A>(b.input, W, C, s.groups, tile.count, values, b.rest);
        }
        if (g == b.grad) {
          for (int64_t i = tile.count * C; i < n; ++i) b.grad[i] = 0;
          write(b.grad, tile.count * C, to);
        }
        for (int64_t i = tile.count * R; i < rest; ++i) b.rest[i] = 0;
      }
      add_sums(g, period, n, sums);
      for_candidates<A>(K, C, [&]<bool same, int G>(int64_t k) {
        const A* y[G];
        for (int i = 0; i < G; ++i) {
          const NodePixels<T>& from = args.candidates[k + i];
          y[i] = dense(tile_data(from, s, image, tile), from.stride, C, tile.count, b.input + i * n);
        }
        add_dots<A, same, G>(g, y, b.mean + k * period, period, n, dots + k * period, std::make_index_sequence<G>{});
      });
      for (int64_t e = 0; e < E; ++e) {
        const NodePixels<T>& x = args.bypass[e];
        const A* values = dense(tile_data(x, s, image, tile), x.stride, R, tile.count, b.input);
        add_dots<A, false, 1>(b.rest, &values, b.zeros, block, rest, bypass_dots + e * block, std::index_sequence<0>{});
      }
    }
    double* row = partial + image * (C + K * C + E);
    for (int64_t k = 0; k <= K; ++k) fold(b.table + k * period, C, period, row + k * C);
    for (int64_t e = 0; e < E; ++e) fold(bypass_dots + e * block, int64_t{1}, block, row + C + K * C + e);
  }
}

template <typename T>
void node_sum_grad_candidates(const NodeSum<T>& args, const NodePixels<T>& processed, const NodeSumGrads<T>& grads,
                              int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, K = args.candidate_count, period = period_of<A>(C);
  struct Buffers {
    A *mean, *scale, *shift, *slope, *grad, *input, *output;
  };
  const auto lay_out = [&](Layout layout, Buffers& b) {
    b.mean = layout.take<A>(K * period);
    b.scale = layout.take<A>(K * period);
    b.shift = layout.take<A>(K * period);
    b.slope = layout.take<A>(K * period);
    b.grad = layout.take<A>(whole<A>(s.tile * C));
    b.input = layout.take<A>(whole<A>(s.tile * C));
    b.output = layout.take<A>(whole<A>(s.tile * C));
    return layout.bytes();
  };
  Buffers b;
  lay_out(Layout(cpu::scratch(lay_out(Layout(nullptr), b))), b);
  const double count = double(s.images) * double(s.pixels);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t c = 0; c < C; ++c) {
      const int64_t from = k * C + c, to = k * period;
      const double rstd = args.rstd[from], scale = args.weights[k] * rstd;
      repeat(args.mean[from], b.mean + to, c, C, period);
      repeat(A(scale), b.scale + to, c, C, period);
      repeat(A(grads.sum_dy[c] / count), b.shift + to, c, C, period);
      repeat(A(scale * rstd * grads.sum_dy_xhat[from] / count), b.slope + to, c, C, period);
    }
  }

  for (int64_t item = first; item < last; ++item) {
    const int64_t image = item / s.tiles;
    const Tile tile = tile_of(s, item % s.tiles);
    const int64_t n = whole<A>(tile.count * C);
    const T* data = tile_data(processed, s, image, tile);
    const A* g = dense(data, processed.stride, C, tile.count, b.grad);
    for (int64_t k = 0; k < K; ++k) {
      T* out = grads.candidates[k] + (image * s.pixels + tile.begin) * C;
      A* values = b.output;
      if constexpr (std::is_same_v<T, A>) {
        if (n == tile.count * C) values = out;
      }
      const int64_t at = k * period;
      if (grads.normalized[k]) {
        const NodePixels<T>& y = args.candidates[k];
        const A* input = dense(tile_data(y, s, image, tile), y.stride, C, tile.count, b.input);
        line(g, input, {b.mean + at, b.scale + at, b.shift + at, b.slope + at}, period, n, values);
      } else {
        scaled(g, b.scale + at, period, n, values);
      }
      if (values == b.output) write(values, tile.count * C, out);
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
