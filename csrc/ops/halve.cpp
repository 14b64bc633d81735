#include "ops/halve.h"

#include <algorithm>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

// --- checks ----------------------------------------------------------------------------------------------------------

Sizes halved(const Tensor& x, int64_t seen) {
  return {x.size(0), x.size(1) - seen, (x.size(2) + 1) / 2, (x.size(3) + 1) / 2};
}

void check(const char* op, const Tensor& x, int64_t seen) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must be [N, C, H, W], got shape ", shape_of(x));
  STD_TORCH_CHECK(seen >= 0 && seen <= x.size(1), op, ": seen is ", seen, ", expected 0 to ", x.size(1),
                  ", the channels of x");
  check_floating(op, "x", x.scalar_type());
  check_extent(op, {"x"}, x);
}

void check_grads(const char* op, const Tensor& grad, const Tensor& x, const Tensor& seen_grad) {
  STD_TORCH_CHECK(seen_grad.dim() == 4, op, ": seen_grad must be [N, S, H, W], got shape ", shape_of(seen_grad));
  const int64_t seen = seen_grad.size(1);
  check(op, x, seen);
  check_sizes(op, {"grad"}, grad, halved(x, seen));
  check_sizes(op, {"seen_grad"}, seen_grad, {x.size(0), seen, x.size(2), x.size(3)});
  check_like(op, {"grad"}, grad, "x", x);
  check_like(op, {"seen_grad"}, seen_grad, "x", x);
}

template <typename T>
Halve<T> arguments(const Tensor& x, int64_t seen) {
  return {x.const_data_ptr<T>() + seen, pixel_stride(x), x.size(0), x.size(1) - seen, x.size(2), x.size(3)};
}

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  /// Rows from which on starting a thread pays.
  template <typename T>
  static int64_t grain(const Halve<T>& args) {
    return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, 4 * args.columns() * args.channels));
  }

  template <typename T>
  void forward(const Halve<T>& args, T* result) const {
    parallel_for(0, args.images * args.rows(), grain(args),
                 [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(halve, args, result, first, last); });
  }

  template <typename T>
  void backward(const Halve<T>& args, const HalveGrad<T>& grad, T* result) const {
    parallel_for(0, args.images * args.rows(), grain(args),
                 [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(halve_grad, args, grad, result, first, last); });
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename T>
  void forward(const Halve<T>& args, T* result) const {
    cuda::halve(args, result, stream());
  }

  template <typename T>
  void backward(const Halve<T>& args, const HalveGrad<T>& grad, T* result) const {
    cuda::halve_grad(args, grad, result, stream());
  }
};

// --- operators -------------------------------------------------------------------------------------------------------

template <typename Backend>
Tensor forward(const Tensor& x, int64_t seen) {
  constexpr auto op = "fastnas::halve";
  check(op, x, seen);
  const Backend backend(x);
  const Tensor images = as_nhwc(x);
  Tensor result = empty(x, halved(x, seen), MemoryFormat::channels_last, x.scalar_type());
  THO_DISPATCH_V2(x.scalar_type(), op, AT_WRAP([&] {
                    if (result.numel() == 0) return;
                    backend.forward(arguments<scalar_t>(images, seen), result.mutable_data_ptr<scalar_t>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

template <typename Backend>
Tensor backward(const Tensor& grad, const Tensor& x, const Tensor& seen_grad) {
  constexpr auto op = "fastnas::halve_grad";
  check_grads(op, grad, x, seen_grad);
  const Backend backend(x);
  const int64_t seen = seen_grad.size(1);
  const Tensor images = as_nhwc(x), grads = as_nhwc(grad), seen_grads = as_nhwc(seen_grad);
  Tensor result = empty(x, sizes_of(x), MemoryFormat::channels_last, x.scalar_type());
  THO_DISPATCH_V2(x.scalar_type(), op, AT_WRAP([&] {
                    if (result.numel() == 0) return;
                    HalveGrad<scalar_t> parts{};
                    parts.grad = grads.const_data_ptr<scalar_t>();
                    parts.grad_stride = pixel_stride(grads);
                    parts.seen = seen_grads.const_data_ptr<scalar_t>();
                    parts.seen_stride = pixel_stride(seen_grads);
                    parts.seen_channels = seen;
                    backend.backward(arguments<scalar_t>(images, seen), parts, result.mutable_data_ptr<scalar_t>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def("halve(Tensor x, int seen) -> Tensor");
  m.def("halve_grad(Tensor grad, Tensor x, Tensor seen_grad) -> Tensor");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) {
  m.impl("halve", TORCH_BOX(&forward<Backend>));
  m.impl("halve_grad", TORCH_BOX(&backward<Backend>));
}

}  // namespace fastnas
