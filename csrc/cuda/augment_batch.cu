#include <cmath>

#include "cuda/device.h"
#include "ops/augment_batch.h"

namespace fastnas::cuda {
namespace {

constexpr int kThreads = 256;

// blockIdx.y strides over images, blockIdx.x over vectors of one image. Left to itself, the compiler spills for sm_100
// to fit eight blocks.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, 4)
    augment_kernel(const __grid_constant__ AugmentBatch<T> args, T* __restrict__ result) {
  const int H = int(args.height), W = int(args.width), C = int(args.channels);
  const int64_t values = int64_t(H) * W * C, step = int64_t(gridDim.x) * kThreads * Width;
  for (int64_t b = blockIdx.y; b < args.count; b += gridDim.y) {
    const int64_t place = args.index ? args.index[b] : b;
    const bool exists = place >= 0 && place < args.set;
    const uint8_t* image = args.images + (exists ? place : 0) * values;
    int64_t down = 0, right = 0, hole_top = 0, hole_left = 0, cutout = 0;
    bool flip = false;
    if (args.draws) {
      const int32_t* draw = args.draws + b * kDraws;
      cutout = args.cutout;
      down = draw[kTop] - args.padding;
      right = draw[kLeft] - args.padding;
      flip = draw[kFlip] != 0;
      hole_top = draw[kHoleRow] - cutout / 2;
      hole_left = draw[kHoleColumn] - cutout / 2;
    }
    for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * Width; i < values; i += step) {
      int c = int(i) % C, x = int(i) / C % W, y = int(i) / C / W;
      Vec<T, Width> out;
#pragma unroll
      for (int j = 0; j < Width; ++j) {
        const int64_t row = y + down, column = (flip ? W - 1 - x : x) + right;
        const bool shown = row >= 0 && row < H && column >= 0 && column < W;
        const bool cut = y >= hole_top && y < hole_top + cutout && x >= hole_left && x < hole_left + cutout;
        T value = T(0.0f);
        if (!exists) {
          value = T(NAN);
        } else if (!cut) {
          value = args.table[c * kLevels + (shown ? image[(row * W + column) * C + c] : 0)];
        }
        out.values[j] = value;
        if (++c == C) {
          c = 0;
          if (++x == W) x = 0, ++y;
        }
      }
      store(result + b * values + i, out);
    }
  }
}

}  // namespace

template <typename T>
void augment_batch(const AugmentBatch<T>& args, T* result, CUstream_st* stream) {
  const int64_t values = args.height * args.width * args.channels;
  if (values == 0 || args.count == 0) return;
  const bool vectors = values % kWide<T> == 0 && aligned16(result);
  const int64_t per_block = kThreads * (vectors ? kWide<T> : 1), blocks = ceil_div(values, per_block);
  const dim3 grid(blocks_of(blocks), blocks_of(args.count, kMaxBlocksBeside));
  launch("augment_batch", vectors ? augment_kernel<T, kWide<T>> : augment_kernel<T, 1>, grid, kThreads, 0, stream, args,
         result);
}

#define INSTANTIATE(T) template void augment_batch(const AugmentBatch<T>&, T*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
