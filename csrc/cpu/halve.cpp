// halve: the maximum of the 2×2 windows of an image, and its gradient beside that of the channels that candidates see.
//
// With partial channels and stride 2 this is the bypass. A window is four pixels, whose channels are
// compared in runs of 16, 8, 4, 2 or 1 (channels.h), straight from the tensors: every value is used once, so scratch
// memory would only add copies. A thread takes rows of the output. Backward the same comparisons are made again, so
// that no forward pass has to store their result; masks of lanes say which pixel held the maximum, so nothing branches
// on values. Of equal pixels the first counts and a NaN stays, as in torch. Pixels of the image's gradient are written
// whole, the channels that the candidates saw first, so that no concatenation has to follow.
#include "ops/halve.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/channels.h"

namespace fastnas::FASTNAS_ISA {
namespace {

template <typename A, int W>
using Lanes = decltype(Run<A, W>{} < Run<A, W>{});

/// The window of an output pixel: its four pixels in the image, -1 beyond the edge.
template <typename T>
struct Window {
  int64_t pixel[4];

  Window(const Halve<T>& args, int64_t row, int64_t column) {
    const int64_t image = row / args.rows(), y = 2 * (row % args.rows()), x = 2 * column;
    const int64_t first = (image * args.height + y) * args.width + x;
    const bool right = x + 1 < args.width, below = y + 1 < args.height;
    pixel[0] = first;
    pixel[1] = right ? first + 1 : -1;
    pixel[2] = below ? first + args.width : -1;
    pixel[3] = right && below ? first + args.width + 1 : -1;
  }
};

/// The largest of the window in W channels; taken[i]: where pixel i is larger than all before it. Of equal ones the
/// first counts and a NaN stays, as in torch.
template <int W, typename A, typename T>
Run<A, W> largest(const Halve<T>& args, const Window<T>& window, int64_t c, Lanes<A, W>* taken) {
  Run<A, W> most = load_run<W, A>(args.x + window.pixel[0] * args.stride + c);
  for (int i = 1; i < 4; ++i) {
    taken[i] = Lanes<A, W>{};
    if (window.pixel[i] < 0) continue;
    const Run<A, W> value = load_run<W, A>(args.x + window.pixel[i] * args.stride + c);
    taken[i] = (value > most) | (value != value);
    most = taken[i] ? value : most;
  }
  return most;
}

}  // namespace

template <typename T>
void halve(const Halve<T>& args, T* result, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  for (int64_t row = first; row < last; ++row) {
    for (int64_t column = 0; column < args.columns(); ++column) {
      const Window<T> window(args, row, column);
      T* const to = result + (row * args.columns() + column) * args.channels;
      for_runs<A>(args.channels, [&]<int W>(int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; c += W) {
          Lanes<A, W> taken[4];
          store_run<W, A>(to + c, largest<W, A>(args, window, c, taken));
        }
      });
    }
  }
}

template <typename T>
void halve_grad(const Halve<T>& args, const HalveGrad<T>& grad, T* result, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  const int64_t seen = grad.seen_channels, width = seen + args.channels;
  for (int64_t row = first; row < last; ++row) {
    for (int64_t column = 0; column < args.columns(); ++column) {
      const Window<T> window(args, row, column);
      const T* const from = grad.grad + (row * args.columns() + column) * grad.grad_stride;
      for (const int64_t pixel : window.pixel) {
        if (pixel < 0) continue;
        copy_pixels<A>(grad.seen + pixel * grad.seen_stride, seen, 1, seen, result + pixel * width, width);
      }
      for_runs<A>(args.channels, [&]<int W>(int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; c += W) {
          Lanes<A, W> taken[4];
          largest<W, A>(args, window, c, taken);
          const Run<A, W> value = load_run<W, A>(from + c);
          Lanes<A, W> open = ~Lanes<A, W>{};  // where no later pixel is the largest
          for (int i = 3; i >= 0; --i) {
            const Lanes<A, W> here = i > 0 ? open & taken[i] : open;
            open &= ~here;
            if (window.pixel[i] < 0) continue;
            store_run<W, A>(result + window.pixel[i] * width + seen + c, here ? value : Run<A, W>{});
          }
        }
      });
    }
  }
}

#define INSTANTIATE(T)                                        \
  template void halve(const Halve<T>&, T*, int64_t, int64_t); \
  template void halve_grad(const Halve<T>&, const HalveGrad<T>&, T*, int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
