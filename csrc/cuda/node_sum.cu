// node_sum, its gradients and bypass_grad: one reading of every candidate, nothing in between is stored.
//
// A thread has a run of channels of one pixel (Width of them, 16 bytes where alignment allows) in registers and goes
// through the table of candidates; neighbouring threads read neighbouring memory. The numbers of a candidate's channels
// are the same for all pixels, so they come from the nearest cache. Only dots_kernel, which sums over pixels, uses
// shared memory: once at the end of a chunk of pixels, for kSlice candidates together. The slices of a chunk run side
// by side and share the reading of the gradient through the second-level cache.
//
// With g groups a pixel of the result is shuffled: channel c of group q lies at c·g + q. Groups is g where that is a
// constant of the kernel, so that a thread moves its channels of all groups as whole vectors; 0 for any other g.
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

/// Candidates of a block.
template <typename T, int Width>
constexpr int kSlice = Width * sizeof(accumulate_t<T>) > 16 || sizeof(T) == 8 ? 4 : 8;
// Block (x, y, z): a slice of candidates, a chunk of pixels, a run of channels. The first slice also sums the gradient
// itself and writes group 0 of it down.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    dots_kernel(const __grid_constant__ NodeSum<T> args, const __grid_constant__ NodePixels<T> grad,
                T* __restrict__ processed, accumulate_t<T>* __restrict__ partial, int64_t size, int lanes) {
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
        if (first == 0) write(processed + pixel * C + c, g[0]);
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

// Block (x, y): a bypass, a chunk of pixels as above. Only who learns the bypass weights needs it.
template <typename T>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    bypass_dots_kernel(const __grid_constant__ NodeSum<T> args, const __grid_constant__ NodePixels<T> grad,
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
                 const A* __restrict__ rstd, A* __restrict__ sums, A* __restrict__ dots, A* __restrict__ bypass_dots) {
  const int64_t columns = channels + candidates * channels + bypasses;
  for (int64_t first = int64_t(blockIdx.x) * kWarp; first < columns; first += int64_t(gridDim.x) * kWarp) {
    const double total = sum_columns(partial, chunks, columns, first);
    const int64_t column = first + threadIdx.x, dot = column - channels, bypass = dot - candidates * channels;
    if (threadIdx.x >= kWarp || column >= columns) continue;
    if (dot < 0) {
      sums[column] = A(total);
    } else if (bypass < 0) {
      dots[dot] = A(total * double(rstd[dot]));
    } else {
      bypass_dots[bypass] = A(total);
    }
  }
}

// The gradient of candidate k is w r (G - Σ G / N - ŷ Σ G ŷ / N); the thread's G stays in registers for all of them.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    candidates_kernel(const __grid_constant__ NodeSum<T> args, const __grid_constant__ NodePixels<T> processed,
                      const __grid_constant__ NodeSumGrads<T> grads) {
  using A = accumulate_t<T>;
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, vectors = C / Width, pixels = s.images * s.pixels;
  const A share = A(1) / A(pixels);
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < pixels * vectors;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t pixel = divide(i, vectors), c = (i - pixel * vectors) * Width;
    const auto g = read<Width>(processed.data + pixel * processed.stride + c);
    const auto sum = read<Width>(grads.sum_dy + c);
#pragma unroll 2
    for (int64_t k = 0; k < args.candidate_count; ++k) {
      const auto rstd = read<Width>(args.rstd + k * C + c);
      const A weight = args.weights[k];
      A result[Width];
      if (grads.normalized[k]) {
        const NodePixels<T>& from = args.candidates[k];
        const auto y = read<Width>(from.data + pixel * from.stride + c);
        const auto mean = read<Width>(args.mean + k * C + c);
        const auto dot = read<Width>(grads.sum_dy_xhat + k * C + c);
#pragma unroll
        for (int j = 0; j < Width; ++j) {
          const A normal = (y.values[j] - mean.values[j]) * rstd.values[j];
          result[j] =
              weight * rstd.values[j] * (g.values[j] - share * sum.values[j] - normal * (share * dot.values[j]));
        }
      } else {
#pragma unroll
        for (int j = 0; j < Width; ++j) result[j] = weight * rstd.values[j] * g.values[j];
      }
      write(grads.candidates[k] + pixel * C + c, result);
    }
  }
}

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

