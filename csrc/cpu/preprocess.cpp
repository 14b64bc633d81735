// preprocess: 1×1 convolutions of relu(x), x being states side by side that are never put together in memory; forward
// and backward.
//
// A block of pixels passes through all steps while it is in the nearest cache. The states' channels are gathered beside
// each other into z, in runs (channels.h), and rectified on the way; one matrix product (pointwise.h) gives the outputs
// of all matrices that read the same pixels, with output channels, padded, in vectors; sums for BatchNorm's statistics
// are taken, and the outputs go to memory. With stride 2, a factorized reduction, the matrices of offset 0 and those of
// offset 1 are two such groups, each gathering its own pixels. Backward, z is gathered again; the gradient of a block,
// with BatchNorm's backward applied as it is read, gives that of z and adds to the weights'. These are summed over at
// most 16 chunks of images and merged in their order, so results do not depend on threads.
#include "ops/preprocess.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/bn_backward.h"
#include "cpu/channels.h"
#include "cpu/pointwise.h"
#include "cpu/prefetcher.h"
#include "cpu/scratch_arena.h"
#include "cpu/statistics.h"

namespace fastnas::FASTNAS_ISA {
namespace {

// Of all buffers of a block.
constexpr int64_t kBlockBytes = 32 << 10;

int64_t block_pixels(int64_t bytes_of_a_pixel, int64_t pixels) {
  const int64_t fitting = kBlockBytes / bytes_of_a_pixel / 8 * 8;
  const int64_t block = fitting < 32 ? 32 : fitting > 256 ? 256 : fitting;
  return block < pixels ? block : pixels;
}

// --- rows of channels ---

/// to[p, c] = f(from[p, c], p, c), computed in A, in runs of channels.
template <typename A, typename From, typename To, typename F>
inline void map_pixels(const From* from, int64_t from_stride, To* to, int64_t to_stride, int64_t channels,
                       int64_t pixels, const F& f) {
  for_runs<A>(channels, [&]<int W>(int64_t first, int64_t last) {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t c = first; c < last; c += W) {
        const Run<A, W> value = load_run<W, A>(from + p * from_stride + c);
        store_run<W, A>(to + p * to_stride + c, f.template operator()<W>(value, p, c));
      }
    }
  });
}

// --- blocks of output pixels ---

struct Block {
  int64_t image;
  int64_t begin;  // first output pixel
  int64_t pixels;
};

/// Calls f(p, y, x, n) for every stretch of the block in one row: n pixels, at (y, x) in the image, at p in the block.
template <typename T, typename F>
inline void for_rows(const Preprocess<T>& args, const Block& block, const F& f) {
  for (int64_t p = 0; p < block.pixels;) {
    const int64_t y = (block.begin + p) / args.output_width, x = (block.begin + p) % args.output_width;
    const int64_t left = block.pixels - p, row = args.output_width - x;
    const int64_t n = left < row ? left : row;
    f(p, y, x, n);
    p += n;
  }
}

/// Of n output pixels from (y, x) on, those whose input pixel at this offset is within the image.
template <typename T>
inline int64_t inside(const Preprocess<T>& args, int64_t offset, int64_t y, int64_t x, int64_t n) {
  if (y * args.stride + offset >= args.height) return 0;
  const int64_t columns = (args.width - offset + args.stride - 1) / args.stride - x;
  return columns < n ? columns : n;
}

template <typename T>
inline int64_t input_pixel(const Preprocess<T>& args, const Block& block, int64_t offset, int64_t y, int64_t x) {
  return (block.image * args.height + y * args.stride + offset) * args.width + x * args.stride + offset;
}

