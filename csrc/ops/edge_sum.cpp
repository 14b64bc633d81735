#include "ops/edge_sum.h"

#include <algorithm>
#include <optional>

#include "ops/backend.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

using Tensors = std::vector<Tensor>;

constexpr auto kOp = "fastnas::edge_sum";

int64_t out_size(int64_t size, int64_t stride) { return (size + stride - 1) / stride; }

std::string text_of(const Sizes& sizes) {
  std::string text = "[";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
  return text + "]";
}

// Blocks per thread from which on threads are worth their start.
int64_t grain(const Tensor& x, int64_t edges) {
  return std::max<int64_t>(1, 4096 / std::max<int64_t>(1, edges * x.size(1) * x.size(2) * x.size(3)));
}

// The checked arguments. Keeps alive what the pointers of `arguments` point to.
class Call {
 public:
  Call(const Tensor& x, const Tensors& depthwise, const Tensors& pointwise, const std::vector<int64_t>& depths,
       const std::vector<int64_t>& dilations, const Tensor& inner_scales, const Tensor& inner_offsets,
       const Tensor& scales, const Tensor& offsets, int64_t stride, bool shared)
      : depths_(depths), dilations_(dilations), stride_(stride), shared_(shared) {
    STD_TORCH_CHECK(x.dim() == 4 && x.size(1) >= 1, kOp, ": x has shape ", shape_of(x),
                    ", expected [N, C, H, W] with at least one channel");
    STD_TORCH_CHECK(element_size(x.scalar_type()) > 0, kOp, ": x must be float16, bfloat16, float32 or float64");
    STD_TORCH_CHECK(stride == 1 || stride == 2, kOp, ": stride is ", stride, ", expected 1 or 2");
    STD_TORCH_CHECK(depths.size() <= static_cast<size_t>(kMaxSumCandidates), kOp, ": depths holds ", depths.size(),
                    " candidates, expected at most ", kMaxSumCandidates);
    for (int64_t depth : depths) {
      STD_TORCH_CHECK(depth == 1 || depth == 2, kOp, ": a candidate of depth ", depth, ", expected 1 or 2 stages");
      stages_ += depth;
    }
    const int64_t candidates = static_cast<int64_t>(depths.size()), channels = x.size(1);
    const int64_t terms = candidates + 2 + (stride == 1);
    STD_TORCH_CHECK(scales.dim() == 4, kOp, ": scales has shape ", shape_of(scales), ", expected [P, E, ", terms, ", ",
                    channels, "]");
    individuals = scales.size(0);
    edges = scales.size(1);
    STD_TORCH_CHECK(individuals >= 1 && edges >= 1 && edges <= kMaxSumEdges, kOp, ": scales are those of ", individuals,
                    " individuals and ", edges, " edges, expected at least one and at most ", kMaxSumEdges, " edges");
    STD_TORCH_CHECK(dilations.size() == static_cast<size_t>(stages_), kOp, ": dilations has ", dilations.size(),
                    " entries, expected one for each of ", stages_, " stages of an edge");
    STD_TORCH_CHECK(shared || x.size(0) % individuals == 0, kOp, ": ", x.size(0), " images cannot be those of ",
                    individuals, " individuals");
    dtype = x.scalar_type();
    x_ = pixels(x);
    scales_ = table("scales", scales, {individuals, edges, terms, channels});
    offsets_ = table("offsets", offsets, {individuals, edges, channels});
    inner_scales_ = table("inner_scales", inner_scales, {edges, stages_ - candidates, channels});
    inner_offsets_ = table("inner_offsets", inner_offsets, {edges, stages_ - candidates, channels});
    check_weights(depthwise, pointwise);
  }

  int64_t individuals, edges;
  ScalarType dtype;

  const Tensor& x() const { return x_; }
  Sizes output() const {
    const int64_t images = x_.size(0) * (shared_ ? individuals : 1);
    return {images, x_.size(1), out_size(x_.size(2), stride_), out_size(x_.size(3), stride_)};
  }

  template <typename T>
  EdgeSum<T> arguments() const {
    using A = accumulate_t<T>;
    EdgeSum<T> args{};
    args.images = x_.size(0);
    args.individuals = individuals;
    args.shared = shared_;
    args.channels = x_.size(1);
    args.height = x_.size(2);
    args.width = x_.size(3);
    args.out_height = out_size(args.height, stride_);
    args.out_width = out_size(args.width, stride_);
    args.stride = stride_;
    args.edges = static_cast<int>(edges);
    args.candidates = static_cast<int>(depths_.size());
    args.stages = static_cast<int>(stages_);
    for (size_t j = 0; j < depths_.size(); ++j) args.depth[j] = static_cast<int>(depths_[j]);
    for (int s = 0; s < args.stages; ++s) {
      args.kernel[s] = depthwise_[s].size(3);
      args.dilation[s] = dilations_[s];
      for (int e = 0; e < args.edges; ++e) {
        args.depthwise[e][s] = depthwise_[e * args.stages + s].template const_data_ptr<A>();
        args.pointwise[e][s] = pointwise_[e * args.stages + s].template const_data_ptr<A>();
      }
    }
    args.x = x_.const_data_ptr<T>();
    args.x_stride = pixel_stride(x_);
    args.inner_scales = inner_scales_->const_data_ptr<A>();
    args.inner_offsets = inner_offsets_->const_data_ptr<A>();
    args.scales = scales_->const_data_ptr<A>();
    args.offsets = offsets_->const_data_ptr<A>();
    return args;
  }

