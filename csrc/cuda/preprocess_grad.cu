// The gradients of preprocess: that of the states and that of the matrices from one reading of both.
//
// A block has a slice of the channels of one state and a chunk of pixels. kPixels pixels at a time, z = relu(x), the
// gradient g of the output and the matrix lie in shared memory, for both products: the gradient of x is written (and
// zeros where no matrix reads), that of the matrix stays in registers until the chunk is done; a second kernel adds up
// the chunks.
#include <algorithm>

#include "cuda/preprocess_input.h"
#include "ops/bn_backward.h"

namespace fastnas::cuda {
namespace {

constexpr int kPixels = 64;     // that a block works on at a time
constexpr int kChunkTiles = 4;  // such tiles of a chunk, or more
constexpr int64_t kMaxChunks = 1024;

/// Where the gradient of an output channel is.
template <typename T>
struct GradColumn {
  const T* data;
  int64_t stride;
};

template <typename T>
__device__ __forceinline__ GradColumn<T> grad_column_of(const Parts<const T>& grads, int64_t output) {
  for (int64_t n = 0; n < grads.count; ++n) {
    if (output < grads.channels[n]) return {grads.data[n] + output, grads.stride[n]};
    output -= grads.channels[n];
  }
  return {nullptr, 0};
}

/// Dynamic shared memory of grad_kernel. The last fold needs 16 values of each thread.
template <typename A, int Outputs, int Channels>
constexpr size_t kGradValues =
    kPixels * (Channels + 4) + kPixels * (Outputs + 4) + Outputs * (Channels + 4) > 16 * kThreads
        ? kPixels * (Channels + 4) + kPixels * (Outputs + 4) + Outputs * (Channels + 4)
        : 16 * kThreads;

// Block (x, y, z): a chunk of pixels, a slice of the channels of a state, a tile of the columns of a group. Where a
// group has several tiles, the first one's blocks go through all of them for the gradient of x.
template <typename T, int Outputs, int Channels>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    grad_kernel(const __grid_constant__ Preprocess<T> args, const __grid_constant__ PreprocessGrad<T> grad,
                accumulate_t<T>* __restrict__ partial, int64_t tiles, int64_t chunk_tiles) {
  using A = accumulate_t<T>;
  constexpr int kRow = Channels + 4, kGradRow = Outputs + 4;
  A* const z = dynamic_shared<A>();     // [kPixels, kRow], of x
  A* const g = z + kPixels * kRow;      // [kPixels, kGradRow], of the output
  A* const w = g + kPixels * kGradRow;  // [Outputs, kRow]
  __shared__ int64_t sources[kPixels];
  __shared__ Column<A> columns[Outputs];
  __shared__ GradColumn<T> grad_columns[Outputs];

  int64_t state = 0, before = 0, slice = blockIdx.y;
  for (; slice >= ceil_div(args.states.channels[state], Channels); ++state) {
    slice -= ceil_div(args.states.channels[state], Channels);
    before += args.states.channels[state];
  }
  const T* const data = args.states.data[state];
  const int64_t stride = args.states.stride[state], channels = args.states.channels[state], first = slice * Channels;
  const int64_t tiles_of_first = ceil_div(args.group_outputs[0], Outputs);
  const int64_t offset = int64_t(blockIdx.z) < tiles_of_first || args.group_outputs[1] == 0 ? 0 : 1;
  const int64_t own_tile = blockIdx.z - (offset ? tiles_of_first : 0);
  const int64_t column_tiles = own_tile > 0 ? own_tile + 1 : ceil_div(args.group_outputs[offset], Outputs);
  const int64_t count = args.images * args.output_height * args.output_width;
  const bool clears = own_tile == 0 && offset == (args.group_outputs[0] > 0 || args.group_outputs[1] == 0 ? 0 : 1);

  // Of the gradient of x, kOfPixels × 4 channels for each thread; of the matrix, 4 × 4, its pixels shared out.
  constexpr int kOfPixels = Channels / 16;
  const Rows pixel_rows(Channels / 4), matrix_rows(Outputs / 4 * (Channels / 4));
  constexpr int kShare = kPixels * (Outputs / 4) * (Channels / 4) / kThreads;
  const int matrix_output = matrix_rows.lane / (Channels / 4) * 4,
            matrix_channel = matrix_rows.lane % (Channels / 4) * 4;
  A of_matrix[4][4] = {};
  int64_t loaded = -1;
  for (int64_t tile = blockIdx.x * chunk_tiles; tile < tiles && tile < (blockIdx.x + 1) * chunk_tiles; ++tile) {
    const int64_t begin = tile * kPixels;
    if (threadIdx.x < kPixels) {
      sources[threadIdx.x] = begin + threadIdx.x < count ? source_of(args, offset, begin + threadIdx.x) : -1;
    }
    __syncthreads();
    const auto put = [&](int pixel, int c, const auto& values) { write(z + pixel * kRow + c, values); };
    if (wide(data, stride, channels)) {
      rectified<kWide<T>, kPixels, Channels>(data, stride, channels, first, sources, put);
    } else {
      rectified<1, kPixels, Channels>(data, stride, channels, first, sources, put);
    }
    __syncthreads();
    A of_pixels[kOfPixels][4] = {};
    for (int64_t column_tile = own_tile; column_tile < column_tiles; ++column_tile) {
      if (column_tile != loaded) {
        if (threadIdx.x < Outputs) {
          columns[threadIdx.x] = column_of(args, offset, column_tile * Outputs + threadIdx.x);
          grad_columns[threadIdx.x] = grad_column_of(grad.grads, columns[threadIdx.x].output);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < Outputs * Channels; i += kThreads) {
          const int column = i / Channels, c = i % Channels;
          const A* const weights = columns[column].weights;
          w[column * kRow + c] = weights && first + c < channels ? weights[before + first + c] : A(0);
        }
        loaded = column_tile;
      }
      for (int i = threadIdx.x; i < kPixels * Outputs; i += kThreads) {
        const int pixel = i / Outputs, column = i % Outputs;
        A value = 0;
        if (begin + pixel < count && columns[column].weights) {
          value = A(grad_columns[column].data[(begin + pixel) * grad_columns[column].stride]);
          if (grad.bn_coeffs) {
            const int64_t c = columns[column].output, all = args.outputs;
            const A y = A(grad.output[(begin + pixel) * all + c]);
            value = bn_backward(value, y, grad.bn_coeffs[c], grad.bn_coeffs[all + c], grad.bn_coeffs[2 * all + c],
                                grad.bn_coeffs[3 * all + c]);
          }
        }
        g[pixel * kGradRow + column] = value;
      }
      __syncthreads();
      if (own_tile == 0) {
#pragma unroll 1
        for (int o = 0; o < Outputs; o += 4) {
          Vec<A, 4> of_output[kOfPixels];
#pragma unroll
          for (int i = 0; i < kOfPixels; ++i) {
            of_output[i] = read<4>(g + (pixel_rows.row * kOfPixels + i) * kGradRow + o);
          }
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const auto weights = read<4>(w + (o + k) * kRow + pixel_rows.lane * 4);
#pragma unroll
            for (int i = 0; i < kOfPixels; ++i) {
#pragma unroll
              for (int j = 0; j < 4; ++j) of_pixels[i][j] += of_output[i].values[k] * weights.values[j];
            }
          }
        }
      }
      if (column_tile == own_tile) {
#pragma unroll 4
        for (int i = 0; i < kShare; ++i) {
          const int pixel = matrix_rows.row * kShare + i;
          const auto of_output = read<4>(g + pixel * kGradRow + matrix_output);
          const auto values = read<4>(z + pixel * kRow + matrix_channel);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
#pragma unroll
            for (int j = 0; j < 4; ++j) of_matrix[k][j] += of_output.values[k] * values.values[j];
          }
        }
      }
      __syncthreads();
    }
    if (own_tile == 0) {
      T* const to = grad.grad_states.data[state];
      const int64_t c = first + pixel_rows.lane * 4;
      const bool whole = wide(to, channels, channels);
#pragma unroll
      for (int i = 0; i < kOfPixels; ++i) {
        const int pixel = pixel_rows.row * kOfPixels + i;
        const A* const values = z + pixel * kRow + pixel_rows.lane * 4;
        const auto put_pixel = [&](int64_t at, const A(&result)[4]) {
          if (whole && c + 4 <= channels) {
            write(to + at * channels + c, result);
          } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              if (c + j < channels) to[at * channels + c + j] = T(result[j]);
            }
          }
        };
        if (sources[pixel] >= 0) {
          A result[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) result[j] = values[j] <= 0 ? A(0) : of_pixels[i][j];
          put_pixel(sources[pixel], result);
        }
        if (!clears || args.stride == 1 || begin + pixel >= count) continue;
        // Of the 2 × 2 pixels of x, those that no block writes.
        const A zeros[4] = {};
        const int64_t row = divide(begin + pixel, args.output_width), image = divide(row, args.output_height);
        const int64_t y = (row - image * args.output_height) * 2, x = (begin + pixel - row * args.output_width) * 2;
#pragma unroll 1
        for (int d = 0; d < 4; ++d) {
          const int dy = d / 2, dx = d % 2;
          if (dy == dx && (dy == offset || args.group_outputs[dy] > 0)) continue;
          if (y + dy < args.height && x + dx < args.width) {
            put_pixel((image * args.height + y + dy) * args.width + x + dx, zeros);
          }
        }
      }
    }
    __syncthreads();
  }
  if (own_tile >= ceil_div(args.group_outputs[offset], Outputs)) return;  // no columns: the whole block leaves
  // z, g and w are done with.
