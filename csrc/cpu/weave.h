// Streams of few channels, side by side in the lanes of a vector, and back.
//
// A stream is an image of C channels, pixel after pixel; S of them fill a vector: lane s·C + c of pixel p is channel c
// of stream s. S pixels of every stream are S vectors of memory as well as S vectors of lanes, so whole vectors are
// read and written, and a transposition of blocks of C lanes leads from the ones to the others.
#pragma once

#include "cpu/channels.h"
#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {
namespace detail {

template <typename A, int S>
inline void transpose_blocks(Vec<A>* v) {
  using Index = decltype(Vec<A>{} < Vec<A>{});
  constexpr int L = kLanes<A>, C = L / S;
#pragma GCC unroll 4
  for (int distance = 1; distance < S; distance *= 2) {
    Index low{}, high{};  // blocks whose number has this bit change places with those of the other vector
    for (int lane = 0; lane < L; ++lane) {
      const bool other = lane / C & distance;
      low[lane] = other ? L + lane - distance * C : lane;
      high[lane] = other ? L + lane : lane + distance * C;
    }
#pragma GCC unroll 4
    for (int i = 0; i < S; ++i) {
      if (i & distance) continue;
      const Vec<A> a = v[i], b = v[i + distance];
      v[i] = __builtin_shuffle(a, b, low);
      v[i + distance] = __builtin_shuffle(a, b, high);
    }
  }
}

}  // namespace detail

/// Calls f.operator()<S>() and returns true where S = 2 or 4 streams of C channels fill a vector and `pixels` come in
/// whole blocks of S.
template <typename A, typename F>
inline bool for_streams(int64_t channels, int64_t pixels, const F& f) {
  if (channels * 4 == kLanes<A> && pixels % 4 == 0) return f.template operator()<4>(), true;
  if (channels * 2 == kLanes<A> && pixels % 2 == 0) return f.template operator()<2>(), true;
  return false;
}

/// out [pixels, lanes] from S pixels at a time of every stream: values(s, p) are those from pixel p on.
template <int S, typename A, typename F>
inline void weave(int64_t pixels, const F& values, A* out) {
  for (int64_t p = 0; p < pixels; p += S) {
    Vec<A> v[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) v[s] = values(s, p);
    detail::transpose_blocks<A, S>(v);
#pragma GCC unroll 4
    for (int i = 0; i < S; ++i) store(out + (p + i) * kLanes<A>, v[i]);
  }
}

/// The inverse: use(p, v) gets S pixels from p on of every stream s as v[s].
template <int S, typename A, typename F>
inline void unweave(const A* from, int64_t pixels, const F& use) {
  for (int64_t p = 0; p < pixels; p += S) {
    Vec<A> v[S];
#pragma GCC unroll 4
    for (int i = 0; i < S; ++i) v[i] = load(from + (p + i) * kLanes<A>);
    detail::transpose_blocks<A, S>(v);
    use(p, v);
  }
}

/// from [pixels, lanes] to the streams of which `to` holds the first pixel, null where nobody wants one; `count` of
/// them.
template <typename T, typename A>
void write_streams(const A* from, int64_t lanes, int64_t channels, int64_t pixels, T* const* to, int count) {
  const auto whole = [&]<int S>() {
    unweave<S>(from, pixels, [&](int64_t p, const Vec<A>* v) {
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        if (s < count && to[s]) write<kLanes<A>, A>(to[s] + p * channels, v[s]);
      }
    });
  };
  if (for_streams<A>(channels, pixels, whole)) return;
  for (int s = 0; s < count; ++s) {
    if (to[s]) copy_pixels<A>(from + s * channels, lanes, pixels, channels, to[s], channels);
  }
}

/// C values, again and again, in the lanes of a vector.
template <typename A>
inline Vec<A> repeated(const A* values, int64_t channels) {
  Vec<A> result;
  for (int lane = 0; lane < kLanes<A>; ++lane) result[lane] = values[lane % channels];
  return result;
}

}  // namespace fastnas::FASTNAS_ISA
