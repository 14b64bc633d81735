// mixed_sum: result[p] = Σ_k weights[p, k] · outputs[k][p]. The contract of its CPU and CUDA kernels.
//
// Nothing here knows torch: pointers are dense, and all have one memory format (contiguous or channels-last),
// so a kernel sees flat runs of N elements.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "ops/accumulate.h"

struct CUstream_st;

namespace fastnas {

/// Bounds the pointer table that CUDA kernels take by value.
constexpr int kMaxCandidates = 64;

template <typename T>
struct MixedSum {
  const T* outputs[kMaxCandidates];  // each [P, N], or [1, N] where shared; unused by grad_outputs
  bool shared[kMaxCandidates];       // one output serves all individuals
  const accumulate_t<T>* weights;    // [P, K]; unused by grad_weights
  int64_t individuals;               // P
  int64_t candidates;                // K
  int64_t elements;                  // N, of one individual's output
};

template <typename T>
struct MixedSumGrads {
  T* outputs[kMaxCandidates];  // as in MixedSum
};

/// CPU work is cut into tiles of at most this many elements; results depend on the tiles, never on the threads.
constexpr int64_t kMixedSumTile = 2048;

inline int64_t mixed_sum_tiles(int64_t elements) { return (elements + kMixedSumTile - 1) / kMixedSumTile; }

}  // namespace fastnas

FASTNAS_CPU_VARIANTS(
    // Tiles first..last of P · tiles(N).
    template <typename T> void mixed_sum_forward(const MixedSum<T>& args, T* result, int64_t first, int64_t last);
    // Tiles first..last of tiles(N): one tile covers all individuals, whose gradients a shared output sums.
    template <typename T> void mixed_sum_grad_outputs(const MixedSum<T>& args, const T* grad,
                                                      const MixedSumGrads<T>& grads, int64_t first, int64_t last);
    // Tiles first..last of P · tiles(N); tile t writes partial[t, :] (K values).
    template <typename T>
    void mixed_sum_grad_weights(const MixedSum<T>& args, const T* grad, double* partial, int64_t first, int64_t last);)

namespace fastnas::cuda {

// All pointers, the tables' too, are device memory. Asynchronous on `stream`; errors of the launch throw
// std::runtime_error.
template <typename T>
void mixed_sum_forward(const MixedSum<T>& args, T* result, CUstream_st* stream);

template <typename T>
void mixed_sum_grad_outputs(const MixedSum<T>& args, const T* grad, const MixedSumGrads<T>& grads, CUstream_st* stream);

/// Elements that one row of `partial` covers.
constexpr int64_t kMixedSumChunk = 8192;

/// partial [ceil(N / kMixedSumChunk), P, K] is scratch; grad_weights [P, K]. No atomics: the same bits every time.
template <typename T>
void mixed_sum_grad_weights(const MixedSum<T>& args, const T* grad, accumulate_t<T>* partial,
                            accumulate_t<T>* grad_weights, CUstream_st* stream);

}  // namespace fastnas::cuda
