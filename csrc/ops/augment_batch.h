// augment_batch: gathers images of a uint8 set, crops them out of a padded frame, mirrors them, turns each value into a
// normalised one and cuts a hole, from one reading of the pixels that stay visible.
//
// What a value becomes stands in a table, so a result never depends on how a processor rounds.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

struct CUstream_st;

namespace fastnas {

/// Columns of `draws`.
enum Draw { kTop, kLeft, kFlip, kHoleRow, kHoleColumn, kDraws };

/// Entries of a channel's table.
constexpr int64_t kLevels = 256;

template <typename T>
struct AugmentBatch {
  const uint8_t* images;  // [N, H, W, C]
  const int64_t* index;   // [B], which image; null: image b at place b
  const int32_t* draws;   // [B, kDraws]; null: nothing is moved or cut
  const T* table;         // [C, kLevels]
  int64_t set;            // N
  int64_t count;          // B
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t padding;  // black pixels around an image, out of which [H, W] is cut at (top, left)
  int64_t cutout;   // side of the hole around (row, column); 0: none
};

}  // namespace fastnas

FASTNAS_CPU_VARIANTS(
    // Images first..last of B; result [B, H, W, C]. Every index lies in 0..N-1.
    template <typename T> void augment_batch(const AugmentBatch<T>& args, T* result, int64_t first, int64_t last);)

namespace fastnas::cuda {

// All pointers are device memory. Asynchronous on `stream`; errors of the launch throw std::runtime_error. An index
// outside 0..N-1 gives an image of NaN, since checking beforehand would wait for the device. H·W·C < 2³¹.
template <typename T>
void augment_batch(const AugmentBatch<T>& args, T* result, CUstream_st* stream);

}  // namespace fastnas::cuda
