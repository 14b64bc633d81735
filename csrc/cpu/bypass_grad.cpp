// node_sum, backward, of what bypasses a node: the gradient of the node before it, or of an input's bypassing channels.
//
// What bypassed a node went on to the results of all later nodes, so its gradient is a sum over theirs: for each of
// them the bypass of a shuffled gradient, put back in order (shuffle.h) and weighted, plus gradients from elsewhere
// that come in order, plus that of group 0 from the candidates. Where the result is itself that of a node, shuffled,
// the other nodes' bypass is added where it is, since what bypassed both was never put in order between them. A thread
// takes a tile of an image (node_tile.h) and adds everything to it while it is in the nearest cache: in place where the
// tensors have the type of accumulation, otherwise in scratch memory.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/node_tile.h"
#include "cpu/scratch_arena.h"
#include "cpu/shuffle.h"

namespace fastnas::FASTNAS_ISA {

template <typename T>
void bypass_grad(const BypassGrad<T>& args, T* result, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  const NodeShape& s = args.shape;
  const int64_t C = s.channels, W = C * s.groups;
  constexpr bool kInPlace = std::is_same_v<T, A>;
  cpu::ScratchArena scratch;
  A* const sums = scratch.take<A>(kInPlace ? 0 : s.tile * W);
  A* const input = scratch.take<A>(kInPlace ? 0 : s.tile * W);

  for (int64_t item = first; item < last; ++item) {
    const int64_t image = item / s.tiles;
    const Tile tile = tile_of(s, item % s.tiles);
    T* const out = result + (image * s.pixels + tile.begin) * W;
    A* sum = sums;
    if constexpr (kInPlace) sum = out;
    if (args.addend_count == 0) std::memset(sum, 0, tile.count * W * sizeof(A));
    for (int64_t a = 0; a < args.addend_count; ++a) {
      const NodePixels<T>& x = args.addends[a];
      const T* data = tile_data(x, s, image, tile);
      if (a == 0) {
        gather(data, x.stride, W, tile.count, sum);
      } else {
        add_channels(data, x.stride, A(1), W, tile.count, sum, W);
      }
    }
    if (args.seen_grad.data) {
      const T* data = tile_data(args.seen_grad, s, image, tile);
      add_channels(data, args.seen_grad.stride, A(1), C, tile.count, sum, W);
    }
    for (int64_t i = 0; i < args.grad_count; ++i) {
      const NodePixels<T>& grad = args.grads[i];
      const T* data = tile_data(grad, s, image, tile);
      if constexpr (kInPlace) {
        add_bypass(data, grad.stride, C, s.groups, tile.count, args.weights[i], sum + C, W);
      } else {
        gather(data, grad.stride, W, tile.count, input);
        add_bypass<A>(input, W, C, s.groups, tile.count, args.weights[i], sum + C, W);
      }
      if (args.of_prev_node) add_shuffled_bypass(data, grad.stride, C, s.groups, tile.count, sum, W);
    }
    if (args.of_prev_node) {
      T* const group0 = args.grad_group0 + (image * s.pixels + tile.begin) * C;
      A* values = input;
      if constexpr (kInPlace) values = group0;
      for (int64_t j = 0; j < tile.count * C; ++j) values[j] = sum[j * s.groups];
      if constexpr (!kInPlace) store_row(values, tile.count * C, group0);
    }
    if constexpr (!kInPlace) store_row(sum, tile.count * W, out);
  }
}

#define INSTANTIATE(T) template void bypass_grad(const BypassGrad<T>&, T*, int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
