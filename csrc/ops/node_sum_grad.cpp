// The gradients of node_sum.
#include <algorithm>
#include <tuple>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/node_sum.h"
#include "ops/node_sum_args.h"

namespace fastnas {
namespace {

// --- checks ----------------------------------------------------------------------------------------------------------

// There are gradients for one individual only.
void check_candidates(const char* op, const Tensors& candidates, const Tensor& like, int64_t channels,
                      const Tensor& mean, const Tensor& rstd) {
  check_count(op, "candidates", candidates.size(), 1, kMaxNodeInputs);
  STD_TORCH_CHECK(mean.dim() != 3 || mean.size(1) == 1, op, ": mean has shape ", shape_of(mean),
                  "; there are gradients for one individual only, [K, 1, C]");
  check_images(op, "candidates", candidates, like, channels);
  check_batch(op, "candidates", candidates, like);
  const Sizes table{static_cast<int64_t>(candidates.size()), 1, channels};
  check_table(op, {"mean"}, mean, table, "the images", like);
  check_table(op, {"rstd"}, rstd, table, "the images", like);
}

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  template <typename T, typename A>
  void backward(const NodeSum<T>& args, const NodePixels<T>& grad, T* grad_group0, A* sum_dy, A* sum_dy_xhat,
                A* grad_bypass_weights) const {
    const NodeShape& s = args.shape;
    const int64_t C = s.channels, K = args.candidate_count, E = args.bypass_count, entries = C + K * C + E;
    Tensor table = doubles(s.images * entries);
    double* const partial = table.mutable_data_ptr<double>();
    std::vector<double> total(entries);
    parallel_for(0, s.images, node_grain(s.pixels * ((K + 1) * C + (E + 1) * (s.groups - 1) * C)),
                 [&](int64_t first, int64_t last) {
                   FASTNAS_CPU_CALL(node_sum_grad, args, grad, grad_group0, partial, first, last);
                 });
    for (int64_t image = 0; image < s.images; ++image) {
      for (int64_t i = 0; i < entries; ++i) total[i] += partial[image * entries + i];
    }
    const double* from = total.data();
    for (int64_t c = 0; c < C; ++c) sum_dy[c] = A(*from++);
    for (int64_t i = 0; i < K * C; ++i) sum_dy_xhat[i] = A(*from++ * args.rstd[i]);
    for (int64_t e = 0; e < E; ++e) grad_bypass_weights[e] = A(*from++);
  }

