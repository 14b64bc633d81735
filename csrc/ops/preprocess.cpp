#include "ops/preprocess.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/statistics.h"

namespace fastnas {
namespace {

// --- checks ----------------------------------------------------------------------------------------------------------

struct Shape {
  int64_t images = 0, channels = 0, height = 0, width = 0;  // of x [N, Cin, H, W]
  int64_t outputs = 0, output_height = 0, output_width = 0;

  int64_t pixels() const { return output_height * output_width; }
  Sizes output() const { return {images, outputs, output_height, output_width}; }
};

Shape check(const char* op, const Tensors& inputs, const Tensors& weights, const std::vector<int64_t>& offsets,
            int64_t stride) {
  check_count(op, "inputs", inputs.size(), 1, kMaxParts);
  check_count(op, "weights", weights.size(), 1, kMaxParts);
  check_stride(op, stride);
  STD_TORCH_CHECK(offsets.size() == weights.size(), op, ": there are ", offsets.size(), " offsets for ", weights.size(),
                  " weights, expected one for each");
  const Tensor& first = inputs[0];
  Shape shape;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& x = inputs[i];
    STD_TORCH_CHECK(x.dim() == 4, op, ": inputs[", i, "] has shape ", shape_of(x), ", expected [N, C, H, W]");
    STD_TORCH_CHECK(x.size(0) == first.size(0) && x.size(2) == first.size(2) && x.size(3) == first.size(3), op,
                    ": inputs[", i, "] has shape ", shape_of(x), ", inputs[0] ", shape_of(first),
                    "; they may differ in their channels only");
    check_like(op, nth("inputs", i), x, "inputs[0]", first);
    check_extent(op, nth("inputs", i), x);
    shape.channels += x.size(1);
  }
  shape.images = first.size(0);
  shape.height = first.size(2);
  shape.width = first.size(3);
  shape.output_height = strided_size(shape.height, stride);
  shape.output_width = strided_size(shape.width, stride);
  for (size_t m = 0; m < weights.size(); ++m) {
    const Tensor& w = weights[m];
    STD_TORCH_CHECK(w.dim() == 2 && w.size(1) == shape.channels, op, ": weights[", m, "] has shape ", shape_of(w),
                    ", expected [O, ", shape.channels, "] for the channels of all inputs");
    check_acc_dtype(op, nth("weights", m), w, "the inputs", first);
    check_extent(op, nth("weights", m), w);
    STD_TORCH_CHECK(offsets[m] == 0 || (offsets[m] == 1 && stride == 2), op, ": offsets[", m, "] is ", offsets[m],
                    stride == 2 ? ", expected 0 or 1" : ", expected 0 for stride 1");
    shape.outputs += w.size(0);
  }
  return shape;
}

// `grads`, `output` and `bn_coeffs` fit the gradient of an output of this shape.
void check_grads(const char* op, const Shape& shape, const Tensors& grads, const std::optional<Tensor>& output,
                 const std::optional<Tensor>& bn_coeffs, const Tensor& like) {
  check_count(op, "grads", grads.size(), 1, kMaxParts);
  int64_t channels = 0;
  for (size_t n = 0; n < grads.size(); ++n) {
    const Tensor& g = grads[n];
    STD_TORCH_CHECK(g.dim() == 4 && g.size(0) == shape.images && g.size(2) == shape.output_height &&
                        g.size(3) == shape.output_width,
                    op, ": grads[", n, "] has shape ", shape_of(g), ", expected [", shape.images, ", C, ",
                    shape.output_height, ", ", shape.output_width, "]");
    check_like(op, nth("grads", n), g, "the inputs", like);
    channels += g.size(1);
  }
  STD_TORCH_CHECK(channels == shape.outputs, op, ": grads have ", channels, " channels together, expected the ",
                  shape.outputs, " rows of all weights");
  STD_TORCH_CHECK(output.has_value() == bn_coeffs.has_value(), op,
                  ": output and bn_coeffs must be given together, or neither");
  if (!bn_coeffs) return;
  check_table(op, {"bn_coeffs"}, *bn_coeffs, {4, shape.outputs}, "the inputs", like);
  check_sizes(op, {"output"}, *output, shape.output());
  check_like(op, {"output"}, *output, "the inputs", like);
}

template <typename T>
void set_part(Parts<T>& parts, const Tensor& t, T* data) {
  parts.data[parts.count] = data;
  parts.stride[parts.count] = pixel_stride(t);
  parts.channels[parts.count++] = t.size(1);
}

template <typename T>
std::unique_ptr<Preprocess<T>> arguments(const Shape& shape, const Tensors& inputs, const Tensors& weights,
                                         const std::vector<int64_t>& offsets, int64_t stride) {
  auto args = std::make_unique<Preprocess<T>>();
  for (const Tensor& x : inputs) set_part(args->states, x, x.const_data_ptr<T>());
  int64_t outputs = 0;
  for (size_t m = 0; m < weights.size(); ++m) {
    const int64_t rows = weights[m].size(0), column = args->group_outputs[offsets[m]];
    args->matrices[args->matrix_count++] = {weights[m].const_data_ptr<accumulate_t<T>>(), rows, offsets[m], outputs,
                                            column};
    outputs += rows;
    args->group_outputs[offsets[m]] += rows;
  }
  args->images = shape.images;
  args->channels = shape.channels;
  args->outputs = shape.outputs;
  args->stride = stride;
  // With stride 1 all pixels of an image follow each other, so nothing need stop at the end of a row.
  args->height = stride == 1 ? 1 : shape.height;
  args->width = stride == 1 ? shape.pixels() : shape.width;
  args->output_height = stride == 1 ? 1 : shape.output_height;
  args->output_width = stride == 1 ? shape.pixels() : shape.output_width;
  return args;
}

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  // Starting a thread pays from about this many multiplications on.
  template <typename T>
  static int64_t grain(const Preprocess<T>& args, int64_t items) {
    const double pixels = double(args.images) * double(args.output_height * args.output_width);
    const double multiplications = pixels * double(args.channels + 1) * double(args.outputs + 1);
    return std::max<int64_t>(1, static_cast<int64_t>(500000.0 * double(items) / (multiplications + 1)));
  }

