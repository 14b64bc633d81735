// An image in scratch memory with a border of zeros, which convolutions read without testing for the edge.
//
// A tile is [rows, columns, lanes]: as many rows and columns more than the image, on each side, as the widest kernel
// reads over the edge, and pixels of whole vectors. A tap of a convolution is then a pointer, and neighbouring pixels
// are neighbouring vectors. The border is cleared once a call; images come and go inside it. A kernel with a smaller
// reach than the tile's border begins some pixels further in, so all kernels that read one image share its tile.
#pragma once

#include "cpu/depthwise.h"
#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {

struct PaddedTile {
  int64_t padding, lanes, columns, row, size;  // row: values from one row to the next; size: values in all

  PaddedTile(int64_t padding, int64_t height, int64_t width, int64_t lanes)
      : padding(padding),
        lanes(lanes),
        columns(width + 2 * padding),
        row(columns * lanes),
        size((height + 2 * padding) * columns * lanes) {}

  /// Offset of the pixel (y, x) of the image.
  int64_t at(int64_t y, int64_t x) const { return (y + padding) * row + (x + padding) * lanes; }

  /// The taps of row `out_row` of output pixels, in the tile that begins at `tile`.
  template <typename A>
  Taps<A> taps(const A* tile, int64_t kernel, int64_t dilation, int64_t stride, int64_t out_row) const {
    const int64_t inset = padding - dilation * (kernel - 1) / 2;
    return {tile + (out_row * stride + inset) * row + inset * lanes, row, lanes, kernel, dilation, stride};
  }
};

/// Rows of output pixels that are worked on together, so that their buffers stay in the first-level cache, but not so
/// few that the weights of wide stages are read for a handful of pixels.
template <typename A>
int64_t rows_worked_on(int64_t height, int64_t width, int64_t lanes) {
  constexpr int64_t kBytes = 8192, kPixels = 32;
  const int64_t fitting = kBytes / (width * lanes * static_cast<int64_t>(sizeof(A)));
  const int64_t least = (kPixels + width - 1) / width;
  const int64_t rows = fitting < least ? least : fitting;
  return rows > height ? height : rows;
}

}  // namespace fastnas::FASTNAS_ISA
