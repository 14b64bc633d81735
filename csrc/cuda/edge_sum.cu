// edge_sum: a block takes a tile of output pixels of one image and reads its part of the state once, with the border
// that two windows in a row reach, rectified, into shared memory. For each edge it computes candidate after candidate
// and adds each to sums in shared memory, those of up to kIndividuals individuals where they share the image, so
// nothing else is written. A candidate of two stages keeps what lies between them, normalised and rectified, in a
// second tile of shared memory: the tile with the border that the second window reaches, computed by all threads. The
// pools read the state as it is through the L1 cache. Channels beyond a warp of vectors are left to further blocks.
// Where the tiles do not fit into shared memory, a block has its part of a workspace instead.
#include "cuda/separable.h"
#include "ops/edge_sum.h"

namespace fastnas::cuda {
namespace {

constexpr int kIndividuals = 8;          // whose sums a block keeps at once, at most
constexpr int64_t kEnoughBlocks = 1024;  // to fill a GPU several times
constexpr int64_t kMostBlocks = 1 << 20;

/// Of a block, so that two are resident on a multiprocessor, which keeps 1 KiB of each for itself.
inline int64_t two_blocks_bytes() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / 2 - (1 << 10);
}

/// Geometry of a launch.
struct Geometry {
  Tiling tiling;        // its padding is the border of the state
  int channels, inner;  // inner: those that a block sums
  int channel_blocks;   // blocks beside each other for all channels
  int between;          // most border of a tile between two stages; -1 without any
  int individuals;      // whose sums a block keeps at once
  int group;            // edges of a block
  int most_taps;

  int in_rows;                              // of the state's tile
  int64_t inside, exchanged, sums, values;  // where in a block's memory these begin, and its end

  void finish() {
    // Between two stages there are up to two rows more, for whole strips.
    in_rows = tiling.in_rows + 2 * tiling.stride;
    inside = padded(int64_t(in_rows) * tiling.in_columns * channels);
    const int64_t rows = tiling.rows + 2 * between + 2, columns = tiling.columns + 2 * between;
    exchanged = inside + (between < 0 ? 0 : padded(rows * columns * channels));
    sums = exchanged + padded(int64_t(kRows) * tiling.strips_at_once * channels);
    values = sums + individuals * padded(int64_t(kRows) * tiling.strips * inner);
  }
};

/// What a thread needs to know to add to its sums: W channels of a strip, one after the other for every individual.
template <typename A>
struct Sums {
  A* of_strip;      // in [individuals, kRows, strips, inner]
  int row;          // elements between rows
  const A* scales;  // [.., M, C], of the first individual
  int64_t step;     // from one individual to the next
  int individuals;
  bool active;  // whether the thread has any

  /// Whether any individual of the block wants a term. All lanes take part.
  template <int W>
  __device__ __forceinline__ bool wants(int64_t term) const {
    bool any = false;
    for (int p = 0; active && p < individuals; ++p) {
      const auto scale = load<W>(scales + p * step + term);
#pragma unroll
      for (int w = 0; w < W; ++w) any = any || scale.values[w] != 0;
    }
    return __any_sync(kFullMask, any);  // a warp has all channels of the block
  }

  /// Adds `rows` rows from `first` on.
  template <int W, int Rows>
  __device__ __forceinline__ void add(int64_t term, int first, const A (&values)[Rows][W]) const {
#pragma unroll 1
    for (int p = 0; p < individuals; ++p) {
      A* const sum = of_strip + (p * kRows + first) * row;
      const auto scale = load<W>(scales + p * step + term);
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        auto total = load<W>(sum + r * row);
#pragma unroll
        for (int w = 0; w < W; ++w) total.values[w] += scale.values[w] * values[r][w];
        store(sum + r * row, total);
      }
    }
  }
};

