// Runs every CPU kernel on threads of our own, for ThreadSanitizer: it cannot follow the OpenMP threads of torch, and
// would report races that are none. Each thread gets a range of the work items as from torch's parallel_for. One thread
// and several must give the same bits.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/caching_allocator.h"
#include "cpu/isa.h"
#include "cpu/scratch_arena.h"
#include "ops/augment_batch.h"
#include "ops/color_jitter.h"
#include "ops/edge_sum.h"
#include "ops/halve.h"
#include "ops/mixed_sum.h"
#include "ops/node_sum.h"
#include "ops/philox.h"
#include "ops/pool.h"
#include "ops/preprocess.h"
#include "ops/stage.h"

namespace {

using namespace fastnas;

/// Memory of one tensor, aligned as tensors are.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count), data_(cpu::allocate(count * sizeof(T))) {}

  static Buffer random(int64_t count) {
    static uint32_t state = 1;
    Buffer buffer(count);
    for (int64_t i = 0; i < count; ++i) {
      state = state * 1664525 + 1013904223;
      buffer.data()[i] = T(static_cast<float>(state >> 8) / (1 << 23) - 1);
    }
    return buffer;
  }

  T* data() const { return static_cast<T*>(data_.get()); }
  operator T*() const { return data(); }
  std::string bytes() const { return std::string(reinterpret_cast<const char*>(data()), count_ * sizeof(T)); }

 private:
  struct Recycle {
    void operator()(void* block) const { cpu::recycle(block); }
  };
  int64_t count_;
  std::unique_ptr<void, Recycle> data_;
};

/// Calls with the ranges of `items` that `threads` threads get.
template <typename Call>
void split(int threads, int64_t items, const Call& call) {
  if (threads == 1) return call(int64_t{0}, items);
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) {
    const int64_t first = items * t / threads, last = items * (t + 1) / threads;
    if (first < last) all.emplace_back([&call, first, last] { call(first, last); });
  }
  for (std::thread& thread : all) thread.join();
}

constexpr int kThreads = 4;
int failures = 0;

/// `run(threads)` returns what it computed, as bytes.
template <typename Run>
void compare(const std::string& what, const Run& run) {
  if (run(1) == run(kThreads)) return;
  std::printf("%s, %s: %d threads give other results than one\n", what.c_str(), cpu::isa_name(cpu::isa()), kThreads);
  ++failures;
}

// --- augment_batch and philox ----------------------------------------------------------------------------------------

template <typename T>
void augment_batch(int64_t channels) {
  constexpr int64_t N = 7, B = 30, H = 6, W = 5, kPadding = 2, kCutout = 3;
  const Buffer<uint8_t> images(N * H * W * channels);
  for (int64_t i = 0; i < N * H * W * channels; ++i) images.data()[i] = static_cast<uint8_t>(i * 37);
  const auto table = Buffer<T>::random(channels * kLevels);
  const Buffer<int64_t> positions(B), index(B), words(B * 4);
  const Buffer<int32_t> draws(B * kDraws);
  for (int64_t b = 0; b < B; ++b) positions.data()[b] = b;
  compare("augment_batch", [&](int threads) {
    const Philox drawing{positions, B, /*key=*/1, /*stream=*/2};
    split(threads, B,
          [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(philox, drawing, words.data(), first, last); });
    constexpr int64_t kLimits[] = {2 * kPadding + 1, 2 * kPadding + 1, 2, H, W};
    for (int64_t b = 0; b < B; ++b) {
      index.data()[b] = words.data()[4 * b] % N;
      for (int d = 0; d < kDraws; ++d) {
        draws.data()[b * kDraws + d] = static_cast<int32_t>(words.data()[4 * b + d % 4] / (1 + d / 4) % kLimits[d]);
      }
    }
    const AugmentBatch<T> args{images, index, draws, table, N, B, H, W, channels, kPadding, kCutout};
    const Buffer<T> result(B * H * W * channels);
    split(threads, B,
          [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(augment_batch, args, result.data(), first, last); });
    return words.bytes() + result.bytes();
  });
}

// --- color_jitter ----------------------------------------------------------------------------------------------------

