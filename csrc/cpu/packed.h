// Pointwise convolutions of few channels: several independent ones share a vector.
//
// Where C channels fill at most half a vector, the stages of several edges are packed side by side: lane g·C + c
// belongs to edge g. A product then needs the value of channel i in all C lanes of its edge, which one shuffle gives.
#pragma once

#include "cpu/ahead.h"
#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {
namespace detail {

/// Pixels that go through a loop while a range of lines is read ahead, two of them at a pixel.
constexpr int64_t kAheadPixels = 16;

template <typename A>
using Index = decltype(Vec<A>{} < Vec<A>{});  // integers of the lanes' width

// Lane g·C + c takes its value from lane g·C + i.
template <typename A>
inline Index<A> spread(int64_t channels, int64_t i) {
  Index<A> from{};
  for (int lane = 0; lane < kLanes<A>; ++lane) {
    const int64_t source = lane / channels * channels + i;
    from[lane] = source < kLanes<A> ? source : 0;
  }
  return from;
}

// C > 0: known at compile time, so shuffles are constants and weights stay in registers.
template <typename A, int C>
void packed_pointwise(const A* z, int64_t count, const A* weights, int64_t pixels, A* y, Ahead& ahead) {
  const int64_t channels = C > 0 ? C : count;
  constexpr int kUnroll = 4;
  AheadLines lines{};
  int64_t p = 0;
  for (; p + kUnroll <= pixels; p += kUnroll) {
    if (p % kAheadPixels == 0) lines = ahead.take(2 * kAheadPixels, z);
    for (int u = 0; u < 2 * kUnroll; ++u) lines.next();
    Vec<A> acc[kUnroll] = {};
#pragma GCC unroll 8
    for (int64_t i = 0; i < channels; ++i) {
      const Vec<A> w = load(weights + i * kLanes<A>);
      const Index<A> from = spread<A>(channels, i);
      for (int u = 0; u < kUnroll; ++u) acc[u] += w * __builtin_shuffle(load(z + (p + u) * kLanes<A>), from);
    }
    for (int u = 0; u < kUnroll; ++u) store(y + (p + u) * kLanes<A>, acc[u]);
  }
  for (; p < pixels; ++p) {
    Vec<A> acc{};
    for (int64_t i = 0; i < channels; ++i) {
      acc += load(weights + i * kLanes<A>) * __builtin_shuffle(load(z + p * kLanes<A>), spread<A>(channels, i));
    }
    store(y + p * kLanes<A>, acc);
  }
}

template <typename A, int C>
void packed_grad_weights(const A* z, int64_t count, const A* g, int64_t pixels, A* grad, Ahead& ahead) {
  const int64_t channels = C > 0 ? C : count;
  constexpr int kUnroll = C > 0 && C <= 4 ? 4 : 1;  // independent sums hide the latency
  constexpr int kSums = C > 0 ? C : kLanes<A>;
  Vec<A> acc[kUnroll][kSums] = {};
  AheadLines lines{};
  int64_t p = 0;
  for (; p + kUnroll <= pixels; p += kUnroll) {
    if (p % kAheadPixels == 0) lines = ahead.take(2 * kAheadPixels, z);
    for (int u = 0; u < kUnroll; ++u) {
      lines.next();
      lines.next();
      const Vec<A> value = load(z + (p + u) * kLanes<A>), gradient = load(g + (p + u) * kLanes<A>);
#pragma GCC unroll 8
      for (int64_t i = 0; i < channels; ++i) {
        acc[u][i] += gradient * __builtin_shuffle(value, spread<A>(channels, i));
      }
    }
  }
  for (; p < pixels; ++p) {
    const Vec<A> value = load(z + p * kLanes<A>), gradient = load(g + p * kLanes<A>);
    for (int64_t i = 0; i < channels; ++i) acc[0][i] += gradient * __builtin_shuffle(value, spread<A>(channels, i));
  }
  for (int64_t i = 0; i < channels; ++i) {
    Vec<A> sum = load(grad + i * kLanes<A>);
    for (int u = 0; u < kUnroll; ++u) sum += acc[u][i];
    store(grad + i * kLanes<A>, sum);
  }
}

}  // namespace detail

/// y[p, g·C + o] = Σ_i weights[i, g·C + o] · z[p, g·C + i]: z and y [pixels, lanes], weights [C, lanes]. Meanwhile
/// lines are read `ahead`.
template <typename A>
void packed_pointwise(const A* z, int64_t channels, const A* weights, int64_t pixels, A* y, Ahead& ahead) {
  if (channels == 4 && kLanes<A> >= 8) return detail::packed_pointwise<A, 4>(z, channels, weights, pixels, y, ahead);
  if (channels == 8 && kLanes<A> >= 16) return detail::packed_pointwise<A, 8>(z, channels, weights, pixels, y, ahead);
  detail::packed_pointwise<A, 0>(z, channels, weights, pixels, y, ahead);
}

/// grad[i, g·C + o] += Σ_p z[p, g·C + i] · g[p, g·C + o]. Meanwhile lines are read `ahead`.
template <typename A>
void packed_grad_weights(const A* z, int64_t channels, const A* g, int64_t pixels, A* grad, Ahead& ahead) {
  if (channels == 4 && kLanes<A> >= 8) return detail::packed_grad_weights<A, 4>(z, channels, g, pixels, grad, ahead);
  if (channels == 8 && kLanes<A> >= 16) return detail::packed_grad_weights<A, 8>(z, channels, g, pixels, grad, ahead);
  detail::packed_grad_weights<A, 0>(z, channels, g, pixels, grad, ahead);
}

}  // namespace fastnas::FASTNAS_ISA
