#include "ops/node_sum.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <tuple>

#include "ops/backend.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

using Tensors = std::vector<Tensor>;

// Values of all groups' channels that are worked on at a time: a tile's buffers stay in the first-level cache while
// candidate after candidate streams by.
constexpr int64_t kTileValues = 4096;
// Whole blocks of vectors of every instruction set, so that tiles need no padding.
constexpr int64_t kTileUnit = 64;

NodeShape node_shape(int64_t individuals, int64_t images, const Tensor& like, int64_t channels, int64_t groups) {
  NodeShape s{individuals, images, like.size(2) * like.size(3), channels, groups, 1, 0};
  if (channels > 0 && s.pixels > 0) {
    const int64_t unit = kTileUnit / std::gcd(kTileUnit, channels);  // pixels
    s.tile = unit * std::max<int64_t>(1, kTileValues / (unit * channels * std::min<int64_t>(groups, 2)));
    s.tiles = (s.pixels + s.tile - 1) / s.tile;
  }
  return s;
}

// --- backends --------------------------------------------------------------------------------------------------------

// Threads are worth their start from about this many values of all inputs together.
int64_t grain(int64_t values_per_item) { return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, values_per_item)); }

struct Cpu {
  explicit Cpu(const Tensor&) {}

  template <typename T>
  void forward(const NodeSum<T>& args, T* result, int64_t stride) const {
    const NodeShape& s = args.shape;
    const int64_t rest = (s.groups - 1) * s.channels;
    const int64_t values = s.tile * (args.candidate_count * s.channels + args.bypass_count * rest);
    torch::stable::parallel_for(0, s.images * s.tiles * s.individuals, grain(values), [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(node_sum_forward, args, result, stride, first, last);
    });
  }

  template <typename T, typename A>
  void grad(const NodeSum<T>& args, const NodePixels<T>& grad, T* processed, A* sums, A* dots, A* bypass_dots) const {
    const NodeShape& s = args.shape;
    const int64_t C = s.channels, K = args.candidate_count, E = args.bypass_count, entries = C + K * C + E;
    std::vector<double> partial(s.images * entries), total(entries);
    torch::stable::parallel_for(0, s.images, grain(s.pixels * ((K + 1) * C + (E + 1) * (s.groups - 1) * C)),
                                [&](int64_t first, int64_t last) {
                                  FASTNAS_CPU_CALL(node_sum_grad, args, grad, processed, partial.data(), first, last);
                                });
    for (int64_t image = 0; image < s.images; ++image) {
      for (int64_t i = 0; i < entries; ++i) total[i] += partial[image * entries + i];
    }
    const double* from = total.data();
    for (int64_t c = 0; c < C; ++c) sums[c] = A(*from++);
    for (int64_t i = 0; i < K * C; ++i) dots[i] = A(*from++ * args.rstd[i]);
    for (int64_t e = 0; e < E; ++e) bypass_dots[e] = A(*from++);
  }

  template <typename T>
  void grad_candidates(const NodeSum<T>& args, const NodePixels<T>& processed, const NodeSumGrads<T>& grads) const {
    const NodeShape& s = args.shape;
    torch::stable::parallel_for(0, s.images * s.tiles, grain(s.tile * (2 * args.candidate_count + 1) * s.channels),
                                [&](int64_t first, int64_t last) {
                                  FASTNAS_CPU_CALL(node_sum_grad_candidates, args, processed, grads, first, last);
                                });
  }

  template <typename T>
  void bypass_grad(const BypassGrad<T>& args, T* result) const {
    const NodeShape& s = args.shape;
    const int64_t images = args.grad_count + args.addend_count + 1;
    torch::stable::parallel_for(
        0, s.images * s.tiles, grain(s.tile * s.groups * s.channels * images),
        [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(bypass_grad, args, result, first, last); });
  }
};

#ifdef FASTNAS_CUDA
struct Cuda {
  const Tensor& like;
  DeviceScope device;

  explicit Cuda(const Tensor& like) : like(like), device(like) {}

  template <typename T>
  void forward(const NodeSum<T>& args, T* result, int64_t stride) const {
    cuda::node_sum_forward(args, result, stride, device.stream());
  }