void color_jitter() {
  constexpr int64_t B = 9, kPixels = 300;
  const Buffer<uint8_t> images(B * kPixels * 3);
  for (int64_t i = 0; i < B * kPixels * 3; ++i) images.data()[i] = static_cast<uint8_t>(i * 37 + i / 256);
  const Buffer<float> factors(B * 4);
  for (int64_t i = 0; i < B * 4; ++i) factors.data()[i] = i % 4 == 3 ? 0.1f * i / B - 0.2f : 0.5f + 0.1f * (i % 11);
  const ColorJitter args{images, factors, B, kPixels};
  compare("color_jitter", [&](int threads) {
    const Buffer<uint8_t> result(B * kPixels * 3);
    split(threads, B,
          [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(color_jitter, args, result.data(), first, last); });
    return result.bytes();
  });
}

// --- mixed_sum -------------------------------------------------------------------------------------------------------

template <typename T>
void mixed_sum() {
  using A = accumulate_t<T>;
  constexpr int64_t P = 2, K = 3, N = 2 * kMixedSumTile + 37;
  const auto first = Buffer<T>::random(N), second = Buffer<T>::random(P * N), third = Buffer<T>::random(P * N);
  const auto grad = Buffer<T>::random(P * N);
  const auto weights = Buffer<A>::random(P * K);
  const MixedSum<T> args{{first, second, third}, {true, false, false}, weights, P, K, N};
  const int64_t tiles = mixed_sum_tiles(N);
  compare("mixed_sum", [&](int threads) {
    const Buffer<T> result(P * N), grads[] = {Buffer<T>(N), Buffer<T>(P * N), Buffer<T>(P * N)};
    const Buffer<double> partial(P * tiles * K);
    split(threads, P * tiles,
          [&](int64_t from, int64_t to) { FASTNAS_CPU_CALL(mixed_sum_forward, args, result.data(), from, to); });
    split(threads, tiles, [&](int64_t from, int64_t to) {
      const MixedSumGrads<T> out{{grads[0], grads[1], grads[2]}};
      FASTNAS_CPU_CALL(mixed_sum_grad_outputs, args, grad.data(), out, from, to);
    });
    split(threads, P * tiles, [&](int64_t from, int64_t to) {
      FASTNAS_CPU_CALL(mixed_sum_grad_weights, args, grad.data(), partial.data(), from, to);
    });
    return result.bytes() + grads[0].bytes() + grads[1].bytes() + grads[2].bytes() + partial.bytes();
  });
}

// --- stage -----------------------------------------------------------------------------------------------------------

