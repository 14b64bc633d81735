// preprocess: products of pixels and small matrices, with relu on the way in.
//
// A block has kResults results, Outputs of a group's for as many pixels as that gives. kDepth channels at a time, the
// rectified pixels and the matrix lie in shared memory; a thread multiplies 4 pixels by 4 outputs in registers. The
// states of a call follow each other in this loop, so they are never put together. Each pixel is read once for up to 64
// outputs of its group.
#include "cuda/preprocess_input.h"
#include "cuda/statistics.h"

namespace fastnas::cuda {
namespace {

constexpr int kResults = 4096;  // of a block: 4 × 4 for each thread
/// Channels at a time, 64 bytes.
template <typename A>
constexpr int kDepth = 64 / sizeof(A);

// Block (x, y): a tile of an individual's pixels, a tile of the columns of a group.
template <typename T, int Outputs>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    forward_kernel(const __grid_constant__ Preprocess<T> args, T* __restrict__ output, double* __restrict__ table,
                   int64_t individuals, int64_t tiles, bool wide_output) {
  using A = accumulate_t<T>;
  constexpr int kPixels = kResults / Outputs, kGap = 4;
  alignas(16) __shared__ A z[kDepth<A>][kPixels + kGap];
  alignas(16) __shared__ A w[kDepth<A>][Outputs + kGap];
  __shared__ int64_t sources[kPixels];
  __shared__ Column<A> columns[Outputs];
  __shared__ BlockStatistics<1, 4, A> statistics;
  const int64_t tiles_of_first = ceil_div(args.group_outputs[0], Outputs);
  const int64_t offset = int64_t(blockIdx.y) < tiles_of_first ? 0 : 1;
  const int64_t first_column = (blockIdx.y - (offset ? tiles_of_first : 0)) * Outputs;
  const int64_t count = args.images / individuals * args.output_height * args.output_width;  // pixels of an individual
  const Rows rows(Outputs / 4);
  if (threadIdx.x < Outputs) columns[threadIdx.x] = column_of(args, offset, first_column + threadIdx.x);
  for (int64_t tile = blockIdx.x; tile < individuals * tiles; tile += gridDim.x) {
    const int64_t p = divide(tile, tiles), begin = (tile - p * tiles) * kPixels;
    for (int i = threadIdx.x; i < kPixels; i += kThreads) {
      sources[i] = begin + i < count ? source_of(args, offset, p * count + begin + i) : -1;
    }
    __syncthreads();
    A sums[4][4] = {};
    int64_t before = 0;  // channels of the states that are done
    for (int64_t s = 0; s < args.states.count; ++s) {
      const T* const data = args.states.data[s];
      const int64_t stride = args.states.stride[s], channels = args.states.channels[s];
      for (int64_t first = 0; first < channels; first += kDepth<A>) {
        const auto put = [&](int pixel, int c, const auto& values) {
#pragma unroll
          for (int j = 0; j < int(sizeof(values) / sizeof(A)); ++j) z[c + j][pixel] = values[j];
        };
        if (wide(data, stride, channels)) {
          rectified<kWide<T>, kPixels, kDepth<A>>(data, stride, channels, first, sources, put);
        } else {
          rectified<1, kPixels, kDepth<A>>(data, stride, channels, first, sources, put);
        }
        for (int i = threadIdx.x; i < Outputs * kDepth<A>; i += kThreads) {
          const int column = i / kDepth<A>, c = i % kDepth<A>;
          const A* const weights = columns[column].weights;
          w[c][column] = weights && first + c < channels ? weights[before + first + c] : A(0);
        }
        __syncthreads();
#pragma unroll
        for (int c = 0; c < kDepth<A>; ++c) {
          const auto pixels = read<4>(&z[c][rows.row * 4]), weights = read<4>(&w[c][rows.lane * 4]);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[i][j] += pixels.values[i] * weights.values[j];
          }
        }
        __syncthreads();
      }
      before += channels;
    }
    Deviations<4, A> seen[1];
    const Column<A>* const own = columns + rows.lane * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t pixel = begin + rows.row * 4 + i;
      if (pixel >= count) continue;
      T* const to = output + (p * count + pixel) * args.outputs;
      if (wide_output) {
        if (own->output >= 0) write(to + own->output, sums[i]);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (own[j].output >= 0) to[own[j].output] = T(sums[i][j]);
        }
      }
      if (table) seen[0].add(sums[i]);
    }
    if (table) {
      double* const row = table + tile * statistics_row(1, args.outputs);
      const A seen_pixels = statistics.merge(rows, seen, [&](int, int j, double mean, double square) {
        if (own[j].output < 0) return;
        row[1 + own[j].output] = mean;
        row[1 + args.outputs + own[j].output] = square;
      });
      if (threadIdx.x == 0 && blockIdx.y == 0) row[0] = seen_pixels;
    }
    __syncthreads();
  }
}

}  // namespace

template <typename T>
int64_t preprocess_forward_tiles(const Preprocess<T>& args, int64_t individuals) {
  int64_t tiles = 0;
  for_outputs(args, [&]<int Outputs>() {
    tiles = ceil_div(args.images / individuals * args.output_height * args.output_width, kResults / Outputs);
  });
  return tiles;
}

template <typename T>
void preprocess_forward(const Preprocess<T>& args, int64_t individuals, T* output, double* table, accumulate_t<T>* mean,
                        accumulate_t<T>* variance, CUstream_st* stream) {
  const int64_t tiles = preprocess_forward_tiles(args, individuals);
  bool wide_output = args.outputs % 4 == 0 && aligned16(output);
  for (int64_t m = 0; m < args.matrix_count; ++m) wide_output = wide_output && args.matrices[m].rows % 4 == 0;
  if (tiles > 0 && args.outputs > 0) {
    for_outputs(args, [&]<int Outputs>() {
      const dim3 grid(blocks_of(tiles * individuals), static_cast<unsigned>(column_tiles(args, Outputs)));
      launch("preprocess_forward", forward_kernel<T, Outputs>, grid, kThreads, 0, stream, args, output, table,
             individuals, tiles, wide_output);
    });
  }
  if (mean) {
    merge_statistics("preprocess_statistics", table, tiles, individuals, 1, args.outputs, mean, variance, stream);
  }
}

#define INSTANTIATE(T)                                                                                             \
  template int64_t preprocess_forward_tiles(const Preprocess<T>&, int64_t);                                        \
  template void preprocess_forward(const Preprocess<T>&, int64_t, T*, double*, accumulate_t<T>*, accumulate_t<T>*, \
                                   CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