  template <typename T, typename A>
  void grad(const NodeSum<T>& args, const NodePixels<T>& grad, T* processed, A* sums, A* dots, A* bypass_dots) const {
    const NodeShape& s = args.shape;
    const int64_t size = cuda::node_sum_chunk(std::max<int64_t>(1, s.channels));
    const int64_t chunks = (s.images * s.pixels + size - 1) / size;
    const int64_t entries = s.channels + args.candidate_count * s.channels + args.bypass_count;
    Tensor partial = empty(like, {chunks, entries}, Order::row_major, accumulate_dtype(like.scalar_type()));
    cuda::node_sum_grad(args, grad, processed, partial.mutable_data_ptr<A>(), sums, dots, bypass_dots, device.stream());
  }

  template <typename T>
  void grad_candidates(const NodeSum<T>& args, const NodePixels<T>& processed, const NodeSumGrads<T>& grads) const {
    cuda::node_sum_grad_candidates(args, processed, grads, device.stream());
  }

  template <typename T>
  void bypass_grad(const BypassGrad<T>& args, T* result) const {
    cuda::bypass_grad(args, result, device.stream());
  }
};
#endif

// --- checks ----------------------------------------------------------------------------------------------------------

void check_count(const char* op, const char* name, size_t count, size_t least) {
  STD_TORCH_CHECK(count >= least && count <= static_cast<size_t>(kMaxNodeInputs), op, ": ", name, " must hold ", least,
                  " to ", kMaxNodeInputs, " tensors, got ", count);
}

// An image of `channels` channels that fits `like`, whatever its number of images.
void check_image(const char* op, const std::string& name, const Tensor& t, const Tensor& like, int64_t channels) {
  STD_TORCH_CHECK(t.dim() == 4, op, ": ", name, " must be [N, C, H, W], got shape ", shape_of(t));
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type() && t.device() == like.device(), op, ": ", name,
                  " has another dtype or device than the first image; all must have one");
  STD_TORCH_CHECK(t.size(1) == channels && t.size(2) == like.size(2) && t.size(3) == like.size(3), op, ": ", name,
                  " has shape ", shape_of(t), ", expected [N, ", channels, ", ", like.size(2), ", ", like.size(3), "]");
}

void check_images(const char* op, const char* name, const Tensors& tensors, const Tensor& like, int64_t channels) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_image(op, std::string(name) + "[" + std::to_string(i) + "]", tensors[i], like, channels);
  }
}

void check_number(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.size(0) == like.size(0), op, ": ", name, " has shape ", shape_of(t), ", but there are ",
                  like.size(0), " images");
}

// A table of numbers beside the images.
void check_table(const char* op, const char* name, const Tensor& t, const Sizes& expected, const Tensor& like) {
  std::string sizes;
  for (int64_t size : expected) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(sizes_of(t) == expected, op, ": ", name, " has shape ", shape_of(t), ", expected [", sizes, "]");
  STD_TORCH_CHECK(t.scalar_type() == accumulate_dtype(like.scalar_type()) && t.device() == like.device(), op, ": ",
                  name, " must be ", like.scalar_type() == ScalarType::Double ? "float64" : "float32",
                  ", on the device of the images");
}

int64_t groups_of(const char* op, int64_t channels, int64_t rest) {
  STD_TORCH_CHECK(channels > 0 && rest > 0 && rest % channels == 0, op, ": ", rest, " channels bypass the ", channels,
                  " that are summed; they must be a positive multiple, (g - 1) times as many");
  return rest / channels + 1;
}

int64_t rest_of(const char* op, const Tensors& bypass) {
  if (bypass.empty()) return 0;
  STD_TORCH_CHECK(bypass[0].dim() == 4, op, ": bypass[0] must be [N, R, H, W], got shape ", shape_of(bypass[0]));
  return bypass[0].size(1);
}

// --- what the kernels read -------------------------------------------------------------------------------------------

Tensors all_pixels(const Tensors& tensors) {
  Tensors result;
  for (const Tensor& t : tensors) result.push_back(pixels(t));
  return result;
}

template <typename T>
NodePixels<T> view(const Tensor& t, bool shared = false) {
  return {t.const_data_ptr<T>(), pixel_stride(t), shared};
}

template <typename T>
void set(NodePixels<T>* table, const Tensors& tensors, const NodeShape& shape) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    table[i] = view<T>(tensors[i], shape.individuals > 1 && tensors[i].size(0) == shape.images);
  }
}

