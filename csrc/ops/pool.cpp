#include "ops/pool.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/statistics.h"

namespace fastnas {
namespace {

// --- checks ----------------------------------------------------------------------------------------------------------

PoolShape shape_of_pool(const char* op, const Tensor& x, int64_t stride) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must be [N, C, H, W], got shape ", shape_of(x));
  check_extent(op, {"x"}, x);
  check_stride(op, stride);
  return {x.size(1), x.size(2), x.size(3), stride};
}

Sizes pooled_sizes(const Tensor& x, const PoolShape& shape) {
  return {x.size(0), shape.channels, pool_windows(shape.height, shape.stride), pool_windows(shape.width, shape.stride)};
}

void check_images(const char* op, const char* name, const Tensors& images, size_t most, const Tensor& x,
                  const Sizes& expected) {
  check_count(op, name, images.size(), 0, most);
  for (size_t k = 0; k < images.size(); ++k) {
    check_sizes(op, nth(name, k), images[k], expected);
    check_like(op, nth(name, k), images[k], "x", x);
  }
}

// --- kernels ---------------------------------------------------------------------------------------------------------

// Images per thread from which on starting it pays.
int64_t grain(const PoolShape& shape) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, shape.channels * shape.height * shape.width));
}

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  template <typename T, typename A>
  void forward(const PoolShape& shape, const PoolImages<T>& x, int64_t images, int64_t individuals, T* average,
               T* maximum, A* mean, A* variance) const {
    const int64_t all = images * individuals, C = shape.channels;
    const int64_t windows = pool_windows(shape.height, shape.stride) * pool_windows(shape.width, shape.stride);
    Tensor table = doubles(mean ? all * 2 * 2 * C : 0);
    double* rows = mean ? table.mutable_data_ptr<double>() : nullptr;
    parallel_for(0, all, grain(shape), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(pool_forward, shape, x, average, maximum, rows, first, last);
    });
    if (mean) merge_statistics(rows, individuals, images, 2, C, windows, mean, variance);
  }

  template <typename T>
  void backward(const PoolGrad<T>& args, int64_t images, T* result) const {
    parallel_for(0, images, grain(args.shape),
                 [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(pool_grad, args, result, first, last); });
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename T, typename A>
  void forward(const PoolShape& shape, const PoolImages<T>& x, int64_t images, int64_t individuals, T* average,
               T* maximum, A* mean, A* variance) const {
    std::optional<Tensor> table;
    if (mean) {
      const Sizes sizes{individuals, cuda::pool_forward_blocks(shape, images), 1 + 4 * shape.channels};
      table = empty(like, sizes, MemoryFormat::contiguous, ScalarType::Double);
    }
    cuda::pool_forward(shape, x, images, individuals, average, maximum,
                       table ? table->mutable_data_ptr<double>() : nullptr, mean, variance, stream());
  }

  template <typename T>
  void backward(const PoolGrad<T>& args, int64_t images, T* result) const {
    cuda::pool_grad(args, images, result, stream());
  }
};

// --- operators -------------------------------------------------------------------------------------------------------

