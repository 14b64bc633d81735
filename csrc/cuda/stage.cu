// The forward pass of `stage`. A block takes a tile of output pixels of one image: it reads the input's tile once, with
// the border that the largest window reaches, normalises and rectifies it into shared memory, and computes from there
// every stage that reads that input (some of them where there are few tiles; the others' blocks find the tile in the L2
// cache). What comes out of the depthwise convolution goes through shared memory from the threads of a pixel to each
// other and is never written; outputs are written once, and their mean and variance are taken from the registers.
// Weights come from the L1 cache in the order of prepare_kernel. Where a tile does not fit into shared memory (large
// windows of many channels), a block has its part of a workspace instead.
#include "cuda/batch_stats.h"
#include "cuda/stage_input.h"

namespace fastnas::cuda {
namespace {

constexpr int64_t kEnoughBlocks = 1024;  // to fill a GPU several times
constexpr int64_t kMostBlocks = 1 << 20;

// Of a block: the input's tile, the values that threads exchange, and the statistics that warps found.
struct Memory {
  int64_t input, exchanged, stats, all;

  template <typename A>
  static Memory of(const Tiling& tiling, int channels, A) {
    Memory result{};
    result.input = padded(int64_t(tiling.in_rows) * tiling.in_columns * channels);
    result.exchanged = padded(int64_t(kRows) * tiling.strips * channels);
    result.stats = padded(int64_t(tiling.threads / kWarp) * 2 * channels * (sizeof(double) / sizeof(A)));
    result.all = result.input + result.exchanged + result.stats;
    return result;
  }
};

/// Mean and Σ(y - mean)² of the first `rows` rows of every strip of a warp, for `lanes` vectors of channels: to mean
/// and square in the first `lanes` lanes, where `wanted`. values: `rows` of all strips together. All lanes take part.
template <int W, typename A>
__device__ __forceinline__ void warp_stats(const A (&y)[kRows][W], int rows, int values, int lanes, bool wanted,
                                           double* mean, double* square) {
  const unsigned used = __ballot_sync(kFullMask, rows > 0);
  const int lane = threadIdx.x % kWarp;
  const int source = used ? (__ffs(static_cast<int>(used)) - 1) / lanes * lanes + lane % lanes : lane;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    A shift = __shfl_sync(kFullMask, y[0][w], source);
    if (!isfinite(shift)) shift = 0;  // so that infinity minus infinity is not the mean
    A sum = 0, squares = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) continue;
      const A deviation = y[r][w] - shift;
      sum += deviation;
      squares += deviation * deviation;
    }
    sum = sum_over_strips(sum, lanes);
    squares = sum_over_strips(squares, lanes);
    if (lane >= lanes || !wanted) continue;
    const double average = values > 0 ? double(sum) / values : 0;
    mean[w] = shift + average;
    square[w] = squares - average * sum;
  }
}

// stats of the warps [warps, 2, C] → entry [2, C].
__device__ __forceinline__ void merge_warps(const double* stats, const int* counts, int channels, double* entry) {
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    BatchStats sum{0, 0, 0};
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) {
      const double* const of_warp = stats + warp * 2 * channels + c;
      sum.merge({double(counts[warp]), of_warp[0], of_warp[channels]});
    }
    entry[c] = sum.mean;
    entry[channels + c] = sum.square;
  }
}

// blockIdx.x strides over tiles, blockIdx.y counts groups of `group` stages.
template <typename T, int W, bool Shared>
__global__ void __launch_bounds__(kBlockThreads, 2)
    forward_kernel(const __grid_constant__ Stage<T> args, const __grid_constant__ StageOutputs<T> out,
                   const __grid_constant__ Tiling tiling, const __grid_constant__ Memory sizes,
                   const accumulate_t<T>* __restrict__ weights, int most_taps, int group, accumulate_t<T>* scratch,
                   double* __restrict__ table) {
  using A = accumulate_t<T>;
  __shared__ int counts[kBlockThreads / kWarp];
  const int channels = static_cast<int>(args.channels), lanes = tiling.lanes, strips = tiling.strips;
  A* const x = block_memory<Shared>(scratch, sizes.all);  // [in_rows, in_columns, C]
  A* const z = x + sizes.input;                           // [kRows, strips, C]
  double* const stats = reinterpret_cast<double*>(z + sizes.exchanged);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % lanes, strip = threadIdx.x / lanes;
  const int row = strip / tiling.columns * kRows, column = strip % tiling.columns;  // in the tile
  const int line = tiling.in_columns * channels;                                    // of x
  const int first = blockIdx.y * group;
  const int last = min(first + group, args.stages);
  const int64_t out_line = args.out_width * channels;

  for (int64_t tile = blockIdx.x; tile < tiling.tiles; tile += gridDim.x) {
    const Place at = tiling.place(tile);
    const int rows = rows_in_image(tiling, at, strip, strips);
    const int of_warp = sum_over_strips(rows, lanes);
    __syncthreads();  // the tile before is done with
    fill_input<W>(args, args.shared ? 0 : first, tiling, at, 0, channels, channels, x);
    if (threadIdx.x % kWarp == 0) counts[warp] = of_warp;
    __syncthreads();
    const int64_t pixel = (at.image * args.out_height + at.top + row) * args.out_width + at.left + column;
    for (int j = first; j < last; ++j) {
      const int kernel = static_cast<int>(args.kernel[j]), dilation = static_cast<int>(args.dilation[j]);
      const int inset = tiling.padding - padding_of(kernel, dilation);
      const A* const taps = weights + j * int64_t(most_taps + channels) * channels;  // [taps, C]
      const A* const matrix = taps + most_taps * channels;                           // [C in, C out]
      const A* const window = x + (row * tiling.stride + inset) * line + (column * tiling.stride + inset) * channels;
      for (int c = lane * W; rows > 0 && c < channels; c += lanes * W) {
        A sum[kRows][W] = {};
        depthwise<Shared, false>(window + c, line, channels, taps + c, channels, kernel, dilation, tiling.stride, sum);
#pragma unroll
        for (int r = 0; r < kRows; ++r) store_values(z + (r * strips + strip) * channels + c, sum[r]);
      }
      __syncwarp();
      for (int base = 0; base < channels; base += lanes * W) {
        const int c = base + lane * W;
        const bool wanted = rows > 0 && c < channels;
        A y[kRows][W] = {};
        if (wanted) {
          pointwise(z + strip * channels, int64_t(strips) * channels, matrix + c, channels, y);
          T* const target = out.y[j] + pixel * channels + c;
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            if (r < rows) store_narrow(target + r * out_line, y[r]);
          }
        }
        if (table) {
          double* const mean = stats + warp * 2 * channels + c;
          warp_stats(y, rows, of_warp, lanes, c < channels, mean, mean + channels);
        }
      }
      __syncwarp();
      if (table) {
        __syncthreads();
        double* const of_tile = table + tile * statistics_row(args.stages, channels);
        merge_warps(stats, counts, channels, of_tile + 1 + j * 2 * channels);
        if (threadIdx.x == 0 && j == 0) of_tile[0] = double(tiling.pixels(at));
        __syncthreads();
      }
    }
  }
}