/// z [pixels, z_stride] = relu(x) at the pixels that the matrices of this offset read, zero beyond the edge.
template <typename T, typename A>
void gather_states(const Preprocess<T>& args, const Block& block, int64_t offset, A* z, int64_t z_stride) {
  for_rows(args, block, [&](int64_t p, int64_t y, int64_t x, int64_t n) {
    const int64_t within = inside(args, offset, y, x, n);
    A* row = z + p * z_stride;
    int64_t first = 0;
    for (int64_t i = 0; i < args.states.count && within > 0; ++i) {
      const int64_t stride = args.states.stride[i];
      const T* state = args.states.data[i] + input_pixel(args, block, offset, y, x) * stride;
      const auto rectified = []<int W>(Run<A, W> value, int64_t, int64_t) {
        return value < 0 ? Run<A, W>{} : value;  // NaN stays
      };
      map_pixels<A>(state, stride * args.stride, row + first, z_stride, args.states.channels[i], within, rectified);
      first += args.states.channels[i];
    }
    std::memset(row + within * z_stride, 0, (n - within) * z_stride * sizeof(A));
  });
}

/// The gradient of x where this offset reads it: gx [pixels, stride], masked by z = relu(x) [pixels, stride].
template <typename T, typename A>
void scatter_grads(const Preprocess<T>& args, const Parts<T>& grads, const Block& block, int64_t offset, const A* gx,
                   const A* z, int64_t stride) {
  for_rows(args, block, [&](int64_t p, int64_t y, int64_t x, int64_t n) {
    const int64_t within = inside(args, offset, y, x, n);
    int64_t first = 0;
    for (int64_t i = 0; i < grads.count && within > 0; ++i) {
      const int64_t channels = grads.channels[i];
      T* to = grads.data[i] + input_pixel(args, block, offset, y, x) * channels;
      const A* mask = z + p * stride + first;
      const auto masked = [=]<int W>(Run<A, W> value, int64_t q, int64_t c) {
        return load_run<W, A>(mask + q * stride + c) <= 0 ? Run<A, W>{} : value;
      };
      map_pixels<A>(gx + p * stride + first, stride, to, args.stride * channels, channels, within, masked);
      first += channels;
    }
  });
}

/// Zeros where no matrix reads x.
template <typename T>
void clear_unread(const Preprocess<T>& args, const Parts<T>& grads, const Block& block) {
  for (int64_t dy = 0; dy < args.stride; ++dy) {
    for (int64_t dx = 0; dx < args.stride; ++dx) {
      if (dy == dx && args.group_outputs[dy] > 0) continue;
      for_rows(args, block, [&](int64_t, int64_t y, int64_t x, int64_t n) {
        if (y * args.stride + dy >= args.height) return;
        for (int64_t i = 0; i < grads.count; ++i) {
          const int64_t channels = grads.channels[i];
          if (channels == 0) continue;  // its address is null, which memset must not see
          T* to = grads.data[i] + input_pixel(args, block, 0, y, x) * channels;
          for (int64_t q = 0; q < n && (x + q) * args.stride + dx < args.width; ++q) {
            std::memset(static_cast<void*>(to + (dy * args.width + q * args.stride + dx) * channels), 0,
                        channels * sizeof(T));
          }
        }
      });
    }
  }
}

/// all [pixels, stride]: the gradient of the output, for the matrices of every offset.
template <typename T, typename A>
void gather_grads(const Preprocess<T>& args, const PreprocessGrad<T>& grad, const Block& block, A* all,
                  int64_t all_stride) {
  const int64_t begin = block.image * args.output_height * args.output_width + block.begin;
  int64_t first = 0;
  for (int64_t n = 0; n < grad.grads.count; ++n) {
    const int64_t channels = grad.grads.channels[n], stride = grad.grads.stride[n];
    const T* from = grad.grads.data[n] + begin * stride;
    if (!grad.bn_coeffs) {
      copy_pixels<A>(from, stride, block.pixels, channels, all + first, all_stride);
    } else {
      const A* bn_coeffs = grad.bn_coeffs + first;
      const T* output = grad.output + begin * args.outputs + first;
      const auto bn_backward = [=, outputs = args.outputs]<int W>(Run<A, W> dy, int64_t p, int64_t c) {
        return load_bn_backward<W>(bn_coeffs, outputs, c)(dy, load_run<W, A>(output + p * outputs + c));
      };
      map_pixels<A>(from, stride, all + first, all_stride, channels, block.pixels, bn_backward);
    }
    first += channels;
  }
}

