// The backward pass of `stage`. A block takes a tile of one image: input pixels whose gradient it computes, and the
// output pixels at the same place, whose share in the gradients of the weights it adds up. Shared memory holds
//   x   the normalised, rectified input, as in the forward pass,
//   g_z the gradient behind the depthwise convolution, for the tile and for as far around it as windows reach,
//   g   the gradient of the outputs of the tile, z what the pointwise convolution reads, computed again,
// the last three of one stage after the other. The gradient of an output is made where it is read, once and near the
// tile's border again (from the L2 cache): a · grad + b · (y - mean) + c. That of the input stays in registers until
// all stages have added to it. For the gradients of the weights, warps take jobs: a column of taps, or a block of the
// pointwise matrix, summed over the pixels of the tile. Each block adds to rows of its own in a workspace, which
// merge_kernel adds up in their order.
#include "cuda/stage_input.h"

namespace fastnas::cuda {
namespace {

constexpr int kSplits = 2;                   // jobs that share the pixels of a tile, so that all warps have some
constexpr int64_t kMostParts = 512;          // blocks with rows of their own
constexpr int64_t kPartialBytes = 64 << 20;  // of all those rows, about

/// Geometry of a launch. Channels are those of the inputs; a block works on up to a warp of vectors of them.
struct Geometry {
  Tiling tiling;
  int channels, inner;  // inner: those that a block computes
  int halo;             // output pixels around the tile that its inputs reach
  int pair_lanes;       // lanes that take different blocks of the pointwise matrix
  int most_taps;

  int grad_rows, grad_columns;              // of g_z
  int64_t grad_z, grad, exchanged, values;  // where in a block's memory these begin, and its end
  int64_t row;  // of the partial sums of a stage: taps [taps, C], pointwise [C out, C in], Σ g and Σ g · x̂ [2, C]