template <typename T>
void add_all(Alignment& alignment, const NodePixels<T>* table, int64_t count) {
  for (int64_t i = 0; i < count; ++i) alignment.add(table[i].data, table[i].stride);
}

int64_t pixels_of(const NodeShape& shape) { return shape.images * shape.pixels; }

dim3 flat_grid(const NodeShape& shape, int width) {
  return dim3(blocks_of(ceil_div(pixels_of(shape) * (shape.channels / width), kThreads)));
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
  alignment.add_numbers(args.mean, args.rstd);
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

template <typename T>
void node_sum_grad(const NodeSum<T>& args, const NodePixels<T>& grad, T* processed, accumulate_t<T>* partial,
                   accumulate_t<T>* sums, accumulate_t<T>* dots, accumulate_t<T>* bypass_dots, CUstream_st* stream) {
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
    if (s.groups > 1) alignment.add(processed, C);
    alignment.add_numbers(args.mean);
    for_width<T>(alignment, C, [&]<int Width>() {
      const int lanes = lanes_of(C / Width);
      const dim3 grid(static_cast<unsigned>(ceil_div(K, kSlice<T, Width>)), chunk_blocks,
                      static_cast<unsigned>(ceil_div(C / Width, lanes)));
      launch("node_sum_grad", dots_kernel<T, Width>, grid, kThreads, 0, stream, args, grad, processed, partial, size,
             lanes);
    });
    if (E > 0) {
      launch("node_sum_grad_bypass", bypass_dots_kernel<T>, dim3(static_cast<unsigned>(E), chunk_blocks), kThreads, 0,
             stream, args, grad, partial, size);
    }
  }
  launch("node_sum_grad_merge", merge_kernel<A>, dim3(blocks_of(ceil_div(columns, kWarp))), kThreads, 0, stream,
         partial, chunks, C, K, E, args.rstd, sums, dots, bypass_dots);
}

template <typename T>
void node_sum_grad_candidates(const NodeSum<T>& args, const NodePixels<T>& processed, const NodeSumGrads<T>& grads,
                              CUstream_st* stream) {
  const NodeShape& s = args.shape;
  if (pixels_of(s) == 0 || s.channels == 0) return;
  Alignment alignment;
  add_all(alignment, args.candidates, args.candidate_count);
  alignment.add(processed.data, processed.stride);
  for (int64_t k = 0; k < args.candidate_count; ++k) alignment.add(grads.candidates[k], s.channels);
  alignment.add_numbers(args.mean, args.rstd, grads.sum_dy, grads.sum_dy_xhat);
  for_width<T>(alignment, s.channels, [&]<int Width>() {
    launch("node_sum_grad_candidates", candidates_kernel<T, Width>, flat_grid(s, Width), kThreads, 0, stream, args,
           processed, grads);
  });
}

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

#define INSTANTIATE(T)                                                                                         \
  template void node_sum_forward(const NodeSum<T>&, T*, int64_t, CUstream_st*);                                \
  template void node_sum_grad(const NodeSum<T>&, const NodePixels<T>&, T*, accumulate_t<T>*, accumulate_t<T>*, \
                              accumulate_t<T>*, accumulate_t<T>*, CUstream_st*);                               \
  template void node_sum_grad_candidates(const NodeSum<T>&, const NodePixels<T>&, const NodeSumGrads<T>&,      \
                                         CUstream_st*);                                                        \
  template void bypass_grad(const BypassGrad<T>&, T*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
