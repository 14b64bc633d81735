#include <numeric>

#include "cuda/pixels.h"
#include "ops/halve.h"

namespace fastnas::cuda {
namespace {

/// The largest of the window of output pixel (row, column), Width channels from c on; last[j] is where channel j of it
/// lies, 0..3. Of equal ones the first counts and a NaN stays, as in torch.
template <int Width, typename T>
__device__ __forceinline__ Vec<accumulate_t<T>, Width> largest(const Halve<T>& args, int64_t first, bool right,
                                                               bool below, int64_t c, int (&last)[Width]) {
  using A = accumulate_t<T>;
  Vec<A, Width> most = read<Width>(args.x + first * args.stride + c);
#pragma unroll
  for (int j = 0; j < Width; ++j) last[j] = 0;
#pragma unroll
  for (int i = 1; i < 4; ++i) {
    if ((i % 2 && !right) || (i / 2 && !below)) continue;
    const auto value = read<Width>(args.x + (first + i / 2 * args.width + i % 2) * args.stride + c);
#pragma unroll
    for (int j = 0; j < Width; ++j) {
      if (!(value.values[j] > most.values[j] || value.values[j] != value.values[j])) continue;
      most.values[j] = value.values[j];
      last[j] = i;
    }
  }
  return most;
}

/// The place of an output pixel's window in the images.
struct Place {
  int64_t first;  // pixel
  bool right, below;

  template <typename T>
  __device__ Place(const Halve<T>& args, int64_t pixel) {
    const int64_t row = divide(pixel, args.columns()), column = pixel - row * args.columns();
    const int64_t image = divide(row, args.rows()), y = 2 * (row - image * args.rows()), x = 2 * column;
    first = (image * args.height + y) * args.width + x;
    right = x + 1 < args.width;
    below = y + 1 < args.height;
  }
};

// A thread for Width channels of an output pixel.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    forward_kernel(const __grid_constant__ Halve<T> args, T* __restrict__ result, int64_t count) {
  const int64_t vectors = args.channels / Width, step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t pixel = divide(i, vectors), c = (i - pixel * vectors) * Width;
    const Place place(args, pixel);
    int last[Width];
    const auto most = largest<Width>(args, place.first, place.right, place.below, c, last);
    write(result + pixel * args.channels + c, most.values);
  }
}

// A thread for Width channels of the window of an output pixel, seen ones first.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    grad_kernel(const __grid_constant__ Halve<T> args, const __grid_constant__ HalveGrad<T> grad,
                T* __restrict__ result, int64_t count) {
  using A = accumulate_t<T>;
  const int64_t seen = grad.seen_channels, channels = seen + args.channels, vectors = channels / Width;
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t pixel = divide(i, vectors), c = (i - pixel * vectors) * Width;
    const Place place(args, pixel);
    int last[Width] = {};
    Vec<A, Width> value{};
    if (c >= seen) {
      largest<Width>(args, place.first, place.right, place.below, c - seen, last);
      value = read<Width>(grad.grad + pixel * grad.grad_stride + c - seen);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if ((k % 2 && !place.right) || (k / 2 && !place.below)) continue;
      const int64_t to = place.first + k / 2 * args.width + k % 2;
      Vec<A, Width> part{};
      if (c < seen) {
        part = read<Width>(grad.seen + to * grad.seen_stride + c);
      } else {
#pragma unroll
        for (int j = 0; j < Width; ++j) part.values[j] = last[j] == k ? value.values[j] : A(0);
      }
      write(result + to * channels + c, part.values);
    }
  }
}

}  // namespace

template <typename T>
void halve(const Halve<T>& args, T* result, CUstream_st* stream) {
  const int64_t pixels = args.images * args.rows() * args.columns();
  if (pixels * args.channels == 0) return;
  Alignment alignment;
  alignment.add(args.x, args.stride);
  alignment.add(result, args.channels);
  for_width<T>(alignment, args.channels, [&]<int Width>() {
    const int64_t count = pixels * (args.channels / Width);
    launch("halve", forward_kernel<T, Width>, dim3(blocks_of(ceil_div(count, kThreads))), kThreads, 0, stream, args,
           result, count);
  });
}

template <typename T>
void halve_grad(const Halve<T>& args, const HalveGrad<T>& grad, T* result, CUstream_st* stream) {
  const int64_t pixels = args.images * args.rows() * args.columns(), channels = grad.seen_channels + args.channels;
  if (pixels * channels == 0) return;
  Alignment alignment;
  alignment.add(args.x, args.stride);
  alignment.add(grad.grad, grad.grad_stride);
  alignment.add(grad.seen, grad.seen_stride);
  alignment.add(result, channels);
  for_width<T>(alignment, std::gcd(grad.seen_channels, args.channels), [&]<int Width>() {
    const int64_t count = pixels * (channels / Width);
    launch("halve_grad", grad_kernel<T, Width>, dim3(blocks_of(ceil_div(count, kThreads))), kThreads, 0, stream, args,
           grad, result, count);
  });
}

#define INSTANTIATE(T)                                    \
  template void halve(const Halve<T>&, T*, CUstream_st*); \
  template void halve_grad(const Halve<T>&, const HalveGrad<T>&, T*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
