// pool, backward: from the gradients of all consumers of average and maximum to the gradient of the image.
//
// A thread takes an image at a time and goes down its rows of windows, which are flat runs of values (pool_rows.h). The
// consumers' gradients of a row are weighted and added up, with BatchNorm's backward where its statistics are the
// batch's. The average hands every pixel of a window the same share. For the maximum nothing was stored: the maximum of
// a window is the maximum of three runs of three pixels, one of each row. A window row hands its gradient to the runs
// that hold the maxima; once a row of the image has the gradients of all its windows, the runs hand what they got to
// their pixels. So each comparison serves all windows that share it, and all of it works on whole vectors with masks.
// With stride 2 the gradient of a window around every other pixel is zero.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/bn_backward.h"
#include "cpu/pool_rows.h"
#include "cpu/scratch_arena.h"

namespace fastnas::FASTNAS_ISA {
namespace {

template <typename A>
struct PoolingGrad {
  int64_t channels, run, pitch, period;
  A* x;                            // a row [run] with a border of -∞
  Ring<A> maximum;                 // of the run of three around each pixel
  Ring<A> place;                   // of that maximum: 0 left, 1 middle, 2 right
  Ring<A> maximum_grad;            // of the maxima of runs
  Ring<A> window_average;          // gradients of the averages of the windows around a row
  Ring<A> identity_grad;           // what reaches a row through identities
  A *left, *middle, *right;        // gradients that runs hand to their pixels, with a border of 0
  A* inverse;                      // [3, pitch]
  A *window_maximum, *no_windows;  // gradients of the maxima of a row of windows; zeros [run]
  A* pixels;                       // the gradient of a row
  A* compact;                      // such a row before it is spread, for stride 2
  A* grads;                        // rows [G, pitch]
  A* outputs;                      // rows [2, pitch]
  A *scales, *bn_coeffs, *skip;    // repeated

  PoolingGrad(cpu::ScratchArena& scratch, const PoolShape& shape, int64_t grad_count)
      : channels(shape.channels),
        run(shape.width * channels),
        pitch(padded<A>(run) + kLanes<A>),
        period(period_of<A>(channels)),
        x(take_bordered_row<A>(scratch, run, channels)),
        maximum(scratch, run),
        place(scratch, run),
        maximum_grad(scratch, run),
        window_average(scratch, run),
        identity_grad(scratch, run),
        left(take_bordered_row<A>(scratch, run, channels)),
        middle(scratch.take<A>(pitch)),
        right(take_bordered_row<A>(scratch, run, channels)),
        inverse(scratch.take<A>(3 * pitch)),
        window_maximum(scratch.take<A>(pitch)),
        no_windows(scratch.take<A>(pitch)),
        pixels(scratch.take<A>(pitch)),
        compact(scratch.take<A>(2 * pitch)),
        grads(scratch.take<A>(grad_count * pitch)),
        outputs(scratch.take<A>(2 * pitch)),
        scales(scratch.take<A>(2 * grad_count * period)),
        bn_coeffs(scratch.take<A>(6 * period)),
        skip(scratch.take<A>(grad_count * period)) {}

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

  /// Of the average (0) or the maximum (1), for the channels at `k` of the period.
  BnBackwardStatistics<Vec<A>> through_statistics(int output, int64_t k) const {
    const A* table = bn_coeffs + output * 3 * period + k;
    return {load(table), load(table + period), load(table + 2 * period)};
  }

  /// Gradients of the average and of the maximum of a row of `values` / C windows, from the rows in `grads` and
  /// `outputs`.
  template <bool batch_statistics>
  void combine(int64_t values, int64_t grad_count, const A* inverse_pixels, A* averages, A* maxima,
               A* identities) const {
    for (int64_t k = 0; k < period; k += kLanes<A>) {
      for (int64_t i = k; i < values; i += period) {
        Vec<A> average = {}, maximum = {}, identity = {};
        for (int64_t n = 0; n < grad_count; ++n) {
          const Vec<A> g = load(grads + n * pitch + i);
          average += g * load(scales + n * period + k);
          maximum += g * load(scales + (grad_count + n) * period + k);
          if (identities) identity += g * load(skip + n * period + k);
        }
        if constexpr (batch_statistics) {
          average += through_statistics(0, k)(load(outputs + i));
          maximum += through_statistics(1, k)(load(outputs + pitch + i));
        }
        store(averages + i, average * load(inverse_pixels + i));
        store(maxima + i, maximum);
        if (identities) store(identities + i, identity);
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

  /// Hands the gradients of the windows and runs of row `row` to its pixels, on top of `identities` if there are any.
  void to_pixels(int64_t row, const PoolShape& shape, const A* identities) const {
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
      store(pixels + i, identities ? sum + load(identities + i) : sum);
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
  cpu::ScratchArena scratch;
  PoolingGrad<A> p(scratch, args.shape, args.grad_count);
  fill_inverse(p.inverse, p.pitch, windows_wide, stride, args.shape);
  fill(p.x - channels, -A(__builtin_inf()), channels);
  fill(p.x + p.run, -A(__builtin_inf()), channels);
  fill(p.right - channels, A(0), channels);
  repeat_rows(args.scales, 2 * args.grad_count, channels, p.period, p.scales);
  if (args.bn_coeffs) repeat_rows(args.bn_coeffs, 6, channels, p.period, p.bn_coeffs);
  if (args.skip) repeat_rows(args.skip, args.grad_count, channels, p.period, p.skip);
  fill(p.no_windows, A(0), p.pitch);

  for (int64_t image = first; image < last; ++image) {
    int64_t loaded = 0, finished = 0;
    for (int64_t i = 0; i < windows_high; ++i) {
      const int64_t centre = i * stride;
      for (; pooled && loaded < height && loaded <= centre + 1; ++loaded) {
        load_row_into(args.x, image * height + loaded, width, channels, p.x);
        p.find_maxima(loaded, stride);
      }
      if (pooled) {
        const int64_t row = image * windows_high + i;
        A* const averages = stride == 1 ? p.window_average[centre] : p.compact;
        A* const maxima = stride == 1 ? p.window_maximum : p.compact + p.pitch;
        for (int64_t n = 0; n < args.grad_count; ++n) {
          load_row_into(args.grads[n], row, windows_wide, channels, p.grads + n * p.pitch);
        }
        for (int k = 0; args.bn_coeffs && k < 2; ++k) {
          load_row_into(args.outputs[k], row, windows_wide, channels, p.outputs + k * p.pitch);
        }
        const A* inverse = p.inverse + (pixels_of_window(centre, height) - 1) * p.pitch;
        A* const identities = args.skip ? p.identity_grad[centre] : nullptr;
        if (args.bn_coeffs) {
          p.template combine<true>(values, args.grad_count, inverse, averages, maxima, identities);
        } else {
          p.template combine<false>(values, args.grad_count, inverse, averages, maxima, identities);
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
          p.to_pixels(finished, args.shape, args.skip ? p.identity_grad[finished] : nullptr);
        } else {
          fill(p.pixels, A(0), p.run);
        }
        for (int64_t k = 0; k < args.addend_count; ++k) {
          load_row_into<true>(args.addends[k], row, width, channels, p.pixels);
        }
        store_row(p.pixels, p.run, result + row * p.run);
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
