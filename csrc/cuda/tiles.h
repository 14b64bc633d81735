// How the kernels of separable convolutions (stage, edge_sum) cut images: tiles for blocks, strips for threads, and the
// vectors of channels in which both are read and written.
//
// A strip is what one thread computes: W channels of kRows output pixels below each other. Threads run over the
// channels of a pixel first, then along the row, so neighbours touch neighbouring memory. All channels of a strip are
// in one warp.
#pragma once

#include <cstdint>
#include <limits>

#include "cuda/device.h"
#include "ops/accumulate.h"

namespace fastnas::cuda {
namespace {

constexpr int kRows = 4;  // of a strip
constexpr int kBlockThreads = 256;
constexpr int64_t kDeclaredBytes = 3 << 10;   // most shared memory that a kernel declares beside its tile
constexpr int64_t kScratchBytes = 256 << 20;  // of such a workspace, about

/// Channels of a thread where memory allows: 16 bytes of float. One of double, whose vectors registers cannot hold.
template <typename T>
constexpr int kVector = sizeof(accumulate_t<T>) == sizeof(float) ? 4 : 1;

/// Whether this many channels can be moved at once.
template <typename T>
bool wide_at(const T* pointer, int64_t stride) {
  return stride % kVector<T> == 0 && reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * kVector<T>) == 0;
}

/// Values that end at a boundary of 16 bytes, whatever their type.
inline __host__ __device__ int64_t padded(int64_t values) { return (values + 3) / 4 * 4; }

inline int power_of_two(int64_t at_least, int most) {
  int result = 1;
  while (result < at_least && result < most) result *= 2;
  return result;
}

/// Of a tile in the shared memory of a block; one that needs more lies in a workspace. Cards of compute capability 8.6,
/// 8.9 and 12.0 have 99 KiB for a block, 8.0 has 163, 9.0 has 227.
inline int64_t most_shared_bytes() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kDeclaredBytes;
}

// --- tiles -----------------------------------------------------------------------------------------------------------

struct Place {
  int64_t image, top, left;  // of a tile: its first output pixel
};

/// How the output pixels of all images are cut into tiles, one for a block at a time.
struct Tiling {
  int lanes;          // threads side by side for the channels of a strip: a power of two, at most a warp
  int threads;        // of a block
  int rows, columns;  // of a tile; rows are a multiple of kRows
  int stride;
  int padding;                   // input pixels beyond a tile, on each side
  int64_t height, width;         // of an output image
  int64_t down, across, images;  // tiles of an image, images
  // What follows from these; kernels read it from constant memory, which costs no registers.
  int64_t tiles;
  int strips, strips_at_once;  // of a tile; that a block has threads for
  int in_rows, in_columns;     // input pixels that the outputs of a tile depend on

  __device__ Place place(int64_t tile) const {
    const int64_t in_image = tile % (down * across);
    return {tile / (down * across), in_image / across * rows, in_image % across * columns};
  }
  /// Pixels of a tile that are in the image.
  __device__ int64_t pixels(const Place& at) const {
    return min(int64_t(rows), height - at.top) * min(int64_t(columns), width - at.left);
  }
};

/// Tiles about as wide as they are high, for blocks of at most `most_threads`, `threads_of` for each lane of a strip.
inline Tiling tiling_of(int64_t images, int64_t height, int64_t width, int64_t vectors, int stride, int64_t padding,
                        int most_threads, int threads_of) {
  Tiling result{};
  result.lanes = power_of_two(vectors, kWarp);
  const int most = most_threads / threads_of / result.lanes;
  result.rows = kRows;
  result.columns = 1;
  for (;;) {
    const bool wider = result.columns < width, higher = result.rows < height;
    if (2 * (result.rows / kRows * result.columns) > most || !(wider || higher)) break;
    (wider && (result.columns <= result.rows || !higher) ? result.columns : result.rows) *= 2;
  }
  if (result.columns > width) result.columns = width > 0 ? static_cast<int>(width) : 1;
  result.stride = stride;
  result.padding = static_cast<int>(padding);
  result.height = height;
  result.width = width;
  result.images = height * width > 0 ? images : 0;
  result.down = ceil_div(height, result.rows);
  result.across = ceil_div(width, result.columns);
  result.tiles = result.images * result.down * result.across;
  result.strips = result.rows / kRows * result.columns;
  result.threads = (result.strips * threads_of * result.lanes + kWarp - 1) / kWarp * kWarp;
  result.strips_at_once = result.threads / result.lanes;
  result.in_rows = result.rows * stride + 2 * result.padding;
  result.in_columns = result.columns * stride + 2 * result.padding;
  return result;
}

