#include "cuda/device.h"
#include "ops/philox.h"

namespace fastnas::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    philox_kernel(const __grid_constant__ Philox args, int64_t* __restrict__ words) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < args.count; i += step) {
    const PhiloxWords drawn = philox_words(args.key, args.stream, args.positions[i]);
    store(words + 4 * i, Vec<int64_t, 2>{drawn.values[0], drawn.values[1]});
    store(words + 4 * i + 2, Vec<int64_t, 2>{drawn.values[2], drawn.values[3]});
  }
}

}  // namespace

void philox(const Philox& args, int64_t* words, CUstream_st* stream) {
  if (args.count == 0) return;
  launch("philox", philox_kernel, dim3(blocks_of(ceil_div(args.count, kThreads))), kThreads, 0, stream, args, words);
}

}  // namespace fastnas::cuda
