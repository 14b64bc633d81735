#include "ops/node_sum.h"

#include <algorithm>
#include <optional>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/node_sum_args.h"

namespace fastnas {
namespace {

// --- checks ----------------------------------------------------------------------------------------------------------

int64_t bypassing(const char* op, const Tensors& bypass) {
  if (bypass.empty()) return 0;
  STD_TORCH_CHECK(bypass[0].dim() == 4, op, ": bypass[0] must be [N, R, H, W], got shape ", shape_of(bypass[0]));
  return bypass[0].size(1);
}

// B, the images of one individual. If it is not given and all tensors have one size, each individual has its own
// images.
int64_t images_of(const char* op, const Tensors& candidates, const Tensors& bypass,
                  const std::optional<Tensor>& prev_node, int64_t individuals, std::optional<int64_t> images) {
  STD_TORCH_CHECK(individuals >= 1, op, ": individuals is ", individuals, ", expected 1 or more");
  int64_t least = candidates[0].size(0), most = least;
  const auto each = [&](auto use) {
    for (size_t k = 0; k < candidates.size(); ++k) use(nth("candidates", k), candidates[k]);
    for (size_t e = 0; e < bypass.size(); ++e) use(nth("bypass", e), bypass[e]);
    if (prev_node) use(Argument{"prev_node"}, *prev_node);
  };
  each([&](const Argument&, const Tensor& t) {
    least = std::min(least, t.size(0));
    most = std::max(most, t.size(0));
  });
  const int64_t result = images ? *images : least < most ? least : most / individuals;
  int64_t all = 0;
  STD_TORCH_CHECK(result >= 0 && !__builtin_mul_overflow(result, individuals, &all), op, ": images is ", result,
                  ", expected as many as each of ", individuals, " individuals has");
  each([&](const Argument& argument, const Tensor& t) {
    STD_TORCH_CHECK(t.size(0) == result || t.size(0) == all, op, ": ", argument, " has shape ", shape_of(t), "; for ",
                    individuals, " individuals of ", result, " images its first dimension must be ", all, ", or ",
                    result, " where all share it");
  });
  return result;
}

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  template <typename T>
  void forward(const NodeSum<T>& args, T* result, int64_t stride) const {
    const NodeShape& s = args.shape;
    const int64_t R = (s.groups - 1) * s.channels;
    const int64_t values = s.tile * (args.candidate_count * s.channels + args.bypass_count * R);
    parallel_for(0, s.images * s.tiles * s.individuals, node_grain(values), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(node_sum_forward, args, result, stride, first, last);
    });
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename T>
  void forward(const NodeSum<T>& args, T* result, int64_t stride) const {
    cuda::node_sum_forward(args, result, stride, stream());
  }
};

// --- operators -------------------------------------------------------------------------------------------------------

// The sum, in `given` where there is one, else in a new tensor.
template <typename Backend>
Tensor sum(const char* op, std::optional<Tensor> given, const Tensors& candidates, const Tensor& mean,
           const Tensor& rstd, const Tensor& weights, const Tensors& bypass,
           const std::optional<Tensor>& bypass_weights, int64_t individuals, std::optional<int64_t> images,
           const std::optional<std::vector<int64_t>>& normalized, const std::optional<Tensor>& prev_node) {
  check_count(op, "candidates", candidates.size(), 1, kMaxNodeInputs);
  check_count(op, "bypass", bypass.size(), 0, kMaxNodeInputs);
  // Only the gradient depends on it (fastnas/ops/node_sum.py).
  STD_TORCH_CHECK(!normalized || normalized->size() == candidates.size(), op, ": normalized has ",
                  normalized ? normalized->size() : 0, " entries, but there are ", candidates.size(), " candidates");
  const Tensor& like = candidates[0];
  STD_TORCH_CHECK(like.dim() == 4, op, ": candidates[0] must be [N, C, H, W], got shape ", shape_of(like));
  STD_TORCH_CHECK(!prev_node || prev_node->dim() == 4, op, ": prev_node must be [N, C + R, H, W], got shape ",
                  prev_node ? shape_of(*prev_node) : "");
  const int64_t C = like.size(1), R = prev_node ? prev_node->size(1) - C : bypassing(op, bypass), P = individuals;
  const int64_t K = static_cast<int64_t>(candidates.size()), E = static_cast<int64_t>(bypass.size());
  check_images(op, "candidates", candidates, like, C);
  check_images(op, "bypass", bypass, like, R);
  if (prev_node) check_image(op, {"prev_node"}, *prev_node, like, C + R);
  const int64_t B = images_of(op, candidates, bypass, prev_node, P, images);
  check_table(op, {"mean"}, mean, {K, P, C}, "the images", like);
  check_extent(op, {"mean"}, mean);
  check_table(op, {"rstd"}, rstd, {K, P, C}, "the images", like);
  check_table(op, {"weights"}, weights, {P, K}, "the images", like);
  if (bypass_weights) check_table(op, {"bypass_weights"}, *bypass_weights, {P, E}, "the images", like);
  const int64_t groups = E || prev_node ? groups_of(op, C, R) : 1;

  const Backend backend(like);
  const NodeShape shape = node_shape(P, B, like, C, groups);
  const NodeInputs inputs(candidates, bypass, mean, rstd);
  const Tensor before = prev_node ? as_nhwc(*prev_node) : like;
  const Tensor w = as_contiguous(weights);
  const Sizes sizes{P * B, C + R, like.size(2), like.size(3)};
  STD_TORCH_CHECK(!given || (has_sizes(*given, sizes) && given->scalar_type() == like.scalar_type() &&
                             given->device() == like.device() && is_nhwc(*given)),
                  op, ": out has shape ", given ? shape_of(*given) : "", ", expected ", shape_of(sizes),
                  " in the dtype of the candidates, channels-last or some of its channels");
  Tensor result = given ? *given : empty(like, sizes, MemoryFormat::channels_last, like.scalar_type());
  THO_DISPATCH_V2(like.scalar_type(), "fastnas::node_sum", AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    NodeSum<scalar_t> args = inputs.arguments<scalar_t>(shape);
                    args.weights = w.const_data_ptr<A>();
                    const Tensor bw = bypass_weights ? as_contiguous(*bypass_weights) : w;
                    if (bypass_weights) args.bypass_weights = bw.const_data_ptr<A>();
                    if (prev_node) args.prev_node = node_pixels<scalar_t>(before, P > 1 && before.size(0) == B);
                    backend.forward(args, result.mutable_data_ptr<scalar_t>(), pixel_stride(result));
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

template <typename Backend>
Tensor forward(Tensors candidates, const Tensor& mean, const Tensor& rstd, const Tensor& weights, Tensors bypass,
               std::optional<Tensor> bypass_weights, int64_t individuals, std::optional<int64_t> images,
               std::optional<std::vector<int64_t>> normalized, std::optional<Tensor> prev_node) {
  return sum<Backend>("fastnas::node_sum", std::nullopt, candidates, mean, rstd, weights, bypass, bypass_weights,
                      individuals, images, normalized, prev_node);
}

template <typename Backend>
void forward_into(Tensor out, Tensors candidates, const Tensor& mean, const Tensor& rstd, const Tensor& weights,
                  Tensors bypass, std::optional<Tensor> bypass_weights, int64_t individuals, int64_t images,
                  std::optional<Tensor> prev_node) {
  sum<Backend>("fastnas::node_sum_into", out, candidates, mean, rstd, weights, bypass, bypass_weights, individuals,
               images, std::nullopt, prev_node);
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def(
      "node_sum(Tensor[] candidates, Tensor mean, Tensor rstd, Tensor weights, Tensor[] bypass, "
      "Tensor? bypass_weights, int individuals, int? images=None, int[]? normalized=None, Tensor? prev_node=None) -> "
      "Tensor");
  m.def(
      "node_sum_into(Tensor(a!) out, Tensor[] candidates, Tensor mean, Tensor rstd, Tensor weights, Tensor[] bypass, "
      "Tensor? bypass_weights, int individuals, int images, Tensor? prev_node=None) -> ()");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) {
  m.impl("node_sum", TORCH_BOX(&forward<Backend>));
  m.impl("node_sum_into", TORCH_BOX(&forward_into<Backend>));
}

}  // namespace fastnas