#pragma unroll
  for (int i = 0; i < 16; ++i) z[i * kThreads + threadIdx.x] = of_matrix[i / 4][i % 4];
  matrix_rows.fold([z](int to, int from) {
#pragma unroll
    for (int i = 0; i < 16; ++i) z[i * kThreads + to] += z[i * kThreads + from];
  });
  if (matrix_rows.row > 0) return;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const Column<A> column = column_of(args, offset, own_tile * Outputs + matrix_output + i / 4);
    const int64_t c = first + matrix_channel + i % 4;
    if (!column.weights || c >= channels) continue;
    partial[(blockIdx.x * args.outputs + column.output) * args.channels + before + c] = z[i * kThreads + threadIdx.x];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    merge_kernel(const __grid_constant__ Preprocess<T> args, const accumulate_t<T>* __restrict__ partial,
                 int64_t chunks, const __grid_constant__ PreprocessWeightGrads<T> grads) {
  const int64_t size = args.outputs * args.channels;
  for (int64_t first = int64_t(blockIdx.x) * kWarp; first < size; first += int64_t(gridDim.x) * kWarp) {
    const double total = sum_columns(partial, chunks, size, first);
    const int64_t i = first + threadIdx.x;
    if (threadIdx.x >= kWarp || i >= size) continue;
    for (int64_t m = 0; m < args.matrix_count; ++m) {
      const int64_t begin = args.matrices[m].output * args.channels, own = args.matrices[m].rows * args.channels;
      if (i >= begin && i < begin + own) grads.weights[m][i - begin] = accumulate_t<T>(total);
    }
  }
}

