#include "ops/stage.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <type_traits>

#include "ops/backend.h"
#include "ops/layout.h"
#include "ops/statistics.h"

namespace fastnas {
namespace {

using Tensors = std::vector<Tensor>;

constexpr auto kForward = "fastnas::stage";
constexpr auto kBackward = "fastnas::stage_grad";

int64_t out_size(int64_t size, int64_t stride) { return (size + stride - 1) / stride; }

Sizes output_sizes(const Tensor& input, int64_t channels, int64_t stride) {
  return {input.size(0), channels, out_size(input.size(2), stride), out_size(input.size(3), stride)};
}

// The arguments that forward and backward share, checked. Keeps alive what the pointers of `arguments` point to.
class Call {
 public:
  Call(const char* op, const Tensors& inputs, const std::optional<Tensor>& mean, const std::optional<Tensor>& rstd,
       const Tensors& depthwise, const Tensors& pointwise, const std::vector<int64_t>& dilations, int64_t stride,
       int64_t individuals)
      : op_(op), dilations_(dilations), stride_(stride), individuals_(individuals) {
    const size_t stages = depthwise.size();
    STD_TORCH_CHECK(stages >= 1 && stages <= static_cast<size_t>(kMaxStages), op, ": depthwise must hold 1 to ",
                    kMaxStages, " weights, got ", stages);
    STD_TORCH_CHECK(pointwise.size() == stages && dilations.size() == stages, op, ": got ", stages,
                    " depthwise weights, but ", pointwise.size(), " pointwise weights and ", dilations.size(),
                    " dilations; each stage has one of each");
    STD_TORCH_CHECK(inputs.size() == 1 || inputs.size() == stages, op, ": inputs must be one that all ", stages,
                    " stages read, or one for each; got ", inputs.size());
    STD_TORCH_CHECK(stride == 1 || stride == 2, op, ": stride is ", stride, ", expected 1 or 2");
    STD_TORCH_CHECK(mean.has_value() == rstd.has_value(), op, ": give both mean and rstd, or neither");
    STD_TORCH_CHECK(depthwise[0].dim() == 4 && depthwise[0].size(0) >= 1, op, ": depthwise[0] has shape ",
                    shape_of(depthwise[0]), ", expected [C, 1, K, K] with at least one channel");
    channels = depthwise[0].size(0);
    dtype = inputs[0].scalar_type();
    STD_TORCH_CHECK(element_size(dtype) > 0, op, ": inputs must be float16, bfloat16, float32 or float64");
    check_inputs(inputs, stages);
    check_weights(depthwise, pointwise);
    if (mean) {
      mean_ = statistic("mean", *mean, inputs.size());
      rstd_ = statistic("rstd", *rstd, inputs.size());
    }
  }

  int64_t channels;
  ScalarType dtype;

  void check_device(const char* name, const Tensor& t) const {
    STD_TORCH_CHECK(t.device() == inputs_[0].device(), op_, ": ", name, " is on another device than the inputs");
  }
  int64_t stages() const { return static_cast<int64_t>(depthwise_.size()); }
  const Tensor& input() const { return inputs_[0]; }
  Sizes output() const { return output_sizes(inputs_[0], channels, stride_); }
  const Tensors& inputs() const { return inputs_; }
  Sizes depthwise_sizes(int64_t stage) const { return sizes_of(depthwise_[stage]); }
  bool normalized() const { return mean_.has_value(); }

  template <typename T>
  Stage<T> arguments() const {
    using A = accumulate_t<T>;
    const Tensor& x = inputs_[0];
    Stage<T> args{};
    args.count = x.size(0);
    args.individuals = individuals_;
    args.channels = channels;
    args.height = x.size(2);
    args.width = x.size(3);
    args.out_height = out_size(x.size(2), stride_);
    args.out_width = out_size(x.size(3), stride_);
    args.stride = stride_;
    args.stages = static_cast<int>(stages());
    args.shared = inputs_.size() == 1;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      args.x[i] = inputs_[i].const_data_ptr<T>();
      args.x_stride[i] = pixel_stride(inputs_[i]);
    }
    for (size_t j = 0; j < depthwise_.size(); ++j) {
      args.depthwise[j] = depthwise_[j].const_data_ptr<A>();
      args.pointwise[j] = pointwise_[j].const_data_ptr<A>();
      args.kernel[j] = depthwise_[j].size(3);
      args.dilation[j] = dilations_[j];
    }
    if (mean_) {
      args.mean = mean_->const_data_ptr<A>();
      args.rstd = rstd_->const_data_ptr<A>();
    }
    return args;
  }