  void finish() {
    grad_rows = tiling.rows + 2 * halo;
    grad_columns = tiling.columns + 2 * halo;
    grad_z = padded(int64_t(tiling.in_rows) * tiling.in_columns * inner);
    grad = grad_z + padded(int64_t(grad_rows) * grad_columns * inner);
    exchanged = grad + padded(int64_t(kRows) * tiling.strips * channels);
    values = exchanged + padded(int64_t(kRows) * tiling.strips_at_once * channels);
    row = int64_t(most_taps + channels + 2) * channels;
  }
};

template <int W, typename A>
__device__ __forceinline__ void add_to(A* target, const A (&values)[W], bool first) {
  Vec<A, W> sum = {};
  if (!first) sum = load<W>(target);
#pragma unroll
  for (int w = 0; w < W; ++w) sum.values[w] += values[w];
  store(target, sum);
}

// --- gradient of the outputs -----------------------------------------------------------------------------------------

/// W channels of the gradient of a pixel of output j.
template <int W, typename T>
__device__ __forceinline__ Vec<accumulate_t<T>, W> output_gradient(const StageGrads<T>& grads, int j, int64_t pixel,
                                                                   int c, int channels) {
  using A = accumulate_t<T>;
  auto value = load_wide<W>(grads.grad[j] + pixel * grads.grad_stride[j] + c);
  if (!grads.bn_coeffs) return value;
  const auto y = load_wide<W>(grads.y[j] + pixel * grads.y_stride[j] + c);
  const A* const of_stage = grads.bn_coeffs + j * 4 * channels + c;
  const auto scale = load<W>(of_stage), slope = load<W>(of_stage + channels);
  const auto mean = load<W>(of_stage + 2 * channels), offset = load<W>(of_stage + 3 * channels);
#pragma unroll
  for (int w = 0; w < W; ++w) {
    value.values[w] =
        scale.values[w] * value.values[w] + slope.values[w] * (y.values[w] - mean.values[w]) + offset.values[w];
  }
  return value;
}

/// Fills g_z [grad_rows, grad_columns, inner], zeros outside of the image, and g [kRows, strips, C].
template <bool Shared, int W, typename T>
__device__ __forceinline__ void fill_gradients(const StageGrads<T>& grads, const Geometry& geometry, const Place& at,
                                               int j, int first, const accumulate_t<T>* matrix,
                                               accumulate_t<T>* exchanged, accumulate_t<T>* grad_z,
                                               accumulate_t<T>* grad) {
  using A = accumulate_t<T>;
  const Tiling& tiling = geometry.tiling;
  const int channels = geometry.channels, inner = geometry.inner, strips = tiling.strips;
  const int at_once = geometry.tiling.strips_at_once, lane = threadIdx.x % tiling.lanes,
            slot = threadIdx.x / tiling.lanes;
  const int pixels = geometry.grad_rows * geometry.grad_columns;
  const int quarter = (pixels + kRows - 1) / kRows;
  for (int base = 0; base < quarter; base += at_once) {
    unsigned in_image = 0;                                        // a bit for each row
#pragma unroll(Shared && sizeof(A) == sizeof(float) ? kRows : 1)  // else registers would not do
    for (int r = 0; r < kRows; ++r) {
      const int p = r * quarter + base + slot;
      const int row = p / geometry.grad_columns - geometry.halo, column = p % geometry.grad_columns - geometry.halo;
      const int64_t y = at.top + row, x = at.left + column;
      const bool inside =
          base + slot < quarter && p < pixels && y >= 0 && y < tiling.height && x >= 0 && x < tiling.width;
      in_image |= unsigned(inside) << r;
      const bool own = base + slot < quarter && row >= 0 && row < tiling.rows && column >= 0 && column < tiling.columns;
      const int64_t pixel = (at.image * tiling.height + y) * tiling.width + x;
      const int64_t mine = (row % kRows * strips + row / kRows * tiling.columns + column) * int64_t(channels);
      for (int c = lane * W; c < channels; c += tiling.lanes * W) {
        Vec<A, W> value = {};
        if (inside) value = output_gradient<W>(grads, j, pixel, c, channels);
        store(exchanged + (r * at_once + slot) * channels + c, value);
        if (own) store(grad + mine + c, value);
      }
    }
    __syncwarp();
    if (lane * W < inner && first + lane * W < channels) {
      A sum[kRows][W];
      pointwise(exchanged + slot * channels, int64_t(at_once) * channels, matrix + first + lane * W, channels, sum);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int p = r * quarter + base + slot;
        if (base + slot >= quarter || p >= pixels) continue;
#pragma unroll
        for (int w = 0; w < W; ++w) sum[r][w] = in_image >> r & 1 ? sum[r][w] : A(0);
        store_values(grad_z + int64_t(p) * inner + lane * W, sum[r]);
      }
    }
    __syncwarp();
  }
}

// --- gradient of the input -------------------------------------------------------------------------------------------

/// Adds what flows back through a stage of stride 2 to a strip of input pixels at (row, column) of the tile.
template <int W, typename A>
__device__ __forceinline__ void scatter_back(const A* grad_z, const Geometry& geometry, int row, int column,
                                             const A* taps, int kernel, int dilation, A (&sum)[kRows][W]) {
  const int padding = padding_of(kernel, dilation), line = geometry.grad_columns * geometry.inner;
#pragma unroll 1
  for (int tap = 0; tap < kernel * kernel; ++tap) {
    const int x = column + padding - tap % kernel * dilation, y = row + padding - tap / kernel * dilation;
    if (x & 1) continue;  // another output column's
    const auto weight = load<W>(taps + tap * geometry.channels);
    const A* const of_column = grad_z + (x / 2 + geometry.halo) * geometry.inner;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if ((y + r) & 1) continue;
      const auto value = load<W>(of_column + ((y + r) / 2 + geometry.halo) * line);
#pragma unroll
      for (int w = 0; w < W; ++w) sum[r][w] += weight.values[w] * value.values[w];
    }
  }
}

// --- gradients of the weights, by one warp ---------------------------------------------------------------------------

/// What such a job reads: the block's memory.
template <typename A>
struct Tiles {
  const A *x, *grad_z, *grad, *z;
};

