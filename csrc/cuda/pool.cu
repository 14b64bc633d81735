// pool and pool_grad: both pools from one reading, and the gradient of everything that reads them.
//
// Forward: a thread goes down kStrip windows of one column for a run of channels. Sums and maxima of three neighbours
// are kept in registers for the three rows of a window; the neighbours themselves come from the first-level cache,
// which the threads beside have filled, so no tile is copied. Statistics are folded once for each block in shared
// memory.
//
// Gradient: a block has a tile of the image. First each thread takes a window of the tile or of its border, combines
// what reaches average and maximum (one reading of every gradient) and finds the place of the maximum; the three lie in
// shared memory. Then each thread takes a pixel and collects from its up to nine windows: no pixel is written twice.
#include <cmath>

#include "cuda/statistics.h"
#include "ops/pool.h"

namespace fastnas::cuda {
namespace {

constexpr int kStrip = 4;  // output rows of a thread
constexpr int kTile = 16;  // pixels along a side of a tile of the gradient
constexpr int kTileItems = 2 * kTile * kTile;

/// As torch: the first of equals stays, and any NaN takes over.
template <typename A>
__device__ __forceinline__ bool replaces(A value, A maximum) {
  return value > maximum || value != value;
}

/// Pixels of a window along a side, around `centre`.
__device__ __forceinline__ int reach(int64_t centre, int64_t size) { return 1 + (centre > 0) + (centre + 1 < size); }

// Block (x, y, z): as many strips as it has rows of threads, an individual, a run of channels.
template <typename T, int Width, int Stride>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    forward_kernel(const __grid_constant__ PoolShape shape, const __grid_constant__ PoolImages<T> x, int64_t images,
                   int64_t individuals, T* __restrict__ average, T* __restrict__ maximum, double* __restrict__ table,
                   int64_t blocks, int lanes) {
  using A = accumulate_t<T>;
  __shared__ BlockStatistics<2, Width, A> statistics;
  const Rows rows(lanes);
  const int64_t C = shape.channels, height = shape.height, width = shape.width;
  const int64_t windows_high = ceil_div(height, Stride), windows_wide = ceil_div(width, Stride);
  const int64_t segments = ceil_div(windows_high, kStrip);
  const int64_t c = (int64_t(blockIdx.z) * lanes + rows.lane) * Width;
  for (int64_t p = blockIdx.y; p < individuals; p += gridDim.y) {
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
      Deviations<Width, A> seen[2];  // of averages and of maxima
      const int64_t strip = block * rows.rows + rows.row;
      if (rows.active() && c < C && strip < images * segments * windows_wide) {
        const int64_t segment = divide(strip, windows_wide), j = strip - segment * windows_wide;
        const int64_t in_individual = divide(segment, segments), image = p * images + in_individual;
        const int64_t first = (segment - in_individual * segments) * kStrip, column = j * Stride;
        const T* const pixels = x.pixels + image * height * width * x.stride + c;
        A sums[3][Width], maxima[3][Width];  // of three pixels of a row, for the last three rows
#pragma unroll
        for (int r = 0; r < (kStrip - 1) * Stride + 3; ++r) {
          const int64_t y = first * Stride + r - 1;
#pragma unroll
          for (int i = 0; i < Width; ++i) {
            sums[r % 3][i] = 0;
            maxima[r % 3][i] = A(-INFINITY);
          }
          if (y >= 0 && y < height) {
#pragma unroll
            for (int d = -1; d <= 1; ++d) {
              if (column + d < 0 || column + d >= width) continue;
              const auto value = read<Width>(pixels + (y * width + column + d) * x.stride);
#pragma unroll
              for (int i = 0; i < Width; ++i) {
                sums[r % 3][i] += value.values[i];
                if (replaces(value.values[i], maxima[r % 3][i])) maxima[r % 3][i] = value.values[i];
              }
            }
          }
          const int64_t row = first + (r - 2) / Stride;
          if (r < 2 || (r - 2) % Stride != 0 || row >= windows_high) continue;
          const A inverse = A(1) / A(reach(row * Stride, height) * reach(column, width));
          A mean[Width], most[Width];
#pragma unroll
          for (int i = 0; i < Width; ++i) {
            mean[i] = (sums[0][i] + sums[1][i] + sums[2][i]) * inverse;
            most[i] = maxima[0][i];
#pragma unroll
            for (int d = 1; d < 3; ++d) {
              if (replaces(maxima[d][i], most[i])) most[i] = maxima[d][i];
            }
          }
          const int64_t out = ((image * windows_high + row) * windows_wide + j) * C + c;
          write(average + out, mean);
          write(maximum + out, most);
          if (table) {
            seen[0].add(mean);
            seen[1].add(most);
          }
        }
      }
      if (!table) continue;
      double* const row = table + (p * blocks + block) * statistics_row(2, C);
      const A count = statistics.merge(rows, seen, [&](int kind, int i, double mean, double square) {
        if (c >= C) return;
        row[1 + kind * 2 * C + c + i] = mean;
        row[1 + kind * 2 * C + C + c + i] = square;
      });
      if (threadIdx.x == 0 && blockIdx.z == 0) row[0] = count;
      __syncthreads();
    }
  }
}

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
            (kind ? maximum : average)[j] += slope.values[j] * (output.values[j] - mean.values[j]) + offset.values[j];
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

// Strips of an individual's images, and how many a block takes.
int64_t strips_of(const PoolShape& shape, int64_t images) {
  return images * ceil_div(pool_windows(shape.height, shape.stride), kStrip) * pool_windows(shape.width, shape.stride);
}

}  // namespace

