#include "ops/mixed_sum.h"

#include <algorithm>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

// --- checks ----------------------------------------------------------------------------------------------------------

// The sizes of a call, from arguments that have been checked to fit together.
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
  STD_TORCH_CHECK(weights.scalar_type() == acc_dtype(outputs), op, ": weights must be ",
                  outputs == ScalarType::Double ? "float64 for float64" : "float32 for float32, bfloat16 and float16",
                  " outputs");
}

Shape check_outputs(const char* op, const Tensors& outputs, const Tensor& weights) {
  check_count(op, "outputs", outputs.size(), 1, kMaxCandidates);
  const Tensor& first = outputs[0];
  check_weights(op, weights, first.scalar_type(), outputs.size());
  Shape shape{weights.dim() - 1, weights.dim() == 2 ? weights.size(0) : 1, weights.size(-1), sizes_of(first), 1};
  STD_TORCH_CHECK(first.dim() >= shape.leading, op, ": outputs[0] is a scalar, but weights ", shape_of(weights),
                  " ask for a leading dimension of individuals");
  check_extent(op, {"weights"}, weights);
  check_extents(op, "outputs", outputs);
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
void set_outputs(MixedSum<T>& args, const Tensors& outputs, const Shape& shape) {
  for (size_t k = 0; k < outputs.size(); ++k) {
    args.outputs[k] = outputs[k].const_data_ptr<T>();
    args.shared[k] = is_shared(outputs[k], shape);
  }
}

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  // Starting a thread pays from about this many elements of all candidates together on.
  template <typename T>
  static int64_t grain(const MixedSum<T>& args) {
    return std::max<int64_t>(1, 65536 / (kMixedSumTile * args.candidates));
  }

  template <typename T>
  void forward(const MixedSum<T>& args, T* result) const {
    parallel_for(0, args.individuals * mixed_sum_tiles(args.elements), grain(args),
                 [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(mixed_sum_forward, args, result, first, last); });
  }

  template <typename T>
  void grad_outputs(const MixedSum<T>& args, const T* grad, const MixedSumGrads<T>& grads) const {
    parallel_for(0, mixed_sum_tiles(args.elements), grain(args), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(mixed_sum_grad_outputs, args, grad, grads, first, last);
    });
  }

  template <typename T, typename A>
  void grad_weights(const MixedSum<T>& args, const T* grad, A* result) const {
    const int64_t tiles = mixed_sum_tiles(args.elements);
    std::vector<double> partial(args.individuals * tiles * args.candidates);
    parallel_for(0, args.individuals * tiles, grain(args), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(mixed_sum_grad_weights, args, grad, partial.data(), first, last);
    });
    for (int64_t p = 0; p < args.individuals; ++p) {
      for (int64_t k = 0; k < args.candidates; ++k) {
        double sum = 0;
        for (int64_t t = p * tiles; t < (p + 1) * tiles; ++t) sum += partial[t * args.candidates + k];
        result[p * args.candidates + k] = A(sum);
      }
    }
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename T>
  void forward(const MixedSum<T>& args, T* result) const {
    cuda::mixed_sum_forward(args, result, stream());
  }

  template <typename T>
  void grad_outputs(const MixedSum<T>& args, const T* grad, const MixedSumGrads<T>& grads) const {
    cuda::mixed_sum_grad_outputs(args, grad, grads, stream());
  }

  template <typename T, typename A>
  void grad_weights(const MixedSum<T>& args, const T* grad, A* result) const {
    const int64_t chunks = (args.elements + cuda::kMixedSumChunk - 1) / cuda::kMixedSumChunk;
    const Sizes sizes{chunks, args.individuals, args.candidates};
    Tensor partial = empty(like, sizes, MemoryFormat::contiguous, acc_dtype(like.scalar_type()));
    cuda::mixed_sum_grad_weights(args, grad, partial.mutable_data_ptr<A>(), result, stream());
  }
};

// --- operators -------------------------------------------------------------------------------------------------------