/// Column kx of the gradient of the taps, over every kSplits-th set of strips. K = 0: any geometry.
template <int K, int D, int S, int W, typename A>
__device__ __forceinline__ void taps_job(const Tiles<A>& tiles, const Geometry& geometry, const Place& at, int width,
                                         int kernel, int dilation, int kx, int split, A* target, bool begin) {
  const Tiling& tiling = geometry.tiling;
  const int lanes = tiling.lanes, inner = geometry.inner, strips = tiling.strips;
  const int lane = threadIdx.x % lanes, sets = kWarp / lanes;
  const int inset = tiling.padding - padding_of(kernel, dilation);
  const int line = tiling.in_columns * inner, grad_line = geometry.grad_columns * inner;
  const bool wanted = lane * W < width;
  constexpr int kTaps = K ? K : 1;
  for (int ky = 0; ky < (K ? 1 : kernel); ++ky) {
    A sum[kTaps][W] = {};
    for (int s = split * sets + threadIdx.x % kWarp / lanes; s < strips && wanted; s += kSplits * sets) {
      const int rows = rows_in_image(tiling, at, s, strips);
      if (rows == 0) continue;
      const int row = s / tiling.columns * kRows, column = s % tiling.columns;
      const A* const own =
          tiles.grad_z + (row + geometry.halo) * grad_line + (column + geometry.halo) * inner + lane * W;
      const A* const window = tiles.x + (row * tiling.stride + inset + ky * dilation) * line +
                              (column * tiling.stride + inset + kx * dilation) * inner + lane * W;
      Vec<A, W> g[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) g[r] = load<W>(own + r * grad_line);
      if constexpr (K > 0) {
#pragma unroll
        for (int i = 0; i <= (kRows - 1) * S + (K - 1) * D; ++i) {
          const auto value = load<W>(window + i * line);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
              if (r * S + k * D != i || r >= rows) continue;  // beyond the image, 0 · NaN would be NaN
#pragma unroll
              for (int w = 0; w < W; ++w) sum[k][w] += g[r].values[w] * value.values[w];
            }
          }
        }
      } else {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (r >= rows) continue;
          const auto value = load<W>(window + r * tiling.stride * line);
#pragma unroll
          for (int w = 0; w < W; ++w) sum[0][w] += g[r].values[w] * value.values[w];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
#pragma unroll
      for (int w = 0; w < W; ++w) sum[k][w] = sum_over_strips(sum[k][w], lanes);
      if (wanted && int(threadIdx.x) % kWarp < lanes) {
        add_to(target + ((ky + k) * kernel + kx) * geometry.channels + lane * W, sum[k], begin);
      }
    }
  }
}

/// Blocks W × W of the gradient of the pointwise matrix, as many as there are pair_lanes, over every kSplits-th set of
/// pixels.
template <int W, typename A>
__device__ __forceinline__ void matrix_job(const Tiles<A>& tiles, const Geometry& geometry, int width, int job,
                                           int split, A* target, bool begin) {
  const int lanes = geometry.pair_lanes, sets = kWarp / lanes, pixels = kRows * geometry.tiling.strips;
  const int columns = width / W, pair = job * lanes + threadIdx.x % lanes;  // of the matrix, in vectors
  const bool wanted = pair < geometry.channels / W * columns;
  const int output = wanted ? pair / columns * W : 0, input = wanted ? pair % columns * W : 0;
  A sum[W][W] = {};
  for (int p = split * sets + threadIdx.x % kWarp / lanes; p < pixels && wanted; p += kSplits * sets) {
    const auto g = load<W>(tiles.grad + int64_t(p) * geometry.channels + output);
    const auto z = load<W>(tiles.z + int64_t(p) * geometry.inner + input);
#pragma unroll
    for (int a = 0; a < W; ++a) {
#pragma unroll
      for (int b = 0; b < W; ++b) sum[a][b] += g.values[a] * z.values[b];
    }
  }
#pragma unroll
  for (int a = 0; a < W; ++a) {
#pragma unroll
    for (int b = 0; b < W; ++b) sum[a][b] = sum_over_strips(sum[a][b], lanes);
    if (wanted && int(threadIdx.x) % kWarp < lanes) {
      add_to(target + int64_t(output + a) * geometry.channels + input, sum[a], begin);
    }
  }
}

// --- the kernel ------------------------------------------------------------------------------------------------------

