#include "ops/halve.h"

#include <algorithm>

#include "ops/backend.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

constexpr auto kForward = "fastnas::halve";
constexpr auto kBackward = "fastnas::halve_grad";

void check(const char* op, const Tensor& x, int64_t seen) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must be [N, C, H, W], got shape ", shape_of(x));
  STD_TORCH_CHECK(seen >= 0 && seen <= x.size(1), op, ": seen is ", seen, ", expected 0 to ", x.size(1),
                  ", the channels of x");
  STD_TORCH_CHECK(element_size(x.scalar_type()) > 0, op, ": x must be float16, bfloat16, float32 or float64");
}

void check_images(const char* name, const Tensor& t, const Tensor& x, const Sizes& expected) {
  STD_TORCH_CHECK(sizes_of(t) == expected && t.scalar_type() == x.scalar_type() && t.device() == x.device(), kBackward,
                  ": ", name, " has shape ", shape_of(t), ", expected [", expected[0], ", ", expected[1], ", ",
                  expected[2], ", ", expected[3], "] in dtype and device of x");
}

Sizes halved(const Tensor& x, int64_t seen) {
  return {x.size(0), x.size(1) - seen, (x.size(2) + 1) / 2, (x.size(3) + 1) / 2};
}

template <typename T>
Halve<T> arguments(const Tensor& x, int64_t seen) {
  return {x.const_data_ptr<T>() + seen, pixel_stride(x), x.size(0), x.size(1) - seen, x.size(2), x.size(3)};
}

template <typename Run>
Tensor forward(const Tensor& x, int64_t seen, const Run& run) {
  check(kForward, x, seen);
  const Tensor images = pixels(x);
  Tensor result = empty(x, halved(x, seen), Order::channels_last, x.scalar_type());
  THO_DISPATCH_V2(x.scalar_type(), kForward,
                  AT_WRAP([&] { run(arguments<scalar_t>(images, seen), result.mutable_data_ptr<scalar_t>()); }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

template <typename Run>
Tensor gradient(const Tensor& grad, const Tensor& x, const Tensor& seen_grad, const Run& run) {
  STD_TORCH_CHECK(seen_grad.dim() == 4, kBackward, ": seen_grad must be [N, S, H, W], got shape ", shape_of(seen_grad));
  const int64_t seen = seen_grad.size(1);
  check(kBackward, x, seen);
  check_images("grad", grad, x, halved(x, seen));
  check_images("seen_grad", seen_grad, x, {x.size(0), seen, x.size(2), x.size(3)});
  const Tensor images = pixels(x), grads = pixels(grad), seen_grads = pixels(seen_grad);
  Tensor result = empty(x, sizes_of(x), Order::channels_last, x.scalar_type());
  THO_DISPATCH_V2(x.scalar_type(), kBackward, AT_WRAP([&] {
                    HalveGrad<scalar_t> parts{};
                    parts.grad = grads.const_data_ptr<scalar_t>();
                    parts.grad_stride = pixel_stride(grads);
                    parts.seen = seen_grads.const_data_ptr<scalar_t>();
                    parts.seen_stride = pixel_stride(seen_grads);
                    parts.seen_channels = seen;
                    run(arguments<scalar_t>(images, seen), parts, result.mutable_data_ptr<scalar_t>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

/// Rows that are worth the start of a thread.
template <typename T>
int64_t grain(const Halve<T>& args) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, 4 * args.columns() * args.channels));
}

Tensor forward_cpu(const Tensor& x, int64_t seen) {
  return forward(x, seen, [](const auto& args, auto* result) {
    torch::stable::parallel_for(0, args.images * args.rows(), grain(args), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(halve, args, result, first, last);
    });
  });
}

Tensor grad_cpu(const Tensor& grad, const Tensor& x, const Tensor& seen_grad) {
  return gradient(grad, x, seen_grad, [](const auto& args, const auto& parts, auto* result) {
    torch::stable::parallel_for(0, args.images * args.rows(), grain(args), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(halve_grad, args, parts, result, first, last);
    });
  });
}

#ifdef FASTNAS_CUDA
Tensor forward_cuda(const Tensor& x, int64_t seen) {
  const DeviceScope device(x);
  return forward(x, seen, [&](const auto& args, auto* result) { cuda::halve(args, result, device.stream()); });
}

Tensor grad_cuda(const Tensor& grad, const Tensor& x, const Tensor& seen_grad) {
  const DeviceScope device(x);
  return gradient(grad, x, seen_grad, [&](const auto& args, const auto& parts, auto* result) {
    cuda::halve_grad(args, parts, result, device.stream());
  });
}
#endif

}  // namespace
}  // namespace fastnas

FASTNAS_OPERATORS(m) {
  m.def("halve(Tensor x, int seen) -> Tensor");
  m.def("halve_grad(Tensor grad, Tensor x, Tensor seen_grad) -> Tensor");
}

FASTNAS_OPERATORS_CPU(m) {
  m.impl("halve", TORCH_BOX(&fastnas::forward_cpu));
  m.impl("halve_grad", TORCH_BOX(&fastnas::grad_cpu));
}

#ifdef FASTNAS_CUDA
FASTNAS_OPERATORS_CUDA(m) {
  m.impl("halve", TORCH_BOX(&fastnas::forward_cuda));
  m.impl("halve_grad", TORCH_BOX(&fastnas::grad_cuda));
}
#endif
