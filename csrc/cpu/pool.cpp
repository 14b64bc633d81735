// pool, forward: average and maximum of the 3×3 windows of an image, and the statistics of both, from one reading.
//
// A thread takes an image at a time and goes down its rows, three of which are in a ring. Rows are flat runs of values
// (pool_rows.h), so any number of channels fills vectors. For a row of windows the columns of three rows are added up
// and compared, then three neighbouring columns: 4 additions and 4 comparisons a window instead of 8 of each. With
// stride 2 the windows around all pixels of a row are computed and every other one is picked, so that all loads are
// those of stride 1. Outputs gather in blocks of about 1024 values; while a block is in the nearest cache it is
// converted, written, and added to the statistics.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/pool_rows.h"
#include "cpu/scratch_arena.h"
#include "cpu/statistics.h"

namespace fastnas::FASTNAS_ISA {
namespace {

/// The outputs of this many values, at least a row, are kept in cache until their statistics are taken.
constexpr int64_t kBlock = 1024;

template <typename A>
struct Pooling {
  int64_t channels, run, pitch;
  Ring<A> x;
  PoolColumns<A> columns;
  A* inverse;                 // [3, pitch]
  RunBatchStats<A> stats[2];  // of average and maximum
  A* wide[2];                 // of both around every pixel of a row [run], for stride 2
  A* block[2];                // rows of both

  Pooling(cpu::ScratchArena& scratch, const PoolShape& shape, int64_t block_rows)
      : channels(shape.channels),
        run(shape.width * shape.channels),
        pitch(padded<A>(run) + kLanes<A>),
        x(scratch, run),
        columns(scratch, run, channels),
        inverse(scratch.take<A>(3 * pitch)),
        stats{{scratch, channels}, {scratch, channels}} {
    const int64_t values = block_rows * pool_windows(shape.width, shape.stride) * channels;
    for (int i = 0; i < 2; ++i) {
      wide[i] = scratch.take<A>(pitch + padded<A>(channels));
      block[i] = scratch.take<A>(values + period_of<A>(channels) + padded<A>(channels));
    }
  }

  /// The columns of the windows around row `centre`, which is in the ring with its neighbours.
  void set_columns(int64_t centre, int64_t height) const {
    columns.set(centre > 0 ? x[centre - 1] : nullptr, x[centre], centre + 1 < height ? x[centre + 1] : nullptr);
  }

  void windows(const A* inverse_pixels, A* averages, A* maxima) const {
    const A *sum = columns.sum, *maximum = columns.maximum;
    for (int64_t i = 0; i < run; i += kLanes<A>) {
      const Vec<A> s = load_unaligned(sum + i - channels) + load(sum + i) + load_unaligned(sum + i + channels);
      store_unaligned(averages + i, s * load(inverse_pixels + i));
      const Vec<A> m = larger<A>(load_unaligned(maximum + i - channels), load(maximum + i));
      store_unaligned(maxima + i, larger<A>(load_unaligned(maximum + i + channels), m));
    }
  }
};

/// Every other pixel of `from`. Whole vectors are copied; the next pixel overwrites what is too much.
template <typename A>
void pick(const A* from, int64_t count, int64_t channels, A* to) {
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      store_unaligned(to + p * channels + c, load_unaligned(from + 2 * p * channels + c));
    }
  }
}

}  // namespace

template <typename T>
void pool_forward(const PoolShape& shape, const PoolImages<T>& x, T* average, T* maximum, double* table, int64_t first,
                  int64_t last) {
  using A = accumulate_t<T>;
  const auto [channels, height, width, stride] = shape;
  const int64_t windows_high = pool_windows(height, stride), windows_wide = pool_windows(width, stride);
  const int64_t values = windows_wide * channels;  // of a row
  const int64_t block_rows = values < kBlock ? kBlock / values : 1;
  cpu::ScratchArena scratch;
  Pooling<A> p(scratch, shape, block_rows);
  fill_inverse(p.inverse, p.pitch, width, 1, shape);
  T* results[] = {average, maximum};

  for (int64_t image = first; image < last; ++image) {
    for (auto& stats : p.stats) stats.begin();
    int64_t loaded = 0, written = 0;
    for (int64_t i = 0; i < windows_high; ++i) {
      const int64_t centre = i * stride;
      for (; loaded < height && loaded <= centre + 1; ++loaded) {
        load_row_into(x, image * height + loaded, width, channels, p.x[loaded]);
      }
      p.set_columns(centre, height);
      const A* inverse = p.inverse + (pixels_of_window(centre, height) - 1) * p.pitch;
      A* rows[] = {p.block[0] + (i - written) * values, p.block[1] + (i - written) * values};
      if (stride == 1) {
        p.windows(inverse, rows[0], rows[1]);
      } else {
        p.windows(inverse, p.wide[0], p.wide[1]);
        for (int k = 0; k < 2; ++k) pick(p.wide[k], windows_wide, channels, rows[k]);
      }
      if (i + 1 - written < block_rows && i + 1 < windows_high) continue;
      const int64_t size = (i + 1 - written) * values;
      for (int k = 0; k < 2; ++k) {
        store_row(p.block[k], size, results[k] + (image * windows_high + written) * values);
        if (table) p.stats[k].add(p.block[k], size);
      }
      written = i + 1;
    }
    if (table) {
      for (int k = 0; k < 2; ++k) p.stats[k].finish(table + (image * 2 + k) * 2 * channels);
    }
  }
}

#define INSTANTIATE(T) \
  template void pool_forward(const PoolShape&, const PoolImages<T>&, T*, T*, double*, int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