template <typename T>
void stage(int64_t channels, int64_t stride, bool shared, bool normalized) {
  using A = accumulate_t<T>;
  constexpr int64_t N = 20, H = 6, W = 7, kStages = 3;
  Stage<T> args{};
  args.count = N;
  args.individuals = 1;
  args.channels = channels;
  args.height = H;
  args.width = W;
  args.out_height = (H + stride - 1) / stride;
  args.out_width = (W + stride - 1) / stride;
  args.stride = stride;
  args.stages = kStages;
  args.shared = shared;
  const int64_t outputs = N * args.out_height * args.out_width * channels;
  std::vector<Buffer<T>> x, g, y;
  std::vector<Buffer<A>> weights;
  for (int i = 0; i < args.inputs(); ++i) {
    args.x_stride[i] = channels + 1;
    args.x[i] = x.emplace_back(Buffer<T>::random(N * H * W * (channels + 1)));
  }
  for (int j = 0; j < kStages; ++j) {
    args.kernel[j] = j == 1 ? 5 : 3;
    args.dilation[j] = j == 2 ? 2 : 1;
    args.depthwise[j] = weights.emplace_back(Buffer<A>::random(channels * args.kernel[j] * args.kernel[j]));
    args.pointwise[j] = weights.emplace_back(Buffer<A>::random(channels * channels));
    g.push_back(Buffer<T>::random(outputs));
    y.push_back(Buffer<T>::random(outputs));
  }
  const auto mean = Buffer<A>::random(args.inputs() * channels), rstd = Buffer<A>::random(args.inputs() * channels);
  const auto coefficients = Buffer<A>::random(kStages * 4 * channels);
  if (normalized) args.mean = mean, args.rstd = rstd;
  const Buffer<char> prepared(FASTNAS_CPU_CALL(stage_prepared_bytes, args));
  const StageWork work = FASTNAS_CPU_CALL(stage_work, args);
  FASTNAS_CPU_CALL(stage_prepare, args, prepared.data(), 0, work.groups);

  compare("stage", [&](int threads) {
    StageOutputs<T> out{};
    std::vector<Buffer<T>> results;
    for (int j = 0; j < kStages; ++j) out.y[j] = results.emplace_back(outputs);
    const Buffer<double> table(N * kStages * 2 * channels);
    split(threads, work.forward, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_forward, args, prepared.data(), out, table.data(), first, last);
    });
    std::string bytes = table.bytes();
    for (const auto& result : results) bytes += result.bytes();
    return bytes;
  });
  compare("stage_grad", [&](int threads) {
    StageGrads<T> grads{};
    grads.bn_coeffs = coefficients;
    std::vector<Buffer<T>> grad_x;
    std::vector<Buffer<A>> grad_weights;
    for (int i = 0; i < args.inputs(); ++i) grads.grad_x[i] = grad_x.emplace_back(N * H * W * channels);
    for (int j = 0; j < kStages; ++j) {
      grads.grad[j] = g[j];
      grads.y[j] = y[j];
      grads.grad_stride[j] = grads.y_stride[j] = channels;
      grads.grad_depthwise[j] = grad_weights.emplace_back(channels * args.kernel[j] * args.kernel[j]);
      grads.grad_pointwise[j] = grad_weights.emplace_back(channels * channels);
    }
    const Buffer<char> partial(FASTNAS_CPU_CALL(stage_partial_bytes, args));
    const Buffer<double> sums(normalized ? N * args.inputs() * 2 * channels : 0);
    split(threads, work.gradient, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_grad, args, prepared.data(), grads, partial.data(), normalized ? sums.data() : nullptr,
                       first, last);
    });
    split(threads, work.groups, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(stage_grad_merge, args, grads, partial.data(), first, last);
    });
    std::string bytes = sums.bytes();
    for (const auto& grad : grad_x) bytes += grad.bytes();
    for (const auto& grad : grad_weights) bytes += grad.bytes();
    return bytes;
  });
}

// --- edge_sum --------------------------------------------------------------------------------------------------------

template <typename T>
void edge_sum(int64_t channels, int64_t stride, bool shared) {
  using A = accumulate_t<T>;
  constexpr int64_t P = 2, B = 5, H = 6, W = 7;
  constexpr int E = 3;
  EdgeSum<T> args{};
  args.images = shared ? B : P * B;
  args.individuals = P;
  args.shared = shared;
  args.channels = channels;
  args.height = H;
  args.width = W;
  args.out_height = (H + stride - 1) / stride;
  args.out_width = (W + stride - 1) / stride;
  args.stride = stride;
  args.edges = E;
  args.candidates = 2;
  args.stages = 3;
  args.depth[0] = 2;
  args.depth[1] = 1;
  std::vector<Buffer<A>> weights;
  for (int s = 0; s < args.stages; ++s) {
    args.kernel[s] = s == 2 ? 5 : 3;
    args.dilation[s] = s == 2 ? 2 : 1;
    for (int e = 0; e < E; ++e) {
      args.depthwise[e][s] = weights.emplace_back(Buffer<A>::random(channels * args.kernel[s] * args.kernel[s]));
      args.pointwise[e][s] = weights.emplace_back(Buffer<A>::random(channels * channels));
    }
  }
  const auto x = Buffer<T>::random(args.images * H * W * (channels + 1));
  args.x = x;
  args.x_stride = channels + 1;
  args.inner_scales = weights.emplace_back(Buffer<A>::random(E * channels));
  args.inner_offsets = weights.emplace_back(Buffer<A>::random(E * channels));
  args.scales = weights.emplace_back(Buffer<A>::random(P * E * args.terms() * channels));
  args.offsets = weights.emplace_back(Buffer<A>::random(P * E * channels));
  const Buffer<char> prepared(FASTNAS_CPU_CALL(edge_sum_prepared_bytes, args));
  FASTNAS_CPU_CALL(edge_sum_prepare, args, prepared.data());
  compare("edge_sum", [&](int threads) {
    std::vector<Buffer<T>> results;
    EdgeSum<T> call = args;
    for (int e = 0; e < E; ++e) {
      call.result[e] = results.emplace_back(P * B * args.out_height * args.out_width * channels);
    }
    split(threads, FASTNAS_CPU_CALL(edge_sum_blocks, call),
          [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(edge_sum_forward, call, prepared.data(), first, last); });
    std::string bytes;
    for (const auto& result : results) bytes += result.bytes();
    return bytes;
  });
}

