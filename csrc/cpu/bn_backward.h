// The gradient of BatchNorm's input, which every backward kernel applies where it reads the gradient of an output.
//
// BatchNorm with weight w gives w·x̂, x̂ = rstd·(y − mean), of N values y a channel. With sum_dy = Σ dy and
// sum_dy_xhat = Σ dy·x̂, the gradient of its input is
//
//   w·rstd·(dy − sum_dy/N − x̂·sum_dy_xhat/N)   with the statistics of the batch, which depend on y themselves,
//   w·rstd·dy                                  with constant statistics.
//
// The sums are known only after a whole pass over dy, so kernels get coefficients, one of each for a channel, and a
// gradient is a few multiply-adds on values that are in registers anyway; it never gets a pass of its own. V is a
// vector (vec.h) or a run of channels (channels.h). ops/bn_backward.h has the formulas; here are the ways to round
// them: with folded coefficients, the part that is added after a sum over several consumers, and from the sums
// themselves.
#pragma once

#include "cpu/channels.h"
#include "ops/bn_backward.h"

namespace fastnas::FASTNAS_ISA {

/// From folded coefficients: scale = w·rstd, slope = -w·rstd²·sum_dy_xhat/N, offset = -w·rstd·sum_dy/N.
template <typename V>
struct BnBackward {
  V scale, slope, mean, offset;

  V operator()(const V& dy, const V& y) const { return bn_backward(dy, y, scale, slope, mean, offset); }
};

/// What the statistics of the batch add to scale·dy, where a kernel sums that over several consumers first.
template <typename V>
struct BnBackwardStatistics {
  V slope, mean, offset;

  V operator()(const V& y) const { return bn_backward_statistics(y, slope, mean, offset); }
};

/// From the sums: scale = w·rstd, mean_dy = sum_dy/N, slope = w·rstd²·sum_dy_xhat/N.
template <typename V>
struct BnBackwardSums {
  V scale, mean_dy, slope, mean;

  V operator()(const V& dy, const V& y) const { return scale * (dy - mean_dy) - slope * (y - mean); }
};

/// W channels from channel c on of a table [4, channels] of scale, slope, mean and offset.
template <int W, typename A>
inline BnBackward<Run<A, W>> load_bn_backward(const A* table, int64_t channels, int64_t c) {
  return {load_run<W, A>(table + c), load_run<W, A>(table + channels + c), load_run<W, A>(table + 2 * channels + c),
          load_run<W, A>(table + 3 * channels + c)};
}

}  // namespace fastnas::FASTNAS_ISA
