// The gradients of node_sum: sums over all pixels first, then that of every candidate, each from one reading of it.
//
// sums_kernel takes kSlice candidates together, so that the gradient is in registers for all of them, and folds the
// sums of a block in shared memory once, at the end of a chunk of pixels. The slices of a chunk run side by side and
// share the reading of the gradient through the second-level cache.
#include "cuda/node_pixels.h"
#include "ops/bn_backward.h"

namespace fastnas::cuda {
namespace {

/// Candidates of a block.
template <typename T, int Width>
constexpr int kSlice = Width * sizeof(accumulate_t<T>) > 16 || sizeof(T) == 8 ? 4 : 8;
// Block (x, y, z): a slice of candidates, a chunk of pixels, a run of channels. The first slice also sums the gradient
// itself and writes group 0 of it down.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    sums_kernel(const __grid_constant__ NodeSum<T> args, const __grid_constant__ NodePixels<T> grad,
                T* __restrict__ grad_group0, accumulate_t<T>* __restrict__ partial, int64_t size, int lanes) {
  using A = accumulate_t<T>;
  constexpr int kSums = kSlice<T, Width> + 1;  // the last one is that of the gradient
  __shared__ A table[kSums * Width][kThreads];
  const NodeShape& s = args.shape;
  const Rows rows(lanes);
  const int64_t C = s.channels, K = args.candidate_count, pixels = s.images * s.pixels;
  const int64_t chunks = ceil_div(pixels, size);
  const int64_t c = (int64_t(blockIdx.z) * lanes + rows.lane) * Width, first = int64_t(blockIdx.x) * kSlice<T, Width>;
  const bool active = rows.active() && c < C;
  for (int64_t chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
    A sums[kSums][Width] = {};
    const int64_t end = min((chunk + 1) * size, pixels);
    for (int64_t pixel = chunk * size + rows.row; pixel < end && active; pixel += rows.rows) {
      A g[1][Width];
      if (s.groups == 1) {
        read_shuffled<1>(grad.data + pixel * grad.stride, c, 0, 1, g);
      } else {
        read_shuffled<0>(grad.data + pixel * grad.stride, c, 0, s.groups, g);
        if (first == 0) write(grad_group0 + pixel * C + c, g[0]);
      }
#pragma unroll
      for (int j = 0; j < Width; ++j) sums[kSums - 1][j] += g[0][j];
#pragma unroll
      for (int k = 0; k < kSlice<T, Width>; ++k) {
        if (first + k >= K) continue;
        const NodePixels<T>& from = args.candidates[first + k];
        const auto y = read<Width>(from.data + pixel * from.stride + c);
        const auto mean = read<Width>(args.mean + (first + k) * C + c);
#pragma unroll
        for (int j = 0; j < Width; ++j) sums[k][j] += g[0][j] * (y.values[j] - mean.values[j]);
      }
    }
#pragma unroll
    for (int i = 0; i < kSums * Width; ++i) table[i][threadIdx.x] = sums[i / Width][i % Width];
    rows.fold([](int to, int from) {
#pragma unroll
      for (int i = 0; i < kSums * Width; ++i) table[i][to] += table[i][from];
    });
    if (rows.row == 0 && c < C) {
      A* const row = partial + chunk * (C + K * C + args.bypass_count) + c;
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        const bool of_grad = k == kSums - 1;
        if (of_grad ? first > 0 : first + k >= K) continue;
#pragma unroll
        for (int j = 0; j < Width; ++j) {
          row[(of_grad ? 0 : (1 + first + k) * C) + j] = table[k * Width + j][threadIdx.x];
        }
      }
    }
    __syncthreads();
  }
}

