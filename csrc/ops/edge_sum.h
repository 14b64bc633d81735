// edge_sum: for every edge that leaves a state, the weighted sum of its normalised candidates, where the statistics
// that normalise are constants. The contract of its kernels.
//
// Nothing here knows torch. All edges have the same candidates: J that convolve, each of one or two stages (normalise →
// ReLU → depthwise → pointwise), then the 3×3 average, the 3×3 maximum and, at stride 1, the state itself. Since a
// normalisation by constants is a scale and an offset, the sum of an edge is Σ scale_m ⊙ term_m + offset.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "ops/accumulate.h"

struct CUstream_st;

namespace fastnas {

/// Bound the tables that kernels take.
constexpr int kMaxSumEdges = 16;
constexpr int kMaxSumCandidates = 8;
constexpr int kMaxSumStages = 2 * kMaxSumCandidates;  // of one edge

template <typename T>
struct EdgeSum {
  using A = accumulate_t<T>;
  int64_t images;       // of the state
  int64_t individuals;  // P
  bool shared;          // the images serve all individuals; else they are P · B, individual after individual
  int64_t channels;     // C
  int64_t height, width, out_height, out_width;
  int64_t stride;  // of the first stages and of the pools
  int edges;       // E
  int candidates;  // J
  int stages;      // S of an edge, candidate after candidate
  int depth[kMaxSumCandidates];
  int64_t kernel[kMaxSumStages];
  int64_t dilation[kMaxSumStages];
  const T* x;                                       // [images, H, W] pixels of C channels
  int64_t x_stride;                                 // elements from one pixel to the next
  const A* depthwise[kMaxSumEdges][kMaxSumStages];  // [C, 1, kernel, kernel]
  const A* pointwise[kMaxSumEdges][kMaxSumStages];  // [C, C, 1, 1]
  const A* inner_scales;                            // [E, S - J, C], of the candidates that have a second stage
  const A* inner_offsets;                           // [E, S - J, C]
  const A* scales;                                  // [P, E, M, C], of M terms
  const A* offsets;                                 // [P, E, C]
  T* result[kMaxSumEdges];                          // [P · B, H', W', C]

  int terms() const { return candidates + 2 + (stride == 1); }  // M
};

}  // namespace fastnas

FASTNAS_CPU_VARIANTS(template <typename T> int64_t edge_sum_blocks(const EdgeSum<T>& args);
                     // The weights as the kernel reads them, made once per call.
                     template <typename T> int64_t edge_sum_prepared_bytes(const EdgeSum<T>& args);
                     template <typename T> void edge_sum_prepare(const EdgeSum<T>& args, void* prepared);
                     // Blocks first..last. A term whose scale is zero on all edges of a block is not computed.
                     template <typename T>
                     void edge_sum_forward(const EdgeSum<T>& args, const void* prepared, int64_t first, int64_t last);)

namespace fastnas::cuda {

// All pointers, the tables' too, are device memory; errors of a launch throw std::runtime_error.

/// Bytes of the workspace of edge_sum.
template <typename T>
int64_t edge_sum_workspace(const EdgeSum<T>& args);

/// A term whose scales are zero for all individuals that a block serves is not computed. workspace: at a boundary
/// of 16.
template <typename T>
void edge_sum(const EdgeSum<T>& args, void* workspace, CUstream_st* stream);

}  // namespace fastnas::cuda