/// Adds average, maximum and, at stride 1, the state itself: the terms from `first` on, `channels` values apart. (y,
/// x): the first output pixel of the strip.
template <int W, typename T>
__device__ __forceinline__ void add_pools(const EdgeSum<T>& args, const T* state, int64_t y, int64_t x, int rows,
                                          const Sums<accumulate_t<T>>& sums, int64_t first) {
  using A = accumulate_t<T>;
  const bool average = sums.template wants<W>(first), maximum = sums.template wants<W>(first + args.channels);
  const bool identity = args.stride == 1 && sums.template wants<W>(first + 2 * args.channels);
  if (!sums.active) return;
#pragma unroll 1
  for (int r = 0; r < rows; ++r) {
    const int64_t centre_y = (y + r) * args.stride, centre_x = x * args.stride;
    const auto centre = load_wide<W>(state + (centre_y * args.width + centre_x) * args.x_stride);
    A total[1][W] = {}, most[1][W], own[1][W];
#pragma unroll
    for (int w = 0; w < W; ++w) own[0][w] = most[0][w] = centre.values[w];
    if (identity) sums.add(first + 2 * args.channels, r, own);
    if (!average && !maximum) continue;
    int count = 0;
#pragma unroll 3
    for (int tap = 0; tap < 9; ++tap) {
      const int64_t row = centre_y + tap / 3 - 1, column = centre_x + tap % 3 - 1;
      if (row < 0 || row >= args.height || column < 0 || column >= args.width) continue;
      const auto value = load_wide<W>(state + (row * args.width + column) * args.x_stride);
      ++count;
#pragma unroll
      for (int w = 0; w < W; ++w) {
        total[0][w] += value.values[w];
        if (value.values[w] > most[0][w] || value.values[w] != value.values[w])
          most[0][w] = value.values[w];  // NaN wins
      }
    }
#pragma unroll
    for (int w = 0; w < W; ++w) total[0][w] /= A(count);
    if (average) sums.add(first, r, total);
    if (maximum) sums.add(first + args.channels, r, most);
  }
}

