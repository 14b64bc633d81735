#include "cuda/device.h"
#include "ops/pool_tables.h"

namespace fastnas::cuda {
namespace {

constexpr int kThreads = 128;  // of one block at least, or the compiler spills to make room for more

// A block of y for each place.
template <typename A>
__global__ void __launch_bounds__(kThreads, 1) tables_kernel(const __grid_constant__ PoolTables<A> args) {
  for (int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x; c < args.channels;
       c += int64_t(gridDim.x) * kThreads) {
    pool_table(args, blockIdx.y, c);
  }
}

}  // namespace

template <typename A>
void pool_tables(const PoolTables<A>& args, CUstream_st* stream) {
  const dim3 grid(blocks_of(ceil_div(args.channels, kThreads)), static_cast<unsigned>(args.places()));
  launch("pool_tables", tables_kernel<A>, grid, kThreads, 0, stream, args);
}

#define INSTANTIATE(A) template void pool_tables(const PoolTables<A>&, CUstream_st*);
INSTANTIATE(double)
INSTANTIATE(float)

}  // namespace fastnas::cuda
