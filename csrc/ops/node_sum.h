// node_sum: the weighted sum of all normalised candidates of a node's incoming edges, and the channels that bypass
// them. The contract of its kernels and the torch side.
//
// Nothing here knows torch. Images lie pixel after pixel, each a run of channels; with partial channels (g groups) the
// result's channel i·g + q is channel i of group q, and group 0 is the sum of the candidates. In a cell the previous
// node, prev_node, can replace the bypass of every earlier state: its channels from C on bypass this node, and so does
// what bypassed it, which its groups from 1 on hold.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "ops/accumulate.h"

struct CUstream_st;

namespace fastnas {

/// Bounds the tables of candidates, of bypasses and of what is added to a gradient.
constexpr int kMaxNodeInputs = 128;

template <typename T>
struct NodePixels {
  const T* data;   // [N, H·W] pixels, or [B, H·W] where shared
  int64_t stride;  // elements from one pixel to the next
  bool shared;     // one set of images serves all individuals
};

struct NodeShape {
  int64_t individuals;  // P
  int64_t images;       // B, of one individual; N = P·B
  int64_t pixels;       // H·W
  int64_t channels;     // C, of a candidate
  int64_t groups;       // g; the result has g·C channels, of which R = (g - 1)·C bypass the candidates
  int64_t tile;         // pixels that are worked on at a time
  int64_t tiles;        // in an image
};

template <typename T>
struct NodeSum {
  NodePixels<T> candidates[kMaxNodeInputs];  // y_k, C channels
  NodePixels<T> bypass[kMaxNodeInputs];      // R channels
  NodePixels<T> prev_node;                   // g·C channels; no data: there is none. Unused by the gradients
  const accumulate_t<T>* mean;               // [K, P, C]
  const accumulate_t<T>* rstd;               // [K, P, C]
  const accumulate_t<T>* weights;            // [P, K]; unused by node_sum_grad
  const accumulate_t<T>* bypass_weights;     // [P, E], or null for ones; unused by the gradients
  int64_t candidate_count;                   // K
  int64_t bypass_count;                      // E
  NodeShape shape;
};

template <typename T>
struct NodeSumGrads {
  const accumulate_t<T>* sum_dy;       // [C], of group 0 of the gradient, which all candidates share
  const accumulate_t<T>* sum_dy_xhat;  // [K, C], of it and the normalised candidate; see ops/bn_backward.h
  bool normalized[kMaxNodeInputs];     // statistics are those of the batch: they, too, depend on y_k
  T* candidates[kMaxNodeInputs];       // [N, H·W, C]
};

template <typename T>
struct BypassGrad {
  NodePixels<T> seen_grad;                // C channels, those that the candidates see; no data: zeros
  NodePixels<T> grads[kMaxNodeInputs];    // g·C channels, shuffled
  NodePixels<T> addends[kMaxNodeInputs];  // g·C channels
  const accumulate_t<T>* weights;         // [grads]
  T* grad_group0;                         // [N, H·W, C], of the result; only with of_prev_node
  int64_t grad_count;
  int64_t addend_count;
  bool of_prev_node;  // the result is the gradient of a prev_node: shuffled, with a bypass of its own
  NodeShape shape;
};

}  // namespace fastnas

FASTNAS_CPU_VARIANTS(
    // result [N, H·W, g·C], pixels `stride` apart; items first..last of B · tiles · P, individuals fastest: they share
    // a tile of a candidate.
    template <typename T>
    void node_sum_forward(const NodeSum<T>& args, T* result, int64_t stride, int64_t first, int64_t last);
    // grad: g·C channels; its group 0 goes to grad_group0 [N, H·W, C], which is not written if g is 1. Images
    // first..last of N; image i writes partial[i, :]: sum_dy [C], Σ dy (y_k - mean_k) [K, C], Σ of the other groups ·
    // bypass_e [E].
    template <typename T> void node_sum_grad(const NodeSum<T>& args, const NodePixels<T>& grad, T* grad_group0,
                                             double* partial, int64_t first, int64_t last);
    // grad_group0: C channels; items first..last of N · tiles.
    template <typename T> void node_sum_grad_candidates(const NodeSum<T>& args, const NodePixels<T>& grad_group0,
                                                        const NodeSumGrads<T>& grads, int64_t first, int64_t last);
    // result [N, H·W, g·C]; items first..last of N · tiles.
    template <typename T> void bypass_grad(const BypassGrad<T>& args, T* result, int64_t first, int64_t last);)

namespace fastnas::cuda {

// All pointers, the tables' too, are device memory; `tile` and `tiles` of the shape are not used. Asynchronous on
// `stream`; errors of a launch throw std::runtime_error. No atomics: the same bits every time.

/// result [N, H·W, g·C], pixels `stride` apart.
template <typename T>
void node_sum_forward(const NodeSum<T>& args, T* result, int64_t stride, CUstream_st* stream);

/// Pixels that one row of `partial` covers.
inline int64_t node_sum_chunk(int64_t channels) { return channels < 8192 ? 8192 / channels : 1; }

/// grad_group0 [N, H·W, C] is not written if g is 1; partial [ceil(N·H·W / node_sum_chunk(C)), C + K·C + E] is scratch;
/// sum_dy [C], sum_dy_xhat [K, C], grad_bypass_weights [E].
template <typename T>
void node_sum_grad(const NodeSum<T>& args, const NodePixels<T>& grad, T* grad_group0, accumulate_t<T>* partial,
                   accumulate_t<T>* sum_dy, accumulate_t<T>* sum_dy_xhat, accumulate_t<T>* grad_bypass_weights,
                   CUstream_st* stream);

/// grad_group0: C channels.
template <typename T>
void node_sum_grad_candidates(const NodeSum<T>& args, const NodePixels<T>& grad_group0, const NodeSumGrads<T>& grads,
                              CUstream_st* stream);

/// result [N, H·W, g·C].
template <typename T>
void bypass_grad(const BypassGrad<T>& args, T* result, CUstream_st* stream);

}  // namespace fastnas::cuda
