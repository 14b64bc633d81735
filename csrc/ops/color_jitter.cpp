#include "ops/color_jitter.h"

#include <algorithm>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

constexpr auto kOp = "fastnas::color_jitter";

// --- checks ----------------------------------------------------------------------------------------------------------

void check(const Tensor& images, const Tensor& factors) {
  STD_TORCH_CHECK(images.dim() == 4 && images.size(3) == 3 && images.scalar_type() == ScalarType::Byte, kOp,
                  ": images must be uint8 [B, H, W, 3], got shape ", shape_of(images),
                  images.scalar_type() == ScalarType::Byte ? "" : " of another dtype");
  STD_TORCH_CHECK(factors.dim() == 2 && factors.size(0) == images.size(0) && factors.size(1) == 4 &&
                      factors.scalar_type() == ScalarType::Float,
                  kOp, ": factors must be float32 [B, 4] with B = ", images.size(0), ", got shape ", shape_of(factors),
                  factors.scalar_type() == ScalarType::Float ? "" : " of another dtype");
  check_device(kOp, {"factors"}, factors, "images", images);
}

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  void forward(const ColorJitter& args, uint8_t* result) const {
    // Starting a thread pays from about this many pixels on.
    const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, args.pixels));
    torch::stable::parallel_for(0, args.count, grain, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(color_jitter, args, result, first, last);
    });
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  void forward(const ColorJitter& args, uint8_t* result) const { cuda::color_jitter(args, result, stream()); }
};

// --- operator --------------------------------------------------------------------------------------------------------

template <typename Backend>
Tensor forward(const Tensor& images, const Tensor& factors) {
  check(images, factors);
  const Backend backend(images);
  const Tensor dense = as_contiguous(images), dense_factors = as_contiguous(factors);
  Tensor result = empty(images, sizes_of(images), MemoryFormat::contiguous, ScalarType::Byte);
  backend.forward(ColorJitter{dense.const_data_ptr<uint8_t>(), dense_factors.const_data_ptr<float>(), images.size(0),
                              images.size(1) * images.size(2)},
                  result.mutable_data_ptr<uint8_t>());
  return result;
}

}  // namespace

FASTNAS_SCHEMAS(m) { m.def("color_jitter(Tensor images, Tensor factors) -> Tensor"); }

FASTNAS_IMPLEMENTATIONS(m, Backend) { m.impl("color_jitter", TORCH_BOX(&forward<Backend>)); }

}  // namespace fastnas
