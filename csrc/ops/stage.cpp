#include "ops/stage.h"

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

// The arguments that forward and backward share, checked. Keeps alive what the pointers of `arguments` point to.
class Call {
 public:
  Call(const char* op, const Tensors& inputs, const std::optional<Tensor>& mean, const std::optional<Tensor>& rstd,
       const Tensors& depthwise, const Tensors& pointwise, const std::vector<int64_t>& dilations, int64_t stride,
       int64_t individuals)
      : op_(op), dilations_(dilations), stride_(stride), individuals_(individuals) {
    const size_t stages = depthwise.size();
    check_count(op, "depthwise", stages, 1, kMaxStages);
    STD_TORCH_CHECK(pointwise.size() == stages && dilations.size() == stages, op, ": got ", stages,
                    " depthwise weights, but ", pointwise.size(), " pointwise weights and ", dilations.size(),
                    " dilations; each stage has one of each");
    STD_TORCH_CHECK(inputs.size() == 1 || inputs.size() == stages, op, ": inputs must be one that all ", stages,
                    " stages read, or one for each; got ", inputs.size());
    check_stride(op, stride);
    STD_TORCH_CHECK(mean.has_value() == rstd.has_value(), op, ": give both mean and rstd, or neither");
    STD_TORCH_CHECK(depthwise[0].dim() == 4 && depthwise[0].size(0) >= 1, op, ": depthwise[0] has shape ",
                    shape_of(depthwise[0]), ", expected [C, 1, K, K] with at least one channel");
    channels = depthwise[0].size(0);
    dtype = inputs[0].scalar_type();
    check_floating(op, "inputs", dtype);
    check_inputs(inputs, stages);
    check_weights(depthwise, pointwise);
    for (size_t j = 0; j < stages; ++j) {
      dilations_[j] = check_dilation(op, j, dilations[j], depthwise[j], inputs[0].size(2), inputs[0].size(3));
    }
    if (mean) {
      mean_ = statistic("mean", *mean);
      rstd_ = statistic("rstd", *rstd);
    }
  }

  int64_t channels;
  ScalarType dtype;

  int64_t stages() const { return static_cast<int64_t>(depthwise_.size()); }
  const Tensor& input() const { return inputs_[0]; }
  Sizes output() const {
    const Tensor& x = inputs_[0];
    return {x.size(0), channels, strided_size(x.size(2), stride_), strided_size(x.size(3), stride_)};
  }
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
    args.out_height = strided_size(x.size(2), stride_);
    args.out_width = strided_size(x.size(3), stride_);
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
      check_like(op_, nth("inputs", i), x, "inputs[0]", inputs[0]);
      check_extent(op_, nth("inputs", i), x);
      inputs_.push_back(as_nhwc(x));
    }
    const int64_t count = inputs[0].size(0);
    STD_TORCH_CHECK(can_share(count, individuals_), op_, ": ", count,
                    " images cannot be those of individuals=", individuals_);
  }

  void check_weights(const Tensors& depthwise, const Tensors& pointwise) {
    for (size_t j = 0; j < depthwise.size(); ++j) {
      check_depthwise(op_, j, depthwise[j], channels, "the inputs", inputs_[0]);
      check_table(op_, nth("pointwise", j), pointwise[j], {channels, channels, 1, 1}, "the inputs", inputs_[0]);
      check_extent(op_, nth("depthwise", j), depthwise[j]);
      check_extent(op_, nth("pointwise", j), pointwise[j]);
      depthwise_.push_back(as_contiguous(depthwise[j]));
      pointwise_.push_back(as_contiguous(pointwise[j]));
    }
  }

  Tensor statistic(const char* name, const Tensor& t) const {
    const Sizes expected{static_cast<int64_t>(inputs_.size()), individuals_, channels};
    check_table(op_, {name}, t, expected, "the inputs", inputs_[0]);
    return as_contiguous(t);
  }

  const char* op_;
  std::vector<int64_t> dilations_;  // as computed
  int64_t stride_, individuals_;
  Tensors inputs_, depthwise_, pointwise_;
  std::optional<Tensor> mean_, rstd_;
};

