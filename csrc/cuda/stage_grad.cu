// The backward pass of `stage`. A block takes a tile of one image: input pixels whose gradient it computes, and the
// output pixels at the same place, whose share in the gradients of the weights it adds up. Shared memory holds
//   x   the normalised, rectified input, as in the forward pass,
//   g_z the gradient of the depthwise convolution's output, for the tile and as far around it as windows reach,
//   g   the gradient of the outputs of the tile, z what the pointwise convolution reads, computed again,
// the last three of one stage after the other. The gradient of an output is made where it is read, once and near the
// tile's border again (from the L2 cache): by ops/bn_backward.h. That of the input stays in registers until
// all stages have added to it. The gradients of the weights are jobs of single warps (cuda/stage_grad_weights.h). Each
// block adds to rows of its own in a workspace, which merge_kernel adds up in their order.
#include "cuda/stage_grad_weights.h"

namespace fastnas::cuda {
namespace {

constexpr int64_t kMostParts = 512;          // blocks with rows of their own
constexpr int64_t kPartialBytes = 64 << 20;  // of all those rows, about

// blockIdx.x strides over tiles, blockIdx.y counts inputs where stages have their own, blockIdx.z vectors of channels.
// partial [gridDim.x, kSplits, J, row].
template <typename T, int W, bool Shared>
__global__ void __launch_bounds__(kBlockThreads, 2)
    grad_kernel(const __grid_constant__ Stage<T> args, const __grid_constant__ StageGrads<T> grads,
                const __grid_constant__ Geometry geometry, const accumulate_t<T>* __restrict__ weights,
                accumulate_t<T>* scratch, accumulate_t<T>* partial, bool with_sums) {
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
    A totals[2][W] = {};  // sum_dy, sum_dy_xhat
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
    if (!with_sums) continue;
    __syncthreads();  // z is not read any more: [warps, 2, inner]
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
                 accumulate_t<T>* __restrict__ bn_sums) {
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
    } else if (at >= most_taps + channels && i < row && bn_sums && j < inputs) {
      target = bn_sums + j * 2 * channels + i - (most_taps + channels) * channels;
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
struct LaunchPlan {
  using A = accumulate_t<T>;

  Stage<T> args;
  bool wide, shared;
  Geometry geometry{};
  SeparableWeights<A> weights;
  dim3 grid;
  int64_t prepared, scratch, partial;  // bytes of the workspace

  LaunchPlan(const Stage<T>& given, const StageGrads<T>& grads) : args(given), wide(wide_inputs(args)) {
    wide = wide && aligned16(grads.bn_coeffs);
    for (int j = 0; j < args.stages; ++j) {
      wide = wide && wide_at(grads.grad[j], grads.grad_stride[j]);
      wide = wide && (!grads.bn_coeffs || wide_at(grads.y[j], grads.y_stride[j]));
    }
    weights = weights_of(args, false);
    int64_t bytes = lay_out(wide ? kVector<T> : 1);
    const int64_t most = most_shared_bytes();
    if (wide && bytes > most) {  // of single channels a block has fewer, and there are more blocks
      wide = false;
      bytes = lay_out(1);
    }
    shared = bytes <= most;
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
    check_tile("stage_grad", tiling.in_rows, tiling.in_columns, args.channels);
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
  const LaunchPlan<T> plan(args, grads);
  return plan.prepared + plan.scratch + plan.partial;
}

template <typename T>
void stage_grad(const Stage<T>& args, const StageGrads<T>& grads, void* workspace, accumulate_t<T>* bn_sums,
                CUstream_st* stream) {
  using A = accumulate_t<T>;
  const LaunchPlan<T> plan(args, grads);
  char* const begin = static_cast<char*>(workspace);
  A* const prepared = reinterpret_cast<A*>(begin);
  A* const scratch = reinterpret_cast<A*>(begin + plan.prepared);
  A* const partial = reinterpret_cast<A*>(begin + plan.prepared + plan.scratch);
  const Geometry& geometry = plan.geometry;
  if (plan.grid.x > 0) {
    prepare_weights("stage_grad_prepare", plan.weights, prepared, stream);
    const auto run = [&](auto kernel) {
      launch("stage_grad", kernel, plan.grid, geometry.tiling.threads, plan.shared ? geometry.values * sizeof(A) : 0,
             stream, plan.args, grads, geometry, prepared, scratch, partial, bn_sums != nullptr);
    };
    run(plan.wide     ? grad_kernel<T, kVector<T>, true>
        : plan.shared ? grad_kernel<T, 1, true>
                      : grad_kernel<T, 1, false>);
  }
  const int64_t blocks = ceil_div(geometry.row, kWarp);
  launch("stage_grad_merge", merge_kernel<T>, dim3(static_cast<unsigned>(blocks < 4096 ? blocks : 4096), args.stages),
         kWarp * kMergeSlots, 0, stream, plan.args, grads, partial, int64_t(plan.grid.x) * kSplits, geometry.row,
         geometry.most_taps, bn_sums);
}

#define INSTANTIATE(T)                                                          \
  template int64_t stage_grad_workspace(const Stage<T>&, const StageGrads<T>&); \
  template void stage_grad(const Stage<T>&, const StageGrads<T>&, void*, accumulate_t<T>*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
