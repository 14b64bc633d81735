// Short runs of channels, by which pixels go into scratch memory and out of it.
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

/// W values stored as T.
template <int W, typename A, typename T>
inline Run<A, W> read(const T* from) {
  Run<A, W> values;
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(&values, from, sizeof values);
  } else {
    for (int i = 0; i < W; ++i) values[i] = A(from[i]);
  }
  return values;
}

template <int W, typename A, typename T>
inline void write(T* to, const Run<A, W>& values) {
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(to, &values, sizeof values);
  } else {
    for (int i = 0; i < W; ++i) to[i] = T(values[i]);
  }
}

// Calls f.operator()<W>() with the longest run that divides `channels`.
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
        write<W, A>(to + p * to_stride + c, read<W, A>(from + p * from_stride + c));
      }
    }
  });
}

}  // namespace fastnas::FASTNAS_ISA