// --- node_sum --------------------------------------------------------------------------------------------------------

template <typename T>
void node_sum(int64_t channels, int64_t groups, int64_t individuals) {
  using A = accumulate_t<T>;
  constexpr int64_t B = 3, K = 3;
  const int64_t C = channels, W = C * groups, R = W - C, P = individuals, N = P * B, E = R ? 2 : 0;
  NodeShape shape{P, B, 71, C, groups, 64, 2};
  const int64_t pixels = shape.pixels;
  std::vector<Buffer<T>> images;
  NodeSum<T> args{};
  args.shape = shape;
  args.candidate_count = K;
  args.bypass_count = E;
  for (int64_t k = 0; k < K; ++k) {
    const bool one = k == 0;  // shared by the individuals, and a slice
    const int64_t stride = one ? C + 3 : C;
    args.candidates[k] = {images.emplace_back(Buffer<T>::random((one ? B : N) * pixels * stride)), stride, one};
  }
  for (int64_t e = 0; e < E; ++e) {
    args.bypass[e] = {images.emplace_back(Buffer<T>::random(N * pixels * R)), R, false};
  }
  const auto mean = Buffer<A>::random(K * P * C), rstd = Buffer<A>::random(K * P * C);
  const auto weights = Buffer<A>::random(P * K), bypass_weights = Buffer<A>::random(P * 2);
  args.mean = mean;
  args.rstd = rstd;
  args.weights = weights;
  args.bypass_weights = bypass_weights;
  const auto previous = Buffer<T>::random(N * pixels * W);
  for (int64_t edges : {E, int64_t{0}}) {  // rest of its own, or that of the previous node where it is
    args.bypass_count = edges;
    compare("node_sum", [&](int threads) {
      const Buffer<T> result(N * pixels * W);
      split(threads, B * shape.tiles * P, [&](int64_t first, int64_t last) {
        FASTNAS_CPU_CALL(node_sum_forward, args, result.data(), W, first, last);
      });
      return result.bytes();
    });
    if (R) args.prev_node = {previous, W, false};
  }
  args.bypass_count = E;
  if (P > 1) return;  // gradients are those of training

  const auto grad = Buffer<T>::random(N * pixels * W), other = Buffer<T>::random(N * pixels * W);
  const auto sums = Buffer<A>::random(C), dots = Buffer<A>::random(K * C);
  const auto front = Buffer<T>::random(N * pixels * C);
  compare("node_sum_grad", [&](int threads) {
    const NodePixels<T> from{grad, W, false};
    const Buffer<T> processed(R ? N * pixels * C : 0);
    const Buffer<double> partial(N * (C + K * C + E));
    split(threads, N, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(node_sum_grad, args, from, processed.data(), partial.data(), first, last);
    });
    return processed.bytes() + partial.bytes();
  });
  compare("node_sum_grad_candidates", [&](int threads) {
    const NodePixels<T> from{front, C, false};
    NodeSumGrads<T> grads{sums, dots, {true, false, true}, {}};
    std::vector<Buffer<T>> results;
    for (int64_t k = 0; k < K; ++k) grads.candidates[k] = results.emplace_back(N * pixels * C);
    split(threads, N * shape.tiles, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(node_sum_grad_candidates, args, from, grads, first, last);
    });
    return results[0].bytes() + results[1].bytes() + results[2].bytes();
  });
  if (R == 0) return;
  compare("bypass_grad", [&](int threads) {
    BypassGrad<T> bypass{};
    bypass.seen_grad = {front, C, false};
    bypass.grads[0] = {grad, W, false};
    bypass.addends[0] = {other, W, false};
    bypass.weights = weights;
    bypass.grad_count = bypass.addend_count = 1;
    bypass.shape = shape;
    bypass.of_prev_node = true;
    const Buffer<T> result(N * pixels * W), own(N * pixels * C);
    bypass.grad_group0 = own.data();
    split(threads, N * shape.tiles,
          [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(bypass_grad, bypass, result.data(), first, last); });
    return result.bytes() + own.bytes();
  });
}

