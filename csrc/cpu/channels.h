// Short runs of channels, by which pixels get into scratch memory and out of it.
//
// A pixel of a tensor has any number of channels, at any distance from the next pixel, in the type of storage; in
// scratch memory its channels are padded and in the type of accumulation. Between the two, pixels are copied in runs of
// W channels: a vector, a half of one, a quarter, and so on down to 1. W is known at compile time, so a run needs no
// loop: `for_runs` cuts any number of channels into runs, and each run goes down all pixels before the next one begins,
// so that what belongs to its channels (a mean, a scale) is loaded once. A run is never wider than a vector. Loads and
// stores are unaligned: only scratch memory is known to be aligned.
#pragma once

#include "cpu/convert.h"

namespace fastnas::FASTNAS_ISA {

namespace detail {

/// The longest run of at most W channels that divides `channels`.
template <int W, typename F>
inline void for_run(int64_t channels, const F& f) {
  if constexpr (W > 1) {
    if (channels % W != 0) return for_run<W / 2>(channels, f);
  }
  f.template operator()<W>();
}

/// The channels from `c` on, of which there are fewer than 2W, in runs of W and ever shorter ones.
template <int W, typename F>
inline void for_rest(int64_t c, int64_t channels, const F& f) {
  if constexpr (W > 0) {
    if (channels - c >= W) {
      f.template operator()<W>(c, c + W);
      c += W;
    }
    for_rest<W / 2>(c, channels, f);
  }
}

}  // namespace detail

/// Calls f.operator()<W>() with the longest run that divides `channels`.
template <typename A, typename F>
inline void for_run(int64_t channels, const F& f) {
  detail::for_run<kLanes<A>>(channels, f);
}

/// Calls f.operator()<W>(first, last) for all channels, those from `first` to `last` in runs of W: whole vectors, and
/// what is left in ever shorter runs.
template <typename A, typename F>
inline void for_runs(int64_t channels, const F& f) {
  const int64_t vectors = channels / kLanes<A> * kLanes<A>;
  if (vectors > 0) f.template operator()<kLanes<A>>(int64_t{0}, vectors);
  detail::for_rest<kLanes<A> / 2>(vectors, channels, f);
}

/// Pixels of `from`, `from_stride` values apart, to pixels `to_stride` apart, with another type where T and U differ.
template <typename A, typename T, typename U>
void copy_pixels(const T* from, int64_t from_stride, int64_t pixels, int64_t channels, U* to, int64_t to_stride) {
  for_runs<A>(channels, [&]<int W>(int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c += W) {
      for (int64_t p = 0; p < pixels; ++p) {
        store_run<W, A>(to + p * to_stride + c, load_run<W, A>(from + p * from_stride + c));
      }
    }
  });
}

}  // namespace fastnas::FASTNAS_ISA