/// Rows of a strip that are in the image, of the `strips` of a tile.
__device__ __forceinline__ int rows_in_image(const Tiling& tiling, const Place& at, int strip, int strips) {
  if (strip >= strips || at.left + strip % tiling.columns >= tiling.width) return 0;
  const int64_t left = tiling.height - at.top - strip / tiling.columns * kRows;
  return left < 0 ? 0 : left < kRows ? static_cast<int>(left) : kRows;
}

inline __host__ __device__ int padding_of(int64_t kernel, int64_t dilation) {
  return static_cast<int>(dilation * (kernel - 1) / 2);
}

/// Kernels count the values of a tile in 32 bits.
inline void check_tile(const char* name, int64_t rows, int64_t columns, int64_t channels) {
  if (rows * columns <= std::numeric_limits<int>::max() / channels) return;
  throw std::runtime_error(std::string("fastnas::") + name + ": windows reach too far for " + std::to_string(channels) +
                           " channels: a tile of " + std::to_string(rows) + " × " + std::to_string(columns) +
                           " pixels has more than 2³¹ values");
}

/// Where the tiles of a block lie: in shared memory, or where that is too small in its part of a workspace.
template <bool Shared, typename A>
__device__ __forceinline__ A* block_memory(A* scratch, int64_t size) {
  if constexpr (Shared) return dynamic_shared<A>();
  const int64_t block = blockIdx.x + int64_t(gridDim.x) * (blockIdx.y + int64_t(gridDim.y) * blockIdx.z);
  return scratch + block * size;
}

/// Blocks in x, of `tiles` that each takes one after the other, so that the workspace stays bounded.
inline int64_t scratch_blocks(int64_t tiles, int64_t others, int64_t bytes) {
  const int64_t most = kScratchBytes / (others * bytes);
  return most < 1 ? 1 : most < tiles ? most : tiles;
}

/// Fills `channels` values of rows × columns pixels, `pixel` values apart, with value(y, x, c), zeros outside of the
/// image. (top, left): the image's pixel that comes first.
template <int W, typename A, typename Value>
__device__ __forceinline__ void fill_tile(A* tile, int rows, int columns, int pixel, int channels, int64_t top,
                                          int64_t left, int64_t height, int64_t width, int lanes, const Value& value) {
  for (int p = threadIdx.x / lanes; p < rows * columns; p += blockDim.x / lanes) {
    const int64_t y = top + p / columns, x = left + p % columns;
    const bool inside = y >= 0 && y < height && x >= 0 && x < width;
    for (int c = threadIdx.x % lanes * W; c < channels; c += lanes * W) {
      Vec<A, W> v = {};
      if (inside) v = value(y, x, c);
      store(tile + int64_t(p) * pixel + c, v);
    }
  }
}

// --- vectors ---------------------------------------------------------------------------------------------------------

template <int W, typename T>
__device__ __forceinline__ Vec<accumulate_t<T>, W> load_wide(const T* source) {
  const auto narrow = load<W>(source);
  Vec<accumulate_t<T>, W> result;
#pragma unroll
  for (int i = 0; i < W; ++i) result.values[i] = accumulate_t<T>(narrow.values[i]);
  return result;
}

template <typename T, int W, typename A>
__device__ __forceinline__ void store_narrow(T* target, const A (&values)[W]) {
  Vec<T, W> result;
#pragma unroll
  for (int i = 0; i < W; ++i) result.values[i] = T(values[i]);
  store(target, result);
}

template <int W, typename A>
__device__ __forceinline__ void store_values(A* target, const A (&values)[W]) {
  store_narrow<A, W, A>(target, values);
}

/// Sum over the lanes of a warp that are a multiple of `lanes` apart; every lane has it.
template <typename A>
__device__ __forceinline__ A sum_over_strips(A value, int lanes) {
  for (int offset = lanes; offset < kWarp; offset *= 2) value += __shfl_xor_sync(kFullMask, value, offset);
  return value;
}

}  // namespace
}  // namespace fastnas::cuda
