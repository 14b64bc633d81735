#include "cuda/device.h"
#include "ops/norm_rows.h"

namespace fastnas::cuda {
namespace {

constexpr int kThreads = 128;  // of one block at least, or the compiler spills to make room for more

// Blocks of y for the rows, of z for the individuals.
template <typename A>
__global__ void __launch_bounds__(kThreads, 1) rows_kernel(const __grid_constant__ NormRows<A> args, A* table) {
  for (int64_t p = blockIdx.z; p < args.individuals; p += gridDim.z) {
    for (int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x; c < args.channels;
         c += int64_t(gridDim.x) * kThreads) {
      norm_row(args, blockIdx.y, p, c, table);
    }
  }
}

// Blocks of y for the rows.
template <typename A>
__global__ void __launch_bounds__(kThreads, 1) grad_kernel(const __grid_constant__ NormRowsGrad<A> args, A* coeffs) {
  for (int64_t row = blockIdx.y; row < args.rows; row += gridDim.y) {
    for (int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x; c < args.channels;
         c += int64_t(gridDim.x) * kThreads) {
      norm_row_grad(args, row, c, coeffs);
    }
  }
}

}  // namespace

template <typename A>
void norm_rows(const NormRows<A>& args, A* table, CUstream_st* stream) {
  const dim3 grid(blocks_of(ceil_div(args.channels, kThreads)), static_cast<unsigned>(args.count),
                  blocks_of(args.individuals, kMaxBlocksBeside));
  launch("norm_rows", rows_kernel<A>, grid, kThreads, 0, stream, args, table);
}

template <typename A>
void norm_rows_grad(const NormRowsGrad<A>& args, A* coeffs, CUstream_st* stream) {
  const dim3 grid(blocks_of(ceil_div(args.channels, kThreads)), blocks_of(args.rows, kMaxBlocksBeside));
  launch("norm_rows_grad", grad_kernel<A>, grid, kThreads, 0, stream, args, coeffs);
}

#define INSTANTIATE(A)                                           \
  template void norm_rows(const NormRows<A>&, A*, CUstream_st*); \
  template void norm_rows_grad(const NormRowsGrad<A>&, A*, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)

}  // namespace fastnas::cuda
