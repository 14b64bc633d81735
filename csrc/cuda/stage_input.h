// What the forward and the backward kernel of `stage` share: how an input is read, and what is known of it on the host.
#pragma once

#include "cuda/separable.h"
#include "ops/stage.h"

namespace fastnas::cuda {
namespace {

/// Normalised and rectified values of `channels` channels of an input, from `first` on, into the tile at `at`, whose
/// pixels are `pixel` values apart.
template <int W, typename T>
__device__ __forceinline__ void fill_input(const Stage<T>& args, int input, const Tiling& tiling, const Place& at,
                                           int first, int channels, int pixel, accumulate_t<T>* tile) {
  using A = accumulate_t<T>;
  const int64_t stride = args.x_stride[input];
  const T* const x = args.x[input] + at.image * args.height * args.width * stride + first;
  const int64_t individual = at.image / (args.count / args.individuals);
  const int64_t statistics = (input * args.individuals + individual) * args.channels + first;
  const A* const mean = args.mean ? args.mean + statistics : nullptr;
  const A* const rstd = args.mean ? args.rstd + statistics : nullptr;
  fill_tile<W>(tile, tiling.in_rows, tiling.in_columns, pixel, channels, at.top * args.stride - tiling.padding,
               at.left * args.stride - tiling.padding, args.height, args.width, tiling.lanes,
               [&](int64_t row, int64_t column, int c) {
                 auto value = load_wide<W>(x + (row * args.width + column) * stride + c);
                 if (mean) {
                   const auto shift = load<W>(mean + c), scale = load<W>(rstd + c);
#pragma unroll
                   for (int w = 0; w < W; ++w) value.values[w] = (value.values[w] - shift.values[w]) * scale.values[w];
                 }
#pragma unroll
                 for (int w = 0; w < W; ++w) value.values[w] = rectify(value.values[w]);
                 return value;
               });
}

template <typename T>
int64_t most_padding(const Stage<T>& args) {
  int64_t result = 0;
  for (int j = 0; j < args.stages; ++j) {
    const int64_t padding = args.dilation[j] * (args.kernel[j] - 1) / 2;
    result = padding > result ? padding : result;
  }
  return result;
}

template <typename T>
SeparableWeights<accumulate_t<T>> weights_of(const Stage<T>& args, bool transposed) {
  SeparableWeights<accumulate_t<T>> result{};
  result.stages = args.stages;
  result.channels = static_cast<int>(args.channels);
  result.transposed = transposed;
  for (int j = 0; j < args.stages; ++j) {
    result.depthwise[j] = args.depthwise[j];
    result.pointwise[j] = args.pointwise[j];
    result.taps[j] = static_cast<int>(args.kernel[j] * args.kernel[j]);
    result.most_taps = result.taps[j] > result.most_taps ? result.taps[j] : result.most_taps;
  }
  return result;
}

/// Whether channels can be read kVector<T> at a time.
template <typename T>
bool wide_inputs(const Stage<T>& args) {
  bool wide = args.channels % kVector<T> == 0 && aligned16(args.mean) && aligned16(args.rstd);
  for (int i = 0; i < args.inputs(); ++i) wide = wide && wide_at(args.x[i], args.x_stride[i]);
  return wide;
}

}  // namespace
}  // namespace fastnas::cuda
