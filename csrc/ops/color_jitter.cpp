#include "ops/color_jitter.h"

#include <algorithm>

#include "ops/backend.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

template <typename Run>
Tensor color_jitter(const Tensor& images, const Tensor& factors, const Run& run) {
  constexpr auto op = "fastnas::color_jitter";
  STD_TORCH_CHECK(images.dim() == 4 && images.size(3) == 3 && images.scalar_type() == ScalarType::Byte, op,
                  ": images must be uint8 [B, H, W, 3], got shape ", shape_of(images),
                  images.scalar_type() == ScalarType::Byte ? "" : " of another dtype");
  STD_TORCH_CHECK(factors.dim() == 2 && factors.size(0) == images.size(0) && factors.size(1) == 4 &&
                      factors.scalar_type() == ScalarType::Float,
                  op, ": factors must be float32 [B, 4] with B = ", images.size(0), ", got shape ", shape_of(factors),
                  factors.scalar_type() == ScalarType::Float ? "" : " of another dtype");
  STD_TORCH_CHECK(images.device() == factors.device(), op, ": images and factors must be on one device");
  const Tensor dense = stored(images, Order::row_major), dense_factors = stored(factors, Order::row_major);
  Tensor result = empty(images, sizes_of(images), Order::row_major, ScalarType::Byte);
  run(ColorJitter{dense.const_data_ptr<uint8_t>(), dense_factors.const_data_ptr<float>(), images.size(0),
                  images.size(1) * images.size(2)},
      result.mutable_data_ptr<uint8_t>());
  return result;
}

Tensor color_jitter_cpu(const Tensor& images, const Tensor& factors) {
  return color_jitter(images, factors, [](const ColorJitter& args, uint8_t* result) {
    // Threads are worth their start from about this many pixels.
    const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, args.pixels));
    torch::stable::parallel_for(0, args.count, grain, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(color_jitter, args, result, first, last);
    });
  });
}

#ifdef FASTNAS_CUDA
Tensor color_jitter_cuda(const Tensor& images, const Tensor& factors) {
  const DeviceScope device(images);
  return color_jitter(images, factors, [&](const ColorJitter& args, uint8_t* result) {
    cuda::color_jitter(args, result, device.stream());
  });
}
#endif

}  // namespace
}  // namespace fastnas

FASTNAS_OPERATORS(m) { m.def("color_jitter(Tensor images, Tensor factors) -> Tensor"); }

FASTNAS_OPERATORS_CPU(m) { m.impl("color_jitter", TORCH_BOX(&fastnas::color_jitter_cpu)); }

#ifdef FASTNAS_CUDA
FASTNAS_OPERATORS_CUDA(m) { m.impl("color_jitter", TORCH_BOX(&fastnas::color_jitter_cuda)); }
#endif
