// What node_sum, its gradients and bypass_grad share: shuffled pixels, and what follows from the tables of images.
//
// A thread has a run of channels of one pixel (Width of them, 16 bytes where alignment allows) in registers and goes
// through a table of images; neighbouring threads read neighbouring memory. With g groups a pixel of a node is
// shuffled: channel c of group q lies at c·g + q. Groups is g where that is a constant of the kernel, so that a thread
// moves its channels of all groups as whole vectors; 0 for any other g.
#pragma once

#include "cuda/pixels.h"
#include "ops/node_sum.h"

namespace fastnas::cuda {
namespace {

template <int Groups>
constexpr int kTogether = Groups > 0 ? Groups : 1;  // groups that a thread works on at a time

/// Channels c.. of the groups q.. of a shuffled pixel.
template <int Groups, int Width, typename T, typename A>
__device__ __forceinline__ void read_shuffled(const T* pixel, int64_t c, int64_t q, int64_t groups,
                                              A (&to)[kTogether<Groups>][Width]) {
  if constexpr (Groups > 0) {
#pragma unroll
    for (int i = 0; i < Groups; ++i) {
      const auto part = read<Width>(pixel + c * Groups + i * Width);
#pragma unroll
      for (int j = 0; j < Width; ++j) to[(i * Width + j) % Groups][(i * Width + j) / Groups] = part.values[j];
    }
  } else {
#pragma unroll
    for (int j = 0; j < Width; ++j) to[0][j] = A(pixel[(c + j) * groups + q]);
  }
}

template <int Groups, int Width, typename T, typename A>
__device__ __forceinline__ void write_shuffled(T* pixel, int64_t c, int64_t q, int64_t groups,
                                               const A (&from)[kTogether<Groups>][Width]) {
  if constexpr (Groups > 0) {
#pragma unroll
    for (int i = 0; i < Groups; ++i) {
      A part[Width];
#pragma unroll
      for (int j = 0; j < Width; ++j) part[j] = from[(i * Width + j) % Groups][(i * Width + j) / Groups];
      write(pixel + c * Groups + i * Width, part);
    }
  } else {
#pragma unroll
    for (int j = 0; j < Width; ++j) pixel[(c + j) * groups + q] = T(from[0][j]);
  }
}

template <typename T>
void add_all(Alignment& alignment, const NodePixels<T>* table, int64_t count) {
  for (int64_t i = 0; i < count; ++i) alignment.add(table[i].data, table[i].stride);
}

inline int64_t pixels_of(const NodeShape& shape) { return shape.images * shape.pixels; }

inline dim3 flat_grid(const NodeShape& shape, int width) {
  return dim3(blocks_of(ceil_div(pixels_of(shape) * (shape.channels / width), kThreads)));
}

}  // namespace
}  // namespace fastnas::cuda