// Tensors of a call as the kernels take them; keeps the copies alive.
struct Inputs {
  Tensors candidates, bypass;
  Tensor mean, rstd;

  Inputs(const Tensors& candidates, const Tensors& bypass, const Tensor& mean, const Tensor& rstd)
      : candidates(all_pixels(candidates)),
        bypass(all_pixels(bypass)),
        mean(stored(mean, Order::row_major)),
        rstd(stored(rstd, Order::row_major)) {}

  template <typename T>
  NodeSum<T> arguments(const NodeShape& shape) const {
    NodeSum<T> args{};
    set(args.candidates, candidates, shape);
    set(args.bypass, bypass, shape);
    args.mean = mean.const_data_ptr<accumulate_t<T>>();
    args.rstd = rstd.const_data_ptr<accumulate_t<T>>();
    args.candidate_count = static_cast<int64_t>(candidates.size());
    args.bypass_count = static_cast<int64_t>(bypass.size());
    args.shape = shape;
    return args;
  }
};

// --- forward ---------------------------------------------------------------------------------------------------------

// B, the images of one individual. Where all tensors have one size and nobody says, they are the individuals' own.
int64_t images_of(const char* op, const Tensors& candidates, const Tensors& bypass,
                  const std::optional<Tensor>& previous, int64_t individuals, std::optional<int64_t> images) {
  STD_TORCH_CHECK(individuals >= 1, op, ": individuals is ", individuals, ", expected 1 or more");
  int64_t least = candidates[0].size(0), most = least;
  const auto each = [&](auto use) {
    for (size_t k = 0; k < candidates.size(); ++k) use("candidates", k, candidates[k]);
    for (size_t e = 0; e < bypass.size(); ++e) use("bypass", e, bypass[e]);
    if (previous) use("previous", 0, *previous);
  };
  each([&](const char*, size_t, const Tensor& t) {
    least = std::min(least, t.size(0));
    most = std::max(most, t.size(0));
  });
  const int64_t result = images ? *images : least < most ? least : most / individuals;
  each([&](const char* name, size_t i, const Tensor& t) {
    STD_TORCH_CHECK(t.size(0) == result || t.size(0) == result * individuals, op, ": ", name, "[", i, "] has shape ",
                    shape_of(t), "; for ", individuals, " individuals of ", result,
                    " images its first dimension must be ", result * individuals, ", or ", result,
                    " where all share it");
  });
  return result;
}