// --- pool ------------------------------------------------------------------------------------------------------------

template <typename T>
void pool(int64_t channels, int64_t stride) {
  using A = accumulate_t<T>;
  constexpr int64_t N = 6, H = 7, W = 6, G = 2;
  const PoolShape shape{channels, H, W, stride};
  const int64_t pixels = N * H * W, outputs = N * pool_windows(H, stride) * pool_windows(W, stride) * channels;
  const auto x = Buffer<T>::random(pixels * (channels + 2)), addend = Buffer<T>::random(pixels * channels);
  const PoolImages<T> images{x, channels + 2};
  const auto scales = Buffer<A>::random(2 * G * channels), corrections = Buffer<A>::random(6 * channels),
             skip = Buffer<A>::random(G * channels);
  const auto first_grad = Buffer<T>::random(outputs), second_grad = Buffer<T>::random(outputs);
  compare("pool", [&](int threads) {
    const Buffer<T> average(outputs), maximum(outputs), result(pixels * channels);
    const Buffer<double> table(N * 4 * channels);
    split(threads, N, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(pool_forward, shape, images, average.data(), maximum.data(), table.data(), first, last);
    });
    PoolGrad<T> args{};
    args.shape = shape;
    args.x = images;
    args.grads[0] = {first_grad, channels};
    args.grads[1] = {second_grad, channels};
    args.grad_count = G;
    args.scales = scales;
    args.outputs[0] = {average, channels};
    args.outputs[1] = {maximum, channels};
    args.bn_coeffs = corrections;
    args.skip = stride == 1 ? skip.data() : nullptr;
    args.addends[0] = {addend, channels};
    args.addend_count = 1;
    split(threads, N,
          [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(pool_grad, args, result.data(), first, last); });
    return average.bytes() + maximum.bytes() + table.bytes() + result.bytes();
  });
}

// --- halve -----------------------------------------------------------------------------------------------------------

template <typename T>
void halve(int64_t channels) {
  constexpr int64_t N = 6, H = 7, W = 6, kSeen = 3;
  const int64_t pixels = N * H * W, stride = kSeen + channels + 2;
  const auto x = Buffer<T>::random(pixels * stride), seen = Buffer<T>::random(pixels * kSeen);
  const Halve<T> args{x.data() + kSeen, stride, N, channels, H, W};
  const int64_t rows = N * args.rows(), outputs = rows * args.columns() * channels;
  const auto grad = Buffer<T>::random(outputs);
  const HalveGrad<T> parts{grad, channels, seen, kSeen, kSeen};
  compare("halve", [&](int threads) {
    const Buffer<T> output(outputs), result(pixels * (kSeen + channels));
    split(threads, rows,
          [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(halve, args, output.data(), first, last); });
    split(threads, rows,
          [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(halve_grad, args, parts, result.data(), first, last); });
    return output.bytes() + result.bytes();
  });
}

// --- preprocess ------------------------------------------------------------------------------------------------------

