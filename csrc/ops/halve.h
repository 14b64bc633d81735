// halve: the channels of a state that bypass the candidates of an edge of stride 2, as a 2×2 maximum, and its gradient
// beside that of the channels that the candidates see. The contract of its kernels.
//
// Images are channels-last; strides are distances of two pixels in elements. Windows begin at even rows and columns,
// and are cut off at the edge of an odd size.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "ops/accumulate.h"
#include "ops/host_device.h"

struct CUstream_st;

namespace fastnas {

template <typename T>
struct Halve {
  const T* x;  // [N, H, W, R]: from the first bypassing channel on
  int64_t stride;
  int64_t images;    // N
  int64_t channels;  // R
  int64_t height;    // H
  int64_t width;     // W

  FASTNAS_HOST_DEVICE int64_t rows() const { return (height + 1) / 2; }
  FASTNAS_HOST_DEVICE int64_t columns() const { return (width + 1) / 2; }
};

template <typename T>
struct HalveGrad {
  const T* grad;  // [N, H', W', R]
  int64_t grad_stride;
  const T* seen;  // [N, H, W, S]
  int64_t seen_stride;
  int64_t seen_channels;  // S
};

}  // namespace fastnas

FASTNAS_CPU_VARIANTS(
    // Rows first..last of N · H'. result [N, H', W', R] dense.
    template <typename T> void halve(const Halve<T>& args, T* result, int64_t first, int64_t last);
    // Rows first..last of N · H'. result [N, H, W, S + R] dense.
    template <typename T>
    void halve_grad(const Halve<T>& args, const HalveGrad<T>& grad, T* result, int64_t first, int64_t last);)

namespace fastnas::cuda {

// All pointers are device memory. Asynchronous on `stream`; errors of a launch throw std::runtime_error.

template <typename T>
void halve(const Halve<T>& args, T* result, CUstream_st* stream);
template <typename T>
void halve_grad(const Halve<T>& args, const HalveGrad<T>& grad, T* result, CUstream_st* stream);

}  // namespace fastnas::cuda
