// node_sum: one reading of every candidate, nothing in between is written.
//
// The coefficients of a candidate's channels are the same for all pixels, so they come from the nearest cache.
#include "cuda/node_pixels.h"

namespace fastnas::cuda {
namespace {

// Individuals are the fastest index of the grid: those that share a candidate read it while it is in the cache.
template <typename T, int Width, int Groups>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    sum_kernel(const __grid_constant__ NodeSum<T> args, T* __restrict__ result, int64_t stride) {
  using A = accumulate_t<T>;
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, P = s.individuals, vectors = C / Width, pixels = s.images * s.pixels;
  for (int64_t p = blockIdx.x; p < P; p += gridDim.x) {
    for (int64_t i = int64_t(blockIdx.y) * kThreads + threadIdx.x; i < pixels * vectors;
         i += int64_t(gridDim.y) * kThreads) {
      const int64_t pixel = divide(i, vectors), c = (i - pixel * vectors) * Width, own = p * pixels + pixel;
      for (int64_t q = 0; q < s.groups; q += kTogether<Groups>) {
        A sum[kTogether<Groups>][Width] = {};
        if (q == 0) {
#pragma unroll(Width == 8 ? 2 : 4)
          for (int64_t k = 0; k < args.candidate_count; ++k) {
            const NodePixels<T>& from = args.candidates[k];
            const auto y = read<Width>(from.data + (from.shared ? pixel : own) * from.stride + c);
            const auto mean = read<Width>(args.mean + (k * P + p) * C + c);
            const auto rstd = read<Width>(args.rstd + (k * P + p) * C + c);
            const A weight = args.weights[p * args.candidate_count + k];
#pragma unroll
            for (int j = 0; j < Width; ++j) sum[0][j] += (y.values[j] - mean.values[j]) * (weight * rstd.values[j]);
          }
        }
#pragma unroll 2
        for (int64_t e = 0; e < args.bypass_count; ++e) {
          const NodePixels<T>& from = args.bypass[e];
          const T* x = from.data + (from.shared ? pixel : own) * from.stride + c;
          const A weight = args.bypass_weights ? args.bypass_weights[p * args.bypass_count + e] : A(1);
#pragma unroll
          for (int g = 0; g < kTogether<Groups>; ++g) {
            if (q + g == 0) continue;
            const auto value = read<Width>(x + (q + g - 1) * C);
#pragma unroll
            for (int j = 0; j < Width; ++j) sum[g][j] += weight * value.values[j];
          }
        }
        if (args.prev_node.data) {
          const T* x = args.prev_node.data + (args.prev_node.shared ? pixel : own) * args.prev_node.stride;
          A groups[kTogether<Groups>][Width];
          read_shuffled<Groups>(x, c, q, s.groups, groups);
#pragma unroll
          for (int g = 0; g < kTogether<Groups>; ++g) {
            if (q + g == 0) continue;
            const auto value = read<Width>(x + (q + g) * C + c);
#pragma unroll
            for (int j = 0; j < Width; ++j) sum[g][j] += groups[g][j] + value.values[j];
          }
        }
        write_shuffled<Groups>(result + own * stride, c, q, s.groups, sum);
      }
    }
  }
}

}  // namespace

template <typename T>
void node_sum_forward(const NodeSum<T>& args, T* result, int64_t stride, CUstream_st* stream) {
  const NodeShape& s = args.shape;
  if (pixels_of(s) == 0 || s.channels == 0) return;
  Alignment alignment;
  add_all(alignment, args.candidates, args.candidate_count);
  add_all(alignment, args.bypass, args.bypass_count);
  if (args.prev_node.data) alignment.add(args.prev_node.data, args.prev_node.stride);
  alignment.add(result, stride);
  alignment.add_tables(args.mean, args.rstd);
  for_width<T>(alignment, s.channels, [&]<int Width>() {
    auto kernel = s.groups == 1 ? sum_kernel<T, Width, 1> : sum_kernel<T, Width, 0>;
    if constexpr (Width > 1) {
      if (s.groups == 4) kernel = sum_kernel<T, Width, 4>;
    }
    const int64_t blocks = ceil_div(pixels_of(s) * (s.channels / Width), kThreads);
    launch("node_sum_forward", kernel, dim3(blocks_of(s.individuals), blocks_of(blocks, kMaxBlocksBeside)), kThreads, 0,
           stream, args, result, stride);
  });
}

#define INSTANTIATE(T) template void node_sum_forward(const NodeSum<T>&, T*, int64_t, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
