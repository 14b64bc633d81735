// pool: both pools from one reading of the image.
//
// A thread goes down kStrip windows of one column for a run of channels. Sums and maxima of three neighbours are kept
// in registers for the three rows of a window; the neighbours themselves come from the first-level cache, which the
// threads beside have filled, so no tile is copied. Statistics are folded once for each block in shared memory.
#include <cmath>

#include "cuda/pool_windows.h"
#include "cuda/statistics.h"
#include "ops/pool.h"

namespace fastnas::cuda {
namespace {

constexpr int kStrip = 4;  // output rows of a thread

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

#define INSTANTIATE(T)                                                                                  \
  template void pool_forward(const PoolShape&, const PoolImages<T>&, int64_t, int64_t, T*, T*, double*, \
                             accumulate_t<T>*, accumulate_t<T>*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
