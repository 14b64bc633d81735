// Pixels that are vectors of channels: how they are read and written, how wide, and sums over the pixels of a block.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "ops/accumulate.h"

namespace fastnas::cuda {
namespace {

constexpr int kThreads = 256;
/// Least blocks on a multiprocessor, the second of __launch_bounds__; without it the compiler aims at more and
/// spills.
template <typename T>
constexpr int kResident = sizeof(T) == 8 ? 1 : 2;

/// As many channels as make 16 bytes in the type of accumulation.
template <typename T>
constexpr int kFew = 16 / sizeof(accumulate_t<T>);

/// a / b where neither is negative; the hardware's 32 bits where they do, which take a quarter of the time.
inline __device__ int64_t divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// --- how wide --------------------------------------------------------------------------------------------------------

/// What the addresses of a call have in common.
class Alignment {
 public:
  /// Images of T whose pixels are `stride` elements apart.
  template <typename T>
  void add(const T* data, int64_t stride) {
    images_ |= reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(stride) * sizeof(T);
  }
  /// Tables of a value for each channel.
  template <typename... A>
  void add_tables(const A*... tables) {
    ((tables_ |= reinterpret_cast<uintptr_t>(tables)), ...);
  }
  /// Whether `channels` can be read `width` at a time, with the tables beside them.
  template <typename T>
  bool allows(int width, int64_t channels) const {
    return channels % width == 0 && images_ % (width * sizeof(T)) == 0 && tables_ % 16 == 0;
  }

 private:
  uintptr_t images_ = 0, tables_ = 0;
};

/// Calls f.template operator()<Width>() with the widest access: 16 bytes, 8 for types of 2 bytes with few channels, or
/// one value.
template <typename T, int Widest = kWide<T>, typename F>
void for_width(const Alignment& alignment, int64_t channels, const F& f) {
  if (alignment.allows<T>(Widest, channels)) return f.template operator()<Widest>();
  if constexpr (sizeof(T) == 2 && Widest == kWide<T>) {
    if (alignment.allows<T>(kWide<T> / 2, channels)) return f.template operator()<kWide<T> / 2>();
  }
  f.template operator()<1>();
}

// --- runs of `Width` channels ----------------------------------------------------------------------------------------

/// Several accesses where one is too narrow, as for float tables beside channels of 2 bytes.
template <int Width, typename T>
__device__ __forceinline__ Vec<accumulate_t<T>, Width> read(const T* from) {
  constexpr int kPart = Width < kWide<T> ? Width : kWide<T>;
  Vec<accumulate_t<T>, Width> result;
#pragma unroll
  for (int i = 0; i < Width; i += kPart) {
    const auto part = load<kPart>(from + i);
#pragma unroll
    for (int j = 0; j < kPart; ++j) result.values[i + j] = accumulate_t<T>(part.values[j]);
  }
  return result;
}

template <typename T, int Width, typename A>
__device__ __forceinline__ void write(T* to, const A (&values)[Width]) {
  constexpr int kPart = Width < kWide<T> ? Width : kWide<T>;
#pragma unroll
  for (int i = 0; i < Width; i += kPart) {
    Vec<T, kPart> part;
#pragma unroll
    for (int j = 0; j < kPart; ++j) part.values[j] = T(values[i + j]);
    store(to + i, part);
  }
}

// --- sums over the pixels of a block ---------------------------------------------------------------------------------

/// A block in which `lanes` neighbours take the channels of one pixel, the next `lanes` those of the next, and so on
/// for `rows` pixels; threads that are left over stay idle.
struct Rows {
  int lanes, rows, lane, row;

  __device__ explicit Rows(int lanes)
      : lanes(lanes), rows(kThreads / lanes), lane(threadIdx.x % lanes), row(threadIdx.x / lanes) {}
  __device__ bool active() const { return row < rows; }

  /// Merges what row `from` has into row `to`, pair by pair in an order that is always the same, until row 0 has all.
  /// merge(to, from) takes threads. Every thread of the block calls this; it begins and ends with a barrier.
  template <typename Merge>
  __device__ __forceinline__ void fold(const Merge& merge) const {
    __syncthreads();
    for (int count = rows; count > 1;) {
      const int half = (count + 1) / 2;
      if (row + half < count) merge(int(threadIdx.x), int(threadIdx.x) + half * lanes);
      __syncthreads();
      count = half;
    }
  }
};

/// Σ over the rows of a table [rows, columns], for a warp of columns from `first` on, in an order that is always the
/// same: the total of column first + threadIdx.x in the threads of the first warp. Every thread of the block calls
/// this.
template <typename A>
__device__ __forceinline__ double sum_columns(const A* table, int64_t rows, int64_t columns, int64_t first) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ double totals[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  double total = 0;
  for (int64_t row = warp; row < rows && first + lane < columns; row += kWarps) {
    total += double(table[row * columns + first + lane]);
  }
  totals[warp][lane] = total;
  __syncthreads();
#pragma unroll
  for (int i = 1; i < kWarps; ++i) total += totals[i][lane];
  __syncthreads();
  return total;
}

/// Lanes for pixels of `vectors` vectors.
inline int lanes_of(int64_t vectors) { return static_cast<int>(vectors < kThreads ? vectors : kThreads); }

}  // namespace
}  // namespace fastnas::cuda
