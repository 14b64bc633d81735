// pool_grad: the gradient of everything that reads a state without a convolution.
//
// A block has a tile of the image. First each thread takes a window of the tile or of its border, combines what reaches
// average and maximum (one reading of every gradient) and finds the place of the maximum; the three lie in shared
// memory. Then each thread takes a pixel and collects from its up to nine windows: no pixel is written twice.
#include "cuda/pixels.h"
#include "cuda/pool_windows.h"
#include "ops/bn_backward.h"
#include "ops/pool.h"

namespace fastnas::cuda {
namespace {

constexpr int kTile = 16;  // pixels along a side of a tile
constexpr int kTileItems = 2 * kTile * kTile;

/// How an image is cut into tiles for the gradient.
struct PoolTiles {
  int height, width;             // pixels of a tile
  int lanes;                     // vectors of channels of a block
  int64_t down, across, beside;  // tiles of an image, runs of channels
  int64_t images;
  int windows;  // of a tile and its border, at most

  __host__ __device__ int64_t count() const { return images * down * across * beside; }
};

/// The windows whose pixels may be in `size` pixels from `begin` on, of an image of `all`.
struct Range {
  int64_t first;
  int count;
  __device__ Range(int64_t begin, int size, int64_t all, int stride) {
    first = begin > 0 ? (begin - 1 + stride - 1) / stride : 0;
    const int64_t windows = ceil_div(all, stride), end = (begin + size) / stride + 1;
    count = static_cast<int>((end < windows ? end : windows) - first);
  }
};

// A block takes tile after tile; channels are the fastest index, so that neighbours share what lies side by side.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    grad_kernel(const __grid_constant__ PoolGrad<T> args, T* __restrict__ result,
                const __grid_constant__ PoolTiles tiles) {
  using A = accumulate_t<T>;
  const int64_t C = args.shape.channels, height = args.shape.height, width = args.shape.width, G = args.grad_count;
  const int stride = static_cast<int>(args.shape.stride), lanes = tiles.lanes;
  const int64_t windows_high = ceil_div(height, stride), windows_wide = ceil_div(width, stride);
  const bool pooled = G > 0 || args.bn_coeffs;
  A* const averages = dynamic_shared<A>();                         // [windows, lanes, Width], gradients of averages
  A* const maxima = averages + tiles.windows * lanes * Width;      // the same of maxima
  A* const skipped = maxima + tiles.windows * lanes * Width;       // [pixels, lanes, Width], where there is a skip
  unsigned char* const places = reinterpret_cast<unsigned char*>(  // of the maxima in their windows, 0 to 8
      skipped + (args.skip ? tiles.height * tiles.width * lanes * Width : 0));

  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const int64_t in_row = divide(tile, tiles.beside), in_column = divide(in_row, tiles.across);
    const int64_t image = divide(in_column, tiles.down);
    const int64_t top = (in_column - image * tiles.down) * tiles.height;
    const int64_t left = (in_row - in_column * tiles.across) * tiles.width;
    const int64_t first_channel = (tile - in_row * tiles.beside) * lanes * Width;
    const Range down(top, tiles.height, height, stride), across(left, tiles.width, width, stride);

    for (int i = threadIdx.x; pooled && i < down.count * across.count * lanes; i += kThreads) {
      const int window = i / lanes;
      const int64_t c = first_channel + (i - window * lanes) * Width;
      if (c >= C) continue;
      const int64_t row = down.first + window / across.count, column = across.first + window % across.count;
      const int64_t y = row * stride, x = column * stride, at = (image * windows_high + row) * windows_wide + column;
      A average[Width] = {}, maximum[Width] = {}, past[Width] = {};
#pragma unroll(Width == 8 ? 1 : 2)
      for (int64_t n = 0; n < G; ++n) {
        const auto g = read<Width>(args.grads[n].pixels + at * args.grads[n].stride + c);
        const auto of_average = read<Width>(args.scales + n * C + c);
        const auto of_maximum = read<Width>(args.scales + (G + n) * C + c);
#pragma unroll
        for (int j = 0; j < Width; ++j) {
          average[j] += g.values[j] * of_average.values[j];
          maximum[j] += g.values[j] * of_maximum.values[j];
        }
        if (args.skip) {
          const auto of_skip = read<Width>(args.skip + n * C + c);
#pragma unroll
          for (int j = 0; j < Width; ++j) past[j] += g.values[j] * of_skip.values[j];
        }
      }
      if (args.bn_coeffs) {
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
          const auto output = read<Width>(args.outputs[kind].pixels + at * args.outputs[kind].stride + c);
          const A* const table = args.bn_coeffs + kind * 3 * C + c;
          const auto slope = read<Width>(table), mean = read<Width>(table + C), offset = read<Width>(table + 2 * C);
#pragma unroll
          for (int j = 0; j < Width; ++j) {
            (kind ? maximum : average)[j] +=
                bn_backward_statistics(output.values[j], slope.values[j], mean.values[j], offset.values[j]);
          }
        }
      }
      const A inverse = A(1) / A(reach(y, height) * reach(x, width));
      A most[Width] = {};
      int place[Width] = {};
      bool any = false;  // the first pixel of a window needs nothing to be larger than
#pragma unroll
      for (int d = 0; d < 9; ++d) {
        const int64_t py = y + d / 3 - 1, px = x + d % 3 - 1;
        if (py < 0 || py >= height || px < 0 || px >= width) continue;
        const auto value = read<Width>(args.x.pixels + ((image * height + py) * width + px) * args.x.stride + c);
#pragma unroll
        for (int j = 0; j < Width; ++j) {
          if (any && !replaces(value.values[j], most[j])) continue;
          most[j] = value.values[j];
          place[j] = d;
        }
        any = true;
      }
#pragma unroll
      for (int j = 0; j < Width; ++j) {
        average[j] *= inverse;
        places[i * Width + j] = static_cast<unsigned char>(place[j]);
      }
      write(averages + i * Width, average);
      write(maxima + i * Width, maximum);
      const int64_t in_tile_y = y - top, in_tile_x = x - left;
      if (args.skip && in_tile_y >= 0 && in_tile_y < tiles.height && in_tile_x >= 0 && in_tile_x < tiles.width) {
        const int pixel = static_cast<int>(in_tile_y) * tiles.width + static_cast<int>(in_tile_x);
        write(skipped + (pixel * lanes + i - window * lanes) * Width, past);
      }
    }
    __syncthreads();

