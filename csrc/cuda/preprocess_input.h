// What preprocess and its gradient share: how they read the states of a call and find the columns of its matrices.
#pragma once

#include "cuda/pixels.h"
#include "ops/preprocess.h"

namespace fastnas::cuda {
namespace {

/// Where an output pixel reads its image at an offset; -1 beyond the edge. `pixel` counts over all images.
template <typename T>
__device__ __forceinline__ int64_t source_of(const Preprocess<T>& args, int64_t offset, int64_t pixel) {
  if (args.stride == 1) return pixel;
  const int64_t row = divide(pixel, args.output_width), image = divide(row, args.output_height);
  const int64_t y = (row - image * args.output_height) * args.stride + offset;
  const int64_t x = (pixel - row * args.output_width) * args.stride + offset;
  return y < args.height && x < args.width ? (image * args.height + y) * args.width + x : -1;
}

/// A column of a group: its row of a matrix and its channel in the output, -1 beyond the last column.
template <typename A>
struct Column {
  const A* weights;
  int64_t output;
};

template <typename T>
__device__ __forceinline__ Column<accumulate_t<T>> column_of(const Preprocess<T>& args, int64_t offset,
                                                             int64_t column) {
  for (int64_t m = 0; m < args.matrix_count; ++m) {
    const auto& matrix = args.matrices[m];
    const int64_t row = column - matrix.column;
    if (matrix.offset != offset || row < 0 || row >= matrix.rows) continue;
    return {matrix.weights + row * args.channels, matrix.output + row};
  }
  return {nullptr, -1};
}

/// Calls put(pixel, channel, values) with relu of `Count` channels from `first` on of the pixels in `sources`, zeros
/// beyond; Width channels at a time.
template <int Width, int Pixels, int Count, typename T, typename Put>
__device__ __forceinline__ void rectified(const T* data, int64_t stride, int64_t channels, int64_t first,
                                          const int64_t* sources, const Put& put) {
  using A = accumulate_t<T>;
  constexpr int kVectors = Count / Width;
  for (int i = threadIdx.x; i < Pixels * kVectors; i += kThreads) {
    const int pixel = i / kVectors, c = i % kVectors * Width;
    A values[Width] = {};
    if (sources[pixel] >= 0 && first + c < channels) {
      const auto value = read<Width>(data + sources[pixel] * stride + first + c);
#pragma unroll
      for (int j = 0; j < Width; ++j) values[j] = rectify(value.values[j]);
    }
    put(pixel, c, values);
  }
}

/// Whether the pixels of a state can be read 16 bytes at a time.
template <typename T>
__device__ __forceinline__ bool wide(const T* data, int64_t stride, int64_t channels) {
  return (reinterpret_cast<uintptr_t>(data) | uintptr_t(stride * sizeof(T)) | uintptr_t(channels * sizeof(T))) % 16 ==
         0;
}

/// Calls f.template operator()<Outputs>() with the narrowest tile that holds all columns of a group, or the widest.
template <typename T, typename F>
void for_outputs(const Preprocess<T>& args, const F& f) {
  const int64_t most = args.group_outputs[0] > args.group_outputs[1] ? args.group_outputs[0] : args.group_outputs[1];
  if (most <= 16) return f.template operator()<16>();
  if (most <= 32) return f.template operator()<32>();
  f.template operator()<64>();
}

template <typename T>
int64_t column_tiles(const Preprocess<T>& args, int outputs) {
  return ceil_div(args.group_outputs[0], outputs) + ceil_div(args.group_outputs[1], outputs);
}

}  // namespace
}  // namespace fastnas::cuda