int64_t pool_forward_blocks(const PoolShape& shape, int64_t images) {
  // Whatever the width of an access: a block of single values has the fewest strips.
  return shape.channels == 0 ? 0 : ceil_div(strips_of(shape, images), kThreads / lanes_of(shape.channels));
}

template <typename T>
void pool_forward(const PoolShape& shape, const PoolImages<T>& x, int64_t images, int64_t individuals, T* average,
                  T* maximum, double* table, accumulate_t<T>* mean, accumulate_t<T>* variance, CUstream_st* stream) {
  const int64_t C = shape.channels, strips = strips_of(shape, images);
  Alignment alignment;
  alignment.add(x.pixels, x.stride);
  alignment.add(average, C);
  alignment.add(maximum, C);
  int64_t blocks = 0;
  if (C > 0 && strips > 0 && individuals > 0) {
    // Four channels of half at most: of eight, sums and statistics would take most registers of a multiprocessor.
    for_width<T, kFew<T>>(alignment, C, [&]<int Width>() {
      const int lanes = lanes_of(C / Width);
      blocks = ceil_div(strips, kThreads / lanes);
      const dim3 grid(blocks_of(blocks), blocks_of(individuals, kMaxBlocksBeside),
                      static_cast<unsigned>(ceil_div(C / Width, lanes)));
      launch("pool_forward", shape.stride == 1 ? forward_kernel<T, Width, 1> : forward_kernel<T, Width, 2>, grid,
             kThreads, 0, stream, shape, x, images, individuals, average, maximum, table, blocks, lanes);
    });
  }
  if (mean) merge_statistics("pool_statistics", table, blocks, individuals, 2, C, mean, variance, stream);
}

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
  alignment.add_numbers(args.scales, args.bn_coeffs, args.skip);
  for_width<T>(alignment, s.channels, [&]<int Width>() {
    using A = accumulate_t<T>;
    const PoolTiles tiles = tiles_of(s, images, s.channels / Width);
    const size_t items = size_t(tiles.windows) * tiles.lanes * Width;
    const size_t pixels = args.skip ? size_t(tiles.height) * tiles.width * tiles.lanes * Width : 0;
    launch("pool_grad", grad_kernel<T, Width>, dim3(blocks_of(tiles.count())), kThreads,
           (2 * items + pixels) * sizeof(A) + items, stream, args, result, tiles);
  });
}

#define INSTANTIATE(T)                                                                                  \
  template void pool_forward(const PoolShape&, const PoolImages<T>&, int64_t, int64_t, T*, T*, double*, \
                             accumulate_t<T>*, accumulate_t<T>*, CUstream_st*);                         \
  template void pool_grad(const PoolGrad<T>&, int64_t, T*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
