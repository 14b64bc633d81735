// Pixels of a wider image in a dense buffer, and the channel shuffle of partial channels.
//
// With partial channels only the first C of g·C channels, group 0, pass through a node's candidates; the groups from 1
// on, R = (g - 1)·C channels, bypass them. The result is shuffled: channel i of group q is channel i·g + q, so that the
// next node sees other channels. A shuffle is the transposition of a [g, C] matrix in every pixel. Four groups, the
// usual number, are shuffled by 4×4 transpositions in registers, whatever the instruction set; any other number goes
// value by value. Here vectors are V = Vec<A>, Four<A> or A itself, the widest that divides a pixel: these loops only
// move memory, and are as fast as memory is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/convert.h"
#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {

// Four values; passed by pointer only, as double's have no register on every instruction set.
template <typename A>
struct FourOf {
  typedef A type __attribute__((vector_size(4 * sizeof(A))));
};
template <typename A>
using Four = typename FourOf<A>::type;

/// The values of a vector V of A's, or a single A, stored as T.
template <typename A, typename V, typename T>
inline void load_into(const T* from, V* to) {
  if constexpr (std::is_same_v<T, A>) {
    __builtin_memcpy(to, from, sizeof *to);
  } else if constexpr (std::is_same_v<V, A>) {
    *to = A(*from);
  } else {
    *to = load_run<sizeof(V) / sizeof(A), A>(from);
  }
}

// The pixels of a node lie among those of its neighbours, which hardware does not foresee: they are prefetched this
// many pixels ahead. A prefetch beyond the last one is harmless.
constexpr int64_t kAhead = 16;

template <typename A>
inline void transpose(Four<A>* rows) {
  const Four<A> a = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  const Four<A> b = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  const Four<A> c = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const Four<A> d = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  rows[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  rows[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  rows[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

// V is as wide as `width` allows.
template <typename V, typename T, typename A>
inline void gather_by(const T* __restrict__ from, int64_t stride, int64_t width, int64_t pixels, A* __restrict__ to) {
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < width; c += static_cast<int64_t>(sizeof(V) / sizeof(A))) {
      V values;
      load_into<A>(from + p * stride + c, &values);
      __builtin_memcpy(to + p * width + c, &values, sizeof values);
    }
  }
}

template <typename V, typename T, typename A>
inline void add_channels_by(const T* __restrict__ from, int64_t stride, A weight, int64_t width, int64_t pixels,
                            A* __restrict__ sum, int64_t sum_stride) {
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < width; c += static_cast<int64_t>(sizeof(V) / sizeof(A))) {
      V values, total;
      load_into<A>(from + p * stride + c, &values);
      load_into<A>(sum + p * sum_stride + c, &total);
      total += weight * values;
      __builtin_memcpy(sum + p * sum_stride + c, &total, sizeof total);
    }
  }
}

/// to [pixels, width] from `width` values of every pixel.
template <typename T, typename A>
inline void gather(const T* from, int64_t stride, int64_t width, int64_t pixels, A* to) {
  if (stride == width) {
    stride = width = width * pixels;
    pixels = 1;
  }
  if (width % kLanes<A> == 0) return gather_by<Vec<A>>(from, stride, width, pixels, to);
  if (width % 4 == 0) return gather_by<Four<A>>(from, stride, width, pixels, to);
  gather_by<A>(from, stride, width, pixels, to);
}

/// sum += weight · from, for `width` channels of pixels that are `stride` and `sum_stride` apart.
template <typename T, typename A>
inline void add_channels(const T* from, int64_t stride, A weight, int64_t width, int64_t pixels, A* sum,
                         int64_t sum_stride) {
  if (stride == width && sum_stride == width) {
    stride = sum_stride = width = width * pixels;
    pixels = 1;
  }
  if (width % kLanes<A> == 0) return add_channels_by<Vec<A>>(from, stride, weight, width, pixels, sum, sum_stride);
  if (width % 4 == 0) return add_channels_by<Four<A>>(from, stride, weight, width, pixels, sum, sum_stride);
  add_channels_by<A>(from, stride, weight, width, pixels, sum, sum_stride);
}