// blockIdx.x strides over tiles, blockIdx.y counts inputs where stages have their own, blockIdx.z vectors of channels.
// partial [gridDim.x, kSplits, J, row].
template <typename T, int W, bool Shared>
__global__ void __launch_bounds__(kBlockThreads, 2)
    grad_kernel(const __grid_constant__ Stage<T> args, const __grid_constant__ StageGrads<T> grads,
                const __grid_constant__ Geometry geometry, const accumulate_t<T>* __restrict__ weights,
                accumulate_t<T>* scratch, accumulate_t<T>* partial, bool sums) {
  using A = accumulate_t<T>;
  const Tiling& tiling = geometry.tiling;
  const int channels = geometry.channels, lanes = tiling.lanes, inner = geometry.inner, strips = tiling.strips;
  A* const x = block_memory<Shared>(scratch, geometry.values);
  A* const grad_z = x + geometry.grad_z;
  A* const grad = x + geometry.grad;
  A* const z = x + geometry.exchanged;  // also what threads exchange
  const int first = blockIdx.z * inner, width = min(inner, channels - first);
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int lane = threadIdx.x % lanes, strip = threadIdx.x / lanes, c = lane * W;
  const bool active = c < width;
  const int row = strip / tiling.columns * kRows, column = strip % tiling.columns;  // of outputs, in the tile
  const int in_columns = tiling.columns * tiling.stride;
  const int in_row = strip / in_columns * kRows, in_column = strip % in_columns;  // of inputs
  const int line = tiling.in_columns * inner;
  const int input = args.shared ? 0 : blockIdx.y;
  const int last = args.shared ? args.stages : input + 1;
  const int64_t split_rows = args.stages * geometry.row;
  A* const rows_of_block = partial + blockIdx.x * kSplits * split_rows;

  for (int64_t tile = blockIdx.x; tile < tiling.tiles; tile += gridDim.x) {
    const Place at = tiling.place(tile);
    const bool begin = tile == blockIdx.x;
    const int rows = rows_in_image(tiling, at, strip, strips);
    A sum[kRows][W] = {};  // gradient of the input
    __syncthreads();       // the tile before is done with
    fill_input<W>(args, input, tiling, at, first, width, inner, x);
    for (int j = input; j < last; ++j) {
      const int kernel = static_cast<int>(args.kernel[j]), dilation = static_cast<int>(args.dilation[j]);
      const int padding = padding_of(kernel, dilation), inset = tiling.padding - padding;
      const A* const taps = weights + j * int64_t(geometry.most_taps + channels) * channels;  // [taps, C]
      const A* const matrix = taps + geometry.most_taps * channels;                           // [C out, C in]
      __syncthreads();  // x is there, and the stage before is done with
      fill_gradients<Shared, W>(grads, geometry, at, j, first, matrix, z, grad_z, grad);
      __syncthreads();
      if (active && strip < strips) {
        A value[kRows][W] = {};
        depthwise<Shared, false>(
            x + (row * tiling.stride + inset) * line + (column * tiling.stride + inset) * inner + c, line, inner,
            taps + first + c, channels, kernel, dilation, tiling.stride, value);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int w = 0; w < W; ++w) value[r][w] = r < rows ? value[r][w] : A(0);
          store_values(z + (r * strips + strip) * inner + c, value[r]);
        }
      }
      if (active && in_row < tiling.rows * tiling.stride) {
        if (tiling.stride == 1) {  // tile and surroundings are those of x
          depthwise<Shared, true>(grad_z + (in_row + inset) * line + (in_column + inset) * inner + c, line, inner,
                                  taps + first + c, channels, kernel, dilation, 1, sum);
        } else {
          scatter_back(grad_z + c, geometry, in_row, in_column, taps + first + c, kernel, dilation, sum);
        }
      }
      __syncthreads();
      const Tiles<A> tiles{x, grad_z, grad, z};
      const int taps_jobs = kernel * kSplits, pairs = channels / W * (width / W);
      const int jobs = taps_jobs + (pairs + geometry.pair_lanes - 1) / geometry.pair_lanes * kSplits;
      for (int job = warp; job < jobs; job += warps) {
        const int split = job % kSplits;
        A* const target = rows_of_block + split * split_rows + j * geometry.row + first;
        if (job >= taps_jobs) {
          matrix_job<W>(tiles, geometry, width, (job - taps_jobs) / kSplits, split,
                        target + geometry.most_taps * channels, begin);
          continue;
        }
        const int kx = job / kSplits;
        bool done = false;
        if constexpr (Shared) {
          done = for_usual(kernel, dilation, [&]<int K, int D>() {
            if (tiling.stride == 1) {
              taps_job<K, D, 1, W>(tiles, geometry, at, width, kernel, dilation, kx, split, target, begin);
            } else {
              taps_job<K, D, 2, W>(tiles, geometry, at, width, kernel, dilation, kx, split, target, begin);
            }
          });
        }
        if (!done) taps_job<0, 0, 0, W>(tiles, geometry, at, width, kernel, dilation, kx, split, target, begin);
      }
    }

    // Where the input was not positive, nothing flows back.
    A totals[2][W] = {};  // Σ g, Σ g · x̂
    const int64_t y = at.top * tiling.stride + in_row, in_x = at.left * tiling.stride + in_column;
    if (active && in_row < tiling.rows * tiling.stride && in_x < args.width) {
      T* const target = grads.grad_x[input] + ((at.image * args.height + y) * args.width + in_x) * channels + first + c;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (y + r >= args.height) continue;
        const auto value = load<W>(x + (in_row + r + tiling.padding) * line + (in_column + tiling.padding) * inner + c);
#pragma unroll
        for (int w = 0; w < W; ++w) {
          if (value.values[w] <= 0) sum[r][w] = 0;  // keeps NaN
          totals[0][w] += sum[r][w];
          totals[1][w] += sum[r][w] * value.values[w];
        }
        store_narrow(target + r * args.width * channels, sum[r]);
      }
    }
    if (!sums) continue;
    __syncthreads();  // nobody reads z any more: [warps, 2, inner]
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int w = 0; w < W; ++w) totals[i][w] = sum_over_strips(totals[i][w], lanes);
      if (active && int(threadIdx.x) % kWarp < lanes) store_values(z + (warp * 2 + i) * inner + c, totals[i]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * kSplits * width; i += blockDim.x) {
      const int split = i / (2 * width), which = i / width % 2, channel = i % width;
      A total[1] = {};
      for (int from = split; from < warps; from += kSplits) total[0] += z[(from * 2 + which) * inner + channel];
      add_to(rows_of_block + split * split_rows + input * geometry.row +
                 (geometry.most_taps + channels + which) * channels + first + channel,
             total, begin);
    }
  }
}

