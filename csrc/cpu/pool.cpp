#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/memory.h"
#include "cpu/pool_rows.h"

namespace fastnas::FASTNAS_ISA {
namespace {

/// The outputs of this many values, at least a row, are kept in cache until their statistics are taken.
constexpr int64_t kBlock = 1024;

/// Mean and variance of channels along runs, as MomentSums (cpu/statistics.h) takes them along padded pixels.
template <typename A>
class RunMoments {
 public:
  RunMoments(Layout& layout, int64_t channels)
      : channels_(channels),
        period_(period<A>(channels)),
        shift_(layout.take<A>(period_)),
        sum_(layout.take<double>(period_)),
        square_(layout.take<double>(period_)) {}

  void begin() { values_ = 0; }

  /// y [pixels, C]: `values` in all, of which the last period is completed here, without effect on the result.
  void add(A* y, int64_t values) {
    if (values_ == 0) {
      repeat(y, 1, channels_, shift_);
      fill(sum_, 0.0, period_);
      fill(square_, 0.0, period_);
    }
    values_ += values;
    for (int64_t i = values; i % period_ != 0; ++i) y[i] = shift_[i % period_];
    for (int64_t k = 0; k < period_; k += kLanes<A>) {
      const Vec<A> shift = load(shift_ + k);
      Vec<A> sum[4] = {}, square[4] = {};  // hide the latency of an addition
      const auto value = [&](int64_t i, int u) {
        const Vec<A> d = load(y + i) - shift;
        sum[u] += d;
        square[u] += d * d;
      };
      int64_t i = k;
      for (; i + 3 * period_ < values; i += 4 * period_) {
        for (int u = 0; u < 4; ++u) value(i + u * period_, u);
      }
      for (; i < values; i += period_) value(i, 0);
      add_lanes<A>((sum[0] + sum[1]) + (sum[2] + sum[3]), sum_ + k);
      add_lanes<A>((square[0] + square[1]) + (square[2] + square[3]), square_ + k);
    }
  }

  /// table [2, C]
  void finish(double* table) const {
    const double pixels = values_ / channels_;
    for (int64_t c = 0; c < channels_; ++c) {
      double sum = 0, square = 0;
      for (int64_t k = c; k < period_; k += channels_) {
        sum += sum_[k];
        square += square_[k];
      }
      table[c] = shift_[c] + sum / pixels;
      table[channels_ + c] = square - sum * sum / pixels;
    }
  }

 private:
  int64_t channels_;
  int64_t period_;
  int64_t values_ = 0;
  A* shift_;
  double* sum_;
  double* square_;
};

template <typename A>
struct Pooling {
  int64_t channels, run, pitch;
  Ring<A> x;
  A *sum, *maximum;          // of columns of three, [run] with a border of 0 and of -∞
  A* inverse;                // [3, pitch]
  A* wide[2];                // average and maximum around every pixel of a row [run], for stride 2
  A* block[2];               // rows of average and maximum
  RunMoments<A> moments[2];  // of both

  Pooling(Layout& layout, const PoolShape& shape, int64_t block_rows)
      : channels(shape.channels),
        run(shape.width * shape.channels),
        pitch(padded<A>(run) + kLanes<A>),
        x(layout, run),
        sum(bordered<A>(layout, run, channels)),
        maximum(bordered<A>(layout, run, channels)),
        inverse(layout.take<A>(3 * pitch)),
        moments{{layout, channels}, {layout, channels}} {
    const int64_t values = block_rows * pool_windows(shape.width, shape.stride) * channels;
    for (int i = 0; i < 2; ++i) {
      wide[i] = layout.take<A>(pitch + padded<A>(channels));
      block[i] = layout.take<A>(values + period<A>(channels) + padded<A>(channels));
    }
  }

  void columns(int64_t centre, int64_t height) {
    const A* middle = x[centre];
    const A* above = centre > 0 ? x[centre - 1] : nullptr;
    const A* below = centre + 1 < height ? x[centre + 1] : nullptr;
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
    fill(sum + run, A(0), channels);
    fill(maximum + run, -A(__builtin_inf()), channels);
  }

  void windows(const A* inverse_pixels, A* averages, A* maxima) const {
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
  Layout count(nullptr);
  Pooling<A>(count, shape, block_rows);
  Layout layout(cpu::scratch(count.bytes()));
  Pooling<A> p(layout, shape, block_rows);
  fill_inverse(p.inverse, p.pitch, width, 1, shape);
  fill(p.sum - channels, A(0), channels);
  fill(p.maximum - channels, -A(__builtin_inf()), channels);
  T* results[] = {average, maximum};

  for (int64_t image = first; image < last; ++image) {
    for (auto& moments : p.moments) moments.begin();
    int64_t loaded = 0, written = 0;
    for (int64_t i = 0; i < windows_high; ++i) {
      const int64_t centre = i * stride;
      for (; loaded < height && loaded <= centre + 1; ++loaded) {
        read_row(x, image * height + loaded, width, channels, p.x[loaded]);
      }
      p.columns(centre, height);
      const A* inverse = p.inverse + (rows_of_window(centre, height) - 1) * p.pitch;
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
        T* to = results[k] + (image * windows_high + written) * values;
        for (int64_t j = 0; j < size; ++j) to[j] = T(p.block[k][j]);
        if (table) p.moments[k].add(p.block[k], size);
      }
      written = i + 1;
    }
    if (table) {
      for (int k = 0; k < 2; ++k) p.moments[k].finish(table + (image * 2 + k) * 2 * channels);
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