// blockIdx.x strides over tiles, blockIdx.y counts groups of edges, blockIdx.z vectors of channels, and individuals.
template <typename T, int W, bool Shared>
__global__ void __launch_bounds__(kBlockThreads, 2)
    edge_sum_kernel(const __grid_constant__ EdgeSum<T> args, const __grid_constant__ Geometry geometry,
                    const accumulate_t<T>* __restrict__ weights, accumulate_t<T>* scratch) {
  using A = accumulate_t<T>;
  const Tiling& tiling = geometry.tiling;
  const int channels = geometry.channels, lanes = tiling.lanes, at_once = geometry.tiling.strips_at_once;
  A* const state = block_memory<Shared>(scratch, geometry.values);  // [in_rows, in_columns, C]
  A* const inside = state + geometry.inside;                        // [rows + border, columns + border, C]
  A* const exchanged = state + geometry.exchanged;                  // [kRows, strips_at_once, C]
  const int lane = threadIdx.x % lanes, strip = threadIdx.x / lanes;
  const int channel_block = blockIdx.z % geometry.channel_blocks;
  const int c = channel_block * geometry.inner + lane * W;  // of the sums
  const bool active = strip < tiling.strips && lane * W < geometry.inner && c < channels;
  const int first_edge = blockIdx.y * geometry.group, last_edge = min(first_edge + geometry.group, args.edges);
  const int terms = args.candidates + 2 + (args.stride == 1);
  const int64_t stage_values = int64_t(geometry.most_taps + channels) * channels;

  for (int64_t tile = blockIdx.x; tile < tiling.tiles; tile += gridDim.x) {
    const Place at = tiling.place(tile);
    const T* const x = args.x + at.image * args.height * args.width * args.x_stride;
    const int64_t individual = args.shared ? int64_t(blockIdx.z) / geometry.channel_blocks * geometry.individuals
                                           : at.image / (args.images / args.individuals);
    __syncthreads();  // the tile before is done with
    fill_tile<W>(state, geometry.in_rows, tiling.in_columns, channels, channels, at.top * args.stride - tiling.padding,
                 at.left * args.stride - tiling.padding, args.height, args.width, lanes,
                 [&](int64_t y, int64_t in_x, int channel) {
                   auto value = load_wide<W>(x + (y * args.width + in_x) * args.x_stride + channel);
#pragma unroll
                   for (int w = 0; w < W; ++w) value.values[w] = rectify(value.values[w]);
                   return value;
                 });
    __syncthreads();
    for (int edge = first_edge; edge < last_edge; ++edge) {
      Sums<A> sums{};
      sums.of_strip = state + geometry.sums + strip * geometry.inner + lane * W;
      sums.row = tiling.strips * geometry.inner;
      sums.scales = args.scales + (individual * args.edges + edge) * terms * channels + c;
      sums.step = int64_t(args.edges) * terms * channels;
      sums.individuals = static_cast<int>(min(int64_t(geometry.individuals), args.individuals - individual));
      sums.active = active;
      for (int p = 0; active && p < sums.individuals; ++p) {
        const auto offset = load<W>(args.offsets + ((individual + p) * args.edges + edge) * channels + c);
#pragma unroll
        for (int r = 0; r < kRows; ++r) store(sums.of_strip + (p * kRows + r) * sums.row, offset);
      }
      for (int j = 0, stage = 0; j < args.candidates; stage += args.depth[j++]) {
        if (!sums.template wants<W>(int64_t(j) * channels)) continue;
        const int depth = args.depth[j];
        for (int k = 0; k < depth; ++k) {
          const bool last = k + 1 == depth;
          const int kernel = static_cast<int>(args.kernel[stage + k]);
          const int dilation = static_cast<int>(args.dilation[stage + k]), padding = padding_of(kernel, dilation);
          // A first stage also computes the border that the window of the second reaches.
          const int border = last ? 0 : padding_of(args.kernel[stage + 1], args.dilation[stage + 1]);
          const int columns = tiling.columns + 2 * border;
          const int strips = (tiling.rows + 2 * border + kRows - 1) / kRows * columns;
          const A* const source = k == 0 ? state : inside;
          const int stride = k == 0 ? tiling.stride : 1;
          const int inset = k == 0 ? tiling.padding - padding - border * stride : 0;
          const int line = (k == 0 ? tiling.in_columns : tiling.columns + 2 * padding) * channels;
          const A* const taps = weights + (edge * args.stages + stage + k) * stage_values;  // [taps, C]
          const A* const matrix = taps + geometry.most_taps * channels;                     // [C in, C out]
          const int64_t affine = (int64_t(edge) * (args.stages - args.candidates) + stage - j) * channels;
          for (int base = 0; base < strips; base += at_once) {
            const int s = base + strip, row = s / columns * kRows, column = s % columns;
            for (int i = lane * W; s < strips && i < channels; i += lanes * W) {
              A z[kRows][W] = {};
              depthwise<Shared, false>(
                  source + (row * stride + inset) * line + (column * stride + inset) * channels + i, line, channels,
                  taps + i, channels, kernel, dilation, stride, z);
#pragma unroll
              for (int r = 0; r < kRows; ++r) store_values(exchanged + (r * at_once + strip) * channels + i, z[r]);
            }
            __syncwarp();
            // A last stage computes the channels of the sums, another one all.
            const int end = last ? (active ? c + 1 : 0) : s < strips ? channels : 0;
            for (int i = last ? c : lane * W; i < end; i += lanes * W) {
              A y[kRows][W];
              pointwise(exchanged + strip * channels, int64_t(at_once) * channels, matrix + i, channels, y);
              if (last) {
                sums.add(int64_t(j) * channels, 0, y);
                continue;
              }
              const auto a = load<W>(args.inner_scales + affine + i), b = load<W>(args.inner_offsets + affine + i);
              const int64_t out_y = at.top + row - border, out_x = at.left + column - border;
#pragma unroll
              for (int r = 0; r < kRows; ++r) {
                const bool in_image = out_y + r >= 0 && out_y + r < tiling.height && out_x >= 0 && out_x < tiling.width;
#pragma unroll
                for (int w = 0; w < W; ++w) {
                  y[r][w] = in_image ? rectify(a.values[w] * y[r][w] + b.values[w]) : A(0);
                }
                store_values(inside + ((row + r) * columns + column) * channels + i, y[r]);
              }
            }
            __syncwarp();
          }
          if (depth == 2) __syncthreads();  // inside is there, or done with
        }
      }
      const int rows = rows_in_image(tiling, at, strip, tiling.strips);
      const int64_t y = at.top + strip / tiling.columns * kRows, out_x = at.left + strip % tiling.columns;
      add_pools<W>(args, x + c, y, out_x, rows, sums, int64_t(args.candidates) * channels);
      for (int p = 0; active && p < sums.individuals; ++p) {
        const int64_t image = args.shared ? (individual + p) * args.images + at.image : at.image;
        T* const target = args.result[edge] + ((image * args.out_height + y) * args.out_width + out_x) * channels + c;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const auto sum = load<W>(sums.of_strip + (p * kRows + r) * sums.row);
          if (r < rows) store_narrow(target + r * args.out_width * channels, sum.values);
        }
      }
    }
  }
}

// What the launch needs to know beyond the arguments.
template <typename T>
struct LaunchPlan {
  using A = accumulate_t<T>;

  EdgeSum<T> args;
  bool wide, shared;
  Geometry geometry{};
  SeparableWeights<A> weights{};
  dim3 grid;
  int64_t prepared, scratch;  // bytes of the workspace

