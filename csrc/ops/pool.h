// pool: average and maximum of the 3×3 windows of an image (padding 1, stride 1 or 2), both from one reading of it, and
// its gradient from those of all consumers. The contract of its kernels.
//
// Nothing here knows torch. Images are channels-last; `*_stride` is the distance of two pixels in elements, so that the
// first channels of a wider image are read in place.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "ops/accumulate.h"

struct CUstream_st;

namespace fastnas {

/// Bound the pointer tables of PoolGrad.
constexpr int kMaxPoolGrads = 64;
constexpr int kMaxPoolAddends = 64;

/// Windows along a side of `size` pixels: one is centred on every `stride`-th pixel.
inline int64_t pool_windows(int64_t size, int64_t stride) { return (size + stride - 1) / stride; }

template <typename T>
struct PoolImages {
  const T* pixels;  // [N, H, W, C]
  int64_t stride;
};

struct PoolShape {
  int64_t channels;  // C
  int64_t height;    // H
  int64_t width;     // W
  int64_t stride;    // of the windows, 1 or 2
};

template <typename T>
struct PoolGrad {
  PoolShape shape;
  PoolImages<T> x;                         // [N, H, W, C]
  PoolImages<T> grads[kMaxPoolGrads];      // each [N, H', W', C]
  int64_t grad_count;                      // G
  const accumulate_t<T>* scales;           // [2, G, C] of each gradient, for the average and for the maximum
  PoolImages<T> outputs[2];                // average and maximum, each [N, H', W', C]; read with bn_coeffs only
  const accumulate_t<T>* bn_coeffs;        // [2, 3, C]: all but the scale, see ops/bn_backward.h; or null
  const accumulate_t<T>* skip;             // [G, C], or null
  PoolImages<T> addends[kMaxPoolAddends];  // each [N, H, W, C]
  int64_t addend_count;
};

}  // namespace fastnas

FASTNAS_CPU_VARIANTS(
    // Images first..last. average, maximum [N, H', W', C] dense. table [N, 2, 2, C] receives (mean, Σ(y - mean)²) of
    // both; null if not wanted.
    template <typename T> void pool_forward(const PoolShape& shape, const PoolImages<T>& x, T* average, T* maximum,
                                            double* table, int64_t first, int64_t last);
    // Images first..last. result [N, H, W, C] dense.
    template <typename T> void pool_grad(const PoolGrad<T>& args, T* result, int64_t first, int64_t last);)

namespace fastnas::cuda {

// All pointers are device memory. Asynchronous on `stream`; errors of a launch throw std::runtime_error. No atomics:
// the same bits every time.

/// Rows of 1 + 4·C values that pool_forward needs for the statistics of one individual, at most.
int64_t pool_forward_blocks(const PoolShape& shape, int64_t images);

/// `images` of each individual. average, maximum [N, H', W', C] dense. table [P, pool_forward_blocks, 1 + 4·C] is
/// scratch for mean and variance [2, P, C]; all three are null if not wanted.
template <typename T>
void pool_forward(const PoolShape& shape, const PoolImages<T>& x, int64_t images, int64_t individuals, T* average,
                  T* maximum, double* table, accumulate_t<T>* mean, accumulate_t<T>* variance, CUstream_st* stream);

/// result [N, H, W, C] dense, of N images.
template <typename T>
void pool_grad(const PoolGrad<T>& args, int64_t images, T* result, CUstream_st* stream);

}  // namespace fastnas::cuda
