// Pointwise convolutions of few channels: several independent ones share a vector.
//
// Where C channels fill at most half a vector, its lane slots hold several images or stages side by side
// (lane_packing.h): lane s·C + c is channel c of slot s. A matrix product for C inputs then needs, for each input i,
// the value of channel i in all C lanes of its slot, which one shuffle gives; multiplied by a vector of weights it adds
// to the outputs of all slots at once. So C shuffles and C multiply-adds replace as many scalar products as there are
// lanes. Both products go down the pixels with several independent sums, to hide the latency of an addition; for C = 4
// and 8 the count is a constant, so shuffles are, too, and weights stay in registers.
#pragma once

#include "cpu/prefetcher.h"
#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {
namespace detail {

/// Pixels that go through a loop while a range of lines is prefetched, one of them at a pixel: more come in bursts, for
/// which the loop waits.
constexpr int64_t kPrefetchPixels = 16;

// Lane s·C + c takes its value from lane s·C + i.
template <typename A>
inline LaneIndex<A> spread(int64_t channels, int64_t i) {
  LaneIndex<A> from{};
  for (int lane = 0; lane < kLanes<A>; ++lane) {
    const int64_t source = lane / channels * channels + i;
    from[lane] = source < kLanes<A> ? source : 0;
  }
  return from;
}

// C > 0: known at compile time, so shuffles are constants and weights stay in registers.
template <typename A, int C>
void packed_pointwise(const A* z, int64_t count, const A* weights, int64_t pixels, A* y, Prefetcher& prefetcher) {
  const int64_t channels = C > 0 ? C : count;
  constexpr int kUnroll = 4;
  PrefetchLines lines{};
  int64_t p = 0;
  for (; p + kUnroll <= pixels; p += kUnroll) {
    if (p % kPrefetchPixels == 0) lines = prefetcher.take(kPrefetchPixels, z);
    for (int u = 0; u < kUnroll; ++u) lines.fetch_next();
    Vec<A> acc[kUnroll] = {};
#pragma GCC unroll 8
    for (int64_t i = 0; i < channels; ++i) {
      const Vec<A> w = load(weights + i * kLanes<A>);
      const LaneIndex<A> from = spread<A>(channels, i);
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
void packed_grad_weights(const A* z, int64_t count, const A* g, int64_t pixels, A* grad, Prefetcher& prefetcher) {
  const int64_t channels = C > 0 ? C : count;
  // Independent sums hide the latency; they have to fit the registers.
  constexpr int kUnroll = C > 4 || C == 0 ? 1 : kVectorRegisters == 32 ? 4 : 2;
  constexpr int kSums = C > 0 ? C : kLanes<A>;
  Vec<A> acc[kUnroll][kSums] = {};
  PrefetchLines lines{};
  int64_t p = 0;
  for (; p + kUnroll <= pixels; p += kUnroll) {
    if (p % kPrefetchPixels == 0) lines = prefetcher.take(kPrefetchPixels, z);
    for (int u = 0; u < kUnroll; ++u) {
      lines.fetch_next();
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

/// y[p, s·C + o] = Σ_i weights[i, s·C + o] · z[p, s·C + i]: z and y [pixels, lanes], weights [C, lanes]. The lines of
/// `prefetcher` are fetched meanwhile.
template <typename A>
void packed_pointwise(const A* z, int64_t channels, const A* weights, int64_t pixels, A* y, Prefetcher& prefetcher) {
  if (channels == 4 && kLanes<A> >= 8)
    return detail::packed_pointwise<A, 4>(z, channels, weights, pixels, y, prefetcher);
  if (channels == 8 && kLanes<A> >= 16)
    return detail::packed_pointwise<A, 8>(z, channels, weights, pixels, y, prefetcher);
  detail::packed_pointwise<A, 0>(z, channels, weights, pixels, y, prefetcher);
}

/// grad[i, s·C + o] += Σ_p z[p, s·C + i] · g[p, s·C + o]. The lines of `prefetcher` are fetched meanwhile.
template <typename A>
void packed_grad_weights(const A* z, int64_t channels, const A* g, int64_t pixels, A* grad, Prefetcher& prefetcher) {
  if (channels == 4 && kLanes<A> >= 8)
    return detail::packed_grad_weights<A, 4>(z, channels, g, pixels, grad, prefetcher);
  if (channels == 8 && kLanes<A> >= 16)
    return detail::packed_grad_weights<A, 8>(z, channels, g, pixels, grad, prefetcher);
  detail::packed_grad_weights<A, 0>(z, channels, g, pixels, grad, prefetcher);
}

}  // namespace fastnas::FASTNAS_ISA
