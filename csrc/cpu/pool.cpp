// A row of an image is one flat run of W·C values: a neighbour to the left or right is the value C places away, so few
// channels fill vectors as well as many do. Windows are taken apart into columns of three rows and runs of three
// pixels. Rows are computed in whole vectors; what lies past their end is never read as a pixel.
#include "ops/pool.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/memory.h"
#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {
namespace {

/// The outputs of this many values, at least a row, are kept in cache until their statistics are taken.
constexpr int64_t kBlock = 1024;

/// The smallest number of whole pixels that is also one of whole vectors, in values: what belongs to channels repeats
/// along a run with this period.
template <typename A>
int64_t period(int64_t channels) {
  int64_t values = channels;
  while (values % kLanes<A> != 0) values += channels;
  return values;
}

/// table [count, C] → repeated [count, period].
template <typename A>
void repeat(const A* table, int64_t count, int64_t channels, A* repeated) {
  const int64_t values = period<A>(channels);
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t i = 0; i < values; ++i) repeated[row * values + i] = table[row * channels + i % channels];
  }
}

template <typename A>
void fill(A* to, A value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

/// C is a constant where channels are few: a loop of unknown length costs more than it copies.
template <int C, bool add, typename T, typename A>
void read_pixels(const T* from, int64_t stride, int64_t pixels, A* to) {
  for (int64_t p = 0; p < pixels; ++p) {
    for (int c = 0; c < C; ++c) to[p * C + c] = (add ? to[p * C + c] : A(0)) + A(from[p * stride + c]);
  }
}

/// Row `row` of `image` → (or, with `add`, added to) a run of values.
template <bool add = false, typename T, typename A>
void read_row(const PoolImages<T>& images, int64_t row, int64_t width, int64_t channels, A* to) {
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
auto replaces(Vec<A> v, Vec<A> maximum) {
  return (v > maximum) | (v != v);
}
template <typename A>
Vec<A> larger(Vec<A> v, Vec<A> maximum) {
  maximum = v > maximum ? v : maximum;
  return v != v ? v : maximum;
}

/// inverse [3, windows · C]: 1 / pixels of a window, for windows of 1, 2 and 3 rows of the image.
template <typename A>
void fill_inverse(A* inverse, int64_t pitch, int64_t windows, int64_t stride, const PoolShape& shape) {
  for (int rows = 1; rows <= 3; ++rows) {
    for (int64_t j = 0; j < windows; ++j) {
      const int64_t centre = j * stride;
      const int columns = 1 + (centre > 0) + (centre + 1 < shape.width);
      fill(inverse + (rows - 1) * pitch + j * shape.channels, A(1) / A(rows * columns), shape.channels);
    }
  }
}

int rows_of_window(int64_t centre, int64_t height) { return 1 + (centre > 0) + (centre + 1 < height); }

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
      Vec<A> sum = {}, square = {};
      for (int64_t i = k; i < values; i += period_) {
        const Vec<A> d = load(y + i) - shift;
        sum += d;
        square += d * d;
      }
      for (int lane = 0; lane < kLanes<A>; ++lane) {
        sum_[k + lane] += sum[lane];
        square_[k + lane] += square[lane];
      }
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

/// A row with room for a pixel before it and for a pixel and a vector behind it.
template <typename A>
A* bordered(Layout& layout, int64_t run, int64_t channels) {
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

// --- forward ---------------------------------------------------------------------------------------------------------

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

// --- gradient --------------------------------------------------------------------------------------------------------

namespace {

// The maximum of a window is the maximum of three runs of three pixels, one of each row. A window row hands its
// gradient to the runs that hold the maxima; once a row of the image has heard of all its windows, the runs hand what
// they got to their pixels. With stride 2 the gradient of a window around every other pixel is zero.
template <typename A>
struct PoolingGrad {
  int64_t channels, run, pitch, repeats;
  A* x;                            // a row [run] with a border of -∞
  Ring<A> maximum;                 // of the run of three around each pixel
  Ring<A> place;                   // of that maximum: 0 left, 1 middle, 2 right
  Ring<A> maximum_grad;            // of the maxima of runs
  Ring<A> window_average;          // gradients of the averages of the windows around a row
  Ring<A> skipped;                 // what reaches a row through identities
  A *left, *middle, *right;        // gradients that runs hand to their pixels, with a border of 0
  A* inverse;                      // [3, pitch]
  A *window_maximum, *no_windows;  // gradients of the maxima of a row of windows; zeros [run]
  A* pixels;                       // the gradient of a row
  A* compact;                      // such a row before it is spread, for stride 2
  A* grads;                        // rows [G, pitch]
  A* outputs;                      // rows [2, pitch]
  A *scales, *corrections, *skip;  // repeated

  PoolingGrad(Layout& layout, const PoolShape& shape, int64_t grad_count)
      : channels(shape.channels),
        run(shape.width * channels),
        pitch(padded<A>(run) + kLanes<A>),
        repeats(period<A>(channels)),
        x(bordered<A>(layout, run, channels)),
        maximum(layout, run),
        place(layout, run),
        maximum_grad(layout, run),
        window_average(layout, run),
        skipped(layout, run),
        left(bordered<A>(layout, run, channels)),
        middle(layout.take<A>(pitch)),
        right(bordered<A>(layout, run, channels)),
        inverse(layout.take<A>(3 * pitch)),
        window_maximum(layout.take<A>(pitch)),
        no_windows(layout.take<A>(pitch)),
        pixels(layout.take<A>(pitch)),
        compact(layout.take<A>(2 * pitch)),
        grads(layout.take<A>(grad_count * pitch)),
        outputs(layout.take<A>(2 * pitch)),
        scales(layout.take<A>(2 * grad_count * repeats)),
        corrections(layout.take<A>(6 * repeats)),
        skip(layout.take<A>(grad_count * repeats)) {}

  /// Maxima of the runs of the image's row `row`, which is in `x`.
  void find_maxima(int64_t row, int64_t stride) const {
    A *maxima = maximum[row], *places = place[row];
    for (int64_t i = 0; i < run; i += kLanes<A>) {
      Vec<A> m = load_unaligned(x + i - channels), at = {};
      Vec<A> v = load(x + i);
      auto take = replaces<A>(v, m);
      m = take ? v : m;
      at = take ? broadcast(A(1)) : at;
      v = load_unaligned(x + i + channels);
      take = replaces<A>(v, m);
      store(maxima + i, take ? v : m);
      store(places + i, take ? broadcast(A(2)) : at);
    }
    // The border must not win, not even against -∞.
    for (int64_t c = 0; c < channels; ++c) places[c] = places[c] == 0 ? A(1) : places[c];
    // Where another row of windows has not begun this row; see to_runs.
    if (row == 0 || (stride == 2 && row % 2 == 0)) fill(maximum_grad[row], A(0), run);
  }

  /// Gradients of the average and of the maximum of a row of `values` / C windows, from the rows in `grads` and
  /// `outputs`.
  template <bool corrected>
  void combine(int64_t values, int64_t grad_count, const A* inverse_pixels, A* averages, A* maxima, A* skipped) const {
    for (int64_t k = 0; k < repeats; k += kLanes<A>) {
      for (int64_t i = k; i < values; i += repeats) {
        Vec<A> average = {}, maximum = {}, past = {};
        for (int64_t n = 0; n < grad_count; ++n) {
          const Vec<A> g = load(grads + n * pitch + i);
          average += g * load(scales + n * repeats + k);
          maximum += g * load(scales + (grad_count + n) * repeats + k);
          if (skipped) past += g * load(skip + n * repeats + k);
        }
        if constexpr (corrected) {
          const A* table = corrections + k;
          average += load(table) * (load(outputs + i) - load(table + repeats)) + load(table + 2 * repeats);
          table += 3 * repeats;
          maximum += load(table) * (load(outputs + pitch + i) - load(table + repeats)) + load(table + 2 * repeats);
        }
        store(averages + i, average * load(inverse_pixels + i));
        store(maxima + i, maximum);
        if (skipped) store(skipped + i, past);
      }
    }
  }

  /// Hands the gradients of the windows around row `centre` to the runs of its rows.
  template <bool above, bool below>
  void to_runs(int64_t centre) const {
    // Rows that do not exist alias the middle one, and are neither read nor written.
    const int64_t up = above ? centre - 1 : centre, down = below ? centre + 1 : centre;
    for (int64_t i = 0; i < run; i += kLanes<A>) {
      const Vec<A> g = load(window_maximum + i), zero = {};
      Vec<A> m = load(maximum[centre] + i), upper = zero, mid = g, lower = zero;
      if constexpr (above) {
        const Vec<A> first = load(maximum[up] + i);
        const auto take = replaces<A>(m, first);
        upper = take ? zero : g;
        mid = take ? g : zero;
        m = take ? m : first;
      }
      if constexpr (below) {
        const auto take = replaces<A>(load(maximum[down] + i), m);
        upper = take ? zero : upper;
        mid = take ? zero : mid;
        lower = take ? g : zero;
        store(maximum_grad[down] + i, lower);
      }
      store(maximum_grad[centre] + i, load(maximum_grad[centre] + i) + mid);
      if constexpr (above) {
        store(maximum_grad[up] + i, load(maximum_grad[up] + i) + upper);
      }
    }
  }

  void to_runs(int64_t centre, int64_t height) const {
    const bool above = centre > 0, below = centre + 1 < height;
    if (above && below) {
      to_runs<true, true>(centre);
    } else if (above) {
      to_runs<true, false>(centre);
    } else if (below) {
      to_runs<false, true>(centre);
    } else {
      to_runs<false, false>(centre);
    }
  }

  /// Hands the gradients of the windows and runs of row `row` to its pixels, on top of those from `past` if there are.
  void to_pixels(int64_t row, const PoolShape& shape, const A* past) const {
    const A* averages[3];  // around this row and its neighbours
    for (int64_t d = 0; d < 3; ++d) {
      const int64_t centre = row + d - 1;
      const bool exists = centre >= 0 && centre < shape.height && centre % shape.stride == 0;
      averages[d] = exists ? window_average[centre] : no_windows;
    }
    const A *places = place[row], *maxima = maximum_grad[row];
    for (int64_t i = 0; i < run; i += kLanes<A>) {
      const Vec<A> at = load(places + i), g = load(maxima + i), zero = {};
      const Vec<A> average = load(averages[0] + i) + load(averages[1] + i) + load(averages[2] + i);
      store(left + i, average + (at == zero ? g : zero));
      store(middle + i, average + (at == broadcast(A(1)) ? g : zero));
      store(right + i, average + (at == broadcast(A(2)) ? g : zero));
    }
    fill(left + run, A(0), channels);
    for (int64_t i = 0; i < run; i += kLanes<A>) {
      const Vec<A> sum = load(middle + i) + load_unaligned(left + i + channels) + load_unaligned(right + i - channels);
      store(pixels + i, past ? sum + load(past + i) : sum);
    }
  }
};

/// Puts the pixels of `from` at every other place of a row of `width`, and zeros between them.
template <typename A>
void spread(const A* from, int64_t width, int64_t channels, A* to) {
  for (int64_t p = 0; p < width; ++p) {
    for (int64_t c = 0; c < channels; ++c) to[p * channels + c] = p % 2 ? A(0) : from[p / 2 * channels + c];
  }
}

}  // namespace

template <typename T>
void pool_grad(const PoolGrad<T>& args, T* result, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  const auto [channels, height, width, stride] = args.shape;
  const int64_t windows_high = pool_windows(height, stride), windows_wide = pool_windows(width, stride);
  const int64_t values = windows_wide * channels;
  const bool pooled = args.grad_count > 0 || args.corrections;
  Layout count(nullptr);
  PoolingGrad<A>(count, args.shape, args.grad_count);
  Layout layout(cpu::scratch(count.bytes()));
  PoolingGrad<A> p(layout, args.shape, args.grad_count);
  fill_inverse(p.inverse, p.pitch, windows_wide, stride, args.shape);
  fill(p.x - channels, -A(__builtin_inf()), channels);
  fill(p.x + p.run, -A(__builtin_inf()), channels);
  fill(p.right - channels, A(0), channels);
  repeat(args.scales, 2 * args.grad_count, channels, p.scales);
  if (args.corrections) repeat(args.corrections, 6, channels, p.corrections);
  if (args.skip) repeat(args.skip, args.grad_count, channels, p.skip);
  fill(p.no_windows, A(0), p.pitch);

  for (int64_t image = first; image < last; ++image) {
    int64_t loaded = 0, finished = 0;
    for (int64_t i = 0; i < windows_high; ++i) {
      const int64_t centre = i * stride;
      for (; pooled && loaded < height && loaded <= centre + 1; ++loaded) {
        read_row(args.x, image * height + loaded, width, channels, p.x);
        p.find_maxima(loaded, stride);
      }
      if (pooled) {
        const int64_t row = image * windows_high + i;
        A* const averages = stride == 1 ? p.window_average[centre] : p.compact;
        A* const maxima = stride == 1 ? p.window_maximum : p.compact + p.pitch;
        for (int64_t n = 0; n < args.grad_count; ++n) {
          read_row(args.grads[n], row, windows_wide, channels, p.grads + n * p.pitch);
        }
        for (int k = 0; args.corrections && k < 2; ++k) {
          read_row(args.outputs[k], row, windows_wide, channels, p.outputs + k * p.pitch);
        }
        const A* inverse = p.inverse + (rows_of_window(centre, height) - 1) * p.pitch;
        A* const past = args.skip ? p.skipped[centre] : nullptr;
        if (args.corrections) {
          p.template combine<true>(values, args.grad_count, inverse, averages, maxima, past);
        } else {
          p.template combine<false>(values, args.grad_count, inverse, averages, maxima, past);
        }
        if (stride == 2) {
          spread(averages, width, channels, p.window_average[centre]);
          spread(maxima, width, channels, p.window_maximum);
        }
        p.to_runs(centre, height);
      }
      // Row `centre` still misses the windows around the next one where there are any.
      const int64_t complete = i + 1 < windows_high ? centre + stride - 1 : height;
      for (; finished < complete; ++finished) {
        const int64_t row = image * height + finished;
        if (pooled) {
          p.to_pixels(finished, args.shape, args.skip ? p.skipped[finished] : nullptr);
        } else {
          fill(p.pixels, A(0), p.run);
        }
        for (int64_t k = 0; k < args.addend_count; ++k) {
          read_row<true>(args.addends[k], row, width, channels, p.pixels);
        }
        T* to = result + row * p.run;
        for (int64_t j = 0; j < p.run; ++j) to[j] = T(p.pixels[j]);
      }
    }
  }
}

#define INSTANTIATE(T)                                                                                   \
  template void pool_forward(const PoolShape&, const PoolImages<T>&, T*, T*, double*, int64_t, int64_t); \
  template void pool_grad(const PoolGrad<T>&, T*, int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
