#include "cuda/device.h"
#include "ops/norm_rows.h"

namespace fastnas::cuda {
namespace {

constexpr int kThreads = 128;

// Blocks of y for the rows.
template <typename A>
__global__ void __launch_bounds__(kThreads) rows_kernel(const __grid_constant__ NormRows<A> args, A* table) {
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < args.values; i += int64_t(gridDim.x) * kThreads) {
    norm_row(args, blockIdx.y, i, table);
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads) grad_kernel(const __grid_constant__ NormRowsGrad<A> args, A* coeffs) {
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < args.count; i += int64_t(gridDim.x) * kThreads) {
    norm_row_grad(args, i, coeffs);
  }
}

}  // namespace

template <typename A>
void norm_rows(const NormRows<A>& args, A* table, CUstream_st* stream) {
  const dim3 grid(blocks_of(ceil_div(args.values, kThreads)), static_cast<unsigned>(args.count));
  launch("norm_rows", rows_kernel<A>, grid, kThreads, 0, stream, args, table);
}

template <typename A>
void norm_rows_grad(const NormRowsGrad<A>& args, A* coeffs, CUstream_st* stream) {
  launch("norm_rows_grad", grad_kernel<A>, dim3(blocks_of(ceil_div(args.count, kThreads))), kThreads, 0, stream, args,
         coeffs);
}

#define INSTANTIATE(A)                                           \
  template void norm_rows(const NormRows<A>&, A*, CUstream_st*); \
  template void norm_rows_grad(const NormRowsGrad<A>&, A*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)

}  // namespace fastnas::cuda
