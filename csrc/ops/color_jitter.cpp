#include "ops/color_jitter.h"

#include <algorithm>
#include <cmath>

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
  STD_TORCH_CHECK(factors.device().is_cpu() || factors.device() == images.device(), kOp,
                  ": factors must be on the CPU or on the device of images");
  check_extent(kOp, {"images"}, images);
}

// Those of an image: three from 0 on, and turns of the hue.
void check_factors(const float* factors, int64_t count) {
  constexpr const char* kNames[] = {"brightness", "contrast", "saturation", "hue"};
  for (int64_t i = 0; i < 4 * count; ++i) {
    const bool hue = i % 4 == 3;
    STD_TORCH_CHECK(hue ? std::abs(factors[i]) <= 0.5f : std::isfinite(factors[i]) && factors[i] >= 0, kOp,
                    ": factors[", i / 4, ", ", i % 4, "] is ", factors[i], ", expected a ", hue ? "" : "finite ",
                    kNames[i % 4], hue ? " of -1/2 to 1/2 turns" : " from 0 upwards");
  }
}

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  void forward(const ColorJitter& args, uint8_t* result) const {
    if (args.pixels == 0) return;
    // Starting a thread pays from about this many pixels on.
    const int64_t grain = std::max<int64_t>(1, 4096 / args.pixels);
    parallel_for(0, args.count, grain,
                 [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(color_jitter, args, result, first, last); });
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
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  const Tensor host_factors = as_contiguous(factors.device().is_cpu() ? factors : torch::stable::to(factors, cpu));
  check_factors(host_factors.const_data_ptr<float>(), images.size(0));
  const Tensor dense = as_contiguous(images);
  const Tensor dense_factors = as_contiguous(
      factors.device() == images.device() ? factors : torch::stable::to(host_factors, images.device(), true));
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
