#include "cuda/device.h"
#include "ops/color_jitter.h"

namespace fastnas::cuda {
namespace {

constexpr int kThreads = 512;

__device__ __forceinline__ Rgb read(const uint8_t* pixel) {
  return {float(pixel[0]), float(pixel[1]), float(pixel[2])};
}

// One block for an image: its mean grey is needed before any pixel can be written.
__global__ void __launch_bounds__(kThreads)
    color_jitter_kernel(const __grid_constant__ ColorJitter args, uint8_t* __restrict__ result) {
  __shared__ long long scratch[kThreads / kWarp];
  __shared__ float mean;
  for (int64_t image = blockIdx.x; image < args.count; image += gridDim.x) {
    const float* factors = args.factors + 4 * image;
    const uint8_t* in = args.images + 3 * image * args.pixels;
    uint8_t* out = result + 3 * image * args.pixels;
    long long sum = 0;
    for (int64_t i = threadIdx.x; i < args.pixels; i += kThreads) {
      sum += int(grey_of(scaled(read(in + 3 * i), factors[0])));
    }
    sum = block_sum<kThreads>(sum, scratch);
    if (threadIdx.x == 0) mean = float(double(sum) / double(args.pixels));
    __syncthreads();
    for (int64_t i = threadIdx.x; i < args.pixels; i += kThreads) {
      const Rgb color = jittered(read(in + 3 * i), factors, mean);
      out[3 * i] = uint8_t(color.r);
      out[3 * i + 1] = uint8_t(color.g);
      out[3 * i + 2] = uint8_t(color.b);
    }
    __syncthreads();  // before the next image's mean
  }
}

}  // namespace

void color_jitter(const ColorJitter& args, uint8_t* result, CUstream_st* stream) {
  if (args.count == 0 || args.pixels == 0) return;
  launch("color_jitter", color_jitter_kernel, dim3(blocks_of(args.count)), kThreads, 0, stream, args, result);
}

}  // namespace fastnas::cuda
