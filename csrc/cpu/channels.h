// Short runs of channels, by which pixels get into scratch memory and out of it.
//
// A pixel of a tensor has any number of channels, at any distance from the next pixel, in the type of storage; in
// scratch memory its channels are padded and in the type of accumulation. Between the two, pixels are copied in runs of
// W = 16, 8, 4, 2 or 1 channels. W is known at compile time, so a run is one vector, a few, or part of one, and its
// conversion needs no loop: `for_runs` cuts any number of channels into runs, and each run goes down all pixels before
// the next one begins, so that what belongs to its channels (a mean, a scale) is loaded once. Loads and stores are
// unaligned: only scratch memory is known to be aligned.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace fastnas::FASTNAS_ISA {

/// W values of type A, which the compiler maps to whatever registers there are.
template <typename A, int W>
struct RunOf {
  typedef A type __attribute__((vector_size(W * sizeof(A))));
};
template <typename A, int W>
using Run = typename RunOf<A, W>::type;

/// W values that are stored as T.
template <int W, typename A, typename T>
inline Run<A, W> load_run(const T* from) {
  Run<A, W> values;
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(&values, from, sizeof values);
  } else {
    for (int i = 0; i < W; ++i) values[i] = A(from[i]);
  }
  return values;
}

template <int W, typename A, typename T>
inline void store_run(T* to, const Run<A, W>& values) {
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(to, &values, sizeof values);
  } else {
    for (int i = 0; i < W; ++i) to[i] = T(values[i]);
  }
}

/// Calls f.operator()<W>() with the longest run that divides `channels`.
template <typename F>
inline void for_run(int64_t channels, const F& f) {
  if (channels % 16 == 0) return f.template operator()<16>();
  if (channels % 8 == 0) return f.template operator()<8>();
  if (channels % 4 == 0) return f.template operator()<4>();
  if (channels % 2 == 0) return f.template operator()<2>();
  f.template operator()<1>();
}

/// Calls f.operator()<W>(first, last) for all channels, those from `first` to `last` in runs of W: whole 16s, and what
/// is left in ever shorter ones.
template <typename F>
inline void for_runs(int64_t channels, const F& f) {
  int64_t c = channels / 16 * 16;
  if (c > 0) f.template operator()<16>(int64_t{0}, c);
  const auto rest = [&]<int W>() {
    if (channels - c < W) return;
    f.template operator()<W>(c, c + W);
    c += W;
  };
  rest.template operator()<8>();
  rest.template operator()<4>();
  rest.template operator()<2>();
  rest.template operator()<1>();
}

/// Pixels of `from`, `from_stride` values apart, to pixels `to_stride` apart, with another type where T and U differ.
template <typename A, typename T, typename U>
void copy_pixels(const T* from, int64_t from_stride, int64_t pixels, int64_t channels, U* to, int64_t to_stride) {
  for_runs(channels, [&]<int W>(int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c += W) {
      for (int64_t p = 0; p < pixels; ++p) {
        store_run<W, A>(to + p * to_stride + c, load_run<W, A>(from + p * from_stride + c));
      }
    }
  });
}

}  // namespace fastnas::FASTNAS_ISA