 private:
  const char* number() const { return dtype == ScalarType::Double ? "float64" : "float32"; }

  Tensor table(const char* name, const Tensor& t, const Sizes& expected) const {
    STD_TORCH_CHECK(sizes_of(t) == expected, kOp, ": ", name, " has shape ", shape_of(t), ", expected ",
                    text_of(expected));
    STD_TORCH_CHECK(t.scalar_type() == accumulate_dtype(dtype) && t.device() == x_.device(), kOp, ": ", name,
                    " must be ", number(), " and on the device of x");
    return stored(t, Order::row_major);
  }

  void check_weights(const Tensors& depthwise, const Tensors& pointwise) {
    const int64_t channels = x_.size(1);
    const size_t count = static_cast<size_t>(edges * stages_);
    STD_TORCH_CHECK(depthwise.size() == count && pointwise.size() == count, kOp, ": got ", depthwise.size(),
                    " depthwise and ", pointwise.size(), " pointwise weights, expected ", stages_,
                    " of each for each of ", edges, " edges");
    for (size_t i = 0; i < count; ++i) {
      const Tensor &d = depthwise[i], &p = pointwise[i], &first = depthwise[i % stages_];
      STD_TORCH_CHECK(d.dim() == 4 && d.size(0) == channels && d.size(1) == 1 && d.size(2) == d.size(3) &&
                          d.size(2) % 2 == 1 && d.size(2) == first.size(2),
                      kOp, ": depthwise[", i, "] has shape ", shape_of(d), ", expected [", channels,
                      ", 1, K, K] with an odd K, the same on all edges");
      STD_TORCH_CHECK(sizes_of(p) == (Sizes{channels, channels, 1, 1}), kOp, ": pointwise[", i, "] has shape ",
                      shape_of(p), ", expected [", channels, ", ", channels, ", 1, 1]");
      for (const Tensor* weight : {&d, &p}) {
        STD_TORCH_CHECK(weight->scalar_type() == accumulate_dtype(dtype) && weight->device() == x_.device(), kOp,
                        ": weights ", i, " must be ", number(), " and on the device of x");
      }
      depthwise_.push_back(stored(d, Order::row_major));
      pointwise_.push_back(stored(p, Order::row_major));
    }
    for (size_t s = 0; s < dilations_.size(); ++s) {
      STD_TORCH_CHECK(dilations_[s] >= 1, kOp, ": dilations[", s, "] is ", dilations_[s], ", expected at least 1");
    }
  }

  std::vector<int64_t> depths_, dilations_;
  int64_t stride_, stages_ = 0;
  bool shared_;
  Tensor x_;
  std::optional<Tensor> scales_, offsets_, inner_scales_, inner_offsets_;
  Tensors depthwise_, pointwise_;
};

Tensors forward_cpu(const Tensor& x, Tensors depthwise, Tensors pointwise, std::vector<int64_t> depths,
                    std::vector<int64_t> dilations, const Tensor& inner_scales, const Tensor& inner_offsets,
                    const Tensor& scales, const Tensor& offsets, int64_t stride, bool shared) {
  const Call call(x, depthwise, pointwise, depths, dilations, inner_scales, inner_offsets, scales, offsets, stride,
                  shared);
  Tensors results;
  for (int64_t e = 0; e < call.edges; ++e) {
    results.push_back(empty(call.x(), call.output(), Order::channels_last, call.dtype));
  }
  if (results[0].numel() == 0) return results;
  THO_DISPATCH_V2(
      call.dtype, kOp, AT_WRAP([&] {
        EdgeSum<scalar_t> args = call.arguments<scalar_t>();
        for (int e = 0; e < args.edges; ++e) args.result[e] = results[e].mutable_data_ptr<scalar_t>();
        const int64_t bytes = FASTNAS_CPU_CALL(edge_sum_prepared_bytes, args);
        const Tensor block = empty(call.x(), {bytes / 4 + 16}, Order::row_major, ScalarType::Float);
        void* const prepared = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block.data_ptr()) + 63) / 64 * 64);
        FASTNAS_CPU_CALL(edge_sum_prepare, args, prepared);
        const int64_t blocks = FASTNAS_CPU_CALL(edge_sum_blocks, args);
        torch::stable::parallel_for(0, blocks, grain(call.x(), call.edges), [&](int64_t first, int64_t last) {
          FASTNAS_CPU_CALL(edge_sum_forward, args, prepared, first, last);
        });
      }),
      FASTNAS_FLOATING_TYPES);
  return results;
}

}  // namespace
}  // namespace fastnas

FASTNAS_OPERATORS(m) {
  m.def(
      "edge_sum(Tensor x, Tensor[] depthwise, Tensor[] pointwise, int[] depths, int[] dilations, Tensor inner_scales, "
      "Tensor inner_offsets, Tensor scales, Tensor offsets, int stride, bool shared) -> Tensor[]");
}

FASTNAS_OPERATORS_CPU(m) { m.impl("edge_sum", TORCH_BOX(&fastnas::forward_cpu)); }