// Into `given` where there is one, else into a new tensor.
template <typename Backend>
Tensor sum(const char* op, std::optional<Tensor> given, const Tensors& candidates, const Tensor& mean,
           const Tensor& rstd, const Tensor& weights, const Tensors& bypass,
           const std::optional<Tensor>& bypass_weights, int64_t individuals, std::optional<int64_t> images,
           const std::optional<std::vector<int64_t>>& normalized, const std::optional<Tensor>& previous) {
  check_count(op, "candidates", candidates.size(), 1);
  check_count(op, "bypass", bypass.size(), 0);
  // Only the gradient depends on it (fastnas/ops/node_sum.py).
  STD_TORCH_CHECK(!normalized || normalized->size() == candidates.size(), op, ": normalized has ",
                  normalized ? normalized->size() : 0, " entries, but there are ", candidates.size(), " candidates");
  const Tensor& like = candidates[0];
  STD_TORCH_CHECK(like.dim() == 4, op, ": candidates[0] must be [N, C, H, W], got shape ", shape_of(like));
  STD_TORCH_CHECK(!previous || previous->dim() == 4, op, ": previous must be [N, C + R, H, W], got shape ",
                  previous ? shape_of(*previous) : "");
  const int64_t C = like.size(1), R = previous ? previous->size(1) - C : rest_of(op, bypass), P = individuals;
  const int64_t K = static_cast<int64_t>(candidates.size()), E = static_cast<int64_t>(bypass.size());
  check_images(op, "candidates", candidates, like, C);
  check_images(op, "bypass", bypass, like, R);
  if (previous) check_image(op, "previous", *previous, like, C + R);
  const int64_t B = images_of(op, candidates, bypass, previous, P, images);
  check_table(op, "mean", mean, {K, P, C}, like);
  check_table(op, "rstd", rstd, {K, P, C}, like);
  check_table(op, "weights", weights, {P, K}, like);
  if (bypass_weights) check_table(op, "bypass_weights", *bypass_weights, {P, E}, like);
  const int64_t groups = E || previous ? groups_of(op, C, R) : 1;

  const Backend backend(like);
  const NodeShape shape = node_shape(P, B, like, C, groups);
  const Inputs inputs(candidates, bypass, mean, rstd);
  const Tensor before = previous ? pixels(*previous) : like;
  const Tensor w = stored(weights, Order::row_major);
  const Sizes sizes{P * B, C + R, like.size(2), like.size(3)};
  STD_TORCH_CHECK(!given || (sizes_of(*given) == sizes && given->scalar_type() == like.scalar_type() &&
                             given->device() == like.device() && is_pixels(*given)),
                  op, ": out has shape ", given ? shape_of(*given) : "", ", expected [", sizes[0], ", ", sizes[1], ", ",
                  sizes[2], ", ", sizes[3], "] in the dtype of the candidates, channels-last or some of its channels");
  Tensor result = given ? *given : empty(like, sizes, Order::channels_last, like.scalar_type());
  THO_DISPATCH_V2(like.scalar_type(), "fastnas::node_sum", AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    NodeSum<scalar_t> args = inputs.arguments<scalar_t>(shape);
                    args.weights = w.const_data_ptr<A>();
                    const Tensor bw = bypass_weights ? stored(*bypass_weights, Order::row_major) : w;
                    if (bypass_weights) args.bypass_weights = bw.const_data_ptr<A>();
                    if (previous) args.prev_node = view<scalar_t>(before, P > 1 && before.size(0) == B);
                    backend.forward(args, result.mutable_data_ptr<scalar_t>(), pixel_stride(result));
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

template <typename Backend>
Tensor forward(Tensors candidates, const Tensor& mean, const Tensor& rstd, const Tensor& weights, Tensors bypass,
               std::optional<Tensor> bypass_weights, int64_t individuals, std::optional<int64_t> images,
               std::optional<std::vector<int64_t>> normalized, std::optional<Tensor> previous) {
  return sum<Backend>("fastnas::node_sum", std::nullopt, candidates, mean, rstd, weights, bypass, bypass_weights,
                      individuals, images, normalized, previous);
}

template <typename Backend>
void forward_into(Tensor out, Tensors candidates, const Tensor& mean, const Tensor& rstd, const Tensor& weights,
                  Tensors bypass, std::optional<Tensor> bypass_weights, int64_t individuals, int64_t images,
                  std::optional<Tensor> previous) {
  sum<Backend>("fastnas::node_sum_into", out, candidates, mean, rstd, weights, bypass, bypass_weights, individuals,
               images, std::nullopt, previous);
}

// --- gradients -------------------------------------------------------------------------------------------------------

// The operators below exist for one individual.
void check_candidates(const char* op, const Tensors& candidates, const Tensor& like, int64_t channels,
                      const Tensor& mean, const Tensor& rstd) {
  check_count(op, "candidates", candidates.size(), 1);
  check_images(op, "candidates", candidates, like, channels);
  for (const Tensor& t : candidates) check_number(op, "a candidate", t, like);
  STD_TORCH_CHECK(mean.dim() != 3 || mean.size(1) == 1, op, ": mean has shape ", shape_of(mean),
                  "; there are gradients for one individual only, [K, 1, C]");
  const Sizes table{static_cast<int64_t>(candidates.size()), 1, channels};
  check_table(op, "mean", mean, table, like);
  check_table(op, "rstd", rstd, table, like);
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> grad(const Tensor& grad, Tensors candidates, const Tensor& mean,
                                                const Tensor& rstd, Tensors bypass) {
  constexpr auto op = "fastnas::node_sum_grad";
  STD_TORCH_CHECK(grad.dim() == 4, op, ": grad must be [N, C + R, H, W], got shape ", shape_of(grad));
  check_count(op, "bypass", bypass.size(), 0);
  STD_TORCH_CHECK(mean.dim() == 3, op, ": mean has shape ", shape_of(mean), ", expected [K, 1, C]");
  // Who needs no gradient of the bypass weights leaves the bypass out; the channels still tell how they are shuffled.
  const int64_t C = mean.size(2), R = grad.size(1) - C;
  const int64_t K = static_cast<int64_t>(candidates.size()), E = static_cast<int64_t>(bypass.size());
  STD_TORCH_CHECK(R >= 0, op, ": grad has shape ", shape_of(grad), ", but the candidates have ", C, " channels");
  check_images(op, "bypass", bypass, grad, R);
  for (const Tensor& t : bypass) check_number(op, "a bypass", t, grad);
  check_candidates(op, candidates, grad, C, mean, rstd);
  const int64_t groups = R ? groups_of(op, C, R) : 1;

  const Backend backend(grad);
  const NodeShape shape = node_shape(1, grad.size(0), grad, C, groups);
  const Inputs inputs(candidates, bypass, mean, rstd);
  const Tensor g = pixels(grad);
  const ScalarType numbers = mean.scalar_type();
  Tensor processed = empty(grad, R ? Sizes{grad.size(0), C, grad.size(2), grad.size(3)} : Sizes{0},
                           R ? Order::channels_last : Order::row_major, grad.scalar_type());
  Tensor sums = empty(mean, {C}, Order::row_major, numbers);
  Tensor dots = empty(mean, {K, C}, Order::row_major, numbers);
  Tensor bypass_dots = empty(mean, {E}, Order::row_major, numbers);
  THO_DISPATCH_V2(grad.scalar_type(), op, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    backend.grad(inputs.arguments<scalar_t>(shape), view<scalar_t>(g),
                                 processed.mutable_data_ptr<scalar_t>(), sums.mutable_data_ptr<A>(),
                                 dots.mutable_data_ptr<A>(), bypass_dots.mutable_data_ptr<A>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {processed, sums, dots, bypass_dots};
}

template <typename Backend>
Tensors grad_candidates(const Tensor& processed, Tensors candidates, const Tensor& mean, const Tensor& rstd,
                        const Tensor& weights, const Tensor& sums, const Tensor& dots,
                        std::vector<int64_t> normalized) {
  constexpr auto op = "fastnas::node_sum_grad_candidates";
  STD_TORCH_CHECK(processed.dim() == 4, op, ": processed must be [N, C, H, W], got shape ", shape_of(processed));
  const int64_t C = processed.size(1), K = static_cast<int64_t>(candidates.size());
  check_candidates(op, candidates, processed, C, mean, rstd);
  check_table(op, "weights", weights, {1, K}, processed);
  check_table(op, "sums", sums, {C}, processed);
  check_table(op, "dots", dots, {K, C}, processed);
  STD_TORCH_CHECK(normalized.size() == candidates.size(), op, ": normalized has ", normalized.size(),
                  " entries but there are ", K, " candidates");

  const Backend backend(processed);
  const NodeShape shape = node_shape(1, processed.size(0), processed, C, 1);
  const Inputs inputs(candidates, {}, mean, rstd);
  const Tensor g = pixels(processed), w = stored(weights, Order::row_major), a = stored(sums, Order::row_major),
               d = stored(dots, Order::row_major);
  Tensors results;
  for (int64_t k = 0; k < K; ++k) {
    results.push_back(empty(processed, sizes_of(processed), Order::channels_last, processed.scalar_type()));
  }
  THO_DISPATCH_V2(processed.scalar_type(), op, AT_WRAP([&] {
                    using A = accumulate_t<scalar_t>;
                    NodeSum<scalar_t> args = inputs.arguments<scalar_t>(shape);
                    args.weights = w.const_data_ptr<A>();
                    const NodePixels<scalar_t> from = view<scalar_t>(g);
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

template <typename Backend>
std::tuple<Tensor, Tensor> bypass(std::optional<Tensor> processed, Tensors grads, const Tensor& weights,
                                  Tensors addends, int64_t channels, bool previous) {
  constexpr auto op = "fastnas::bypass_grad";
  check_count(op, "grads", grads.size(), 1);
  check_count(op, "addends", addends.size(), 0);
  const Tensor& like = grads[0];
  STD_TORCH_CHECK(like.dim() == 4, op, ": grads[0] must be [N, C + R, H, W], got shape ", shape_of(like));
  const int64_t W = like.size(1), groups = groups_of(op, channels, W - channels);
  for (const auto& [name, tensors] : {std::pair{"grads", &grads}, std::pair{"addends", &addends}}) {
    check_images(op, name, *tensors, like, W);
    for (const Tensor& t : *tensors) check_number(op, name, t, like);
  }
  if (processed) {
    check_image(op, "processed", *processed, like, channels);
    check_number(op, "processed", *processed, like);
  }
  check_table(op, "weights", weights, {static_cast<int64_t>(grads.size())}, like);

  const Backend backend(like);
  const NodeShape shape = node_shape(1, like.size(0), like, channels, groups);
  const Tensors from = all_pixels(grads), plus = all_pixels(addends);
  const Tensor w = stored(weights, Order::row_major), front = processed ? pixels(*processed) : like;
  Tensor result = empty(like, sizes_of(like), Order::channels_last, like.scalar_type());
  Tensor own = empty(like, previous ? Sizes{like.size(0), channels, like.size(2), like.size(3)} : Sizes{0},
                     previous ? Order::channels_last : Order::row_major, like.scalar_type());
  THO_DISPATCH_V2(like.scalar_type(), op, AT_WRAP([&] {
                    BypassGrad<scalar_t> args{};
                    args.of_prev_node = previous;
                    if (previous) args.grad_group0 = own.mutable_data_ptr<scalar_t>();
                    if (processed) args.seen_grad = view<scalar_t>(front);
                    set(args.grads, from, shape);
                    set(args.addends, plus, shape);
                    args.weights = w.const_data_ptr<accumulate_t<scalar_t>>();
                    args.grad_count = static_cast<int64_t>(from.size());
                    args.addend_count = static_cast<int64_t>(plus.size());
                    args.shape = shape;
                    backend.bypass_grad(args, result.mutable_data_ptr<scalar_t>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return {result, own};
}

}  // namespace
}  // namespace fastnas

FASTNAS_OPERATORS(m) {
  m.def(
      "node_sum(Tensor[] candidates, Tensor mean, Tensor rstd, Tensor weights, Tensor[] bypass, "
      "Tensor? bypass_weights, int individuals, int? images=None, int[]? normalized=None, Tensor? previous=None) -> "
      "Tensor");
  m.def(
      "node_sum_into(Tensor(a!) out, Tensor[] candidates, Tensor mean, Tensor rstd, Tensor weights, Tensor[] bypass, "
      "Tensor? bypass_weights, int individuals, int images, Tensor? previous=None) -> ()");
  m.def(
      "node_sum_grad(Tensor grad, Tensor[] candidates, Tensor mean, Tensor rstd, Tensor[] bypass) -> "
      "(Tensor processed, Tensor sums, Tensor dots, Tensor bypass_dots)");
  m.def(
      "node_sum_grad_candidates(Tensor processed, Tensor[] candidates, Tensor mean, Tensor rstd, Tensor weights, "
      "Tensor sums, Tensor dots, int[] normalized) -> Tensor[]");
  m.def(
      "bypass_grad(Tensor? processed, Tensor[] grads, Tensor weights, Tensor[] addends, int channels, "
      "bool previous=False) -> (Tensor, Tensor own)");
}

FASTNAS_OPERATORS_CPU(m) {
  m.impl("node_sum", TORCH_BOX(&fastnas::forward<fastnas::Cpu>));
  m.impl("node_sum_into", TORCH_BOX(&fastnas::forward_into<fastnas::Cpu>));
  m.impl("node_sum_grad", TORCH_BOX(&fastnas::grad<fastnas::Cpu>));
  m.impl("node_sum_grad_candidates", TORCH_BOX(&fastnas::grad_candidates<fastnas::Cpu>));
  m.impl("bypass_grad", TORCH_BOX(&fastnas::bypass<fastnas::Cpu>));
}

#ifdef FASTNAS_CUDA
FASTNAS_OPERATORS_CUDA(m) {
  m.impl("node_sum", TORCH_BOX(&fastnas::forward<fastnas::Cuda>));
  m.impl("node_sum_into", TORCH_BOX(&fastnas::forward_into<fastnas::Cuda>));
  m.impl("node_sum_grad", TORCH_BOX(&fastnas::grad<fastnas::Cuda>));
  m.impl("node_sum_grad_candidates", TORCH_BOX(&fastnas::grad_candidates<fastnas::Cuda>));
  m.impl("bypass_grad", TORCH_BOX(&fastnas::bypass<fastnas::Cuda>));
}
#endif
