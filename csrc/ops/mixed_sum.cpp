#include "ops/mixed_sum.h"

#include "ops/backend.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

// What a call is about, read off its arguments once they are known to fit together.
struct Shape {
  int64_t leading;      // 1 where the outputs have a leading dimension of individuals, that is for weights [P, K]
  int64_t individuals;  // P; 1 for weights [K]
  int64_t candidates;   // K
  Sizes result;         // sizes of the sum, and of its gradient
  int64_t elements;     // of one individual
};

void check_weights(const char* op, const Tensor& weights, ScalarType outputs, size_t candidates) {
  STD_TORCH_CHECK(weights.dim() == 1 || weights.dim() == 2, op, ": weights must be [K] or [P, K], got shape ",
                  shape_of(weights));
  STD_TORCH_CHECK(weights.size(-1) == static_cast<int64_t>(candidates), op, ": weights has shape ", shape_of(weights),
                  " but there are ", candidates, " outputs; its last dimension must count them");
  STD_TORCH_CHECK(weights.scalar_type() == accumulate_dtype(outputs), op, ": weights must be ",
                  outputs == ScalarType::Double ? "float64 for float64" : "float32 for float32, bfloat16 and float16",
                  " outputs");
}

Shape check_outputs(const char* op, const std::vector<Tensor>& outputs, const Tensor& weights) {
  STD_TORCH_CHECK(!outputs.empty() && outputs.size() <= static_cast<size_t>(kMaxCandidates), op,
                  ": outputs must hold 1 to ", kMaxCandidates, " tensors, got ", outputs.size());
  const Tensor& first = outputs[0];
  check_weights(op, weights, first.scalar_type(), outputs.size());
  Shape shape{weights.dim() - 1, weights.dim() == 2 ? weights.size(0) : 1, weights.size(-1), sizes_of(first), 1};
  STD_TORCH_CHECK(first.dim() >= shape.leading, op, ": outputs[0] is a scalar, but weights ", shape_of(weights),
                  " ask for a leading dimension of individuals");
  if (shape.leading) shape.result[0] = shape.individuals;
  for (size_t d = shape.leading; d < shape.result.size(); ++d) shape.elements *= shape.result[d];
  for (size_t k = 0; k < outputs.size(); ++k) {
    const Tensor& o = outputs[k];
    STD_TORCH_CHECK(o.scalar_type() == first.scalar_type(), op, ": outputs[", k,
                    "] has another dtype than outputs[0]; all must have one");
    STD_TORCH_CHECK(o.device() == first.device() && weights.device() == first.device(), op, ": outputs[", k,
                    "], outputs[0] and weights must be on one device");
    bool fits = o.dim() == first.dim();
    for (int64_t d = shape.leading; fits && d < first.dim(); ++d) fits = o.size(d) == shape.result[d];
    if (fits && shape.leading) fits = o.size(0) == shape.individuals || o.size(0) == 1;
    STD_TORCH_CHECK(
        fits, op, ": outputs[", k, "] has shape ", shape_of(o), ", outputs[0] ", shape_of(first), ", weights ",
        shape_of(weights),
        shape.leading ? "; outputs must agree but for a leading dimension of P or 1" : "; outputs must agree");
  }
  return shape;
}

void check_grad(const char* op, const Tensor& grad, const Sizes& expected) {
  STD_TORCH_CHECK(sizes_of(grad) == expected, op, ": grad has shape ", shape_of(grad),
                  ", which is not the shape of the sum");
}

bool is_shared(const Tensor& output, const Shape& shape) {
  return shape.leading && output.size(0) == 1 && shape.individuals != 1;
}

template <typename T>
MixedSum<T> arguments(const Shape& shape, const Tensor& weights) {
  MixedSum<T> args{};
  args.weights = weights.const_data_ptr<accumulate_t<T>>();
  args.individuals = shape.individuals;
  args.candidates = shape.candidates;
  args.elements = shape.elements;
  return args;
}

template <typename T>
void set_outputs(MixedSum<T>& args, const std::vector<Tensor>& outputs, const Shape& shape) {
  for (size_t k = 0; k < outputs.size(); ++k) {
    args.outputs[k] = outputs[k].const_data_ptr<T>();
    args.shared[k] = is_shared(outputs[k], shape);
  }
}

std::vector<Tensor> all_stored(const std::vector<Tensor>& tensors, Order order) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) result.push_back(stored(t, order));
  return result;
}

