#include "ops/pool.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "ops/backend.h"
#include "ops/layout.h"
#include "ops/statistics.h"

namespace fastnas {
namespace {

PoolShape shape_of_pool(const char* op, const Tensor& x, int64_t stride) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must be [N, C, H, W], got shape ", shape_of(x));
  STD_TORCH_CHECK(stride == 1 || stride == 2, op, ": stride must be 1 or 2, got ", stride);
  return {x.size(1), x.size(2), x.size(3), stride};
}

Sizes pooled_sizes(const Tensor& x, const PoolShape& shape) {
  return {x.size(0), shape.channels, pool_windows(shape.height, shape.stride), pool_windows(shape.width, shape.stride)};
}

std::string text_of(const Sizes& sizes) {
  std::string text = "[";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
  return text + "]";
}

void check_images(const char* op, const char* name, const std::vector<Tensor>& images, size_t most, const Tensor& x,
                  const Sizes& expected) {
  STD_TORCH_CHECK(images.size() <= most, op, ": ", name, " must hold at most ", most, " tensors, got ", images.size());
  for (size_t k = 0; k < images.size(); ++k) {
    const Tensor& t = images[k];
    STD_TORCH_CHECK(sizes_of(t) == expected, op, ": ", name, "[", k, "] has shape ", shape_of(t), ", expected ",
                    text_of(expected));
    STD_TORCH_CHECK(t.scalar_type() == x.scalar_type() && t.device() == x.device(), op, ": ", name, "[", k,
                    "] must have the dtype and the device of x");
  }
}

void check_table(const char* op, const char* name, const Tensor& table, const Tensor& x, const Sizes& expected) {
  STD_TORCH_CHECK(sizes_of(table) == expected, op, ": ", name, " has shape ", shape_of(table), ", expected ",
                  text_of(expected));
  STD_TORCH_CHECK(table.scalar_type() == accumulate_dtype(x.scalar_type()) && table.device() == x.device(), op, ": ",
                  name, " must be on the device of x and of dtype ",
                  x.scalar_type() == ScalarType::Double ? "float64" : "float32");
}

template <typename T>
PoolImages<T> images_of(const Tensor& t) {
  return {t.const_data_ptr<T>(), pixel_stride(t)};
}

std::vector<Tensor> all_pixels(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) result.push_back(pixels(t));
  return result;
}

// --- backends --------------------------------------------------------------------------------------------------------

// Images per thread from which on threads are worth their start.
int64_t grain(const PoolShape& shape) {
  return std::max<int64_t>(1, 16384 / (shape.channels * shape.height * shape.width));
}

struct Cpu {
  explicit Cpu(const Tensor&) {}

  template <typename T, typename A>
  void forward(const PoolShape& shape, const PoolImages<T>& x, int64_t images, int64_t individuals, T* average,
               T* maximum, A* mean, A* variance) const {
    const int64_t all = images * individuals, C = shape.channels;
    const int64_t windows = pool_windows(shape.height, shape.stride) * pool_windows(shape.width, shape.stride);
    std::vector<double> table(mean ? all * 2 * 2 * C : 0);
    if (all * windows * C > 0) {
      double* rows = mean ? table.data() : nullptr;
      torch::stable::parallel_for(0, all, grain(shape), [&](int64_t first, int64_t last) {
        FASTNAS_CPU_CALL(pool_forward, shape, x, average, maximum, rows, first, last);
      });
    }
    if (mean) merge_statistics(table.data(), individuals, images, 2, C, windows, mean, variance);
  }

  template <typename T>
  void grad(const PoolGrad<T>& args, int64_t images, T* result) const {
    torch::stable::parallel_for(0, images, grain(args.shape), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(pool_grad, args, result, first, last);
    });
  }
};

#ifdef FASTNAS_CUDA
struct Cuda {
  const Tensor& like;
  DeviceScope device;

  explicit Cuda(const Tensor& like) : like(like), device(like) {}

  template <typename T, typename A>
  void forward(const PoolShape& shape, const PoolImages<T>& x, int64_t images, int64_t individuals, T* average,
               T* maximum, A* mean, A* variance) const {
    std::optional<Tensor> table;
    if (mean) {
      const Sizes sizes{individuals, cuda::pool_forward_blocks(shape, images), 1 + 4 * shape.channels};
      table = empty(like, sizes, Order::row_major, ScalarType::Double);
    }
    cuda::pool_forward(shape, x, images, individuals, average, maximum,
                       table ? table->mutable_data_ptr<double>() : nullptr, mean, variance, device.stream());
  }

  template <typename T>
  void grad(const PoolGrad<T>& args, int64_t images, T* result) const {
    cuda::pool_grad(args, images, result, device.stream());
  }
};
#endif

