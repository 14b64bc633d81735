// Depthwise convolutions of rows in scratch memory, forward and both gradients.
//
// An image in scratch memory is [rows, columns, channels], bordered by zeros and with padded channels (padded_tile.h),
// so a tap is a pointer and no border is ever tested. Channels lie in vectors. The kernels walk over the columns that a
// block of 8 or 4 output pixels reads and use every vector they load for all taps and pixels that need it, while their
// sums stay in registers: a 3×3 convolution of 8 pixels loads 30 vectors instead of 72. Kernel size, dilation and
// stride of the DARTS candidates are template arguments, so that all these loops unroll; any other geometry takes a
// plain loop over its taps. The gradient of the weights holds some rows of the kernel in registers and goes over all
// pixels; that of the input is a convolution with the flipped kernel, of which each pixel has every S-th tap where the
// stride S is not 1.
#pragma once

#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {

/// Where the taps of a row of output pixels lie.
template <typename A>
struct Taps {
  const A* first;    // the top left tap of the row's first pixel
  int64_t row;       // elements from one row of the image to the next
  int64_t channels;  // of a pixel, padded: elements from one column to the next
  int64_t kernel;
  int64_t dilation;
  int64_t stride;
};

namespace detail {

// PX output pixels of one vector of channels; kAdd: z is added to.
template <typename A, int K, int D, int S, int PX, bool kAdd>
inline void depthwise_block(const A* x, int64_t row, int64_t channels, const A* weights, A* z) {
  Vec<A> acc[PX];
  for (int p = 0; p < PX; ++p) acc[p] = kAdd ? load(z + p * channels) : Vec<A>{};
#pragma GCC unroll 1
  for (int ky = 0; ky < K; ++ky) {
    Vec<A> w[K];
    for (int kx = 0; kx < K; ++kx) w[kx] = load(weights + (ky * K + kx) * channels);
    const A* line = x + ky * D * row;
#pragma GCC unroll 32
    for (int column = 0; column <= (PX - 1) * S + (K - 1) * D; ++column) {
      bool used = false;
#pragma GCC unroll 8
      for (int kx = 0; kx < K; ++kx) {
        const int offset = column - kx * D;
        used |= offset >= 0 && offset % S == 0 && offset / S < PX;
      }
      if (!used) continue;
      const Vec<A> value = load(line + column * channels);
#pragma GCC unroll 8
      for (int kx = 0; kx < K; ++kx) {
        const int offset = column - kx * D;
        if (offset >= 0 && offset % S == 0 && offset / S < PX) acc[offset / S] += w[kx] * value;
      }
    }
  }
  for (int p = 0; p < PX; ++p) store(z + p * channels, acc[p]);
}

template <typename A, int K, int D, int S, bool kAdd>
void depthwise_row(const Taps<A>& taps, const A* weights, int64_t pixels, A* z) {
  const int64_t channels = taps.channels;
  for (int64_t c = 0; c < channels; c += kLanes<A>) {
    int64_t p = 0;
    for (; p + 8 <= pixels; p += 8) {
      depthwise_block<A, K, D, S, 8, kAdd>(taps.first + p * S * channels + c, taps.row, channels, weights + c,
                                           z + p * channels + c);
    }
    for (; p + 4 <= pixels; p += 4) {
      depthwise_block<A, K, D, S, 4, kAdd>(taps.first + p * S * channels + c, taps.row, channels, weights + c,
                                           z + p * channels + c);
    }
    for (; p < pixels; ++p) {
      depthwise_block<A, K, D, S, 1, kAdd>(taps.first + p * S * channels + c, taps.row, channels, weights + c,
                                           z + p * channels + c);
    }
  }
}

// Any kernel, dilation and stride.
template <typename A, bool kAdd>
void depthwise_row_general(const Taps<A>& taps, const A* weights, int64_t pixels, A* z) {
  const int64_t channels = taps.channels, k = taps.kernel;
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      Vec<A> acc = kAdd ? load(z + p * channels + c) : Vec<A>{};
      for (int64_t ky = 0; ky < k; ++ky) {
        const A* x = taps.first + ky * taps.dilation * taps.row + p * taps.stride * channels + c;
        for (int64_t kx = 0; kx < k; ++kx) {
          acc += load(weights + (ky * k + kx) * channels + c) * load(x + kx * taps.dilation * channels);
        }
      }
      store(z + p * channels + c, acc);
    }
  }
}

