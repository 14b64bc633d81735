#include "ops/edge_sum.h"

#include <algorithm>
#include <optional>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

constexpr auto kOp = "fastnas::edge_sum";

// --- checks ----------------------------------------------------------------------------------------------------------

// The checked arguments. Keeps alive what the pointers of `arguments` point to.
class Call {
 public:
  Call(const Tensor& x, const Tensors& depthwise, const Tensors& pointwise, const std::vector<int64_t>& depths,
       const std::vector<int64_t>& dilations, const Tensor& inner_scales, const Tensor& inner_offsets,
       const Tensor& scales, const Tensor& offsets, int64_t stride, bool shared)
      : depths_(depths), dilations_(dilations), stride_(stride), shared_(shared) {
    STD_TORCH_CHECK(x.dim() == 4 && x.size(1) >= 1, kOp, ": x has shape ", shape_of(x),
                    ", expected [N, C, H, W] with at least one channel");
    check_extent(kOp, {"x"}, x);
    check_floating(kOp, "x", x.scalar_type());
    check_stride(kOp, stride);
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
    check_extent(kOp, {"scales"}, scales);
    individuals = scales.size(0);
    edges = scales.size(1);
    STD_TORCH_CHECK(individuals >= 1 && edges >= 1 && edges <= kMaxSumEdges, kOp, ": scales are those of ", individuals,
                    " individuals and ", edges, " edges, expected at least one and at most ", kMaxSumEdges, " edges");
    STD_TORCH_CHECK(dilations.size() == static_cast<size_t>(stages_), kOp, ": dilations has ", dilations.size(),
                    " entries, expected one for each of ", stages_, " stages of an edge");
    STD_TORCH_CHECK(shared ? extent_of({x.size(0), individuals}).has_value() : can_share(x.size(0), individuals), kOp,
                    ": ", x.size(0), " images cannot be those of ", individuals, " individuals");
    dtype = x.scalar_type();
    x_ = as_nhwc(x);
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
    return {images, x_.size(1), strided_size(x_.size(2), stride_), strided_size(x_.size(3), stride_)};
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
    args.out_height = strided_size(args.height, stride_);
    args.out_width = strided_size(args.width, stride_);
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
  Tensor table(const char* name, const Tensor& t, const Sizes& expected) const {
    check_table(kOp, {name}, t, expected, "x", x_);
    return as_contiguous(t);
  }

  void check_weights(const Tensors& depthwise, const Tensors& pointwise) {
    const int64_t channels = x_.size(1);
    const size_t count = static_cast<size_t>(edges * stages_);
    STD_TORCH_CHECK(depthwise.size() == count && pointwise.size() == count, kOp, ": got ", depthwise.size(),
                    " depthwise and ", pointwise.size(), " pointwise weights, expected ", stages_,
                    " of each for each of ", edges, " edges");
    for (size_t i = 0; i < count; ++i) {
      const Tensor &d = depthwise[i], &p = pointwise[i], &first = depthwise[i % stages_];
      check_depthwise(kOp, i, d, channels, "x", x_);
      STD_TORCH_CHECK(d.size(2) == first.size(2), kOp, ": depthwise[", i, "] has shape ", shape_of(d), ", depthwise[",
                      i % stages_, "] ", shape_of(first), "; a stage has the same on all edges");
      check_table(kOp, nth("pointwise", i), p, {channels, channels, 1, 1}, "x", x_);
      check_extent(kOp, nth("depthwise", i), d);
      check_extent(kOp, nth("pointwise", i), p);
      depthwise_.push_back(as_contiguous(d));
      pointwise_.push_back(as_contiguous(p));
    }
    // A second stage reads what the first one gives.
    const Sizes first = sizes_of(x_), second = output();
    for (size_t j = 0, s = 0; j < depths_.size(); ++j) {
      for (int64_t k = 0; k < depths_[j]; ++k, ++s) {
        const Sizes& image = k == 0 ? first : second;
        dilations_[s] = check_dilation(kOp, s, dilations_[s], depthwise_[s], image[2], image[3]);
      }
    }
  }

  std::vector<int64_t> depths_, dilations_;  // dilations as computed
  int64_t stride_, stages_ = 0;
  bool shared_;
  Tensor x_;
  std::optional<Tensor> scales_, offsets_, inner_scales_, inner_offsets_;
  Tensors depthwise_, pointwise_;
};

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  // Blocks per thread from which on starting it pays.
  template <typename T>
  static int64_t grain(const EdgeSum<T>& args) {
    const int64_t values = args.edges * args.channels * args.height * args.width;
    return std::max<int64_t>(1, 4096 / std::max<int64_t>(1, values));
  }

  template <typename T>
  void forward(const EdgeSum<T>& args) const {
    const Workspace prepared = workspace(FASTNAS_CPU_CALL(edge_sum_prepared_bytes, args));
    FASTNAS_CPU_CALL(edge_sum_prepare, args, prepared.data());
    const int64_t blocks = FASTNAS_CPU_CALL(edge_sum_blocks, args);
    parallel_for(0, blocks, grain(args), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(edge_sum_forward, args, prepared.data(), first, last);
    });
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename T>
  void forward(const EdgeSum<T>& args) const {
    const Workspace space = workspace(cuda::edge_sum_workspace(args));
    cuda::edge_sum(args, space.data(), stream());
  }
};

// --- operator --------------------------------------------------------------------------------------------------------

template <typename Backend>
Tensors forward(const Tensor& x, Tensors depthwise, Tensors pointwise, std::vector<int64_t> depths,
                std::vector<int64_t> dilations, const Tensor& inner_scales, const Tensor& inner_offsets,
                const Tensor& scales, const Tensor& offsets, int64_t stride, bool shared) {
  const Call call(x, depthwise, pointwise, depths, dilations, inner_scales, inner_offsets, scales, offsets, stride,
                  shared);
  const Backend backend(call.x());
  Tensors results;
  for (int64_t e = 0; e < call.edges; ++e) {
    results.push_back(empty(call.x(), call.output(), MemoryFormat::channels_last, call.dtype));
  }
  if (results[0].numel() == 0) return results;
  THO_DISPATCH_V2(call.dtype, kOp, AT_WRAP([&] {
                    EdgeSum<scalar_t> args = call.arguments<scalar_t>();
                    for (int e = 0; e < args.edges; ++e) args.result[e] = results[e].mutable_data_ptr<scalar_t>();
                    backend.forward(args);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return results;
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def(
      "edge_sum(Tensor x, Tensor[] depthwise, Tensor[] pointwise, int[] depths, int[] dilations, Tensor inner_scales, "
      "Tensor inner_offsets, Tensor scales, Tensor offsets, int stride, bool shared) -> Tensor[]");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) { m.impl("edge_sum", TORCH_BOX(&forward<Backend>)); }

}  // namespace fastnas
