#include "cuda/device.h"
#include "ops/mixed_sum.h"

namespace fastnas::cuda {
namespace {

constexpr int kThreads = 256;

// blockIdx.y strides over individuals, blockIdx.x over vectors of one individual.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ MixedSum<T> args, T* __restrict__ result) {
  using A = accumulate_t<T>;
  const int64_t step = int64_t(gridDim.x) * kThreads * Width;
  for (int64_t p = blockIdx.y; p < args.individuals; p += gridDim.y) {
    const A* weights = args.weights + p * args.candidates;  // [K]
    for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * Width; i < args.elements; i += step) {
      A sum[Width] = {};
#pragma unroll 4
      for (int64_t k = 0; k < args.candidates; ++k) {
        const auto o = load<Width>(args.outputs[k] + (args.shared[k] ? 0 : p * args.elements) + i);
        const A weight = weights[k];
#pragma unroll
        for (int j = 0; j < Width; ++j) sum[j] += weight * A(o.values[j]);
      }
      Vec<T, Width> out;
#pragma unroll
      for (int j = 0; j < Width; ++j) out.values[j] = T(sum[j]);
      store(result + p * args.elements + i, out);
    }
  }
}

// Each thread keeps its piece of the gradient in registers while it writes every candidate's share of it.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads)
    grad_outputs_kernel(const __grid_constant__ MixedSum<T> args, const T* __restrict__ grad,
                        const __grid_constant__ MixedSumGrads<T> grads) {
  using A = accumulate_t<T>;
  const int64_t step = int64_t(gridDim.x) * kThreads * Width;
  for (int64_t p = blockIdx.y; p < args.individuals; p += gridDim.y) {
    const A* weights = args.weights + p * args.candidates;  // [K]
    for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * Width; i < args.elements; i += step) {
      const auto g = load<Width>(grad + p * args.elements + i);
#pragma unroll 1
      for (int64_t k = 0; k < args.candidates; ++k) {
        if (args.shared[k]) continue;
        const A weight = weights[k];
        Vec<T, Width> out;
#pragma unroll
        for (int j = 0; j < Width; ++j) out.values[j] = T(weight * A(g.values[j]));
        store(grads.outputs[k] + p * args.elements + i, out);
      }
    }
  }
}

// An output that all individuals share collects its gradient from all of them; blockIdx.y strides over candidates.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads)
    grad_shared_kernel(const __grid_constant__ MixedSum<T> args, const T* __restrict__ grad,
                       const __grid_constant__ MixedSumGrads<T> grads) {
  using A = accumulate_t<T>;
  const int64_t step = int64_t(gridDim.x) * kThreads * Width;
  for (int64_t k = blockIdx.y; k < args.candidates; k += gridDim.y) {
    if (!args.shared[k]) continue;
    for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * Width; i < args.elements; i += step) {
      A sum[Width] = {};
#pragma unroll 1
      for (int64_t p = 0; p < args.individuals; ++p) {
        const auto g = load<Width>(grad + p * args.elements + i);
        const A weight = args.weights[p * args.candidates + k];
#pragma unroll
        for (int j = 0; j < Width; ++j) sum[j] += weight * A(g.values[j]);
      }
      Vec<T, Width> out;
#pragma unroll
      for (int j = 0; j < Width; ++j) out.values[j] = T(sum[j]);
      store(grads.outputs[k] + i, out);
    }
  }
}

// One block per chunk of one individual: the chunk's gradient stays in registers for all K dot products.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads)
    partial_kernel(const __grid_constant__ MixedSum<T> args, const T* __restrict__ grad,
                   accumulate_t<T>* __restrict__ partial) {
  using A = accumulate_t<T>;
  constexpr int kVectors = kMixedSumChunk / (kThreads * kWide<T>);
  constexpr int kLoads = kVectors * kWide<T> / Width;
  __shared__ A scratch[kThreads / kWarp];
  const int64_t begin = int64_t(blockIdx.x) * kMixedSumChunk + threadIdx.x * Width;
  for (int64_t p = blockIdx.y; p < args.individuals; p += gridDim.y) {
    A g[kLoads][Width];
#pragma unroll
    for (int v = 0; v < kLoads; ++v) {
      const int64_t i = begin + int64_t(v) * kThreads * Width;
      Vec<T, Width> vec = {};
      if (i < args.elements) vec = load<Width>(grad + p * args.elements + i);
#pragma unroll
      for (int j = 0; j < Width; ++j) g[v][j] = A(vec.values[j]);
    }
    for (int64_t k = 0; k < args.candidates; ++k) {
      const T* output = args.outputs[k] + (args.shared[k] ? 0 : p * args.elements);
      A sum = 0;
#pragma unroll
      for (int v = 0; v < kLoads; ++v) {
        const int64_t i = begin + int64_t(v) * kThreads * Width;
        if (i < args.elements) {
          const auto o = load<Width>(output + i);
#pragma unroll
          for (int j = 0; j < Width; ++j) sum += g[v][j] * A(o.values[j]);
        }
      }
      sum = block_sum<kThreads>(sum, scratch);
      if (threadIdx.x == 0) partial[(blockIdx.x * args.individuals + p) * args.candidates + k] = sum;
    }
  }
}