template <typename T>
PoolImages<T> images_of(const Tensor& t) {
  return {t.const_data_ptr<T>(), pixel_stride(t)};
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, int64_t stride, int64_t individuals,
                                                   bool statistics) {
  constexpr auto op = "fastnas::pool";
  const PoolShape shape = shape_of_pool(op, x, stride);
  STD_TORCH_CHECK(can_share(x.size(0), individuals), op, ": individuals is ", individuals,
                  ", which does not divide the ", x.size(0), " images of x ", shape_of(x));
  const Backend backend(x);
  const Tensor image = as_nhwc(x);
  const Sizes sizes = pooled_sizes(x, shape);
  Tensor average = empty(x, sizes, MemoryFormat::channels_last, x.scalar_type());
  Tensor maximum = empty(x, sizes, MemoryFormat::channels_last, x.scalar_type());
  const Sizes per_channel = statistics ? Sizes{2, individuals, shape.channels} : Sizes{0};
  Tensor mean = empty(x, per_channel, MemoryFormat::contiguous, acc_dtype(x.scalar_type()));
  Tensor variance = empty(x, per_channel, MemoryFormat::contiguous, acc_dtype(x.scalar_type()));
  THO_DISPATCH_V2(x.scalar_type(), op, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    if (average.numel() == 0) {
                      fill_with_zeros(mean);
                      fill_with_zeros(variance);
                      return;
                    }
                    backend.forward(shape, images_of<scalar_t>(image), x.size(0) / individuals, individuals,
                                    average.mutable_data_ptr<scalar_t>(), maximum.mutable_data_ptr<scalar_t>(),
                                    statistics ? mean.mutable_data_ptr<A>() : nullptr,
                                    statistics ? variance.mutable_data_ptr<A>() : nullptr);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {average, maximum, mean, variance};
}

template <typename Backend>
Tensor backward(const Tensor& x, Tensors grads, const Tensor& scales, Tensors outputs, std::optional<Tensor> bn_coeffs,
                std::optional<Tensor> skip, Tensors addends, int64_t stride) {
  constexpr auto op = "fastnas::pool_grad";
  const PoolShape shape = shape_of_pool(op, x, stride);
  const int64_t count = static_cast<int64_t>(grads.size());
  const Sizes sizes = pooled_sizes(x, shape);
  check_images(op, "grads", grads, kMaxPoolGrads, x, sizes);
  check_images(op, "outputs", outputs, 2, x, sizes);
  check_images(op, "addends", addends, kMaxPoolAddends, x, sizes_of(x));
  check_table(op, {"scales"}, scales, {2, count, shape.channels}, "x", x);
  STD_TORCH_CHECK(outputs.size() == (bn_coeffs ? 2 : 0), op, ": outputs must hold average and maximum where there ",
                  "are bn_coeffs, and nothing where there are none, got ", outputs.size(), " tensors");
  if (bn_coeffs) check_table(op, {"bn_coeffs"}, *bn_coeffs, {2, 3, shape.channels}, "x", x);
  if (skip) {
    STD_TORCH_CHECK(stride == 1, op, ": skip needs stride 1, got ", stride, "; an identity keeps the size of x");
    check_table(op, {"skip"}, *skip, {count, shape.channels}, "x", x);
  }

  const Backend backend(x);
  const Tensor image = as_nhwc(x), scale_table = as_contiguous(scales);
  grads = as_nhwc(grads);
  outputs = as_nhwc(outputs);
  addends = as_nhwc(addends);
  bn_coeffs = as_contiguous(bn_coeffs);
  skip = as_contiguous(skip);
  Tensor result = empty(x, sizes_of(x), MemoryFormat::channels_last, x.scalar_type());
  THO_DISPATCH_V2(x.scalar_type(), op, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    PoolGrad<scalar_t> args{};
                    args.shape = shape;
                    args.x = images_of<scalar_t>(image);
                    for (size_t n = 0; n < grads.size(); ++n) args.grads[n] = images_of<scalar_t>(grads[n]);
                    for (size_t k = 0; k < outputs.size(); ++k) args.outputs[k] = images_of<scalar_t>(outputs[k]);
                    for (size_t k = 0; k < addends.size(); ++k) args.addends[k] = images_of<scalar_t>(addends[k]);
                    args.grad_count = count;
                    args.addend_count = static_cast<int64_t>(addends.size());
                    args.scales = scale_table.const_data_ptr<A>();
                    if (bn_coeffs) args.bn_coeffs = bn_coeffs->const_data_ptr<A>();
                    if (skip && count > 0) args.skip = skip->const_data_ptr<A>();
                    if (x.numel() == 0) return;
                    backend.backward(args, x.size(0), result.mutable_data_ptr<scalar_t>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def(
      "pool(Tensor x, int stride, int individuals, bool statistics) -> (Tensor average, Tensor maximum, Tensor mean, "
      "Tensor variance)");
  m.def(
      "pool_grad(Tensor x, Tensor[] grads, Tensor scales, Tensor[] outputs, Tensor? bn_coeffs, Tensor? skip, "
      "Tensor[] addends, int stride) -> Tensor");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) {
  m.impl("pool", TORCH_BOX(&forward<Backend>));
  m.impl("pool_grad", TORCH_BOX(&backward<Backend>));
}

}  // namespace fastnas