  template <typename T>
  void grad_candidates(const NodeSum<T>& args, const NodePixels<T>& grad_group0, const NodeSumGrads<T>& grads) const {
    const NodeShape& s = args.shape;
    parallel_for(0, s.images * s.tiles, node_grain(s.tile * (2 * args.candidate_count + 1) * s.channels),
                 [&](int64_t first, int64_t last) {
                   FASTNAS_CPU_CALL(node_sum_grad_candidates, args, grad_group0, grads, first, last);
                 });
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename T, typename A>
  void backward(const NodeSum<T>& args, const NodePixels<T>& grad, T* grad_group0, A* sum_dy, A* sum_dy_xhat,
                A* grad_bypass_weights) const {
    const NodeShape& s = args.shape;
    const int64_t size = cuda::node_sum_chunk(std::max<int64_t>(1, s.channels));
    const int64_t chunks = (s.images * s.pixels + size - 1) / size;
    const int64_t entries = s.channels + args.candidate_count * s.channels + args.bypass_count;
    Tensor partial = empty(like, {chunks, entries}, MemoryFormat::contiguous, acc_dtype(like.scalar_type()));
    cuda::node_sum_grad(args, grad, grad_group0, partial.mutable_data_ptr<A>(), sum_dy, sum_dy_xhat,
                        grad_bypass_weights, stream());
  }

  template <typename T>
  void grad_candidates(const NodeSum<T>& args, const NodePixels<T>& grad_group0, const NodeSumGrads<T>& grads) const {
    cuda::node_sum_grad_candidates(args, grad_group0, grads, stream());
  }
};

// --- operators -------------------------------------------------------------------------------------------------------

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, Tensors candidates, const Tensor& mean,
                                                    const Tensor& rstd, Tensors bypass) {
  constexpr auto op = "fastnas::node_sum_grad";
  STD_TORCH_CHECK(grad.dim() == 4, op, ": grad must be [N, C + R, H, W], got shape ", shape_of(grad));
  check_count(op, "bypass", bypass.size(), 0, kMaxNodeInputs);
  STD_TORCH_CHECK(mean.dim() == 3, op, ": mean has shape ", shape_of(mean), ", expected [K, 1, C]");
  check_extent(op, {"grad"}, grad);
  check_extent(op, {"mean"}, mean);
  // A caller that needs no gradient of the bypass weights leaves the bypass out; R tells how the channels are shuffled.
  const int64_t C = mean.size(2), R = grad.size(1) - C;
  const int64_t K = static_cast<int64_t>(candidates.size()), E = static_cast<int64_t>(bypass.size());
  STD_TORCH_CHECK(R >= 0, op, ": grad has shape ", shape_of(grad), ", but the candidates have ", C, " channels");
  check_candidates(op, candidates, grad, C, mean, rstd);
  check_images(op, "bypass", bypass, grad, R);
  check_batch(op, "bypass", bypass, grad);
  const int64_t groups = R ? groups_of(op, C, R) : 1;

  const Backend backend(grad);
  const NodeShape shape = node_shape(1, grad.size(0), grad, C, groups);
  const NodeInputs inputs(candidates, bypass, mean, rstd);
  const Tensor g = as_nhwc(grad);
  const ScalarType dtype = mean.scalar_type();
  Tensor grad_group0 = empty(grad, R ? Sizes{grad.size(0), C, grad.size(2), grad.size(3)} : Sizes{0},
                             R ? MemoryFormat::channels_last : MemoryFormat::contiguous, grad.scalar_type());
  Tensor sum_dy = empty(mean, {C}, MemoryFormat::contiguous, dtype);
  Tensor sum_dy_xhat = empty(mean, {K, C}, MemoryFormat::contiguous, dtype);
  Tensor grad_bypass_weights = empty(mean, {E}, MemoryFormat::contiguous, dtype);
  THO_DISPATCH_V2(grad.scalar_type(), op, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    if (grad.numel() == 0) {
                      for (Tensor* sum : {&sum_dy, &sum_dy_xhat, &grad_bypass_weights}) fill_with_zeros(*sum);
                      return;
                    }
                    backend.backward(inputs.arguments<scalar_t>(shape), node_pixels<scalar_t>(g),
                                     grad_group0.mutable_data_ptr<scalar_t>(), sum_dy.mutable_data_ptr<A>(),
                                     sum_dy_xhat.mutable_data_ptr<A>(), grad_bypass_weights.mutable_data_ptr<A>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {grad_group0, sum_dy, sum_dy_xhat, grad_bypass_weights};
}

template <typename Backend>
Tensors grad_candidates(const Tensor& grad_group0, Tensors candidates, const Tensor& mean, const Tensor& rstd,
                        const Tensor& weights, const Tensor& sum_dy, const Tensor& sum_dy_xhat,
                        std::vector<int64_t> normalized) {
  constexpr auto op = "fastnas::node_sum_grad_candidates";
  STD_TORCH_CHECK(grad_group0.dim() == 4, op, ": grad_group0 must be [N, C, H, W], got shape ", shape_of(grad_group0));
  check_extent(op, {"grad_group0"}, grad_group0);
  const int64_t C = grad_group0.size(1), K = static_cast<int64_t>(candidates.size());
  check_candidates(op, candidates, grad_group0, C, mean, rstd);
  check_table(op, {"weights"}, weights, {1, K}, "the images", grad_group0);
  check_table(op, {"sum_dy"}, sum_dy, {C}, "the images", grad_group0);
  check_table(op, {"sum_dy_xhat"}, sum_dy_xhat, {K, C}, "the images", grad_group0);
  STD_TORCH_CHECK(normalized.size() == candidates.size(), op, ": normalized has ", normalized.size(),
                  " entries but there are ", K, " candidates");

  const Backend backend(grad_group0);
  const NodeShape shape = node_shape(1, grad_group0.size(0), grad_group0, C, 1);
  const NodeInputs inputs(candidates, {}, mean, rstd);
  const Tensor g = as_nhwc(grad_group0), w = as_contiguous(weights), a = as_contiguous(sum_dy),
               d = as_contiguous(sum_dy_xhat);
  Tensors results;
  for (int64_t k = 0; k < K; ++k) {
    results.push_back(
        empty(grad_group0, sizes_of(grad_group0), MemoryFormat::channels_last, grad_group0.scalar_type()));
  }
  THO_DISPATCH_V2(grad_group0.scalar_type(), op, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    NodeSum<scalar_t> args = inputs.arguments<scalar_t>(shape);
                    args.weights = w.const_data_ptr<A>();
                    const NodePixels<scalar_t> from = node_pixels<scalar_t>(g);
                    NodeSumGrads<scalar_t> grads{};
                    grads.sum_dy = a.const_data_ptr<A>();
                    grads.sum_dy_xhat = d.const_data_ptr<A>();
                    for (int64_t k = 0; k < K; ++k) {
                      grads.normalized[k] = normalized[k] != 0;
                      grads.candidates[k] = results[k].mutable_data_ptr<scalar_t>();
                    }
                    backend.grad_candidates(args, from, grads);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return results;
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def(
      "node_sum_grad(Tensor grad, Tensor[] candidates, Tensor mean, Tensor rstd, Tensor[] bypass) -> "
      "(Tensor grad_group0, Tensor sum_dy, Tensor sum_dy_xhat, Tensor grad_bypass_weights)");
  m.def(
      "node_sum_grad_candidates(Tensor grad_group0, Tensor[] candidates, Tensor mean, Tensor rstd, Tensor weights, "
      "Tensor sum_dy, Tensor sum_dy_xhat, int[] normalized) -> Tensor[]");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) {
  m.impl("node_sum_grad", TORCH_BOX(&backward<Backend>));
  m.impl("node_sum_grad_candidates", TORCH_BOX(&grad_candidates<Backend>));
}

}  // namespace fastnas