  template <typename T, typename A>
  void forward(const Preprocess<T>& args, int64_t individuals, T* output, A* mean, A* variance) const {
    Tensor stats = doubles(mean ? args.images * 2 * args.outputs : 0);
    double* table = mean ? stats.mutable_data_ptr<double>() : nullptr;
    parallel_for(0, args.images, grain(args, args.images), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(preprocess_forward, args, output, table, first, last);
    });
    if (mean) {
      merge_statistics(table, individuals, args.images / individuals, 1, args.outputs,
                       args.output_height * args.output_width, mean, variance);
    }
  }

  template <typename T, typename A>
  void backward(const Preprocess<T>& args, const PreprocessGrad<T>& grad, const std::vector<A*>& grad_weights) const {
    const int64_t chunks = std::min(kPreprocessChunks, args.images), size = args.outputs * args.channels;
    const std::unique_ptr<void, void (*)(void*)> memory(cpu::allocate(chunks * size * sizeof(A)), cpu::recycle);
    A* const partial = static_cast<A*>(memory.get());
    parallel_for(0, chunks, grain(args, chunks), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(preprocess_backward, args, grad, partial, chunks, first, last);
    });
    const int64_t rows = std::max<int64_t>(1, 32768 / (chunks * args.channels + 1));
    parallel_for(0, args.outputs, rows, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(preprocess_merge, args, partial, chunks, grad_weights.data(), first, last);
    });
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename T, typename A>
  void forward(const Preprocess<T>& args, int64_t individuals, T* output, A* mean, A* variance) const {
    std::optional<Tensor> table;
    if (mean) {
      const Sizes sizes{individuals, cuda::preprocess_forward_tiles(args, individuals), 1 + 2 * args.outputs};
      table = empty(like, sizes, MemoryFormat::contiguous, ScalarType::Double);
    }
    cuda::preprocess_forward(args, individuals, output, table ? table->mutable_data_ptr<double>() : nullptr, mean,
                             variance, stream());
  }

  template <typename T, typename A>
  void backward(const Preprocess<T>& args, const PreprocessGrad<T>& grad, const std::vector<A*>& grad_weights) const {
    cuda::PreprocessWeightGrads<T> results{};
    std::copy(grad_weights.begin(), grad_weights.end(), results.weights);
    const Sizes sizes{cuda::preprocess_grad_chunks(args), args.outputs, args.channels};
    Tensor partial = empty(like, sizes, MemoryFormat::contiguous, acc_dtype(like.scalar_type()));
    cuda::preprocess_grad(args, grad, partial.mutable_data_ptr<A>(), results, stream());
  }
};

