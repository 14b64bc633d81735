// Images of few channels, interleaved in the lanes of a vector, and back.
//
// S images of C = lanes / S channels fill a vector: each has a *lane slot* of C lanes, so lane s·C + c of pixel p is
// channel c of the image in slot s (lane_packing.h says which image that is). Each image lies in a tensor of its own,
// pixel after pixel. S pixels of all S images are S vectors of memory as well as S vectors of lanes, so whole vectors
// are read and written, and a transposition of blocks of C lanes turns the ones into the others: log2(S) shuffles a
// vector, where a copy by runs of C channels would take S short loads and stores. It needs dense images and whole
// groups of S pixels; for anything else there is copy_pixels (channels.h).
#pragma once

#include <utility>

#include "cpu/channels.h"
#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {
namespace detail {

// Of each pair of vectors `distance` slots apart, the slots whose number has this bit change places with those of the
// other vector. Indices are template arguments: GCC may compute those of a variable again and again while it runs.
template <typename A, int S, int distance, int... lane>
inline void exchange_slots(Vec<A>* v, std::integer_sequence<int, lane...>) {
  constexpr int L = kLanes<A>, C = L / S;
#pragma GCC unroll 4
  for (int i = 0; i < S; ++i) {
    if (i & distance) continue;
    const Vec<A> a = v[i], b = v[i + distance];
    v[i] = __builtin_shufflevector(a, b, (lane / C & distance ? L + lane - distance * C : lane)...);
    v[i + distance] = __builtin_shufflevector(a, b, (lane / C & distance ? L + lane : lane + distance * C)...);
  }
}

template <typename A, int S, int distance = 1>
inline void transpose_slots(Vec<A>* v) {
  if constexpr (distance < S) {
    exchange_slots<A, S, distance>(v, std::make_integer_sequence<int, kLanes<A>>{});
    transpose_slots<A, S, 2 * distance>(v);
  }
}

}  // namespace detail

/// Calls f.operator()<S>() and returns true where S = 2 or 4 slots of C channels fill a vector and `pixels` come in
/// whole groups of S.
template <typename A, typename F>
inline bool with_slot_count(int64_t channels, int64_t pixels, const F& f) {
  if constexpr (kLanes<A> >= 4) {
    if (channels * 4 == kLanes<A> && pixels % 4 == 0) return f.template operator()<4>(), true;
  }
  if (channels * 2 == kLanes<A> && pixels % 2 == 0) return f.template operator()<2>(), true;
  return false;
}

/// out [pixels, lanes] from S pixels at a time of every slot's image: values(s, p) are those from pixel p on.
template <int S, typename A, typename F>
inline void interleave(int64_t pixels, const F& values, A* out) {
  for (int64_t p = 0; p < pixels; p += S) {
    Vec<A> v[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) v[s] = values(s, p);
    detail::transpose_slots<A, S>(v);
#pragma GCC unroll 4
    for (int i = 0; i < S; ++i) store(out + (p + i) * kLanes<A>, v[i]);
  }
}

/// The inverse: use(p, v) gets S pixels from p on of every slot s as v[s].
template <int S, typename A, typename F>
inline void deinterleave(const A* from, int64_t pixels, const F& use) {
  for (int64_t p = 0; p < pixels; p += S) {
    Vec<A> v[S];
#pragma GCC unroll 4
    for (int i = 0; i < S; ++i) v[i] = load(from + (p + i) * kLanes<A>);
    detail::transpose_slots<A, S>(v);
    use(p, v);
  }
}

/// from [pixels, lanes] to the images in its `count` slots: to[s] is the first pixel of the one in slot s, null to
/// skip it.
template <typename T, typename A>
void store_slots(const A* from, int64_t lanes, int64_t channels, int64_t pixels, T* const* to, int count) {
  const auto whole = [&]<int S>() {
    deinterleave<S>(from, pixels, [&](int64_t p, const Vec<A>* v) {
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        if (s < count && to[s]) store_run<kLanes<A>, A>(to[s] + p * channels, v[s]);
      }
    });
  };
  if (with_slot_count<A>(channels, pixels, whole)) return;
  for (int s = 0; s < count; ++s) {
    if (to[s]) copy_pixels<A>(from + s * channels, lanes, pixels, channels, to[s], channels);
  }
}

}  // namespace fastnas::FASTNAS_ISA