// Threads are worth their start from about this many elements of all candidates together.
int64_t grain(const Shape& shape) { return std::max<int64_t>(1, 65536 / (kMixedSumTile * shape.candidates)); }

// --- forward ---------------------------------------------------------------------------------------------------------

template <typename Run>
Tensor forward(const std::vector<Tensor>& outputs, const Tensor& weights, const Run& run) {
  const Shape shape = check_outputs("fastnas::mixed_sum", outputs, weights);
  const Order order = order_of(outputs[0], shape.leading);
  const std::vector<Tensor> dense = all_stored(outputs, order);
  const Tensor w = stored(weights, Order::row_major);
  Tensor result = empty(outputs[0], shape.result, order, outputs[0].scalar_type());
  THO_DISPATCH_V2(result.scalar_type(), "fastnas::mixed_sum", AT_WRAP([&] {
                    MixedSum<scalar_t> args = arguments<scalar_t>(shape, w);
                    set_outputs(args, dense, shape);
                    run(shape, args, result.mutable_data_ptr<scalar_t>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

Tensor forward_cpu(std::vector<Tensor> outputs, const Tensor& weights) {
  return forward(outputs, weights, [](const Shape& shape, const auto& args, auto* result) {
    torch::stable::parallel_for(
        0, shape.individuals * mixed_sum_tiles(shape.elements), grain(shape),
        [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(mixed_sum_forward, args, result, first, last); });
  });
}

// --- gradient of the outputs -----------------------------------------------------------------------------------------

template <typename Run>
std::vector<Tensor> grad_outputs(const Tensor& grad, const Tensor& weights, const std::vector<int64_t>& sizes,
                                 const Run& run) {
  constexpr auto op = "fastnas::mixed_sum_grad_outputs";
  check_weights(op, weights, grad.scalar_type(), sizes.size());
  const int64_t leading = weights.dim() - 1;
  STD_TORCH_CHECK(sizes.size() <= static_cast<size_t>(kMaxCandidates) && grad.dim() >= leading &&
                      (!leading || grad.size(0) == weights.size(0)) && grad.device() == weights.device(),
                  op, ": grad ", shape_of(grad), " does not fit weights ", shape_of(weights));
  Shape shape{leading, leading ? weights.size(0) : 1, weights.size(-1), sizes_of(grad), 1};
  for (size_t d = leading; d < shape.result.size(); ++d) shape.elements *= shape.result[d];
  const Order order = order_of(grad, leading);
  const Tensor g = stored(grad, order);
  const Tensor w = stored(weights, Order::row_major);
  std::vector<Tensor> grads;
  for (size_t k = 0; k < sizes.size(); ++k) {
    Sizes result = shape.result;
    if (leading) {
      STD_TORCH_CHECK(sizes[k] == 1 || sizes[k] == shape.individuals, op, ": leading_sizes[", k, "] is ", sizes[k],
                      ", expected 1 or ", shape.individuals);
      result[0] = sizes[k];
    }
    grads.push_back(empty(grad, result, order, grad.scalar_type()));
  }
  THO_DISPATCH_V2(grad.scalar_type(), op, AT_WRAP([&] {
                    MixedSum<scalar_t> args = arguments<scalar_t>(shape, w);
                    MixedSumGrads<scalar_t> out{};
                    for (size_t k = 0; k < grads.size(); ++k) {
                      args.shared[k] = is_shared(grads[k], shape);
                      out.outputs[k] = grads[k].mutable_data_ptr<scalar_t>();
                    }
                    run(shape, args, g.const_data_ptr<scalar_t>(), out);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return grads;
}

std::vector<Tensor> grad_outputs_cpu(const Tensor& grad, const Tensor& weights, std::vector<int64_t> leading_sizes) {
  return grad_outputs(grad, weights, leading_sizes, [](const Shape& shape, const auto& args, auto* g, const auto& out) {
    torch::stable::parallel_for(0, mixed_sum_tiles(shape.elements), grain(shape), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(mixed_sum_grad_outputs, args, g, out, first, last);
    });
  });
}

// --- gradient of the weights -----------------------------------------------------------------------------------------

template <typename Run>
Tensor grad_weights(const Tensor& grad, const std::vector<Tensor>& outputs, const Tensor& weights, const Run& run) {
  constexpr auto op = "fastnas::mixed_sum_grad_weights";
  const Shape shape = check_outputs(op, outputs, weights);
  check_grad(op, grad, shape.result);
  STD_TORCH_CHECK(grad.scalar_type() == outputs[0].scalar_type() && grad.device() == outputs[0].device(), op,
                  ": grad must have the dtype and the device of the outputs");
  const Order order = order_of(outputs[0], shape.leading);
  const std::vector<Tensor> dense = all_stored(outputs, order);
  const Tensor g = stored(grad, order);
  Tensor result = empty(weights, sizes_of(weights), Order::row_major, weights.scalar_type());
  THO_DISPATCH_V2(grad.scalar_type(), op, AT_WRAP([&] {
                    MixedSum<scalar_t> args = arguments<scalar_t>(shape, weights);
                    set_outputs(args, dense, shape);
                    run(shape, args, g.const_data_ptr<scalar_t>(), result);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

Tensor grad_weights_cpu(const Tensor& grad, std::vector<Tensor> outputs, const Tensor& weights) {
  return grad_weights(grad, outputs, weights, [](const Shape& shape, const auto& args, auto* g, Tensor& result) {
    using A = std::remove_cvref_t<decltype(*args.weights)>;
    const int64_t tiles = mixed_sum_tiles(shape.elements);
    std::vector<double> partial(shape.individuals * tiles * shape.candidates);
    torch::stable::parallel_for(0, shape.individuals * tiles, grain(shape), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(mixed_sum_grad_weights, args, g, partial.data(), first, last);
    });
    A* out = result.mutable_data_ptr<A>();
    for (int64_t p = 0; p < shape.individuals; ++p) {
      for (int64_t k = 0; k < shape.candidates; ++k) {
        double sum = 0;
        for (int64_t t = p * tiles; t < (p + 1) * tiles; ++t) sum += partial[t * shape.candidates + k];
        out[p * shape.candidates + k] = A(sum);
      }
    }
  });
}

// --- CUDA ------------------------------------------------------------------------------------------------------------

#ifdef FASTNAS_CUDA
Tensor forward_cuda(std::vector<Tensor> outputs, const Tensor& weights) {
  const DeviceScope device(weights);
  return forward(outputs, weights, [&](const Shape&, const auto& args, auto* result) {
    cuda::mixed_sum_forward(args, result, device.stream());
  });
}

std::vector<Tensor> grad_outputs_cuda(const Tensor& grad, const Tensor& weights, std::vector<int64_t> leading_sizes) {
  const DeviceScope device(grad);
  return grad_outputs(grad, weights, leading_sizes, [&](const Shape&, const auto& args, auto* g, const auto& out) {
    cuda::mixed_sum_grad_outputs(args, g, out, device.stream());
  });
}

Tensor grad_weights_cuda(const Tensor& grad, std::vector<Tensor> outputs, const Tensor& weights) {
  const DeviceScope device(grad);
  return grad_weights(grad, outputs, weights, [&](const Shape& shape, const auto& args, auto* g, Tensor& result) {
    using A = std::remove_cvref_t<decltype(*args.weights)>;
    const int64_t chunks = (shape.elements + cuda::kMixedSumChunk - 1) / cuda::kMixedSumChunk;
    Tensor partial =
        empty(weights, {chunks, shape.individuals, shape.candidates}, Order::row_major, weights.scalar_type());
    cuda::mixed_sum_grad_weights(args, g, partial.mutable_data_ptr<A>(), result.mutable_data_ptr<A>(), device.stream());
  });
}
#endif

}  // namespace
}  // namespace fastnas

FASTNAS_OPERATORS(m) {
  m.def("mixed_sum(Tensor[] outputs, Tensor weights) -> Tensor");
  m.def("mixed_sum_grad_outputs(Tensor grad, Tensor weights, int[] leading_sizes) -> Tensor[]");
  m.def("mixed_sum_grad_weights(Tensor grad, Tensor[] outputs, Tensor weights) -> Tensor");
}

FASTNAS_OPERATORS_CPU(m) {
  m.impl("mixed_sum", TORCH_BOX(&fastnas::forward_cpu));
  m.impl("mixed_sum_grad_outputs", TORCH_BOX(&fastnas::grad_outputs_cpu));
  m.impl("mixed_sum_grad_weights", TORCH_BOX(&fastnas::grad_weights_cpu));
}

#ifdef FASTNAS_CUDA
FASTNAS_OPERATORS_CUDA(m) {
  m.impl("mixed_sum", TORCH_BOX(&fastnas::forward_cuda));
  m.impl("mixed_sum_grad_outputs", TORCH_BOX(&fastnas::grad_outputs_cuda));
  m.impl("mixed_sum_grad_weights", TORCH_BOX(&fastnas::grad_weights_cuda));
}
#endif