// What the launch needs to know beyond the arguments.
template <typename T>
struct LaunchPlan {
  using A = accumulate_t<T>;

  Stage<T> args;
  bool wide, shared;
  Tiling tiling;
  SeparableWeights<A> weights;
  int group;       // stages of a block
  int64_t blocks;  // in x
  Memory memory;
  int64_t prepared, scratch, table;  // bytes of the workspace

  LaunchPlan(const Stage<T>& given, bool statistics) : args(given), wide(wide_inputs(args)) {
    const int64_t vectors = ceil_div(args.channels, wide ? kVector<T> : 1);
    tiling = tiling_of(args.count, args.out_height, args.out_width, vectors, static_cast<int>(args.stride),
                       most_padding(args), kBlockThreads, 1);
    check_tile("stage", tiling.in_rows, tiling.in_columns, args.channels);
    weights = weights_of(args, true);
    memory = Memory::of(tiling, static_cast<int>(args.channels), A());
    const int64_t bytes = memory.all * static_cast<int64_t>(sizeof(A));
    shared = bytes <= most_shared_bytes();
    const int64_t tiles = tiling.tiles, groups = tiles > 0 ? ceil_div(kEnoughBlocks, tiles) : 1;
    group = args.shared && groups < args.stages ? static_cast<int>(ceil_div(args.stages, groups)) : 1;
    blocks = shared ? (tiles < kMostBlocks ? tiles : kMostBlocks) : scratch_blocks(tiles, this->groups(), bytes);
    prepared = weights.stages * weights.each() * static_cast<int64_t>(sizeof(A));
    prepared = ceil_div(prepared, 16) * 16;
    scratch = shared ? 0 : blocks * this->groups() * bytes;
    table = statistics ? tiles * statistics_row(args.stages, args.channels) * static_cast<int64_t>(sizeof(double)) : 0;
  }

  int groups() const { return (args.stages + group - 1) / group; }
};

}  // namespace

template <typename T>
int64_t stage_forward_workspace(const Stage<T>& args, bool statistics) {
  const LaunchPlan<T> plan(args, statistics);
  return plan.prepared + plan.scratch + plan.table;
}

template <typename T>
void stage_forward(const Stage<T>& args, const StageOutputs<T>& out, void* workspace, accumulate_t<T>* mean,
                   accumulate_t<T>* variance, CUstream_st* stream) {
  using A = accumulate_t<T>;
  const LaunchPlan<T> plan(args, mean != nullptr);
  char* const begin = static_cast<char*>(workspace);
  A* const prepared = reinterpret_cast<A*>(begin);
  A* const scratch = reinterpret_cast<A*>(begin + plan.prepared);
  double* const table = mean ? reinterpret_cast<double*>(begin + plan.prepared + plan.scratch) : nullptr;
  if (plan.tiling.tiles > 0) {
    prepare_weights("stage_prepare", plan.weights, prepared, stream);
    const auto run = [&](auto kernel) {
      launch("stage_forward", kernel, dim3(static_cast<unsigned>(plan.blocks), plan.groups()), plan.tiling.threads,
             plan.shared ? plan.memory.all * sizeof(A) : 0, stream, plan.args, out, plan.tiling, plan.memory, prepared,
             plan.weights.most_taps, plan.group, scratch, table);
    };
    if (plan.wide) {
      run(plan.shared ? forward_kernel<T, kVector<T>, true> : forward_kernel<T, kVector<T>, false>);
    } else {
      run(plan.shared ? forward_kernel<T, 1, true> : forward_kernel<T, 1, false>);
    }
  }
  if (mean) {
    merge_statistics("stage_merge_statistics", table, plan.tiling.tiles / args.individuals, args.individuals,
                     args.stages, args.channels, mean, variance, stream);
  }
}

#define INSTANTIATE(T)                                                                                            \
  template int64_t stage_forward_workspace(const Stage<T>&, bool);                                                \
  template void stage_forward(const Stage<T>&, const StageOutputs<T>&, void*, accumulate_t<T>*, accumulate_t<T>*, \
                              CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
