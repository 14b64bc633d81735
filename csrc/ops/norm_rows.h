// norm_rows: rows of a cell's tables of mean, variance and rstd, from the statistics of its raw outputs; and rows of
// its table of coefficients, from the sums of the backward pass (bn_backward.h). The contract of its kernels.
//
// A row has C values for each individual, so calling torch for every table takes longer than computing a candidate.
// All tables are contiguous, A is float or double.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/host_device.h"

struct CUstream_st;

namespace fastnas {

/// Rows of one launch on a GPU, whose list is an argument of the kernel.
constexpr int kRowsOfLaunch = 64;

template <typename A>
struct NormRow {
  const A* mean;      // [P · C], or [C] for all individuals
  const A* variance;  // the same
  bool shared;        // whether they are [C]
  int64_t row;        // of the table
};

template <typename A>
struct NormRows {
  NormRow<A> rows[kRowsOfLaunch];
  int64_t count;
  int64_t individuals;  // P
  int64_t channels;     // C
  int64_t table_rows;
  A eps;
};

/// Channel c of an individual's row: table [3, rows, P, C] of mean, variance and rstd.
template <typename A>
static FASTNAS_HOST_DEVICE void norm_row(const NormRows<A>& args, int64_t of, int64_t individual, int64_t c, A* table) {
  const NormRow<A>& from = args.rows[of];
  A* const to = table + (from.row * args.individuals + individual) * args.channels + c;
  const int64_t distance = args.table_rows * args.individuals * args.channels;
  const int64_t j = from.shared ? c : individual * args.channels + c;
  to[0] = from.mean[j];
  to[distance] = from.variance[j];
#ifdef __CUDA_ARCH__
  to[2 * distance] = rsqrt(from.variance[j] + args.eps);
#else
  to[2 * distance] = A(1) / std::sqrt(from.variance[j] + args.eps);
#endif
}

/// Rows [K, C] at a distance of `stride` values; 0 where all are the same.
template <typename A>
struct RowsOf {
  const A* values;
  int64_t stride;
};

template <typename A>
struct NormRowsGrad {
  RowsOf<A> sum_dy;
  RowsOf<A> sum_dy_xhat;
  RowsOf<A> mean;
  RowsOf<A> rstd;
  RowsOf<A> scale;
  int64_t rows;      // K
  int64_t channels;  // C
  A share;           // -1 / the number of values behind the statistics; 0 where these are constants
};

/// Channel c of a row: coeffs [K, 4, C].
template <typename A>
static FASTNAS_HOST_DEVICE void norm_row_grad(const NormRowsGrad<A>& args, int64_t row, int64_t c, A* coeffs) {
  A* const to = coeffs + row * 4 * args.channels + c;
  const auto of = [row, c](const RowsOf<A>& rows) { return rows.values[row * rows.stride + c]; };
  const A scale = of(args.scale), share = scale * args.share;
  to[0] = scale;
  to[args.channels] = share * of(args.rstd) * of(args.sum_dy_xhat);
  to[2 * args.channels] = of(args.mean);
  to[3 * args.channels] = share * of(args.sum_dy);
}

}  // namespace fastnas

namespace fastnas::cuda {

// All pointers are device memory. Asynchronous on `stream`; errors of a launch throw std::runtime_error.

template <typename A>
void norm_rows(const NormRows<A>& args, A* table, CUstream_st* stream);
template <typename A>
void norm_rows_grad(const NormRowsGrad<A>& args, A* coeffs, CUstream_st* stream);

}  // namespace fastnas::cuda