// One tensor per stage of the outputs' size, as the kernels read it.
Tensors as_outputs(const char* op, const Call& call, const char* name, const Tensors& tensors) {
  STD_TORCH_CHECK(tensors.size() == static_cast<size_t>(call.stages()), op, ": ", name, " must hold ", call.stages(),
                  " tensors, one for each stage; got ", tensors.size());
  for (size_t j = 0; j < tensors.size(); ++j) {
    check_sizes(op, nth(name, j), tensors[j], call.output());
    check_like(op, nth(name, j), tensors[j], "the inputs", call.input());
  }
  return as_nhwc(tensors);
}

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  // Starting a thread pays from about this many weights on.
  template <typename T>
  static int64_t group_grain(const Stage<T>& args) {
    return std::max<int64_t>(1, 16384 / (args.channels * args.channels));
  }

  template <typename T, typename A>
  void forward(const Stage<T>& args, const StageOutputs<T>& out, A* mean, A* variance) const {
    const Workspace prepared = workspace(FASTNAS_CPU_CALL(stage_prepared_bytes, args));
    const StageWork work = FASTNAS_CPU_CALL(stage_work, args);
    parallel_for(0, work.groups, group_grain(args), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_prepare, args, prepared.data(), first, last);
    });
    Tensor table = doubles(mean ? args.count * args.stages * 2 * args.channels : 0);
    double* stats = mean ? table.mutable_data_ptr<double>() : nullptr;
    parallel_for(0, work.forward, 1, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_forward, args, prepared.data(), out, stats, first, last);
    });
    if (mean) {
      merge_statistics(stats, args.individuals, args.count / args.individuals, args.stages, args.channels,
                       args.out_height * args.out_width, mean, variance);
    }
  }

  template <typename T, typename A>
  void backward(const Stage<T>& args, const StageGrads<T>& grads, A* bn_sums) const {
    const Workspace prepared = workspace(FASTNAS_CPU_CALL(stage_prepared_bytes, args));
    const StageWork work = FASTNAS_CPU_CALL(stage_work, args);
    parallel_for(0, work.groups, group_grain(args), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_prepare, args, prepared.data(), first, last);
    });
    const Workspace partial = workspace(FASTNAS_CPU_CALL(stage_partial_bytes, args));
    const int64_t entries = args.inputs() * 2 * args.channels;
    Tensor table = doubles(bn_sums ? args.count * entries : 0);
    double* per_image = bn_sums ? table.mutable_data_ptr<double>() : nullptr;
    parallel_for(0, work.gradient, 1, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_grad, args, prepared.data(), grads, partial.data(), per_image, first, last);
    });
    parallel_for(0, work.groups, group_grain(args), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_grad_merge, args, grads, partial.data(), first, last);
    });
    if (!bn_sums) return;
    std::vector<double> total(entries, 0.0);
    for (int64_t n = 0; n < args.count; ++n) {
      for (int64_t e = 0; e < entries; ++e) total[e] += per_image[n * entries + e];
    }
    for (int64_t e = 0; e < entries; ++e) bn_sums[e] = A(total[e]);
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename T, typename A>
  void forward(const Stage<T>& args, const StageOutputs<T>& out, A* mean, A* variance) const {
    const Workspace space = workspace(cuda::stage_forward_workspace(args, mean != nullptr));
    cuda::stage_forward(args, out, space.data(), mean, variance, stream());
  }

  template <typename T, typename A>
  void backward(const Stage<T>& args, const StageGrads<T>& grads, A* bn_sums) const {
    const Workspace space = workspace(cuda::stage_grad_workspace(args, grads));
    cuda::stage_grad(args, grads, space.data(), bn_sums, stream());
  }
};

// --- operators -------------------------------------------------------------------------------------------------------