// Block (x, y): a bypass, a chunk of pixels as above. Needed only where the bypass weights are learned.
template <typename T>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    bypass_weights_kernel(const __grid_constant__ NodeSum<T> args, const __grid_constant__ NodePixels<T> grad,
                          accumulate_t<T>* __restrict__ partial, int64_t size) {
  using A = accumulate_t<T>;
  __shared__ A scratch[kThreads / kWarp];
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, R = (s.groups - 1) * C, pixels = s.images * s.pixels, e = blockIdx.x;
  const int64_t chunks = ceil_div(pixels, size);
  const NodePixels<T>& from = args.bypass[e];
  for (int64_t chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
    const int64_t begin = chunk * size, count = min(size, pixels - begin);
    A sum = 0;
    for (int64_t i = threadIdx.x; i < count * R; i += kThreads) {
      const int64_t p = divide(i, R), r = i - p * R, q = divide(r, C), pixel = begin + p;
      sum += A(grad.data[pixel * grad.stride + (r - q * C) * s.groups + q + 1]) * A(from.data[pixel * from.stride + r]);
    }
    sum = block_sum<kThreads>(sum, scratch);
    const int64_t before = C + args.candidate_count * C;
    if (threadIdx.x == 0) partial[chunk * (before + args.bypass_count) + before + e] = sum;
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads, kResident<A>)
    merge_kernel(const A* __restrict__ partial, int64_t chunks, int64_t channels, int64_t candidates, int64_t bypasses,
                 const A* __restrict__ rstd, A* __restrict__ sum_dy, A* __restrict__ sum_dy_xhat,
                 A* __restrict__ grad_bypass_weights) {
  const int64_t columns = channels + candidates * channels + bypasses;
  for (int64_t first = int64_t(blockIdx.x) * kWarp; first < columns; first += int64_t(gridDim.x) * kWarp) {
    const double total = sum_columns(partial, chunks, columns, first);
    const int64_t column = first + threadIdx.x, of_candidate = column - channels;
    const int64_t of_bypass = of_candidate - candidates * channels;
    if (threadIdx.x >= kWarp || column >= columns) continue;
    if (of_candidate < 0) {
      sum_dy[column] = A(total);
    } else if (of_bypass < 0) {
      sum_dy_xhat[of_candidate] = A(total * double(rstd[of_candidate]));
    } else {
      grad_bypass_weights[of_bypass] = A(total);
    }
  }
}

// Each candidate has the gradient of BatchNorm, scaled by its weight; the thread's dy stays in registers for all of
// them.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    candidates_kernel(const __grid_constant__ NodeSum<T> args, const __grid_constant__ NodePixels<T> grad_group0,
                      const __grid_constant__ NodeSumGrads<T> grads) {
  using A = accumulate_t<T>;
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, vectors = C / Width, pixels = s.images * s.pixels;
  const A share = A(1) / A(pixels);
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < pixels * vectors;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t pixel = divide(i, vectors), c = (i - pixel * vectors) * Width;
    const auto dy = read<Width>(grad_group0.data + pixel * grad_group0.stride + c);
    const auto sum_dy = read<Width>(grads.sum_dy + c);
#pragma unroll 2
    for (int64_t k = 0; k < args.candidate_count; ++k) {
      const auto rstd = read<Width>(args.rstd + k * C + c);
      const A weight = args.weights[k];
      A result[Width];
      if (grads.normalized[k]) {
        const NodePixels<T>& from = args.candidates[k];
        const auto y = read<Width>(from.data + pixel * from.stride + c);
        const auto mean = read<Width>(args.mean + k * C + c);
        const auto sum_dy_xhat = read<Width>(grads.sum_dy_xhat + k * C + c);
#pragma unroll
        for (int j = 0; j < Width; ++j) {
          const A xhat = (y.values[j] - mean.values[j]) * rstd.values[j];
          result[j] = bn_backward_sums(dy.values[j], xhat, weight * rstd.values[j], share * sum_dy.values[j],
                                       share * sum_dy_xhat.values[j]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < Width; ++j) result[j] = weight * rstd.values[j] * dy.values[j];
      }
      write(grads.candidates[k] + pixel * C + c, result);
    }
  }
}

}  // namespace

template <typename T>
void node_sum_grad(const NodeSum<T>& args, const NodePixels<T>& grad, T* grad_group0, accumulate_t<T>* partial,
                   accumulate_t<T>* sum_dy, accumulate_t<T>* sum_dy_xhat, accumulate_t<T>* grad_bypass_weights,
                   CUstream_st* stream) {
  using A = accumulate_t<T>;
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, K = args.candidate_count, E = args.bypass_count, columns = C + K * C + E;
  if (columns == 0) return;
  const int64_t size = C > 0 ? node_sum_chunk(C) : 1, chunks = C > 0 ? ceil_div(pixels_of(s), size) : 0;
  if (chunks > 0) {
    const unsigned chunk_blocks = blocks_of(chunks, kMaxBlocksBeside);
    Alignment alignment;
    add_all(alignment, args.candidates, K);
    if (s.groups == 1) alignment.add(grad.data, grad.stride);
    if (s.groups > 1) alignment.add(grad_group0, C);
    alignment.add_tables(args.mean);
    for_width<T>(alignment, C, [&]<int Width>() {
      const int lanes = lanes_of(C / Width);
      const dim3 grid(static_cast<unsigned>(ceil_div(K, kSlice<T, Width>)), chunk_blocks,
                      static_cast<unsigned>(ceil_div(C / Width, lanes)));
      launch("node_sum_grad", sums_kernel<T, Width>, grid, kThreads, 0, stream, args, grad, grad_group0, partial, size,
             lanes);
    });
    if (E > 0) {
      launch("node_sum_grad_bypass", bypass_weights_kernel<T>, dim3(static_cast<unsigned>(E), chunk_blocks), kThreads,
             0, stream, args, grad, partial, size);
    }
  }
  launch("node_sum_grad_merge", merge_kernel<A>, dim3(blocks_of(ceil_div(columns, kWarp))), kThreads, 0, stream,
         partial, chunks, C, K, E, args.rstd, sum_dy, sum_dy_xhat, grad_bypass_weights);
}

template <typename T>
void node_sum_grad_candidates(const NodeSum<T>& args, const NodePixels<T>& grad_group0, const NodeSumGrads<T>& grads,
                              CUstream_st* stream) {
  const NodeShape& s = args.shape;
  if (pixels_of(s) == 0 || s.channels == 0) return;
  Alignment alignment;
  add_all(alignment, args.candidates, args.candidate_count);
  alignment.add(grad_group0.data, grad_group0.stride);
  for (int64_t k = 0; k < args.candidate_count; ++k) alignment.add(grads.candidates[k], s.channels);
  alignment.add_tables(args.mean, args.rstd, grads.sum_dy, grads.sum_dy_xhat);
  for_width<T>(alignment, s.channels, [&]<int Width>() {
    launch("node_sum_grad_candidates", candidates_kernel<T, Width>, flat_grid(s, Width), kThreads, 0, stream, args,
           grad_group0, grads);
  });
}

#define INSTANTIATE(T)                                                                                         \
  template void node_sum_grad(const NodeSum<T>&, const NodePixels<T>&, T*, accumulate_t<T>*, accumulate_t<T>*, \
                              accumulate_t<T>*, accumulate_t<T>*, CUstream_st*);                               \
  template void node_sum_grad_candidates(const NodeSum<T>&, const NodePixels<T>&, const NodeSumGrads<T>&, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