  explicit LaunchPlan(const EdgeSum<T>& given) : args(given) {
    wide = args.channels % kVector<T> == 0 && wide_at(args.x, args.x_stride) && aligned16(args.inner_scales) &&
           aligned16(args.inner_offsets) && aligned16(args.scales) && aligned16(args.offsets);
    const int vector = wide ? kVector<T> : 1, stride = static_cast<int>(args.stride);
    int64_t border = 0;
    geometry.between = -1;
    weights.stages = args.edges * args.stages;
    weights.channels = geometry.channels = static_cast<int>(args.channels);
    weights.transposed = true;
    for (int j = 0, stage = 0; j < args.candidates; stage += args.depth[j++]) {
      int64_t reach = 0;
      for (int k = args.depth[j]; k-- > 0;) {
        const int s = stage + k;
        const int padding = padding_of(args.kernel[s], args.dilation[s]);
        if (k == 1 && padding > geometry.between) geometry.between = padding;
        reach = (k == 0 ? stride : 1) * reach + padding;
        const int taps = static_cast<int>(args.kernel[s] * args.kernel[s]);
        weights.most_taps = taps > weights.most_taps ? taps : weights.most_taps;
        for (int e = 0; e < args.edges; ++e) {
          const int index = e * args.stages + s;
          weights.depthwise[index] = args.depthwise[e][s];
          weights.pointwise[index] = args.pointwise[e][s];
          weights.taps[index] = taps;
        }
      }
      border = reach > border ? reach : border;
    }
    geometry.most_taps = weights.most_taps;
    const bool several = args.shared && args.individuals > 1;
    Tiling& tiling = geometry.tiling;
    tiling = tiling_of(args.images, args.out_height, args.out_width, args.channels / vector, stride, border,
                       several ? kBlockThreads / 2 : kBlockThreads, 1);
    check_tile("edge_sum", tiling.in_rows + 2 * stride, tiling.in_columns, args.channels);
    const int64_t lanes = tiling.lanes * vector;
    geometry.inner = static_cast<int>(lanes < args.channels ? lanes : args.channels);
    geometry.channel_blocks = static_cast<int>(ceil_div(args.channels, lanes));
    const auto bytes_for = [&](int individuals) {
      geometry.individuals = individuals;
      geometry.finish();
      return geometry.values * static_cast<int64_t>(sizeof(A));
    };
    int at_once = several ? static_cast<int>(std::min<int64_t>(args.individuals, kIndividuals)) : 1;
    const int64_t most = two_blocks_bytes();
    while (at_once > 1 && bytes_for(at_once) > most) --at_once;
    const int64_t bytes = bytes_for(at_once), tiles = tiling.tiles;
    shared = bytes <= most_shared_bytes();
    const int64_t individuals = several ? ceil_div(args.individuals, at_once) : 1;
    const int64_t others = geometry.channel_blocks * individuals, groups = ceil_div(kEnoughBlocks, tiles * others);
    int& group = geometry.group;
    group = groups < args.edges ? static_cast<int>(ceil_div(args.edges, groups)) : 1;
    const int64_t edge_groups = ceil_div(args.edges, group);
    const int64_t blocks =
        shared ? (tiles < kMostBlocks ? tiles : kMostBlocks) : scratch_blocks(tiles, others * edge_groups, bytes);
    grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(edge_groups), static_cast<unsigned>(others));
    prepared = ceil_div(weights.stages * weights.each() * static_cast<int64_t>(sizeof(A)), 16) * 16;
    scratch = shared ? 0 : blocks * others * edge_groups * bytes;
  }
};

}  // namespace

template <typename T>
int64_t edge_sum_workspace(const EdgeSum<T>& args) {
  const LaunchPlan<T> plan(args);
  return plan.prepared + plan.scratch;
}

template <typename T>
void edge_sum(const EdgeSum<T>& args, void* workspace, CUstream_st* stream) {
  using A = accumulate_t<T>;
  const LaunchPlan<T> plan(args);
  A* const prepared = static_cast<A*>(workspace);
  A* const scratch = reinterpret_cast<A*>(static_cast<char*>(workspace) + plan.prepared);
  if (plan.weights.stages > 0) prepare_weights("edge_sum_prepare", plan.weights, prepared, stream);
  const auto run = [&](auto kernel) {
    launch("edge_sum", kernel, plan.grid, plan.geometry.tiling.threads,
           plan.shared ? plan.geometry.values * sizeof(A) : 0, stream, plan.args, plan.geometry, prepared, scratch);
  };
  if (plan.wide) {
    run(plan.shared ? edge_sum_kernel<T, kVector<T>, true> : edge_sum_kernel<T, kVector<T>, false>);
  } else {
    run(plan.shared ? edge_sum_kernel<T, 1, true> : edge_sum_kernel<T, 1, false>);
  }
}

#define INSTANTIATE(T)                                    \
  template int64_t edge_sum_workspace(const EdgeSum<T>&); \
  template void edge_sum(const EdgeSum<T>&, void*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