template <typename T>
void preprocess(int64_t channels, int64_t stride) {
  using A = accumulate_t<T>;
  constexpr int64_t N = 20, H = 5, W = 7;
  const int64_t inputs = 2 * channels, rows = channels + 1, outputs = stride * rows;
  const auto front = Buffer<T>::random(N * H * W * channels), back = Buffer<T>::random(N * H * W * channels);
  const auto weights = Buffer<A>::random(outputs * inputs), coefficients = Buffer<A>::random(4 * outputs);
  auto args = std::make_unique<Preprocess<T>>();
  args->states = {{front, back}, {channels, channels}, {channels, channels}, 2};
  for (int64_t m = 0; m < stride; ++m) {
    args->matrices[m] = {weights.data() + m * rows * inputs, rows, m, m * rows, 0};
    args->group_outputs[m] = rows;
  }
  args->matrix_count = stride;
  args->images = N;
  args->channels = inputs;
  args->outputs = outputs;
  args->stride = stride;
  args->height = stride == 1 ? 1 : H;
  args->width = stride == 1 ? H * W : W;
  args->output_height = stride == 1 ? 1 : (H + 1) / 2;
  args->output_width = stride == 1 ? H * W : (W + 1) / 2;
  const int64_t values = N * args->output_height * args->output_width * outputs;
  const auto grad_output = Buffer<T>::random(values);
  compare("preprocess", [&](int threads) {
    const Buffer<T> output(values), grad_front(N * H * W * channels), grad_back(N * H * W * channels);
    const Buffer<double> moments(N * 2 * outputs);
    const Buffer<A> partial(kPreprocessChunks * outputs * inputs);
    split(threads, N, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(preprocess_forward, *args, output.data(), moments.data(), first, last);
    });
    auto grad = std::make_unique<PreprocessGrad<T>>();
    grad->grads = {{grad_output}, {outputs}, {outputs}, 1};
    grad->output = output;
    grad->bn_coeffs = coefficients;
    grad->grad_states = {{grad_front, grad_back}, {channels, channels}, {channels, channels}, 2};
    split(threads, kPreprocessChunks, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(preprocess_backward, *args, *grad, partial.data(), kPreprocessChunks, first, last);
    });
    const Buffer<A> merged(outputs * inputs);
    std::vector<A*> grad_weights;
    for (int64_t m = 0; m < stride; ++m) grad_weights.push_back(merged.data() + m * rows * inputs);
    split(threads, outputs, [&](int64_t first, int64_t last) {
      FASTNAS_CPU_CALL(preprocess_merge, *args, partial.data(), kPreprocessChunks, grad_weights.data(), first, last);
    });
    return output.bytes() + moments.bytes() + grad_front.bytes() + grad_back.bytes() + partial.bytes() + merged.bytes();
  });
}

// --- memory ----------------------------------------------------------------------------------------------------------

/// Blocks go from thread to thread; nobody else may hold one that was just handed out.
void memory() {
  compare("memory", [&](int threads) {
    std::vector<char*> handed(kThreads);
    for (char*& block : handed) block = static_cast<char*>(cpu::allocate(4096));
    split(threads, kThreads, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        for (int64_t round = 0; round < 200; ++round) {
          const std::size_t size = std::size_t{4096} << (round % 3);
          char* block = static_cast<char*>(cpu::allocate(size));
          std::memset(block, static_cast<int>(t), size);
          cpu::ScratchArena scratch;
          for (int part = 0; part < 2; ++part) std::memset(scratch.take<char>(size), static_cast<int>(t), size);
          cpu::recycle(round % 2 ? block : std::exchange(handed[t], block));
        }
      }
    });
    for (char* block : handed) cpu::recycle(block);
    return cpu::memory_use().used;
  });
}

template <typename T>
void all() {
  mixed_sum<T>();
  for (const int64_t channels : {1, 2, 3}) augment_batch<T>(channels);
  for (const int64_t channels : {3, 4, 16, 20}) {
    for (const int64_t stride : {1, 2}) {
      for (const bool shared : {false, true}) {
        stage<T>(channels, stride, shared, /*normalized=*/!shared);
        edge_sum<T>(channels, stride, shared);
      }
      pool<T>(channels, stride);
      preprocess<T>(channels, stride);
    }
    halve<T>(channels);
    node_sum<T>(channels, 1, 1);
    node_sum<T>(channels, 4, 1);
    node_sum<T>(channels, 4, 2);
  }
}

}  // namespace

int main() {
  for (const auto isa : {cpu::Isa::portable, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (!cpu::set_isa(isa)) continue;
    color_jitter();
    all<double>();
    all<float>();
    all<c10::BFloat16>();
    std::printf("%s: kernels done\n", cpu::isa_name(isa));
  }
  memory();
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