template <typename T>
int64_t grad_tiles(const Preprocess<T>& args) {
  return ceil_div(args.images * args.output_height * args.output_width, kPixels);
}

int64_t tiles_of_chunk(int64_t tiles) {
  const int64_t least = ceil_div(tiles, kMaxChunks);
  return least > kChunkTiles ? least : kChunkTiles;
}

}  // namespace

template <typename T>
int64_t preprocess_grad_chunks(const Preprocess<T>& args) {
  const int64_t tiles = grad_tiles(args);
  return ceil_div(tiles, tiles_of_chunk(tiles));
}

template <typename T>
void preprocess_grad(const Preprocess<T>& args, const PreprocessGrad<T>& grad, accumulate_t<T>* partial,
                     const PreprocessWeightGrads<T>& grad_weights, CUstream_st* stream) {
  using A = accumulate_t<T>;
  const int64_t tiles = grad_tiles(args), chunks = preprocess_grad_chunks(args);
  const auto launch_grad = [&]<int Outputs, int Channels>() {
    int64_t slices = 0;
    for (int64_t s = 0; s < args.states.count; ++s) slices += ceil_div(args.states.channels[s], Channels);
    if (slices == 0 || chunks == 0) return;
    const int64_t all = column_tiles(args, Outputs);  // without any the gradient of x is zero
    const dim3 grid(static_cast<unsigned>(chunks), static_cast<unsigned>(slices), static_cast<unsigned>(all ? all : 1));
    launch("preprocess_grad", grad_kernel<T, Outputs, Channels>, grid, kThreads,
           kGradValues<A, Outputs, Channels> * sizeof(A), stream, args, grad, partial, tiles, tiles_of_chunk(tiles));
  };
  int64_t most = 0;
  for (int64_t s = 0; s < args.states.count; ++s) most = std::max(most, args.states.channels[s]);
  for_outputs(args, [&]<int Outputs>() {
    if constexpr (Outputs == 16) {
      if (most <= 16) return launch_grad.template operator()<Outputs, 16>();
    }
    launch_grad.template operator()<Outputs, 64>();
  });
  const int64_t size = args.outputs * args.channels;
  if (size == 0) return;
  launch("preprocess_grad_merge", merge_kernel<T>, dim3(blocks_of(ceil_div(size, kWarp))), kThreads, 0, stream, args,
         partial, chunks, grad_weights);
}

#define INSTANTIATE(T)                                                                            \
  template int64_t preprocess_grad_chunks(const Preprocess<T>&);                                  \
  template void preprocess_grad(const Preprocess<T>&, const PreprocessGrad<T>&, accumulate_t<T>*, \
                                const PreprocessWeightGrads<T>&, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::cuda