// One block per (p, k): sums its column of the partials in an order that is always the same.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const A* __restrict__ partial, A* __restrict__ grad_weights, int64_t chunks, int64_t columns) {
  __shared__ A scratch[kThreads / kWarp];
  for (int64_t column = blockIdx.x; column < columns; column += gridDim.x) {
    A sum = 0;
    for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kThreads) sum += partial[chunk * columns + column];
    sum = block_sum<kThreads>(sum, scratch);
    if (threadIdx.x == 0) grad_weights[column] = sum;
  }
}

dim3 grid_of(int64_t blocks, int64_t beside) { return dim3(blocks_of(blocks), blocks_of(beside, kMaxBlocksBeside)); }

// 16 bytes at a time only where every run of N elements begins and ends on such a boundary.
template <typename T>
bool wide(const MixedSum<T>& args, const T* dense) {
  bool ok = args.elements % kWide<T> == 0 && aligned16(dense);
  for (int64_t k = 0; k < args.candidates; ++k) ok = ok && aligned16(args.outputs[k]);
  return ok;
}

}  // namespace

template <typename T>
void mixed_sum_forward(const MixedSum<T>& args, T* result, CUstream_st* stream) {
  if (args.elements == 0 || args.individuals == 0) return;
  const bool vectors = wide(args, result);
  const dim3 grid = grid_of(ceil_div(args.elements, kThreads * (vectors ? kWide<T> : 1)), args.individuals);
  launch("mixed_sum_forward", vectors ? forward_kernel<T, kWide<T>> : forward_kernel<T, 1>, grid, kThreads, 0, stream,
         args, result);
}

template <typename T>
void mixed_sum_grad_outputs(const MixedSum<T>& args, const T* grad, const MixedSumGrads<T>& grads,
                            CUstream_st* stream) {
  if (args.elements == 0) return;
  bool vectors = args.elements % kWide<T> == 0 && aligned16(grad);
  int64_t shared = 0;
  for (int64_t k = 0; k < args.candidates; ++k) {
    vectors = vectors && aligned16(grads.outputs[k]);
    shared += args.shared[k];
  }
  const int64_t blocks = ceil_div(args.elements, kThreads * (vectors ? kWide<T> : 1));
  if (shared < args.candidates && args.individuals > 0) {
    launch("mixed_sum_grad_outputs", vectors ? grad_outputs_kernel<T, kWide<T>> : grad_outputs_kernel<T, 1>,
           grid_of(blocks, args.individuals), kThreads, 0, stream, args, grad, grads);
  }
  if (shared > 0) {
    launch("mixed_sum_grad_shared", vectors ? grad_shared_kernel<T, kWide<T>> : grad_shared_kernel<T, 1>,
           grid_of(blocks, args.candidates), kThreads, 0, stream, args, grad, grads);
  }
}

template <typename T>
void mixed_sum_grad_weights(const MixedSum<T>& args, const T* grad, accumulate_t<T>* partial,
                            accumulate_t<T>* grad_weights, CUstream_st* stream) {
  const int64_t columns = args.individuals * args.candidates;
  if (columns == 0) return;
  const int64_t chunks = ceil_div(args.elements, kMixedSumChunk);
  if (chunks > 0) {
    const bool vectors = wide(args, grad);
    const dim3 grid(static_cast<unsigned>(chunks), blocks_of(args.individuals, kMaxBlocksBeside));
    launch("mixed_sum_grad_weights", vectors ? partial_kernel<T, kWide<T>> : partial_kernel<T, 1>, grid, kThreads, 0,
           stream, args, grad, partial);
  }
  launch("mixed_sum_merge", merge_kernel<accumulate_t<T>>, dim3(blocks_of(columns)), kThreads, 0, stream, partial,
         grad_weights, chunks, columns);
}

#define INSTANTIATE(T)                                                                                       \
  template void mixed_sum_forward(const MixedSum<T>&, T*, CUstream_st*);                                     \
  template void mixed_sum_grad_outputs(const MixedSum<T>&, const T*, const MixedSumGrads<T>&, CUstream_st*); \
  template void mixed_sum_grad_weights(const MixedSum<T>&, const T*, accumulate_t<T>*, accumulate_t<T>*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