/// Pixels of groups · channels values, `stride` apart and shuffled, from group 0 [pixels, channels] and the bypass,
/// group after group from 1 on, whose pixels are `bypass_stride` apart. Where there is a previous node, such pixels
/// `prev_stride` apart, its groups from 1 on are added where they are.
template <typename A, typename T>
inline void shuffle(const A* __restrict__ group0, const A* __restrict__ bypass, int64_t bypass_stride,
                    const T* __restrict__ prev_node, int64_t prev_stride, int64_t channels, int64_t groups,
                    int64_t pixels, A* __restrict__ to, int64_t stride) {
  if (groups == 4 && channels % 4 == 0) {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t i = 0; i < channels; i += 4) {
        if (prev_node) {
          __builtin_prefetch(prev_node + (p + kAhead) * prev_stride + 4 * i);
        } else {
          __builtin_prefetch(to + (p + kAhead) * stride + 4 * i);
        }
        Four<A> rows[4];
        __builtin_memcpy(&rows[0], group0 + p * channels + i, sizeof rows[0]);
        for (int q = 1; q < 4; ++q) {
          __builtin_memcpy(&rows[q], bypass + p * bypass_stride + (q - 1) * channels + i, sizeof rows[0]);
        }
        transpose<A>(rows);
        for (int j = 0; prev_node && j < 4; ++j) {
          Four<A> values;
          load_into<A>(prev_node + p * prev_stride + 4 * (i + j), &values);
          rows[j] += __builtin_shufflevector(Four<A>{}, values, 0, 5, 6, 7);
        }
        __builtin_memcpy(to + p * stride + 4 * i, rows, sizeof rows);
      }
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t i = 0; i < channels; ++i) to[p * stride + i * groups] = group0[p * channels + i];
    for (int64_t q = 1; q < groups; ++q) {
      const A* group = bypass + p * bypass_stride + (q - 1) * channels;
      for (int64_t i = 0; i < channels; ++i) {
        const int64_t at = i * groups + q;
        to[p * stride + at] = prev_node ? group[i] + A(prev_node[p * prev_stride + at]) : group[i];
      }
    }
  }
}

/// The inverse of `shuffle`; pixels are `stride` apart in `from`.
template <typename A>
inline void unshuffle(const A* __restrict__ from, int64_t stride, int64_t channels, int64_t groups, int64_t pixels,
                      A* __restrict__ group0, A* __restrict__ bypass) {
  if (groups == 4 && channels % 4 == 0) {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t i = 0; i < channels; i += 4) {
        Four<A> rows[4];
        __builtin_memcpy(rows, from + p * stride + 4 * i, sizeof rows);
        transpose<A>(rows);
        __builtin_memcpy(group0 + p * channels + i, &rows[0], sizeof rows[0]);
        for (int q = 1; q < 4; ++q) {
          __builtin_memcpy(bypass + (3 * p + q - 1) * channels + i, &rows[q], sizeof rows[0]);
        }
      }
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t i = 0; i < channels; ++i) group0[p * channels + i] = from[p * stride + i * groups];
    for (int64_t q = 1; q < groups; ++q) {
      A* group = bypass + (p * (groups - 1) + q - 1) * channels;
      for (int64_t i = 0; i < channels; ++i) group[i] = from[p * stride + i * groups + q];
    }
  }
}

/// sum += weight · the bypass in shuffled pixels, which are `stride` apart in `from` and `sum_stride` in `sum`.
template <typename A>
inline void add_bypass(const A* __restrict__ from, int64_t stride, int64_t channels, int64_t groups, int64_t pixels,
                       A weight, A* __restrict__ sum, int64_t sum_stride) {
  if (groups == 4 && channels % 4 == 0) {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t i = 0; i < channels; i += 4) {
        Four<A> rows[4], total;
        __builtin_memcpy(rows, from + p * stride + 4 * i, sizeof rows);
        transpose<A>(rows);
        for (int q = 1; q < 4; ++q) {
          A* const at = sum + p * sum_stride + (q - 1) * channels + i;
          __builtin_memcpy(&total, at, sizeof total);
          total += weight * rows[q];
          __builtin_memcpy(at, &total, sizeof total);
        }
      }
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t q = 1; q < groups; ++q) {
      A* const group = sum + p * sum_stride + (q - 1) * channels;
      for (int64_t i = 0; i < channels; ++i) group[i] += weight * from[p * stride + i * groups + q];
    }
  }
}

/// sum += the groups from 1 on of shuffled pixels, where they are, without putting them in order.
template <typename T, typename A>
inline void add_shuffled_bypass(const T* __restrict__ from, int64_t stride, int64_t channels, int64_t groups,
                                int64_t pixels, A* __restrict__ sum, int64_t sum_stride) {
  if (groups == 4) {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t i = 0; i < channels; ++i) {
        Four<A> values, total;
        load_into<A>(from + p * stride + 4 * i, &values);
        A* const at = sum + p * sum_stride + 4 * i;
        __builtin_memcpy(&total, at, sizeof total);
        total += __builtin_shufflevector(Four<A>{}, values, 0, 5, 6, 7);
        __builtin_memcpy(at, &total, sizeof total);
      }
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t i = 0; i < channels; ++i) {
      for (int64_t q = 1; q < groups; ++q) sum[p * sum_stride + i * groups + q] += A(from[p * stride + i * groups + q]);
    }
  }
}

}  // namespace fastnas::FASTNAS_ISA