// `normalized` says what mean and rstd are, which only the gradient depends on (fastnas/ops/stage.py).
template <typename Backend>
std::tuple<Tensors, Tensor, Tensor> forward(Tensors inputs, std::optional<Tensor> input_mean,
                                            std::optional<Tensor> input_rstd, Tensors depthwise, Tensors pointwise,
                                            std::vector<int64_t> dilations, int64_t stride, int64_t individuals,
                                            bool statistics, bool /*normalized*/) {
  constexpr auto op = "fastnas::stage";
  const Call call(op, inputs, input_mean, input_rstd, depthwise, pointwise, dilations, stride, individuals);
  const Backend backend(call.input());
  Tensors outputs;
  for (int64_t j = 0; j < call.stages(); ++j) {
    outputs.push_back(empty(call.input(), call.output(), MemoryFormat::channels_last, call.dtype));
  }
  const Sizes shape = statistics ? Sizes{call.stages(), individuals, call.channels} : Sizes{0};
  const ScalarType type = acc_dtype(call.dtype);
  Tensor mean = empty(call.input(), shape, MemoryFormat::contiguous, type);
  Tensor variance = empty(call.input(), shape, MemoryFormat::contiguous, type);
  THO_DISPATCH_V2(call.dtype, op, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    if (outputs[0].numel() == 0) {
                      fill_with_zeros(mean);
                      fill_with_zeros(variance);
                      return;
                    }
                    StageOutputs<scalar_t> out{};
                    for (size_t j = 0; j < outputs.size(); ++j) out.y[j] = outputs[j].mutable_data_ptr<scalar_t>();
                    backend.forward(call.arguments<scalar_t>(), out, statistics ? mean.mutable_data_ptr<A>() : nullptr,
                                    statistics ? variance.mutable_data_ptr<A>() : nullptr);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {outputs, mean, variance};
}

using Gradients = std::tuple<Tensors, Tensors, Tensors, Tensor>;

template <typename Backend>
Gradients backward(Tensors grads, Tensors outputs, std::optional<Tensor> bn_coeffs, Tensors inputs,
                   std::optional<Tensor> mean, std::optional<Tensor> rstd, Tensors depthwise, Tensors pointwise,
                   std::vector<int64_t> dilations, int64_t stride) {
  constexpr auto op = "fastnas::stage_grad";
  const Call call(op, inputs, mean, rstd, depthwise, pointwise, dilations, stride, 1);
  const Backend backend(call.input());
  const ScalarType type = acc_dtype(call.dtype);
  const Tensors g = as_outputs(op, call, "grads", grads);
  Tensors y;
  if (bn_coeffs) {
    y = as_outputs(op, call, "outputs", outputs);
    check_table(op, {"bn_coeffs"}, *bn_coeffs, {call.stages(), 4, call.channels}, "the inputs", call.input());
    bn_coeffs = as_contiguous(bn_coeffs);
  }
  Tensors grad_inputs, grad_depthwise, grad_pointwise;
  for (const Tensor& x : call.inputs()) {
    grad_inputs.push_back(empty(x, sizes_of(x), MemoryFormat::channels_last, call.dtype));
  }
  for (int64_t j = 0; j < call.stages(); ++j) {
    grad_depthwise.push_back(empty(call.input(), call.depthwise_sizes(j), MemoryFormat::contiguous, type));
    grad_pointwise.push_back(empty(call.input(), {call.channels, call.channels, 1, 1}, MemoryFormat::contiguous, type));
  }
  const int64_t input_count = static_cast<int64_t>(call.inputs().size());
  Tensor bn_sums = empty(call.input(), call.normalized() ? Sizes{input_count, 2, call.channels} : Sizes{0},
                         MemoryFormat::contiguous, type);
  THO_DISPATCH_V2(call.dtype, op, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    if (g[0].numel() == 0) {
                      fill_with_zeros(grad_depthwise);
                      fill_with_zeros(grad_pointwise);
                      fill_with_zeros(bn_sums);
                      return;
                    }
                    StageGrads<scalar_t> all{};
                    for (size_t j = 0; j < g.size(); ++j) {
                      all.grad[j] = g[j].const_data_ptr<scalar_t>();
                      all.grad_stride[j] = pixel_stride(g[j]);
                      all.y[j] = bn_coeffs ? y[j].const_data_ptr<scalar_t>() : nullptr;
                      all.y_stride[j] = bn_coeffs ? pixel_stride(y[j]) : 0;
                      all.grad_depthwise[j] = grad_depthwise[j].mutable_data_ptr<A>();
                      all.grad_pointwise[j] = grad_pointwise[j].mutable_data_ptr<A>();
                    }
                    all.bn_coeffs = bn_coeffs ? bn_coeffs->const_data_ptr<A>() : nullptr;
                    for (size_t i = 0; i < grad_inputs.size(); ++i) {
                      all.grad_x[i] = grad_inputs[i].mutable_data_ptr<scalar_t>();
                    }
                    backend.backward(call.arguments<scalar_t>(), all,
                                     call.normalized() ? bn_sums.mutable_data_ptr<A>() : nullptr);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {grad_inputs, grad_depthwise, grad_pointwise, bn_sums};
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def(
      "stage(Tensor[] inputs, Tensor? mean, Tensor? rstd, Tensor[] depthwise, Tensor[] pointwise, int[] dilations, "
      "int stride, int individuals, bool statistics, bool normalized) -> (Tensor[] outputs, Tensor mean, Tensor "
      "variance)");
  m.def(
      "stage_grad(Tensor[] grads, Tensor[] outputs, Tensor? bn_coeffs, Tensor[] inputs, Tensor? mean, Tensor? rstd, "
      "Tensor[] depthwise, Tensor[] pointwise, int[] dilations, int stride) -> (Tensor[] grad_inputs, "
      "Tensor[] grad_depthwise, Tensor[] grad_pointwise, Tensor bn_sums)");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) {
  m.impl("stage", TORCH_BOX(&forward<Backend>));
  m.impl("stage_grad", TORCH_BOX(&backward<Backend>));
}

}  // namespace fastnas