// ROWS of the kernel's rows at once, for one vector of channels and all pixels: grad[ky, kx] += Σ g · x.
template <typename A, int K, int D, int S, int ROWS>
inline void depthwise_grad_block(const Taps<A>& taps, int64_t line, const A* g, int64_t g_line, int64_t lines,
                                 int64_t pixels, A* grad) {
  const int64_t channels = taps.channels;
  Vec<A> acc[ROWS][K];
  for (int r = 0; r < ROWS; ++r) {
    for (int kx = 0; kx < K; ++kx) acc[r][kx] = load(grad + (r * K + kx) * channels);
  }
  for (int64_t y = 0; y < lines; ++y) {
    const A* x = taps.first + y * line;
    const A* gradient = g + y * g_line;
    int64_t p = 0;
    for (; p + 4 <= pixels; p += 4) {
      Vec<A> v[4];
      for (int i = 0; i < 4; ++i) v[i] = load(gradient + (p + i) * channels);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const A* at = x + r * D * taps.row + p * S * channels;
#pragma GCC unroll 32
        for (int column = 0; column <= 3 * S + (K - 1) * D; ++column) {
          bool used = false;
#pragma GCC unroll 8
          for (int kx = 0; kx < K; ++kx) {
            const int offset = column - kx * D;
            used |= offset >= 0 && offset % S == 0 && offset / S < 4;
          }
          if (!used) continue;
          const Vec<A> value = load(at + column * channels);
#pragma GCC unroll 8
          for (int kx = 0; kx < K; ++kx) {
            const int offset = column - kx * D;
            if (offset >= 0 && offset % S == 0 && offset / S < 4) acc[r][kx] += v[offset / S] * value;
          }
        }
      }
    }
    for (; p < pixels; ++p) {
      const Vec<A> v = load(gradient + p * channels);
      for (int r = 0; r < ROWS; ++r) {
        for (int kx = 0; kx < K; ++kx) {
          acc[r][kx] += v * load(x + r * D * taps.row + (p * S + kx * D) * channels);
        }
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int kx = 0; kx < K; ++kx) store(grad + (r * K + kx) * channels, acc[r][kx]);
  }
}

template <typename A, int K, int D, int S>
void depthwise_grad_weights(const Taps<A>& taps, int64_t line, const A* g, int64_t g_line, int64_t lines,
                            int64_t pixels, A* grad) {
  constexpr int kRows = K == 3 ? 3 : 2;  // as many accumulators as fit 16 registers and hide the latency
  for (int64_t c = 0; c < taps.channels; c += kLanes<A>) {
    Taps<A> part = taps;
    int ky = 0;
    for (; ky + kRows <= K; ky += kRows) {
      part.first = taps.first + ky * D * taps.row + c;
      depthwise_grad_block<A, K, D, S, kRows>(part, line, g + c, g_line, lines, pixels,
                                              grad + ky * K * taps.channels + c);
    }
    for (; ky < K; ++ky) {
      part.first = taps.first + ky * D * taps.row + c;
      depthwise_grad_block<A, K, D, S, 1>(part, line, g + c, g_line, lines, pixels, grad + ky * K * taps.channels + c);
    }
  }
}

template <typename A>
void depthwise_grad_weights_general(const Taps<A>& taps, int64_t line, const A* g, int64_t g_line, int64_t lines,
                                    int64_t pixels, A* grad) {
  const int64_t channels = taps.channels, k = taps.kernel;
  for (int64_t ky = 0; ky < k; ++ky) {
    for (int64_t kx = 0; kx < k; ++kx) {
      for (int64_t c = 0; c < channels; c += kLanes<A>) {
        Vec<A> acc = load(grad + (ky * k + kx) * channels + c);
        for (int64_t y = 0; y < lines; ++y) {
          const A* x = taps.first + y * line + ky * taps.dilation * taps.row + kx * taps.dilation * channels + c;
          for (int64_t p = 0; p < pixels; ++p) {
            acc += load(g + y * g_line + p * channels + c) * load(x + p * taps.stride * channels);
          }
        }
        store(grad + (ky * k + kx) * channels + c, acc);
      }
    }
  }
}

// PX pixels of the input's gradient, the first of them at g. Each column of g goes to all pixels that have it as a tap;
// from right to left, so that a pixel gets its taps in their order.
template <typename A, int K, int D, int S, int PX, bool kAdd>
inline void depthwise_grad_input_block(const A* g, int64_t row, int64_t channels, int64_t y, const A* weights, A* z) {
  constexpr int kPadding = D * (K - 1) / 2;
  Vec<A> acc[PX];
  for (int p = 0; p < PX; ++p) acc[p] = kAdd ? load(z + p * channels) : Vec<A>{};
#pragma GCC unroll 1
  for (int ky = K - 1; ky >= 0; --ky) {
    const int64_t at = y + kPadding - ky * D;
    if (at % S != 0) continue;
    Vec<A> w[K];
    for (int kx = 0; kx < K; ++kx) w[kx] = load(weights + (ky * K + kx) * channels);
    const A* line = g + at / S * row;
#pragma GCC unroll 32
    for (int column = (PX - 1 + kPadding) / S; column >= -(kPadding / S); --column) {
      const Vec<A> value = load(line + column * channels);
#pragma GCC unroll 8
      for (int kx = 0; kx < K; ++kx) {
        const int p = column * S - kPadding + kx * D;
        if (p >= 0 && p < PX) acc[p] += w[kx] * value;
      }
    }
  }
  for (int p = 0; p < PX; ++p) store(z + p * channels, acc[p]);
}