constexpr int kMergeSlots = 16;

// One block for a warp of values of a stage: threads take rows in turn, then the sums of all are added up.
template <typename T>
__global__ void __launch_bounds__(kWarp* kMergeSlots)
    merge_kernel(const __grid_constant__ Stage<T> args, const __grid_constant__ StageGrads<T> grads,
                 const accumulate_t<T>* __restrict__ partial, int64_t parts, int64_t row, int most_taps,
                 accumulate_t<T>* __restrict__ sums) {
  using A = accumulate_t<T>;
  __shared__ double slots[kMergeSlots][kWarp];
  const int lane = threadIdx.x % kWarp, slot = threadIdx.x / kWarp;
  const int64_t channels = args.channels, j = blockIdx.y;
  const int64_t taps = args.kernel[j] * args.kernel[j], inputs = args.shared ? 1 : args.stages;
  for (int64_t base = int64_t(blockIdx.x) * kWarp; base < row; base += int64_t(gridDim.x) * kWarp) {
    const int64_t i = base + lane, at = i / channels, c = i % channels;
    A* target = nullptr;
    if (at < taps) {
      target = grads.grad_depthwise[j] + c * taps + at;
    } else if (at >= most_taps && at < most_taps + channels) {
      target = grads.grad_pointwise[j] + i - most_taps * channels;
    } else if (at >= most_taps + channels && i < row && sums && j < inputs) {
      target = sums + j * 2 * channels + i - (most_taps + channels) * channels;
    }
    double sum = 0;
    if (target) {
#pragma unroll 4
      for (int64_t part = slot; part < parts; part += kMergeSlots) sum += partial[(part * args.stages + j) * row + i];
    }
    slots[slot][lane] = sum;
    __syncthreads();
    if (slot == 0 && target) {
      double total = 0;
#pragma unroll
      for (int s = 0; s < kMergeSlots; ++s) total += slots[s][lane];
      *target = A(total);
    }
    __syncthreads();
  }
}

// What the launch needs to know beyond the arguments.
template <typename T>
struct Plan {
  using A = accumulate_t<T>;

  Stage<T> args;
  bool wide, shared;
  Geometry geometry{};
  SeparableWeights<A> weights;
  dim3 grid;
  int64_t prepared, scratch, partial;  // bytes of the workspace