 private:
  void check_inputs(const Tensors& inputs, size_t stages) {
    STD_TORCH_CHECK(inputs[0].dim() == 4, op_, ": inputs[0] has shape ", shape_of(inputs[0]),
                    ", expected [N, C, H, W]");
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Tensor& x = inputs[i];
      bool fits = x.dim() == 4 && x.size(1) == channels;
      for (int64_t d : {0, 2, 3}) fits = fits && x.size(d) == inputs[0].size(d);
      STD_TORCH_CHECK(fits, op_, ": inputs[", i, "] has shape ", shape_of(x), ", expected [", inputs[0].size(0), ", ",
                      channels, ", ", inputs[0].size(2), ", ", inputs[0].size(3), "]: the weights of ", stages,
                      " stages have ", channels, " channels");
      STD_TORCH_CHECK(x.scalar_type() == dtype && x.device() == inputs[0].device(), op_, ": inputs[", i,
                      "] has another dtype or device than inputs[0]");
      inputs_.push_back(pixels(x));
    }
    const int64_t count = inputs[0].size(0);
    STD_TORCH_CHECK(individuals_ >= 1 && count % individuals_ == 0, op_, ": ", count,
                    " images cannot be those of individuals=", individuals_);
  }

  void check_weights(const Tensors& depthwise, const Tensors& pointwise) {
    const ScalarType expected = accumulate_dtype(dtype);
    for (size_t j = 0; j < depthwise.size(); ++j) {
      const Tensor &d = depthwise[j], &p = pointwise[j];
      STD_TORCH_CHECK(
          d.dim() == 4 && d.size(0) == channels && d.size(1) == 1 && d.size(2) == d.size(3) && d.size(2) % 2 == 1, op_,
          ": depthwise[", j, "] has shape ", shape_of(d), ", expected [", channels, ", 1, K, K] with an odd K");
      STD_TORCH_CHECK(
          p.dim() == 4 && p.size(0) == channels && p.size(1) == channels && p.size(2) == 1 && p.size(3) == 1, op_,
          ": pointwise[", j, "] has shape ", shape_of(p), ", expected [", channels, ", ", channels, ", 1, 1]");
      STD_TORCH_CHECK(d.scalar_type() == expected && p.scalar_type() == expected, op_, ": weights of stage ", j,
                      " must be ", expected == ScalarType::Double ? "float64" : "float32", " for these inputs");
      STD_TORCH_CHECK(d.device() == inputs_[0].device() && p.device() == inputs_[0].device(), op_,
                      ": weights of stage ", j, " are on another device than the inputs");
      STD_TORCH_CHECK(dilations_[j] >= 1, op_, ": dilations[", j, "] is ", dilations_[j], ", expected at least 1");
      depthwise_.push_back(stored(d, Order::row_major));
      pointwise_.push_back(stored(p, Order::row_major));
    }
  }

  Tensor statistic(const char* name, const Tensor& t, size_t inputs) const {
    const bool fits =
        t.dim() == 3 && t.size(0) == static_cast<int64_t>(inputs) && t.size(1) == individuals_ && t.size(2) == channels;
    STD_TORCH_CHECK(fits && t.scalar_type() == accumulate_dtype(dtype), op_, ": ", name, " has shape ", shape_of(t),
                    ", expected [", inputs, ", ", individuals_, ", ", channels, "] in ",
                    accumulate_dtype(dtype) == ScalarType::Double ? "float64" : "float32");
    check_device(name, t);
    return stored(t, Order::row_major);
  }

  const char* op_;
  std::vector<int64_t> dilations_;
  int64_t stride_, individuals_;
  Tensors inputs_, depthwise_, pointwise_;
  std::optional<Tensor> mean_, rstd_;
};