/// g [pixels, g_stride]: the columns of this offset's matrices.
template <typename T, typename A>
void select_grads(const Preprocess<T>& args, const A* all, int64_t pixels, int64_t offset, A* g, int64_t g_stride) {
  for (int64_t m = 0; m < args.matrix_count; ++m) {
    const Matrix<A>& matrix = args.matrices[m];
    if (matrix.offset != offset) continue;
    copy_pixels<A>(all + matrix.output, args.outputs, pixels, matrix.rows, g + matrix.column, g_stride);
  }
}

/// `pixels` pixels of dense images from `pixel` on; most lines of slices of wider ones hold other channels.
template <typename T>
void prefetch_images(const Parts<T>& images, int64_t pixel, int64_t pixels, Prefetcher& prefetcher) {
  for (int64_t i = 0; i < images.count; ++i) {
    const int64_t channels = images.channels[i];
    if (images.stride[i] == channels) prefetcher.add(images.data[i] + pixel * channels, pixels * channels);
  }
}

/// The states after a block, as far as they follow each other; after the last block of an image comes the next.
template <typename T>
void prefetch_states(const Preprocess<T>& args, const Block& block, Prefetcher& prefetcher) {
  if (args.stride > 1) return;
  const int64_t pixel = block.image * args.height * args.width + block.begin + block.pixels;
  prefetch_images(args.states, pixel, block.pixels, prefetcher);
}

/// What the gradients of the next block need, and where they go.
template <typename T>
void prefetch_grads(const Preprocess<T>& args, const PreprocessGrad<T>& grad, const Block& block,
                    Prefetcher& prefetcher) {
  const int64_t next = block.image * args.output_height * args.output_width + block.begin + block.pixels;
  prefetch_images(grad.grads, next, block.pixels, prefetcher);
  if (grad.bn_coeffs) prefetcher.add(grad.output + next * args.outputs, block.pixels * args.outputs);
  prefetch_states(args, block, prefetcher);
  if (args.stride > 1) return;
  for (int64_t i = 0; i < grad.grad_states.count; ++i) {  // of this block: it is written after the products
    const int64_t channels = grad.grad_states.channels[i];
    prefetcher.add(grad.grad_states.data[i] + (next - block.pixels) * channels, block.pixels * channels);
  }
}

// --- buffers ---

template <typename A>
struct ForwardBuffers {
  template <typename T>
  ForwardBuffers(cpu::ScratchArena& scratch, const Preprocess<T>& args)
      : width{padded<A>(args.group_outputs[0]), padded<A>(args.group_outputs[1])},
        stats{{scratch, width[0]}, {scratch, width[1]}} {
    const int64_t widest = width[0] > width[1] ? width[0] : width[1];
    pixels = block_pixels((args.channels + widest + 1) * sizeof(A), args.output_height * args.output_width);
    z = scratch.take<A>(pixels * args.channels);
    y = scratch.take<A>(pixels * widest);
    for (int offset = 0; offset < 2; ++offset) weights[offset] = scratch.take<A>(args.channels * width[offset]);
    table = scratch.take<double>(2 * args.outputs);
  }

  int64_t width[2];        // outputs of a group, padded
  BatchStats<A> stats[2];  // of a group
  int64_t pixels;          // of a block
  A* z;                    // [pixels, Cin]
  A* y;                    // [pixels, width], of one group
  A* weights[2];           // [Cin, width]
  double* table;           // [2, rows], of one matrix
};

