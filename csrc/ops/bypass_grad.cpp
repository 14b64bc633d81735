// bypass_grad: the gradient of a state some of whose channels bypass the candidates of later nodes.
#include <optional>
#include <tuple>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/node_sum.h"
#include "ops/node_sum_args.h"

namespace fastnas {
namespace {

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  template <typename T>
  void backward(const BypassGrad<T>& args, T* result) const {
    const NodeShape& s = args.shape;
    const int64_t images = args.grad_count + args.addend_count + 1;
    parallel_for(0, s.images * s.tiles, node_grain(s.tile * s.groups * s.channels * images),
                 [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(bypass_grad, args, result, first, last); });
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename T>
  void backward(const BypassGrad<T>& args, T* result) const {
    cuda::bypass_grad(args, result, stream());
  }
};

// --- operator --------------------------------------------------------------------------------------------------------

template <typename Backend>
std::tuple<Tensor, Tensor> backward(std::optional<Tensor> seen_grad, Tensors grads, const Tensor& weights,
                                    Tensors addends, int64_t channels, bool of_prev_node) {
  constexpr auto op = "fastnas::bypass_grad";
  check_count(op, "grads", grads.size(), 1, kMaxNodeInputs);
  check_count(op, "addends", addends.size(), 0, kMaxNodeInputs);
  const Tensor& like = grads[0];
  STD_TORCH_CHECK(like.dim() == 4, op, ": grads[0] must be [N, C + R, H, W], got shape ", shape_of(like));
  const int64_t W = like.size(1), groups = groups_of(op, channels, channels > 0 ? W - channels : W);
  check_images(op, "grads", grads, like, W);
  check_images(op, "addends", addends, like, W);
  check_batch(op, "grads", grads, like);
  check_batch(op, "addends", addends, like);
  if (seen_grad) {
    check_image(op, {"seen_grad"}, *seen_grad, like, channels);
    check_batch(op, "seen_grad", {*seen_grad}, like);
  }
  check_table(op, {"weights"}, weights, {static_cast<int64_t>(grads.size())}, "the images", like);

  const Backend backend(like);
  const NodeShape shape = node_shape(1, like.size(0), like, channels, groups);
  const Tensors from = as_nhwc(grads), plus = as_nhwc(addends);
  const Tensor w = as_contiguous(weights), seen = seen_grad ? as_nhwc(*seen_grad) : like;
  Tensor result = empty(like, sizes_of(like), MemoryFormat::channels_last, like.scalar_type());
  Tensor grad_group0 = empty(like, of_prev_node ? Sizes{like.size(0), channels, like.size(2), like.size(3)} : Sizes{0},
                             of_prev_node ? MemoryFormat::channels_last : MemoryFormat::contiguous, like.scalar_type());
  THO_DISPATCH_V2(like.scalar_type(), op, AT_WRAP([&] {
                    BypassGrad<scalar_t> args{};
                    args.of_prev_node = of_prev_node;
                    if (of_prev_node) args.grad_group0 = grad_group0.mutable_data_ptr<scalar_t>();
                    if (seen_grad) args.seen_grad = node_pixels<scalar_t>(seen);
                    set_pixels(args.grads, from, shape);
                    set_pixels(args.addends, plus, shape);
                    args.weights = w.const_data_ptr<accumulate_t<scalar_t>>();
                    args.grad_count = static_cast<int64_t>(from.size());
                    args.addend_count = static_cast<int64_t>(plus.size());
                    args.shape = shape;
                    backend.backward(args, result.mutable_data_ptr<scalar_t>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {result, grad_group0};
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def(
      "bypass_grad(Tensor? seen_grad, Tensor[] grads, Tensor weights, Tensor[] addends, int channels, "
      "bool of_prev_node=False) -> (Tensor grad, Tensor grad_group0)");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) { m.impl("bypass_grad", TORCH_BOX(&backward<Backend>)); }

}  // namespace fastnas
