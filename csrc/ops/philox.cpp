#include "ops/philox.h"

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

// --- checks ----------------------------------------------------------------------------------------------------------

void check(const Tensor& positions) {
  STD_TORCH_CHECK(positions.dim() == 1 && positions.scalar_type() == ScalarType::Long,
                  "fastnas::philox: positions must be int64 [n], got shape ", shape_of(positions),
                  positions.scalar_type() == ScalarType::Long ? "" : " of another dtype");
  check_extent("fastnas::philox", {"positions"}, positions);
}

// --- kernels ---------------------------------------------------------------------------------------------------------

// Starting a thread pays from about this many positions on.
constexpr int64_t kGrain = 1 << 16;

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  void forward(const Philox& args, int64_t* words) const {
    parallel_for(0, args.count, kGrain,
                 [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(philox, args, words, first, last); });
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  void forward(const Philox& args, int64_t* words) const { cuda::philox(args, words, stream()); }
};

// --- operator --------------------------------------------------------------------------------------------------------

template <typename Backend>
Tensor forward(const Tensor& positions, int64_t key, int64_t stream) {
  check(positions);
  const Backend backend(positions);
  const Tensor dense = as_contiguous(positions);
  Tensor words = empty(positions, {positions.size(0), 4}, MemoryFormat::contiguous, ScalarType::Long);
  backend.forward(Philox{dense.const_data_ptr<int64_t>(), positions.size(0), key, stream},
                  words.mutable_data_ptr<int64_t>());
  return words;
}

}  // namespace

FASTNAS_SCHEMAS(m) { m.def("philox(Tensor positions, int key, int stream) -> Tensor"); }

FASTNAS_IMPLEMENTATIONS(m, Backend) { m.impl("philox", TORCH_BOX(&forward<Backend>)); }

}  // namespace fastnas