    for (int i = threadIdx.x; i < tiles.height * tiles.width * lanes; i += kThreads) {
      const int pixel = i / lanes, lane = i - pixel * lanes;
      const int64_t y = top + pixel / tiles.width, x = left + pixel % tiles.width, c = first_channel + lane * Width;
      if (y >= height || x >= width || c >= C) continue;
      A sum[Width] = {};
#pragma unroll 1
      for (int d = 0; d < 9 && pooled; ++d) {  // the place of the pixel in the window
        const int64_t centre_y = y - d / 3 + 1, centre_x = x - d % 3 + 1;
        if (centre_y < 0 || centre_x < 0 || centre_y >= height || centre_x >= width) continue;
        if (stride == 2 && ((centre_y | centre_x) & 1)) continue;
        const int row = static_cast<int>(centre_y / stride - down.first);
        const int column = static_cast<int>(centre_x / stride - across.first);
        const int window = ((row * across.count + column) * lanes + lane) * Width;
        const auto average = read<Width>(averages + window), maximum = read<Width>(maxima + window);
#pragma unroll
        for (int j = 0; j < Width; ++j) {
          sum[j] += average.values[j];
          if (places[window + j] == d) sum[j] += maximum.values[j];
        }
      }
      if (args.skip) {
        const auto past = read<Width>(skipped + i * Width);
#pragma unroll
        for (int j = 0; j < Width; ++j) sum[j] += past.values[j];
      }
      const int64_t at = (image * height + y) * width + x;
#pragma unroll 2
      for (int64_t k = 0; k < args.addend_count; ++k) {
        const auto value = read<Width>(args.addends[k].pixels + at * args.addends[k].stride + c);
#pragma unroll
        for (int j = 0; j < Width; ++j) sum[j] += value.values[j];
      }
      write(result + at * C + c, sum);
    }
    __syncthreads();
  }
}

PoolTiles tiles_of(const PoolShape& shape, int64_t images, int64_t vectors) {
  PoolTiles tiles{};
  const auto side = [](int64_t size) { return static_cast<int>(size < kTile ? size : kTile); };
  const auto windows = [&](int64_t size) {
    return static_cast<int>(size <= kTile ? pool_windows(size, shape.stride) : kTile / shape.stride + 2);
  };
  tiles.height = side(shape.height);
  tiles.width = side(shape.width);
  const int64_t room = kTileItems / (tiles.height * tiles.width);  // 2 or more
  tiles.lanes = static_cast<int>(vectors < room ? vectors : room);
  tiles.down = ceil_div(shape.height, tiles.height);
  tiles.across = ceil_div(shape.width, tiles.width);
  tiles.beside = ceil_div(vectors, tiles.lanes);
  tiles.images = images;
  tiles.windows = windows(shape.height) * windows(shape.width);
  return tiles;
}

}  // namespace

template <typename T>
void pool_grad(const PoolGrad<T>& args, int64_t images, T* result, CUstream_st* stream) {
  const PoolShape& s = args.shape;
  if (images * s.height * s.width * s.channels == 0) return;
  Alignment alignment;
  alignment.add(args.x.pixels, args.x.stride);
  alignment.add(result, s.channels);
  for (int64_t n = 0; n < args.grad_count; ++n) alignment.add(args.grads[n].pixels, args.grads[n].stride);
  for (int64_t n = 0; n < args.addend_count; ++n) alignment.add(args.addends[n].pixels, args.addends[n].stride);
  if (args.bn_coeffs) {
    for (const auto& output : args.outputs) alignment.add(output.pixels, output.stride);
  }
  alignment.add_tables(args.scales, args.bn_coeffs, args.skip);
  for_width<T>(alignment, s.channels, [&]<int Width>() {
    using A = accumulate_t<T>;
    const PoolTiles tiles = tiles_of(s, images, s.channels / Width);
    const size_t items = size_t(tiles.windows) * tiles.lanes * Width;
    const size_t pixels = args.skip ? size_t(tiles.height) * tiles.width * tiles.lanes * Width : 0;
    launch("pool_grad", grad_kernel<T, Width>, dim3(blocks_of(tiles.count())), kThreads,
           (2 * items + pixels) * sizeof(A) + items, stream, args, result, tiles);
  });
}

#define INSTANTIATE(T) template void pool_grad(const PoolGrad<T>&, int64_t, T*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
