// bypass_grad: the gradient of a state some of whose channels bypass the candidates of later nodes. The gradient of
// each node is read once.
#include "cuda/node_pixels.h"

namespace fastnas::cuda {
namespace {

template <typename T, int Width, int Groups>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    bypass_kernel(const __grid_constant__ BypassGrad<T> args, T* __restrict__ result) {
  using A = accumulate_t<T>;
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, vectors = C / Width, pixels = s.images * s.pixels;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < pixels * vectors;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t pixel = divide(i, vectors), c = (i - pixel * vectors) * Width;
    for (int64_t q = 0; q < s.groups; q += kTogether<Groups>) {
      A sum[kTogether<Groups>][Width] = {};
      for (int64_t a = 0; a < args.addend_count; ++a) {
        const NodePixels<T>& from = args.addends[a];
#pragma unroll
        for (int g = 0; g < kTogether<Groups>; ++g) {
          const auto value = read<Width>(from.data + pixel * from.stride + (q + g) * C + c);
#pragma unroll
          for (int j = 0; j < Width; ++j) sum[g][j] += value.values[j];
        }
      }
      if (q == 0 && args.seen_grad.data) {
        const auto value = read<Width>(args.seen_grad.data + pixel * args.seen_grad.stride + c);
#pragma unroll
        for (int j = 0; j < Width; ++j) sum[0][j] += value.values[j];
      }
      for (int64_t n = 0; n < args.grad_count; ++n) {
        const NodePixels<T>& from = args.grads[n];
        const A weight = args.weights[n];
        A groups[kTogether<Groups>][Width];
        read_shuffled<Groups>(from.data + pixel * from.stride, c, q, s.groups, groups);
#pragma unroll
        for (int g = 0; g < kTogether<Groups>; ++g) {
          if (q + g == 0) continue;
#pragma unroll
          for (int j = 0; j < Width; ++j) sum[g][j] += weight * groups[g][j];
        }
        if (!args.of_prev_node) continue;
#pragma unroll
        for (int g = 0; g < kTogether<Groups>; ++g) {
          const int64_t channel = (q + g) * C + c;
          const auto value = read<Width>(from.data + pixel * from.stride + channel);
#pragma unroll
          for (int j = 0; j < Width; ++j) sum[g][j] += (channel + j) % s.groups == 0 ? A(0) : value.values[j];
        }
      }
#pragma unroll
      for (int g = 0; g < kTogether<Groups>; ++g) {
        const int64_t channel = (q + g) * C + c;
        write(result + pixel * s.groups * C + channel, sum[g]);
#pragma unroll
        for (int j = 0; j < Width; ++j) {
          if (args.of_prev_node && (channel + j) % s.groups == 0) {
            args.grad_group0[pixel * C + divide(channel + j, s.groups)] = T(sum[g][j]);
          }
        }
      }
    }
  }
}

}  // namespace

template <typename T>
void bypass_grad(const BypassGrad<T>& args, T* result, CUstream_st* stream) {
  const NodeShape& s = args.shape;
  if (pixels_of(s) == 0) return;
  Alignment alignment;
  add_all(alignment, args.grads, args.grad_count);
  add_all(alignment, args.addends, args.addend_count);
  if (args.seen_grad.data) alignment.add(args.seen_grad.data, args.seen_grad.stride);
  alignment.add(result, s.groups * s.channels);
  for_width<T>(alignment, s.channels, [&]<int Width>() {
    auto kernel = bypass_kernel<T, Width, 0>;
    if constexpr (Width > 1) {
      if (s.groups == 4) kernel = bypass_kernel<T, Width, 4>;
    }
    launch("bypass_grad", kernel, flat_grid(s, Width), kThreads, 0, stream, args, result);
  });
}

#define INSTANTIATE(T) template void bypass_grad(const BypassGrad<T>&, T*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