template <typename Backend>
Tensor forward(Tensors outputs, const Tensor& weights) {
  constexpr auto op = "fastnas::mixed_sum";
  const Shape shape = check_outputs(op, outputs, weights);
  const Backend backend(outputs[0]);
  const MemoryFormat format = memory_format_of(outputs[0], shape.leading);
  const Tensors dense = to_memory_format(outputs, format);
  const Tensor w = as_contiguous(weights);
  Tensor result = empty(outputs[0], shape.result, format, outputs[0].scalar_type());
  THO_DISPATCH_V2(result.scalar_type(), op, AT_WRAP([&] {
                    MixedSum<scalar_t> args = arguments<scalar_t>(shape, w);
                    set_outputs(args, dense, shape);
                    backend.forward(args, result.mutable_data_ptr<scalar_t>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

template <typename Backend>
Tensors grad_outputs(const Tensor& grad, const Tensor& weights, std::vector<int64_t> leading_sizes) {
  constexpr auto op = "fastnas::mixed_sum_grad_outputs";
  STD_TORCH_CHECK(!leading_sizes.empty() && leading_sizes.size() <= static_cast<size_t>(kMaxCandidates), op,
                  ": leading_sizes has ", leading_sizes.size(), " entries, expected 1 to ", kMaxCandidates);
  check_weights(op, weights, grad.scalar_type(), leading_sizes.size());
  const int64_t leading = weights.dim() - 1;
  check_extent(op, {"grad"}, grad);
  check_extent(op, {"weights"}, weights);
  STD_TORCH_CHECK(
      grad.dim() >= leading && (!leading || grad.size(0) == weights.size(0)) && grad.device() == weights.device(), op,
      ": grad ", shape_of(grad), " does not fit weights ", shape_of(weights));
  Shape shape{leading, leading ? weights.size(0) : 1, weights.size(-1), sizes_of(grad), 1};
  for (size_t d = leading; d < shape.result.size(); ++d) shape.elements *= shape.result[d];
  const Backend backend(grad);
  const MemoryFormat format = memory_format_of(grad, leading);
  const Tensor g = to_memory_format(grad, format);
  const Tensor w = as_contiguous(weights);
  Tensors grads;
  for (size_t k = 0; k < leading_sizes.size(); ++k) {
    Sizes result = shape.result;
    if (leading) {
      STD_TORCH_CHECK(leading_sizes[k] == 1 || leading_sizes[k] == shape.individuals, op, ": leading_sizes[", k,
                      "] is ", leading_sizes[k], ", expected 1 or ", shape.individuals);
      result[0] = leading_sizes[k];
    }
    grads.push_back(empty(grad, result, format, grad.scalar_type()));
  }
  // Without individuals there may be any number of elements to go through.
  if (std::all_of(grads.begin(), grads.end(), [](const Tensor& t) { return t.numel() == 0; })) return grads;
  THO_DISPATCH_V2(grad.scalar_type(), op, AT_WRAP([&] {
                    MixedSum<scalar_t> args = arguments<scalar_t>(shape, w);
                    MixedSumGrads<scalar_t> out{};
                    for (size_t k = 0; k < grads.size(); ++k) {
                      args.shared[k] = is_shared(grads[k], shape);
                      out.outputs[k] = grads[k].mutable_data_ptr<scalar_t>();
                    }
                    backend.grad_outputs(args, g.const_data_ptr<scalar_t>(), out);
                  }),
                  FASTNAS_FLOATING_TYPES);
  return grads;
}

template <typename Backend>
Tensor grad_weights(const Tensor& grad, Tensors outputs, const Tensor& weights) {
  constexpr auto op = "fastnas::mixed_sum_grad_weights";
  const Shape shape = check_outputs(op, outputs, weights);
  check_sizes(op, {"grad"}, grad, shape.result);
  check_extent(op, {"grad"}, grad);
  check_like(op, {"grad"}, grad, "the outputs", outputs[0]);
  const Backend backend(outputs[0]);
  const MemoryFormat format = memory_format_of(outputs[0], shape.leading);
  const Tensors dense = to_memory_format(outputs, format);
  const Tensor g = to_memory_format(grad, format);
  Tensor result = empty(weights, sizes_of(weights), MemoryFormat::contiguous, weights.scalar_type());
  THO_DISPATCH_V2(grad.scalar_type(), op, AT_WRAP([&] {
                    MixedSum<scalar_t> args = arguments<scalar_t>(shape, weights);
                    set_outputs(args, dense, shape);
                    backend.grad_weights(args, g.const_data_ptr<scalar_t>(),
                                         result.mutable_data_ptr<accumulate_t<scalar_t>>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def("mixed_sum(Tensor[] outputs, Tensor weights) -> Tensor");
  m.def("mixed_sum_grad_outputs(Tensor grad, Tensor weights, int[] leading_sizes) -> Tensor[]");
  m.def("mixed_sum_grad_weights(Tensor grad, Tensor[] outputs, Tensor weights) -> Tensor");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) {
  m.impl("mixed_sum", TORCH_BOX(&forward<Backend>));
  m.impl("mixed_sum_grad_outputs", TORCH_BOX(&grad_outputs<Backend>));
  m.impl("mixed_sum_grad_weights", TORCH_BOX(&grad_weights<Backend>));
}

}  // namespace fastnas