template <typename A>
struct BackwardBuffers {
  template <typename T>
  BackwardBuffers(cpu::ScratchArena& scratch, const Preprocess<T>& args) : z_width(padded<A>(args.channels)) {
    const int64_t* outputs = args.group_outputs;
    g_width = padded<A>(outputs[0] > outputs[1] ? outputs[0] : outputs[1]);
    pixels =
        block_pixels((2 * z_width + g_width + args.outputs + 1) * sizeof(A), args.output_height * args.output_width);
    z = scratch.take<A>(pixels * z_width);
    gx = scratch.take<A>(pixels * z_width);
    g = scratch.take<A>(pixels * g_width);
    all = scratch.take<A>(pixels * args.outputs);
    for (int offset = 0; offset < 2; ++offset) {
      weights[offset] = scratch.take<A>(outputs[offset] * z_width);
      grad_weights[offset] = scratch.take<A>(outputs[offset] * z_width);
    }
  }

  int64_t z_width;     // Cin, padded
  int64_t g_width;     // outputs of a group, padded
  int64_t pixels;      // of a block
  A* z;                // [pixels, z_width]
  A* gx;               // [pixels, z_width]
  A* g;                // [pixels, g_width], of one group
  A* all;              // [pixels, outputs], of both groups in the order of the output
  A* weights[2];       // [outputs of the group, z_width]
  A* grad_weights[2];  // as weights
};

}  // namespace

template <typename T>
void preprocess_forward(const Preprocess<T>& args, T* output, double* stats, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  cpu::ScratchArena scratch;
  ForwardBuffers<A> b(scratch, args);
  for (int offset = 0; offset < 2; ++offset) {
    std::memset(b.weights[offset], 0, args.channels * b.width[offset] * sizeof(A));
  }
  for (int64_t m = 0; m < args.matrix_count; ++m) {
    const Matrix<A>& matrix = args.matrices[m];
    A* to = b.weights[matrix.offset] + matrix.column;
    for (int64_t c = 0; c < args.channels; ++c) {
      for (int64_t row = 0; row < matrix.rows; ++row) {
        to[c * b.width[matrix.offset] + row] = matrix.weights[row * args.channels + c];
      }
    }
  }
  const int64_t pixels = args.output_height * args.output_width;
  for (int64_t image = first; image < last; ++image) {
    for (auto& each : b.stats) each.begin();
    for (int64_t begin = 0; begin < pixels; begin += b.pixels) {
      const Block block{image, begin, pixels - begin < b.pixels ? pixels - begin : b.pixels};
      for (int64_t offset = 0; offset < args.stride; ++offset) {
        const int64_t width = b.width[offset];
        if (width == 0) continue;
        gather_states(args, block, offset, b.z, args.channels);
        Prefetcher prefetcher;
        prefetch_states(args, block, prefetcher);
        const Lines rows{1, block.pixels, 0, 0};
        pointwise(b.z, args.channels, args.channels, b.weights[offset], width, rows, b.y, prefetcher);
        if (stats) b.stats[offset].add(b.y, block.pixels);
        for (int64_t m = 0; m < args.matrix_count; ++m) {
          const Matrix<A>& matrix = args.matrices[m];
          if (matrix.offset != offset) continue;
          copy_pixels<A>(b.y + matrix.column, width, block.pixels, matrix.rows,
                         output + (image * pixels + begin) * args.outputs + matrix.output, args.outputs);
        }
      }
    }
    for (int64_t m = 0; stats && m < args.matrix_count; ++m) {
      const Matrix<A>& matrix = args.matrices[m];
      b.stats[matrix.offset].finish(matrix.column, matrix.rows, b.table);
      double* to = stats + image * 2 * args.outputs + matrix.output;
      for (int64_t i = 0; i < 2; ++i) {
        std::memcpy(to + i * args.outputs, b.table + i * matrix.rows, matrix.rows * sizeof(double));
      }
    }
  }
}