Tensor bytes(const Call& call, int64_t count) {
  return empty(call.input(), {(count + 3) / 4 + 16}, Order::row_major, ScalarType::Float);
}

// Threads are worth their start from about this many weights.
template <typename T>
int64_t group_grain(const Stage<T>& args) {
  return std::max<int64_t>(1, 16384 / (args.channels * args.channels));
}

template <typename A>
A* aligned(const Tensor& t) {
  return reinterpret_cast<A*>((reinterpret_cast<uintptr_t>(t.data_ptr()) + 63) / 64 * 64);
}

// --- forward ---------------------------------------------------------------------------------------------------------

template <typename Run>
std::tuple<Tensors, Tensor, Tensor> forward(const Call& call, int64_t individuals, bool statistics, const Run& run) {
  Tensors outputs;
  for (int64_t j = 0; j < call.stages(); ++j) {
    outputs.push_back(empty(call.input(), call.output(), Order::channels_last, call.dtype));
  }
  const Sizes shape = statistics ? Sizes{call.stages(), individuals, call.channels} : Sizes{0};
  const ScalarType type = accumulate_dtype(call.dtype);
  Tensor mean = empty(call.input(), shape, Order::row_major, type);
  Tensor variance = empty(call.input(), shape, Order::row_major, type);
  THO_DISPATCH_V2(call.dtype, kForward, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    StageOutputs<scalar_t> out{};
                    for (size_t j = 0; j < outputs.size(); ++j) out.y[j] = outputs[j].mutable_data_ptr<scalar_t>();
                    run(call.arguments<scalar_t>(), out, statistics ? mean.mutable_data_ptr<A>() : nullptr,
                        statistics ? variance.mutable_data_ptr<A>() : nullptr);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {outputs, mean, variance};
}

// `normalized` says what mean and rstd are, which only the gradient depends on (fastnas/ops/stage.py).
std::tuple<Tensors, Tensor, Tensor> forward_cpu(Tensors inputs, std::optional<Tensor> mean, std::optional<Tensor> rstd,
                                                Tensors depthwise, Tensors pointwise, std::vector<int64_t> dilations,
                                                int64_t stride, int64_t individuals, bool statistics,
                                                bool /*normalized*/) {
  const Call call(kForward, inputs, mean, rstd, depthwise, pointwise, dilations, stride, individuals);
  return forward(call, individuals, statistics, [&](const auto& args, const auto& out, auto* mean, auto* variance) {
    const Tensor prepared = bytes(call, FASTNAS_CPU_CALL(stage_prepared_bytes, args));
    const StageWork work = FASTNAS_CPU_CALL(stage_work, args);
    torch::stable::parallel_for(0, work.groups, group_grain(args), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_prepare, args, aligned<void>(prepared), first, last);
    });
    const Sizes entries{statistics ? args.count * args.stages * 2 * args.channels : 0};
    Tensor table = empty(call.input(), entries, Order::row_major, ScalarType::Double);
    double* moments = statistics ? table.mutable_data_ptr<double>() : nullptr;
    const int64_t items = args.height * args.width == 0 ? 0 : work.forward;
    torch::stable::parallel_for(0, items, 1, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_forward, args, aligned<void>(prepared), out, moments, first, last);
    });
    if (statistics) {
      if (items == 0) std::fill(moments, moments + entries[0], 0.0);
      merge_statistics(moments, individuals, args.count / individuals, args.stages, args.channels,
                       args.out_height * args.out_width, mean, variance);
    }
  });
}

// --- gradient --------------------------------------------------------------------------------------------------------

// Checks one tensor per stage of the outputs' size; keeps what the pointers point to.
Tensors as_outputs(const Call& call, const char* name, const Tensors& tensors) {
  STD_TORCH_CHECK(tensors.size() == static_cast<size_t>(call.stages()), kBackward, ": ", name, " must hold ",
                  call.stages(), " tensors, one for each stage; got ", tensors.size());
  Tensors result;
  for (size_t j = 0; j < tensors.size(); ++j) {
    STD_TORCH_CHECK(sizes_of(tensors[j]) == call.output() && tensors[j].scalar_type() == call.dtype, kBackward, ": ",
                    name, "[", j, "] has shape ", shape_of(tensors[j]), ", which is not shape and dtype of an output");
    call.check_device(name, tensors[j]);
    result.push_back(pixels(tensors[j]));
  }
  return result;
}