// --- forward ---------------------------------------------------------------------------------------------------------

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, int64_t stride, int64_t individuals,
                                                   bool statistics) {
  constexpr auto op = "fastnas::pool";
  const PoolShape shape = shape_of_pool(op, x, stride);
  STD_TORCH_CHECK(individuals >= 1 && x.size(0) % individuals == 0, op, ": individuals is ", individuals,
                  ", which does not divide the ", x.size(0), " images of x ", shape_of(x));
  const Backend backend(x);
  const Tensor image = pixels(x);
  const Sizes sizes = pooled_sizes(x, shape);
  Tensor average = empty(x, sizes, Order::channels_last, x.scalar_type());
  Tensor maximum = empty(x, sizes, Order::channels_last, x.scalar_type());
  const Sizes moments = statistics ? Sizes{2, individuals, shape.channels} : Sizes{0};
  Tensor mean = empty(x, moments, Order::row_major, accumulate_dtype(x.scalar_type()));
  Tensor variance = empty(x, moments, Order::row_major, accumulate_dtype(x.scalar_type()));
  THO_DISPATCH_V2(x.scalar_type(), op, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    backend.forward(shape, images_of<scalar_t>(image), x.size(0) / individuals, individuals,
                                    average.mutable_data_ptr<scalar_t>(), maximum.mutable_data_ptr<scalar_t>(),
                                    statistics ? mean.mutable_data_ptr<A>() : nullptr,
                                    statistics ? variance.mutable_data_ptr<A>() : nullptr);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {average, maximum, mean, variance};
}

// --- gradient --------------------------------------------------------------------------------------------------------

template <typename Backend>
Tensor grad(const Tensor& x, std::vector<Tensor> grads, const Tensor& scales, std::vector<Tensor> outputs,
            std::optional<Tensor> corrections, std::optional<Tensor> skip, std::vector<Tensor> addends,
            int64_t stride) {
  constexpr auto op = "fastnas::pool_grad";
  const PoolShape shape = shape_of_pool(op, x, stride);
  const int64_t count = static_cast<int64_t>(grads.size());
  const Sizes sizes = pooled_sizes(x, shape);
  check_images(op, "grads", grads, kMaxPoolGrads, x, sizes);
  check_images(op, "outputs", outputs, 2, x, sizes);
  check_images(op, "addends", addends, kMaxPoolAddends, x, sizes_of(x));
  check_table(op, "scales", scales, x, {2, count, shape.channels});
  STD_TORCH_CHECK(outputs.size() == (corrections ? 2 : 0), op, ": outputs must hold average and maximum where there ",
                  "are corrections, and nothing where there are none, got ", outputs.size(), " tensors");
  if (corrections) check_table(op, "corrections", *corrections, x, {2, 3, shape.channels});
  if (skip) {
    STD_TORCH_CHECK(stride == 1, op, ": skip needs stride 1, got ", stride, "; an identity keeps the size of x");
    check_table(op, "skip", *skip, x, {count, shape.channels});
  }

  const Backend backend(x);
  const Tensor image = pixels(x);
  grads = all_pixels(grads);
  outputs = all_pixels(outputs);
  addends = all_pixels(addends);
  const Tensor scale_table = stored(scales, Order::row_major);
  if (corrections) corrections = stored(*corrections, Order::row_major);
  if (skip) skip = stored(*skip, Order::row_major);
  Tensor result = empty(x, sizes_of(x), Order::channels_last, x.scalar_type());
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
                    if (corrections) args.bn_coeffs = corrections->const_data_ptr<A>();
                    if (skip && count > 0) args.skip = skip->const_data_ptr<A>();
                    if (x.numel() == 0) return;
                    backend.grad(args, x.size(0), result.mutable_data_ptr<scalar_t>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

}  // namespace
}  // namespace fastnas

FASTNAS_OPERATORS(m) {
  m.def(
      "pool(Tensor x, int stride, int individuals, bool statistics) -> (Tensor average, Tensor maximum, Tensor mean, "
      "Tensor variance)");
  m.def(
      "pool_grad(Tensor x, Tensor[] grads, Tensor scales, Tensor[] outputs, Tensor? corrections, Tensor? skip, "
      "Tensor[] addends, int stride) -> Tensor");
}

FASTNAS_OPERATORS_CPU(m) {
  m.impl("pool", TORCH_BOX(&fastnas::forward<fastnas::Cpu>));
  m.impl("pool_grad", TORCH_BOX(&fastnas::grad<fastnas::Cpu>));
}

#ifdef FASTNAS_CUDA
FASTNAS_OPERATORS_CUDA(m) {
  m.impl("pool", TORCH_BOX(&fastnas::forward<fastnas::Cuda>));
  m.impl("pool_grad", TORCH_BOX(&fastnas::grad<fastnas::Cuda>));
}
#endif
