// Rows of images and of 3×3 windows, for the pools: what forward, backward and edge_sum share.
//
// A row of an image is one flat run of W·C values (periodic.h): a neighbour to the left or right is the value C places
// away, so few channels fill vectors as well as many do. A window is taken apart, since neighbouring windows share most
// of their pixels: sums and maxima of columns of three rows first, then of three neighbouring columns. Rows have a
// border of what changes neither sums nor maxima, so no window tests for the edge. They are computed in whole vectors;
// what lies past their end is never read as a pixel.
#pragma once

#include "cpu/channels.h"
#include "cpu/periodic.h"
#include "cpu/scratch_arena.h"
#include "cpu/vec.h"
#include "ops/pool.h"

namespace fastnas::FASTNAS_ISA {

/// Row `row` of all images → (or, with `kAdd`, added to) a run of values.
template <bool kAdd = false, typename T, typename A>
inline void load_row_into(const PoolImages<T>& images, int64_t row, int64_t width, int64_t channels, A* to) {
  const int64_t stride = images.stride;
  const T* from = images.pixels + row * width * stride;
  if (stride == channels) return load_row<kAdd>(from, width * channels, to);
  for_runs<A>(channels, [&]<int W>(int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c += W) {
      for (int64_t p = 0; p < width; ++p) {
        const Run<A, W> values = load_run<W, A>(from + p * stride + c);
        A* const at = to + p * channels + c;
        store_run<W, A>(at, kAdd ? load_run<W, A>(at) + values : values);
      }
    }
  });
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

/// Of the three pixels along one side of a window that is centred on pixel `centre` of `size`, those within the image.
inline int pixels_of_window(int64_t centre, int64_t size) { return 1 + (centre > 0) + (centre + 1 < size); }

/// inverse [3, windows · C]: 1 / pixels of a window, for windows of 1, 2 and 3 rows of the image.
template <typename A>
inline void fill_inverse(A* inverse, int64_t pitch, int64_t windows, int64_t stride, const PoolShape& shape) {
  for (int rows = 1; rows <= 3; ++rows) {
    for (int64_t j = 0; j < windows; ++j) {
      const int columns = pixels_of_window(j * stride, shape.width);
      fill(inverse + (rows - 1) * pitch + j * shape.channels, A(1) / A(rows * columns), shape.channels);
    }
  }
}

/// A row with room for a pixel before it and for a pixel and a vector after it.
template <typename A>
inline A* take_bordered_row(cpu::ScratchArena& scratch, int64_t run, int64_t channels) {
  return scratch.take<A>(run + 2 * padded<A>(channels) + kLanes<A>) + padded<A>(channels);
}

/// Sums and maxima of the columns of up to three rows.
template <typename A>
struct PoolColumns {
  int64_t run, channels;
  A *sum, *maximum;  // [run] with a pixel of 0, or of -∞, at each end

  PoolColumns(cpu::ScratchArena& scratch, int64_t run, int64_t channels)
      : run(run),
        channels(channels),
        sum(take_bordered_row<A>(scratch, run, channels)),
        maximum(take_bordered_row<A>(scratch, run, channels)) {
    fill(sum - channels, A(0), channels);
    fill(maximum - channels, -A(__builtin_inf()), channels);
  }

  /// A row that does not exist is null.
  void set(const A* above, const A* middle, const A* below) const {
    A *const sum = this->sum, *const maximum = this->maximum;  // local: no store in the loop changes them
    const int64_t run = this->run, channels = this->channels;
    for (int64_t i = 0; i < run; i += kLanes<A>) {
      Vec<A> s = load(middle + i), m = s;
      if (above) {
        const Vec<A> v = load(above + i);
        s += v;
        m = larger<A>(v, m);
      }
      if (below) {
        const Vec<A> v = load(below + i);
        s += v;
        m = larger<A>(v, m);
      }
      store(sum + i, s);
      store(maximum + i, m);
    }
    fill(sum + run, A(0), channels);  // again: the last vector may have reached past the run
    fill(maximum + run, -A(__builtin_inf()), channels);
  }
};

/// Three rows of a sliding window over an image. Rows are a vector apart: rows of a power of two would make loads and
/// stores of several rows meet at the same place of a memory page, where processors take one for the other.
template <typename A>
struct Ring {
  A* rows;
  int64_t pitch;
  Ring(cpu::ScratchArena& scratch, int64_t run) : pitch(padded<A>(run) + kLanes<A>) {
    rows = scratch.take<A>(3 * pitch);
  }
  A* operator[](int64_t row) const { return rows + row % 3 * pitch; }
};

}  // namespace fastnas::FASTNAS_ISA