using Gradients = std::tuple<Tensors, Tensors, Tensors, Tensor>;

template <typename Run>
Gradients gradient(const Call& call, const Tensors& grads, const Tensors& outputs,
                   const std::optional<Tensor>& coefficients, const Run& run) {
  const ScalarType type = accumulate_dtype(call.dtype);
  const Tensors g = as_outputs(call, "grads", grads);
  Tensors y;
  std::optional<Tensor> corrections;
  if (coefficients) {
    y = as_outputs(call, "outputs", outputs);
    STD_TORCH_CHECK(
        sizes_of(*coefficients) == (Sizes{call.stages(), 4, call.channels}) && coefficients->scalar_type() == type,
        kBackward, ": coefficients has shape ", shape_of(*coefficients), ", expected [", call.stages(), ", 4, ",
        call.channels, "]");
    call.check_device("coefficients", *coefficients);
    corrections = stored(*coefficients, Order::row_major);
  }
  Tensors grad_inputs, grad_depthwise, grad_pointwise;
  for (const Tensor& x : call.inputs()) {
    grad_inputs.push_back(empty(x, sizes_of(x), Order::channels_last, call.dtype));
  }
  for (int64_t j = 0; j < call.stages(); ++j) {
    grad_depthwise.push_back(empty(call.input(), call.depthwise_sizes(j), Order::row_major, type));
    grad_pointwise.push_back(empty(call.input(), {call.channels, call.channels, 1, 1}, Order::row_major, type));
  }
  const int64_t inputs = static_cast<int64_t>(call.inputs().size());
  Tensor sums =
      empty(call.input(), call.normalized() ? Sizes{inputs, 2, call.channels} : Sizes{0}, Order::row_major, type);
  THO_DISPATCH_V2(call.dtype, kBackward, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    StageGrads<scalar_t> all{};
                    for (size_t j = 0; j < g.size(); ++j) {
                      all.grad[j] = g[j].const_data_ptr<scalar_t>();
                      all.grad_stride[j] = pixel_stride(g[j]);
                      all.y[j] = corrections ? y[j].const_data_ptr<scalar_t>() : nullptr;
                      all.y_stride[j] = corrections ? pixel_stride(y[j]) : 0;
                      all.grad_depthwise[j] = grad_depthwise[j].mutable_data_ptr<A>();
                      all.grad_pointwise[j] = grad_pointwise[j].mutable_data_ptr<A>();
                    }
                    all.bn_coeffs = corrections ? corrections->const_data_ptr<A>() : nullptr;
                    for (size_t i = 0; i < grad_inputs.size(); ++i) {
                      all.grad_x[i] = grad_inputs[i].mutable_data_ptr<scalar_t>();
                    }
                    run(call.arguments<scalar_t>(), all, call.normalized() ? sums.mutable_data_ptr<A>() : nullptr);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {grad_inputs, grad_depthwise, grad_pointwise, sums};
}

Gradients grad_cpu(Tensors grads, Tensors outputs, std::optional<Tensor> coefficients, Tensors inputs,
                   std::optional<Tensor> mean, std::optional<Tensor> rstd, Tensors depthwise, Tensors pointwise,
                   std::vector<int64_t> dilations, int64_t stride) {
  const Call call(kBackward, inputs, mean, rstd, depthwise, pointwise, dilations, stride, 1);
  return gradient(call, grads, outputs, coefficients, [&](const auto& args, const auto& all, auto* sums) {
    using A = std::remove_cvref_t<decltype(*sums)>;
    const Tensor prepared = bytes(call, FASTNAS_CPU_CALL(stage_prepared_bytes, args));
    const StageWork work = FASTNAS_CPU_CALL(stage_work, args);
    torch::stable::parallel_for(0, work.groups, group_grain(args), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_prepare, args, aligned<void>(prepared), first, last);
    });
    const bool any = args.height * args.width > 0;
    const int64_t items = any ? work.gradient : 0;
    const int64_t partial_bytes = FASTNAS_CPU_CALL(stage_partial_bytes, args);
    Tensor partial = bytes(call, partial_bytes);
    if (!any) std::memset(aligned<void>(partial), 0, partial_bytes);
    const int64_t entries = args.inputs() * 2 * args.channels;
    Tensor table = empty(call.input(), {sums ? args.count * entries : 0}, Order::row_major, ScalarType::Double);
    double* per_image = sums ? table.mutable_data_ptr<double>() : nullptr;
    torch::stable::parallel_for(0, items, 1, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_grad, args, aligned<void>(prepared), all, aligned<void>(partial), per_image, first, last);
    });
    torch::stable::parallel_for(0, work.groups, group_grain(args), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_grad_merge, args, all, aligned<void>(partial), first, last);
    });
    if (!sums) return;
    std::vector<double> total(entries, 0.0);
    for (int64_t n = 0; any && n < args.count; ++n) {
      for (int64_t e = 0; e < entries; ++e) total[e] += per_image[n * entries + e];
    }
    for (int64_t e = 0; e < entries; ++e) sums[e] = A(total[e]);
  });
}