// --- operators -------------------------------------------------------------------------------------------------------

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> forward(Tensors inputs, Tensors weights, std::vector<int64_t> offsets,
                                           int64_t stride, int64_t individuals, bool statistics) {
  constexpr auto op = "fastnas::preprocess";
  const Shape shape = check(op, inputs, weights, offsets, stride);
  STD_TORCH_CHECK(can_share(shape.images, individuals), op, ": individuals is ", individuals,
                  ", expected a divisor of the ", shape.images, " images");
  const Backend backend(inputs[0]);
  const Tensors x = as_nhwc(inputs), w = to_memory_format(weights, MemoryFormat::contiguous);
  const Tensor &like = inputs[0], &weight = weights[0];
  Tensor output = empty(like, shape.output(), MemoryFormat::channels_last, like.scalar_type());
  const Sizes sizes = statistics ? Sizes{individuals, shape.outputs} : Sizes{0};
  Tensor mean = empty(like, sizes, MemoryFormat::contiguous, weight.scalar_type());
  Tensor variance = empty(like, sizes, MemoryFormat::contiguous, weight.scalar_type());
  THO_DISPATCH_V2(like.scalar_type(), op, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    if (output.numel() == 0) {
                      fill_with_zeros(mean);
                      fill_with_zeros(variance);
                      return;
                    }
                    const auto args = arguments<scalar_t>(shape, x, w, offsets, stride);
                    backend.forward(*args, individuals, output.mutable_data_ptr<scalar_t>(),
                                    statistics ? mean.mutable_data_ptr<A>() : nullptr,
                                    statistics ? variance.mutable_data_ptr<A>() : nullptr);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {output, mean, variance};
}

template <typename Backend>
std::tuple<Tensors, Tensors> backward(Tensors grads, std::optional<Tensor> output, std::optional<Tensor> bn_coeffs,
                                      Tensors inputs, Tensors weights, std::vector<int64_t> offsets, int64_t stride) {
  constexpr auto op = "fastnas::preprocess_grad";
  const Shape shape = check(op, inputs, weights, offsets, stride);
  check_grads(op, shape, grads, output, bn_coeffs, inputs[0]);
  const Backend backend(inputs[0]);
  const Tensors x = as_nhwc(inputs), w = to_memory_format(weights, MemoryFormat::contiguous), g = as_nhwc(grads);
  std::optional<Tensor> dense_output, dense_coeffs;
  if (bn_coeffs) {
    dense_output = to_memory_format(*output, MemoryFormat::channels_last);
    dense_coeffs = as_contiguous(*bn_coeffs);
  }
  Tensors grad_inputs, grad_weights;
  for (const Tensor& t : inputs) {
    grad_inputs.push_back(empty(t, sizes_of(t), MemoryFormat::channels_last, t.scalar_type()));
  }
  for (const Tensor& t : weights)
    grad_weights.push_back(empty(t, sizes_of(t), MemoryFormat::contiguous, t.scalar_type()));
  THO_DISPATCH_V2(inputs[0].scalar_type(), op, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    if (shape.channels == 0 || shape.outputs == 0 || shape.images * shape.pixels() == 0) {
                      fill_with_zeros(grad_inputs);
                      fill_with_zeros(grad_weights);
                      return;
                    }
                    const auto args = arguments<scalar_t>(shape, x, w, offsets, stride);
                    const auto grad = std::make_unique<PreprocessGrad<scalar_t>>();
                    for (const Tensor& t : g) set_part(grad->grads, t, t.const_data_ptr<scalar_t>());
                    for (const Tensor& t : grad_inputs) {
                      set_part(grad->grad_states, t, t.mutable_data_ptr<scalar_t>());
                    }
                    if (bn_coeffs) {
                      grad->output = dense_output->const_data_ptr<scalar_t>();
                      grad->bn_coeffs = dense_coeffs->const_data_ptr<A>();
                    }
                    std::vector<A*> to;
                    for (const Tensor& t : grad_weights) to.push_back(t.mutable_data_ptr<A>());
                    backend.backward(*args, *grad, to);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {grad_inputs, grad_weights};
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def(
      "preprocess(Tensor[] inputs, Tensor[] weights, int[] offsets, int stride, int individuals, bool statistics) -> "
      "(Tensor output, Tensor mean, Tensor variance)");
  m.def(
      "preprocess_grad(Tensor[] grads, Tensor? output, Tensor? bn_coeffs, Tensor[] inputs, Tensor[] weights, "
      "int[] offsets, int stride) -> (Tensor[] grad_inputs, Tensor[] grad_weights)");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) {
  m.impl("preprocess", TORCH_BOX(&forward<Backend>));
  m.impl("preprocess_grad", TORCH_BOX(&backward<Backend>));
}

}  // namespace fastnas
