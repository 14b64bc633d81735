#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/memory.h"
#include "cpu/pool_rows.h"

namespace fastnas::FASTNAS_ISA {
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
  const bool pooled = args.grad_count > 0 || args.bn_coeffs;
  Layout count(nullptr);
  PoolingGrad<A>(count, args.shape, args.grad_count);
  Layout layout(cpu::scratch(count.bytes()));
  PoolingGrad<A> p(layout, args.shape, args.grad_count);
  fill_inverse(p.inverse, p.pitch, windows_wide, stride, args.shape);
  fill(p.x - channels, -A(__builtin_inf()), channels);
  fill(p.x + p.run, -A(__builtin_inf()), channels);
  fill(p.right - channels, A(0), channels);
  repeat(args.scales, 2 * args.grad_count, channels, p.scales);
  if (args.bn_coeffs) repeat(args.bn_coeffs, 6, channels, p.corrections);
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
        for (int k = 0; args.bn_coeffs && k < 2; ++k) {
          read_row(args.outputs[k], row, windows_wide, channels, p.outputs + k * p.pitch);
        }
        const A* inverse = p.inverse + (rows_of_window(centre, height) - 1) * p.pitch;
        A* const past = args.skip ? p.skipped[centre] : nullptr;
        if (args.bn_coeffs) {
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

#define INSTANTIATE(T) template void pool_grad(const PoolGrad<T>&, T*, int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
