// mixed_sum: Σ_k w_k · o_k over the outputs of K candidates, for one or several individuals, and both gradients.
//
// Every value is read once and used once, so the kernel is as fast as memory is: outputs are flat arrays in one order,
// which are read and written by whole vectors. A thread takes tiles of kMixedSumTile elements; the sum of a tile stays
// in the first-level cache, in the type of accumulation, while the candidates pass by, and is written once. An output
// that individuals share is a table of its own that all of them read. The gradient of a weight is a dot product of a
// tile with 16 running sums, the same number for every instruction set, and the caller merges the tiles in a fixed
// order.
#include "ops/mixed_sum.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/convert.h"

namespace fastnas::FASTNAS_ISA {
namespace {

struct Tile {
  int64_t individual;
  int64_t begin;  // within the individual's N elements
  int64_t size;
};

Tile tile_of(int64_t index, int64_t elements) {
  const int64_t tiles = mixed_sum_tiles(elements);
  const int64_t begin = index % tiles * kMixedSumTile;
  const int64_t left = elements - begin;
  return {index / tiles, begin, left < kMixedSumTile ? left : kMixedSumTile};
}

template <typename T>
const T* output_tile(const MixedSum<T>& args, int64_t k, const Tile& tile) {
  return args.outputs[k] + (args.shared[k] ? 0 : tile.individual * args.elements) + tile.begin;
}

// A fixed number of running sums, the same for every instruction set, keeps the order of additions and lets the
// compiler use vectors without reassociating.
template <typename T>
double dot(const T* a, const T* b, int64_t n) {
  using A = accumulate_t<T>;
  constexpr int kSums = 16;
  A sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int j = 0; j < kSums; ++j) sums[j] += A(a[i + j]) * A(b[i + j]);
  }
  for (int j = 0; i < n; ++i, ++j) sums[j] += A(a[i]) * A(b[i]);
  double sum = 0;
  for (A each : sums) sum += each;
  return sum;
}

/// sum = or += weight · from
template <bool kAdd, typename T, typename A>
void add_weighted(const T* from, A weight, int64_t n, A* sum) {
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const Vec<A> value = weight * load_run<L, A>(from + i);
    store_unaligned(sum + i, kAdd ? load_unaligned(sum + i) + value : value);
  }
  for (; i < n; ++i) sum[i] = (kAdd ? sum[i] : A(0)) + weight * A(from[i]);
}

}  // namespace

template <typename T>
void mixed_sum_forward(const MixedSum<T>& args, T* result, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  for (int64_t index = first; index < last; ++index) {
    const Tile tile = tile_of(index, args.elements);
    A sum[kMixedSumTile];
    for (int64_t k = 0; k < args.candidates; ++k) {
      const T* output = output_tile(args, k, tile);
      const A weight = args.weights[tile.individual * args.candidates + k];
      if (k == 0) {
        add_weighted<false>(output, weight, tile.size, sum);
      } else {
        add_weighted<true>(output, weight, tile.size, sum);
      }
    }
    store_row(sum, tile.size, result + tile.individual * args.elements + tile.begin);
  }
}

template <typename T>
void mixed_sum_grad_outputs(const MixedSum<T>& args, const T* grad, const MixedSumGrads<T>& grads, int64_t first,
                            int64_t last) {
  using A = accumulate_t<T>;
  for (int64_t index = first; index < last; ++index) {
    const Tile tile = tile_of(index, args.elements);
    for (int64_t k = 0; k < args.candidates; ++k) {
      A sum[kMixedSumTile] = {};
      for (int64_t p = 0; p < args.individuals; ++p) {
        const A weight = args.weights[p * args.candidates + k];
        const T* g = grad + p * args.elements + tile.begin;
        if (args.shared[k]) {
          add_weighted<true>(g, weight, tile.size, sum);
        } else {
          add_weighted<false>(g, weight, tile.size, sum);
          store_row(sum, tile.size, grads.outputs[k] + p * args.elements + tile.begin);
        }
      }
      if (args.shared[k]) store_row(sum, tile.size, grads.outputs[k] + tile.begin);
    }
  }
}

template <typename T>
void mixed_sum_grad_weights(const MixedSum<T>& args, const T* grad, double* partial, int64_t first, int64_t last) {
  for (int64_t index = first; index < last; ++index) {
    const Tile tile = tile_of(index, args.elements);
    const T* g = grad + tile.individual * args.elements + tile.begin;
    for (int64_t k = 0; k < args.candidates; ++k) {
      partial[index * args.candidates + k] = dot(g, output_tile(args, k, tile), tile.size);
    }
  }
}

#define INSTANTIATE(T)                                                                                           \
  template void mixed_sum_forward(const MixedSum<T>&, T*, int64_t, int64_t);                                     \
  template void mixed_sum_grad_outputs(const MixedSum<T>&, const T*, const MixedSumGrads<T>&, int64_t, int64_t); \
  template void mixed_sum_grad_weights(const MixedSum<T>&, const T*, double*, int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
