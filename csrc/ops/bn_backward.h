// The backward pass of BatchNorm, one value at a time, for the kernels that read the gradient dy of BatchNorm's output
// and need the gradient dx of its input, a raw output x.
//
// For N values of a channel, x̂ = (x - mean) · rstd, sum_dy = Σ dy and sum_dy_xhat = Σ dy · x̂,
//   dx = γ · rstd · (dy - sum_dy / N - x̂ · sum_dy_xhat / N)
//      = scale · dy + slope · (x - mean) + offset,
//   scale = γ · rstd, slope = -γ · rstd² · sum_dy_xhat / N, offset = -γ · rstd · sum_dy / N.
// In the second form dx takes a few multiply-adds where dy is read anyway. Its coefficients are the rows of a table
// bn_coeffs [4, C]: scale, slope, mean, offset. A weight that scales dy is part of all but the mean. Where mean and
// rstd are constants, slope and offset are 0.
#pragma once

#include "ops/host_device.h"

namespace fastnas {

/// dx by the coefficients.
template <typename A>
static FASTNAS_HOST_DEVICE A bn_backward(A dy, A x, A scale, A slope, A mean, A offset) {
  return scale * dy + slope * (x - mean) + offset;
}

/// The part of dx that flows through mean and variance, for kernels that add scale · dy elsewhere.
template <typename A>
static FASTNAS_HOST_DEVICE A bn_backward_statistics(A x, A slope, A mean, A offset) {
  return slope * (x - mean) + offset;
}

/// dx by the sums, each divided by N: the first form.
template <typename A>
static FASTNAS_HOST_DEVICE A bn_backward_sums(A dy, A xhat, A scale, A mean_dy, A mean_dy_xhat) {
  return scale * (dy - mean_dy - xhat * mean_dy_xhat);
}

}  // namespace fastnas
