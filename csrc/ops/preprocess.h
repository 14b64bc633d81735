// preprocess: 1×1 convolutions of relu(x), x being states side by side that are never put together in memory.
//
// Nothing here knows torch. Images are pixels that are vectors of channels, `stride` elements apart. Several matrices
// may give parts of the output, each reading the pixels at even or, with offset 1 and stride 2, at odd rows and
// columns: a factorized reduction. Those of one offset form a group, whose outputs a kernel computes at once.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "ops/accumulate.h"

struct CUstream_st;

namespace fastnas {

/// States, gradients or matrices of one call.
constexpr int kMaxParts = 64;

/// Images side by side, in the order of their channels.
template <typename T>
struct Parts {
  T* data[kMaxParts];  // each [N, height, width, channels]
  int64_t stride[kMaxParts];
  int64_t channels[kMaxParts];
  int64_t count;
};

template <typename A>
struct Matrix {
  const A* weights;  // [rows, Cin]
  int64_t rows;
  int64_t offset;  // reads x[offset::stride, offset::stride], zero beyond the edge
  int64_t output;  // first channel in the output
  int64_t column;  // first column among the outputs of its group
};

template <typename T>
struct Preprocess {
  Parts<const T> states;
  Matrix<accumulate_t<T>> matrices[kMaxParts];
  int64_t matrix_count;
  int64_t images;            // N
  int64_t channels;          // Cin, of all states
  int64_t outputs;           // of all matrices
  int64_t group_outputs[2];  // of the matrices of offset 0 and of offset 1
  int64_t stride;            // 1 or 2; with 1 an image may be taken as one long row
  int64_t height, width;
  int64_t output_height, output_width;
};

template <typename T>
struct PreprocessGrad {
  Parts<const T> grads;              // `outputs` channels in all
  const T* output;                   // [N, output_height, output_width, outputs]; null without bn_coeffs
  const accumulate_t<T>* bn_coeffs;  // [4, outputs], see ops/bn_backward.h; or null
  Parts<T> grad_states;              // dense
};

/// The gradient of the weights is summed over at most this many chunks of images, whatever the number of threads.
constexpr int64_t kPreprocessChunks = 16;

}  // namespace fastnas

FASTNAS_CPU_VARIANTS(
    // Images first..last of N: output [N, output_height, output_width, outputs]; stats [N, 2, outputs], or null.
    template <typename T>
    void preprocess_forward(const Preprocess<T>& args, T* output, double* stats, int64_t first, int64_t last);
    // Chunks first..last of `chunks`, into which the N images are cut; chunk k writes partial[k, outputs, Cin].
    template <typename T>
    void preprocess_backward(const Preprocess<T>& args, const PreprocessGrad<T>& grad, accumulate_t<T>* partial,
                             int64_t chunks, int64_t first, int64_t last);
    // Rows first..last of the outputs: their chunks add up to grad_weights, one for each matrix.
    template <typename T>
    void preprocess_merge(const Preprocess<T>& args, const accumulate_t<T>* partial, int64_t chunks,
                          accumulate_t<T>* const* grad_weights, int64_t first, int64_t last);)

namespace fastnas::cuda {

// All pointers, the tables' too, are device memory. Asynchronous on `stream`; errors of a launch throw
// std::runtime_error. No atomics: the same bits every time.

/// Rows of 1 + 2 · outputs values that preprocess_forward needs for the statistics of one individual.
template <typename T>
int64_t preprocess_forward_tiles(const Preprocess<T>& args, int64_t individuals);

/// output [N, output_height, output_width, outputs]. table [P, preprocess_forward_tiles, 1 + 2 · outputs] is scratch
/// for mean and variance [P, outputs]; all three are null if not wanted.
template <typename T>
void preprocess_forward(const Preprocess<T>& args, int64_t individuals, T* output, double* table, accumulate_t<T>* mean,
                        accumulate_t<T>* variance, CUstream_st* stream);

template <typename T>
struct PreprocessWeightGrads {
  accumulate_t<T>* weights[kMaxParts];  // of each matrix [rows, Cin]
};

/// Rows of `partial`.
template <typename T>
int64_t preprocess_grad_chunks(const Preprocess<T>& args);

/// partial [preprocess_grad_chunks, outputs, Cin] is scratch.
template <typename T>
void preprocess_grad(const Preprocess<T>& args, const PreprocessGrad<T>& grad, accumulate_t<T>* partial,
                     const PreprocessWeightGrads<T>& grad_weights, CUstream_st* stream);

}  // namespace fastnas::cuda
