// Tiles of the images that node_sum and bypass_grad work on, and how values get in and out of them.
//
// A node's inputs are dozens of images, each read once, so these kernels are as fast as memory is: a tile is some
// pixels of one image, few enough that what all inputs add to stays in the nearest cache. A tile of C channels is one
// flat run of values whose coefficients repeat every C values (periodic.h). Loops take blocks of four vectors, which
// share a loop's overhead and have four requests to memory in flight; tables of coefficients are as long as
// a whole number of blocks, so that any C is handled by whole vectors. A tile is read in place where it is dense and a
// whole number of blocks long; otherwise it is copied to scratch memory, with zeros after it.
#pragma once

#include <type_traits>

#include "cpu/convert.h"
#include "cpu/periodic.h"
#include "cpu/shuffle.h"
#include "cpu/vec.h"
#include "ops/node_sum.h"

namespace fastnas::FASTNAS_ISA {

/// Vectors of a block.
constexpr int kBlock = 4;
template <typename A>
constexpr int64_t kBlockValues = kBlock * kLanes<A>;

/// `n` values rounded up to whole blocks.
template <typename A>
inline int64_t whole(int64_t n) {
  return (n + kBlockValues<A> - 1) / kBlockValues<A> * kBlockValues<A>;
}

/// Part of one image.
struct Tile {
  int64_t begin;  // pixel
  int64_t count;  // pixels
};

inline Tile tile_of(const NodeShape& shape, int64_t index) {
  const int64_t begin = index * shape.tile, left = shape.pixels - begin;
  return {begin, left < shape.tile ? left : shape.tile};
}

template <typename T>
inline const T* tile_data(const NodePixels<T>& images, const NodeShape& shape, int64_t image, const Tile& tile) {
  return images.data + (image * shape.pixels + tile.begin) * images.stride;
}

/// The tile as [pixels, width] in the type of accumulation, up to a whole block: in place, or in `buffer` with zeros
/// after it.
template <typename T, typename A>
inline const A* dense(const T* data, int64_t stride, int64_t width, int64_t pixels, A* buffer) {
  const int64_t n = pixels * width;
  if constexpr (std::is_same_v<T, A>) {
    if (stride == width && n % kBlockValues<A> == 0) return data;
  }
  gather(data, stride, width, pixels, buffer);
  for (int64_t i = n; i < whole<A>(n); ++i) buffer[i] = 0;
  return buffer;
}

/// Pixels of `width` values that are `stride` apart, as tensors store them.
template <typename T, typename A>
inline void store_rows(const A* from, int64_t width, int64_t pixels, T* to, int64_t stride) {
  if (stride == width) return store_row(from, pixels * width, to);
  for (int64_t p = 0; p < pixels; ++p) store_row(from + p * width, width, to + p * stride);
}

}  // namespace fastnas::FASTNAS_ISA
