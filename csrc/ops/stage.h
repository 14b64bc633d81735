// stage: several candidate stages normalise → ReLU → depthwise → pointwise, with the statistics of what comes out.
// The contract of its CPU and CUDA kernels.
//
// Either one input is read by all stages (the candidates of all edges that leave a state), or each stage has an input
// of its own (the second stages of separable convolutions), which may come raw, with the mean and the inverse standard
// deviation that normalise it. Images are [N, C, H, W] with pixels of C channels `x_stride` elements apart; outputs are
// dense. N = P · images, individual after individual.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "ops/accumulate.h"

struct CUstream_st;

namespace fastnas {

/// Bounds the tables that kernels take.
constexpr int kMaxStages = 64;

template <typename T>
struct Stage {
  using A = accumulate_t<T>;
  int64_t count;        // N
  int64_t individuals;  // P
  int64_t channels;     // C
  int64_t height, width, out_height, out_width;
  int64_t stride;
  int stages;   // J
  bool shared;  // one input for all stages
  const T* x[kMaxStages];
  int64_t x_stride[kMaxStages];
  const A* mean;  // of the inputs, [I, P, C]; null where they are read as they are
  const A* rstd;
  const A* depthwise[kMaxStages];  // [C, 1, kernel, kernel]
  const A* pointwise[kMaxStages];  // [C, C, 1, 1]
  int64_t kernel[kMaxStages];
  int64_t dilation[kMaxStages];

  int inputs() const { return shared ? 1 : stages; }
};

template <typename T>
struct StageOutputs {
  T* y[kMaxStages];
};

/// The gradient of output j is grad, or what bn_coeffs[j] makes of it (ops/bn_backward.h).
template <typename T>
struct StageGrads {
  using A = accumulate_t<T>;
  const T* grad[kMaxStages];
  int64_t grad_stride[kMaxStages];
  const T* y[kMaxStages];  // with bn_coeffs only
  int64_t y_stride[kMaxStages];
  const A* bn_coeffs;     // [J, 4, C] or null
  T* grad_x[kMaxStages];  // [N, C, H, W] of each input; where that is normalised, with respect to the normalised input
  A* grad_depthwise[kMaxStages];
  A* grad_pointwise[kMaxStages];
};

/// Items of work to share among threads.
struct StageWork {
  int64_t forward, gradient;
  int64_t groups;  // whose weights are prepared, and whose gradients are merged
};

}  // namespace fastnas

FASTNAS_CPU_VARIANTS(
    template <typename T> StageWork stage_work(const Stage<T>& args);
    // The weights of groups first..last as kernels read them, made once per call.
    template <typename T> int64_t stage_prepared_bytes(const Stage<T>& args);
    template <typename T> void stage_prepare(const Stage<T>& args, void* prepared, int64_t first, int64_t last);
    // Work items first..last of the forward pass. table [N, J, 2, C]: see cpu/statistics.h; null without statistics.
    template <typename T> void stage_forward(const Stage<T>& args, const void* prepared, const StageOutputs<T>& out,
                                             double* table, int64_t first, int64_t last);
    // Work items first..last of the gradient. partial: stage_partial_bytes; bn_sums [N, I, 2, C]: sum_dy and
    // sum_dy_xhat of each image where inputs are normalised, else null.
    template <typename T> int64_t stage_partial_bytes(const Stage<T>& args);
    template <typename T> void stage_grad(const Stage<T>& args, const void* prepared, const StageGrads<T>& grads,
                                          void* partial, double* bn_sums, int64_t first, int64_t last);
    // Merges the parts of groups first..last into grad_depthwise and grad_pointwise.
    template <typename T> void stage_grad_merge(const Stage<T>& args, const StageGrads<T>& grads, const void* partial,
                                                int64_t first, int64_t last);)

namespace fastnas::cuda {

// All pointers, the tables' too, are device memory; errors of a launch throw std::runtime_error. `workspace` has as
// many bytes as the function above it says, at a boundary of 16. No atomics: the same bits every time.

template <typename T>
int64_t stage_forward_workspace(const Stage<T>& args, bool statistics);

/// mean and variance [J, P, C], or null where they are not wanted.
template <typename T>
void stage_forward(const Stage<T>& args, const StageOutputs<T>& out, void* workspace, accumulate_t<T>* mean,
                   accumulate_t<T>* variance, CUstream_st* stream);

template <typename T>
int64_t stage_grad_workspace(const Stage<T>& args, const StageGrads<T>& grads);

/// bn_sums [I, 2, C]: sum_dy and sum_dy_xhat where inputs are normalised, else null.
template <typename T>
void stage_grad(const Stage<T>& args, const StageGrads<T>& grads, void* workspace, accumulate_t<T>* bn_sums,
                CUstream_st* stream);

}  // namespace fastnas::cuda