template <typename T>
void preprocess_backward(const Preprocess<T>& args, const PreprocessGrad<T>& grad, accumulate_t<T>* partial,
                         int64_t chunks, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  cpu::ScratchArena scratch;
  const BackwardBuffers<A> b(scratch, args);
  std::memset(b.z, 0, b.pixels * b.z_width * sizeof(A));  // its padding stays zero
  for (int offset = 0; offset < 2; ++offset) {
    std::memset(b.weights[offset], 0, args.group_outputs[offset] * b.z_width * sizeof(A));
  }
  for (int64_t m = 0; m < args.matrix_count; ++m) {
    const Matrix<A>& matrix = args.matrices[m];
    for (int64_t row = 0; row < matrix.rows; ++row) {
      const A* from = matrix.weights + row * args.channels;
      A* to = b.weights[matrix.offset] + (matrix.column + row) * b.z_width;
      for (int64_t c = 0; c < args.channels; ++c) to[c] = from[c];
    }
  }
  const int64_t pixels = args.output_height * args.output_width;
  for (int64_t chunk = first; chunk < last; ++chunk) {
    for (int offset = 0; offset < 2; ++offset) {
      std::memset(b.grad_weights[offset], 0, args.group_outputs[offset] * b.z_width * sizeof(A));
    }
    for (int64_t image = chunk * args.images / chunks; image < (chunk + 1) * args.images / chunks; ++image) {
      for (int64_t begin = 0; begin < pixels; begin += b.pixels) {
        const Block block{image, begin, pixels - begin < b.pixels ? pixels - begin : b.pixels};
        // A single matrix has its gradient as it comes.
        const bool direct = args.matrix_count == 1;
        gather_grads(args, grad, block, direct ? b.g : b.all, direct ? b.g_width : args.outputs);
        for (int64_t offset = 0; offset < args.stride; ++offset) {
          const int64_t outputs = args.group_outputs[offset];
          if (outputs == 0) continue;
          gather_states(args, block, offset, b.z, b.z_width);
          if (!direct) select_grads(args, b.all, block.pixels, offset, b.g, b.g_width);
          Prefetcher prefetcher;
          prefetch_grads(args, grad, block, prefetcher);
          const Lines rows{1, block.pixels, 0, 0};
          pointwise(b.g, b.g_width, outputs, b.weights[offset], b.z_width, rows, b.gx, prefetcher);
          pointwise_grad_weights(b.g, b.g_width, outputs, b.z, b.z_width, block.pixels, b.grad_weights[offset],
                                 prefetcher);
          scatter_grads(args, grad.grad_states, block, offset, b.gx, b.z, b.z_width);
        }
        clear_unread(args, grad.grad_states, block);
      }
    }
    for (int64_t m = 0; m < args.matrix_count; ++m) {
      const Matrix<A>& matrix = args.matrices[m];
      for (int64_t row = 0; row < matrix.rows; ++row) {
        const A* from = b.grad_weights[matrix.offset] + (matrix.column + row) * b.z_width;
        A* to = partial + (chunk * args.outputs + matrix.output + row) * args.channels;
        for (int64_t c = 0; c < args.channels; ++c) to[c] = from[c];
      }
    }
  }
}

template <typename T>
void preprocess_merge(const Preprocess<T>& args, const accumulate_t<T>* partial, int64_t chunks,
                      accumulate_t<T>* const* grad_weights, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  const int64_t size = args.outputs * args.channels;
  for (int64_t row = first; row < last; ++row) {  // of all matrices
    const auto* matrix = args.matrices;
    while (row >= matrix->output + matrix->rows) ++matrix;
    A* to = grad_weights[matrix - args.matrices] + (row - matrix->output) * args.channels;
    for_runs<double>(args.channels, [&]<int W>(int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; c += W) {
        Run<double, W> sum{};
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          sum += __builtin_convertvector((load_run<W, A>(partial + chunk * size + row * args.channels + c)),
                                         Run<double, W>);
        }
        store_run<W, A>(to + c, __builtin_convertvector(sum, Run<A, W>));
      }
    });
  }
}

#define INSTANTIATE(T)                                                                                           \
  template void preprocess_forward(const Preprocess<T>&, T*, double*, int64_t, int64_t);                         \
  template void preprocess_backward(const Preprocess<T>&, const PreprocessGrad<T>&, accumulate_t<T>*, int64_t,   \
                                    int64_t, int64_t);                                                           \
  template void preprocess_merge(const Preprocess<T>&, const accumulate_t<T>*, int64_t, accumulate_t<T>* const*, \
                                 int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
