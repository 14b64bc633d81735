#include "ops/philox.h"

#include "ops/backend.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

template <typename Run>
Tensor philox(const Tensor& positions, int64_t key, int64_t stream, const Run& run) {
  STD_TORCH_CHECK(positions.dim() == 1 && positions.scalar_type() == ScalarType::Long,
                  "fastnas::philox: positions must be int64 [n], got shape ", shape_of(positions),
                  positions.scalar_type() == ScalarType::Long ? "" : " of another dtype");
  const Tensor p = stored(positions, Order::row_major);
  Tensor words = empty(positions, {positions.size(0), 4}, Order::row_major, ScalarType::Long);
  run(Philox{p.const_data_ptr<int64_t>(), positions.size(0), key, stream}, words.mutable_data_ptr<int64_t>());
  return words;
}

// Threads are worth their start from about this many positions.
constexpr int64_t kGrain = 4096;

Tensor philox_cpu(const Tensor& positions, int64_t key, int64_t stream) {
  return philox(positions, key, stream, [](const Philox& args, int64_t* words) {
    torch::stable::parallel_for(0, args.count, kGrain, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(philox, args, words, first, last);
    });
  });
}

#ifdef FASTNAS_CUDA
Tensor philox_cuda(const Tensor& positions, int64_t key, int64_t stream) {
  const DeviceScope device(positions);
  return philox(positions, key, stream,
                [&](const Philox& args, int64_t* words) { cuda::philox(args, words, device.stream()); });
}
#endif

}  // namespace
}  // namespace fastnas

FASTNAS_OPERATORS(m) { m.def("philox(Tensor positions, int key, int stream) -> Tensor"); }

FASTNAS_OPERATORS_CPU(m) { m.impl("philox", TORCH_BOX(&fastnas::philox_cpu)); }

#ifdef FASTNAS_CUDA
FASTNAS_OPERATORS_CUDA(m) { m.impl("philox", TORCH_BOX(&fastnas::philox_cuda)); }
#endif