  Plan(const Stage<T>& given, const StageGrads<T>& grads) : args(within_reach(given)), wide(wide_inputs(args)) {
    wide = wide && aligned16(grads.bn_coeffs);
    for (int j = 0; j < args.stages; ++j) {
      wide = wide && wide_at(grads.grad[j], grads.grad_stride[j]);
      wide = wide && (!grads.bn_coeffs || wide_at(grads.y[j], grads.y_stride[j]));
    }
    weights = weights_of(args, false);
    int64_t bytes = lay_out(wide ? kWide<T> : 1);
    if (wide && bytes > kMaxSharedBytes) {  // of single channels a block has fewer, and there are more blocks
      wide = false;
      bytes = lay_out(1);
    }
    shared = bytes <= kMaxSharedBytes;
    const Tiling& tiling = geometry.tiling;
    const int64_t others = args.inputs() * ceil_div(args.channels, geometry.inner), tiles = tiling.tiles;
    const int64_t row_bytes = kSplits * args.stages * geometry.row * static_cast<int64_t>(sizeof(A));
    int64_t parts = kMostParts / others;
    parts = parts < kPartialBytes / row_bytes ? parts : kPartialBytes / row_bytes;
    parts = parts < 1 ? 1 : parts < tiles ? parts : tiles;
    if (!shared) parts = scratch_blocks(parts, others, bytes);
    grid = dim3(static_cast<unsigned>(parts), args.inputs(),
                static_cast<unsigned>(ceil_div(args.channels, geometry.inner)));
    prepared = ceil_div(weights.stages * weights.each() * static_cast<int64_t>(sizeof(A)), 16) * 16;
    scratch = shared ? 0 : parts * others * bytes;
    partial = parts * row_bytes;
  }

  /// Bytes of a block whose threads take `vector` channels at a time.
  int64_t lay_out(int vector) {
    const int64_t vectors = args.channels / vector;
    const int stride = static_cast<int>(args.stride);
    Tiling& tiling = geometry.tiling;
    tiling = tiling_of(args.count, args.out_height, args.out_width, vectors, stride, most_padding(args), kBlockThreads,
                       stride * stride);
    geometry.channels = static_cast<int>(args.channels);
    geometry.inner = tiling.lanes * vector < geometry.channels ? tiling.lanes * vector : geometry.channels;
    geometry.halo = (tiling.padding + stride - 1) / stride;
    geometry.pair_lanes = power_of_two(vectors * (geometry.inner / vector), kWarp);
    geometry.most_taps = weights.most_taps;
    geometry.finish();
    return geometry.values * static_cast<int64_t>(sizeof(A));
  }
};

}  // namespace

template <typename T>
int64_t stage_grad_workspace(const Stage<T>& args, const StageGrads<T>& grads) {
  const Plan<T> plan(args, grads);
  return plan.prepared + plan.scratch + plan.partial;
}

template <typename T>
void stage_grad(const Stage<T>& args, const StageGrads<T>& grads, void* workspace, accumulate_t<T>* sums,
                CUstream_st* stream) {
  using A = accumulate_t<T>;
  const Plan<T> plan(args, grads);
  char* const begin = static_cast<char*>(workspace);
  A* const prepared = reinterpret_cast<A*>(begin);
  A* const scratch = reinterpret_cast<A*>(begin + plan.prepared);
  A* const partial = reinterpret_cast<A*>(begin + plan.prepared + plan.scratch);
  const Geometry& geometry = plan.geometry;
  if (plan.grid.x > 0) {
    prepare_weights("stage_grad_prepare", plan.weights, prepared, stream);
    const auto run = [&](auto kernel) {
      launch("stage_grad", kernel, plan.grid, geometry.tiling.threads, plan.shared ? geometry.values * sizeof(A) : 0,
             stream, plan.args, grads, geometry, prepared, scratch, partial, sums != nullptr);
    };
    run(plan.wide ? grad_kernel<T, kWide<T>, true> : plan.shared ? grad_kernel<T, 1, true> : grad_kernel<T, 1, false>);
  }
  const int64_t blocks = ceil_div(geometry.row, kWarp);
  launch("stage_grad_merge", merge_kernel<T>, dim3(static_cast<unsigned>(blocks < 4096 ? blocks : 4096), args.stages),
         kWarp * kMergeSlots, 0, stream, plan.args, grads, partial, int64_t(plan.grid.x) * kSplits, geometry.row,
         geometry.most_taps, sums);
}

#define INSTANTIATE(T)                                                          \
  template int64_t stage_grad_workspace(const Stage<T>&, const StageGrads<T>&); \
  template void stage_grad(const Stage<T>&, const StageGrads<T>&, void*, accumulate_t<T>*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