// --- CUDA ------------------------------------------------------------------------------------------------------------

#ifdef FASTNAS_CUDA
Tensor workspace(const Call& call, int64_t count) {
  return empty(call.input(), {(count + 3) / 4}, Order::row_major, ScalarType::Float);
}

std::tuple<Tensors, Tensor, Tensor> forward_cuda(Tensors inputs, std::optional<Tensor> mean, std::optional<Tensor> rstd,
                                                 Tensors depthwise, Tensors pointwise, std::vector<int64_t> dilations,
                                                 int64_t stride, int64_t individuals, bool statistics,
                                                 bool /*normalized*/) {
  const Call call(kForward, inputs, mean, rstd, depthwise, pointwise, dilations, stride, individuals);
  const DeviceScope device(call.input());
  return forward(call, individuals, statistics, [&](const auto& args, const auto& out, auto* mean, auto* variance) {
    const Tensor space = workspace(call, cuda::stage_forward_workspace(args, statistics));
    cuda::stage_forward(args, out, space.data_ptr(), mean, variance, device.stream());
  });
}

Gradients grad_cuda(Tensors grads, Tensors outputs, std::optional<Tensor> coefficients, Tensors inputs,
                    std::optional<Tensor> mean, std::optional<Tensor> rstd, Tensors depthwise, Tensors pointwise,
                    std::vector<int64_t> dilations, int64_t stride) {
  const Call call(kBackward, inputs, mean, rstd, depthwise, pointwise, dilations, stride, 1);
  const DeviceScope device(call.input());
  return gradient(call, grads, outputs, coefficients, [&](const auto& args, const auto& all, auto* sums) {
    const Tensor space = workspace(call, cuda::stage_grad_workspace(args, all));
    cuda::stage_grad(args, all, space.data_ptr(), sums, device.stream());
  });
}
#endif

}  // namespace
}  // namespace fastnas

FASTNAS_OPERATORS(m) {
  m.def(
      "stage(Tensor[] inputs, Tensor? mean, Tensor? rstd, Tensor[] depthwise, Tensor[] pointwise, int[] dilations, "
      "int stride, int individuals, bool statistics, bool normalized) -> (Tensor[] outputs, Tensor mean, Tensor "
      "variance)");
  m.def(
      "stage_grad(Tensor[] grads, Tensor[] outputs, Tensor? coefficients, Tensor[] inputs, Tensor? mean, Tensor? rstd, "
      "Tensor[] depthwise, Tensor[] pointwise, int[] dilations, int stride) -> (Tensor[] grad_inputs, "
      "Tensor[] grad_depthwise, Tensor[] grad_pointwise, Tensor sums)");
}

FASTNAS_OPERATORS_CPU(m) {
  m.impl("stage", TORCH_BOX(&fastnas::forward_cpu));
  m.impl("stage_grad", TORCH_BOX(&fastnas::grad_cpu));
}

#ifdef FASTNAS_CUDA
FASTNAS_OPERATORS_CUDA(m) {
  m.impl("stage", TORCH_BOX(&fastnas::forward_cuda));
  m.impl("stage_grad", TORCH_BOX(&fastnas::grad_cuda));
}
#endif