template <typename A, int K, int D, int S, bool kAdd>
void depthwise_grad_input_row(const Taps<A>& taps, int64_t y, const A* weights, int64_t pixels, A* z) {
  const int64_t channels = taps.channels;
  for (int64_t c = 0; c < channels; c += kLanes<A>) {
    int64_t p = 0;  // a multiple of S
    const auto block = [&]<int PX>() {
      depthwise_grad_input_block<A, K, D, S, PX, kAdd>(taps.first + p / S * channels + c, taps.row, channels, y,
                                                       weights + c, z + p * channels + c);
      p += PX;
    };
    while (p + 8 <= pixels) block.template operator()<8>();
    while (p + S <= pixels) block.template operator()<S>();
    if (p < pixels) block.template operator()<1>();
  }
}

// Any kernel, dilation and stride.
template <typename A, bool kAdd>
void depthwise_grad_input_row_general(const Taps<A>& taps, int64_t y, const A* weights, int64_t pixels, A* z) {
  const int64_t channels = taps.channels, k = taps.kernel, padding = taps.dilation * (k - 1) / 2;
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      Vec<A> acc = kAdd ? load(z + p * channels + c) : Vec<A>{};
      for (int64_t ky = k - 1; ky >= 0; --ky) {
        const int64_t row = y + padding - ky * taps.dilation;
        if (row % taps.stride != 0) continue;
        for (int64_t kx = 0; kx < k; ++kx) {
          const int64_t column = p + padding - kx * taps.dilation;
          if (column % taps.stride != 0) continue;
          const A* g = taps.first + row / taps.stride * taps.row + column / taps.stride * channels + c;
          acc += load(weights + (ky * k + kx) * channels + c) * load(g);
        }
      }
      store(z + p * channels + c, acc);
    }
  }
}

// Calls `known.template operator()<K, D, S>()` for the geometries of the DARTS candidates, `other()` for any other.
template <typename A, typename Known, typename Other>
inline void for_geometry(const Taps<A>& taps, const Known& known, const Other& other) {
  const int64_t key = taps.kernel * 100 + taps.dilation * 10 + taps.stride;
  switch (key) {
    case 311:
      return known.template operator()<3, 1, 1>();
    case 312:
      return known.template operator()<3, 1, 2>();
    case 321:
      return known.template operator()<3, 2, 1>();
    case 322:
      return known.template operator()<3, 2, 2>();
    case 511:
      return known.template operator()<5, 1, 1>();
    case 512:
      return known.template operator()<5, 1, 2>();
    case 521:
      return known.template operator()<5, 2, 1>();
    case 522:
      return known.template operator()<5, 2, 2>();
    default:
      return other();
  }
}

}  // namespace detail

/// z[p, :] = Σ_taps weights[tap, :] · x[p, tap, :], or += with kAdd. weights [kernel², channels], z [pixels, channels].
template <bool kAdd = false, typename A>
void depthwise_row(const Taps<A>& taps, const A* weights, int64_t pixels, A* z) {
  detail::for_geometry(
      taps, [&]<int K, int D, int S>() { detail::depthwise_row<A, K, D, S, kAdd>(taps, weights, pixels, z); },
      [&] { detail::depthwise_row_general<A, kAdd>(taps, weights, pixels, z); });
}

/// grad[tap, :] += Σ_{y, p} g[y, p, :] · x[y, p, tap, :] over `lines` rows of output pixels, which lie `line` elements
/// apart in the image and `g_line` apart in g.
template <typename A>
void depthwise_grad_weights(const Taps<A>& taps, int64_t line, const A* g, int64_t g_line, int64_t lines,
                            int64_t pixels, A* grad) {
  detail::for_geometry(
      taps,
      [&]<int K, int D, int S>() {
        detail::depthwise_grad_weights<A, K, D, S>(taps, line, g, g_line, lines, pixels, grad);
      },
      [&] { detail::depthwise_grad_weights_general(taps, line, g, g_line, lines, pixels, grad); });
}

/// Row `y` of the gradient of the input, where output pixels lie further apart than its own (otherwise depthwise_row of
/// the flipped weights does it): z[p, :] = Σ_taps weights[tap, :] · g[the output pixel of which p is this tap], or +=
/// with kAdd. The taps are those of the convolution in g, the gradient of its output bordered by zeros, but
/// `taps.first` is the pixel (0, 0).
template <bool kAdd = false, typename A>
void depthwise_grad_input_row(const Taps<A>& taps, int64_t y, const A* weights, int64_t pixels, A* z) {
  detail::for_geometry(
      taps,
      [&]<int K, int D, int S>() {
        if constexpr (S > 1) detail::depthwise_grad_input_row<A, K, D, S, kAdd>(taps, y, weights, pixels, z);
      },
      [&] { detail::depthwise_grad_input_row_general<A, kAdd>(taps, y, weights, pixels, z); });
}

}  // namespace fastnas::FASTNAS_ISA
