// A row of an image is one flat run of W·C values: a neighbour to the left or right is the value C places away, so few
// channels fill vectors as well as many do. Windows are taken apart into columns of three rows and runs of three
// pixels. Rows are computed in whole vectors; what lies past their end is never read as a pixel.
#pragma once

#include "cpu/vec.h"
#include "ops/pool.h"

namespace fastnas::FASTNAS_ISA {

/// The smallest number of whole pixels that is also one of whole vectors, in values: what belongs to channels repeats
/// along a run with this period.
template <typename A>
inline int64_t period(int64_t channels) {
  int64_t values = channels;
  while (values % kLanes<A> != 0) values += channels;
  return values;
}

/// table [count, C] → repeated [count, period].
template <typename A>
inline void repeat(const A* table, int64_t count, int64_t channels, A* repeated) {
  const int64_t values = period<A>(channels);
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t i = 0; i < values; ++i) repeated[row * values + i] = table[row * channels + i % channels];
  }
}

template <typename A>
inline void fill(A* to, A value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

/// C is a constant where channels are few: a loop of unknown length costs more than it copies.
template <int C, bool add, typename T, typename A>
inline void read_pixels(const T* from, int64_t stride, int64_t pixels, A* to) {
  for (int64_t p = 0; p < pixels; ++p) {
    for (int c = 0; c < C; ++c) to[p * C + c] = (add ? to[p * C + c] : A(0)) + A(from[p * stride + c]);
  }
}

/// Row `row` of `image` → (or, with `add`, added to) a run of values.
template <bool add = false, typename T, typename A>
inline void read_row(const PoolImages<T>& images, int64_t row, int64_t width, int64_t channels, A* to) {
  const int64_t stride = images.stride;
  const T* from = images.pixels + row * width * stride;
  if (stride == channels) {
    for (int64_t i = 0; i < width * channels; ++i) to[i] = (add ? to[i] : A(0)) + A(from[i]);
  } else if (channels == 4) {
    read_pixels<4, add>(from, stride, width, to);
  } else if (channels == 8) {
    read_pixels<8, add>(from, stride, width, to);
  } else if (channels == 16) {
    read_pixels<16, add>(from, stride, width, to);
  } else {
    for (int64_t p = 0; p < width; ++p) {
      for (int64_t c = 0; c < channels; ++c) {
        A& value = to[p * channels + c];
        value = (add ? value : A(0)) + A(from[p * stride + c]);
      }
    }
  }
}

/// `v` replaces the maximum so far: as torch, the first of equals stays, and any NaN takes over.
template <typename A>
inline auto replaces(Vec<A> v, Vec<A> maximum) {
  return (v > maximum) | (v != v);
}
template <typename A>
inline Vec<A> larger(Vec<A> v, Vec<A> maximum) {
  maximum = v > maximum ? v : maximum;
  return v != v ? v : maximum;
}

/// inverse [3, windows · C]: 1 / pixels of a window, for windows of 1, 2 and 3 rows of the image.
template <typename A>
inline void fill_inverse(A* inverse, int64_t pitch, int64_t windows, int64_t stride, const PoolShape& shape) {
  for (int rows = 1; rows <= 3; ++rows) {
    for (int64_t j = 0; j < windows; ++j) {
      const int64_t centre = j * stride;
      const int columns = 1 + (centre > 0) + (centre + 1 < shape.width);
      fill(inverse + (rows - 1) * pitch + j * shape.channels, A(1) / A(rows * columns), shape.channels);
    }
  }
}

inline int rows_of_window(int64_t centre, int64_t height) { return 1 + (centre > 0) + (centre + 1 < height); }

/// A row with room for a pixel before it and for a pixel and a vector behind it.
template <typename A>
inline A* bordered(Layout& layout, int64_t run, int64_t channels) {
  A* row = layout.take<A>(run + 2 * padded<A>(channels) + kLanes<A>);
  return row ? row + padded<A>(channels) : nullptr;
}

/// Three rows of a sliding window over an image. Rows are a vector apart: rows of a power of two would make loads and
/// stores of several rows meet at the same place of a memory page, where processors take one for the other.
template <typename A>
struct Ring {
  A* rows;
  int64_t pitch;
  Ring(Layout& layout, int64_t run) : pitch(padded<A>(run) + kLanes<A>) { rows = layout.take<A>(3 * pitch); }
  A* operator[](int64_t row) const { return rows + row % 3 * pitch; }
};

}  // namespace fastnas::FASTNAS_ISA
