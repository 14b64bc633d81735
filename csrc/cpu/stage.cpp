// stage, forward: normalise → ReLU → depthwise → pointwise for several candidate stages, with statistics of what comes
// out.
//
// A thread takes one block of images and one tile group (stage_packing.h) at a time. Its inputs go, normalised and
// rectified, into a padded tile; then, group after group, some rows of outputs pass through all steps while they are in
// the first-level cache: the depthwise convolution into z, the matrix product into y, sums for the statistics, and out
// to the tensors. Neither the rectified input nor z ever reaches memory, and an input that many stages share is read
// once. Lanes hold channels and, where these are few, stages and images side by side, so every step works on whole
// vectors. Where an output's pixels are vectors already, the product writes them in place.
#include "ops/stage.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/depthwise.h"
#include "cpu/packed.h"
#include "cpu/pointwise.h"
#include "cpu/scratch_arena.h"
#include "cpu/stage_packing.h"
#include "cpu/stage_tile.h"
#include "cpu/statistics.h"

namespace fastnas::FASTNAS_ISA {
namespace {

// y [pixels, lanes] to the outputs that lie side by side in it, from pixel `pixel` of the first image on.
template <typename T>
void store_outputs(const StagePacking<T>& packing, const StageGroup& group, int images, int64_t image_pixels,
                   int64_t pixel, int64_t pixels, const accumulate_t<T>* y, const StageOutputs<T>& out) {
  T* to[kLanes<accumulate_t<T>>] = {};
  packing.for_slots(group, images, [&](int slot, int i, int stage) {
    to[slot] = out.y[stage] + (pixel + i * image_pixels) * packing.channels;
  });
  store_slots(y, packing.lanes, packing.channels, pixels, to, packing.slots());
}

}  // namespace

template <typename T>
int64_t stage_prepared_bytes(const Stage<T>& args) {
  return StagePacking<T>(args).weights * static_cast<int64_t>(sizeof(accumulate_t<T>));
}

template <typename T>
StageWork stage_work(const Stage<T>& args) {
  const StagePacking<T> packing(args);
  return {packing.blocks(args.count) * packing.tile_groups, packing.parts(args.count) * packing.tile_groups,
          packing.groups};
}

template <typename T>
void stage_prepare(const Stage<T>& args, void* prepared, int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  const StagePacking<T> packing(args);
  const int64_t channels = packing.channels, lanes = packing.lanes;
  A* const weights = static_cast<A*>(prepared);
  for (int64_t index = first; index < last; ++index) {
    const StageGroup& group = packing.group[index];
    const int64_t taps = group.taps();
    std::memset(weights + group.weights, 0, 2 * (taps + channels) * lanes * sizeof(A));
    A* const depthwise = weights + group.weights;
    A* const flipped = depthwise + taps * lanes;
    A* const pointwise = flipped + taps * lanes;
    A* const transposed = pointwise + channels * lanes;
    packing.for_slots(group, packing.block_images, [&](int slot, int, int stage) {
      const int64_t lane = slot * channels;
      pack_weights(args.depthwise[stage], taps, args.pointwise[stage], channels, lanes, depthwise + lane,
                   pointwise + lane);
      for (int64_t t = 0; t < taps; ++t) {
        std::memcpy(flipped + (taps - 1 - t) * lanes + lane, depthwise + t * lanes + lane, channels * sizeof(A));
      }
      for (int64_t output = 0; output < channels; ++output) {
        std::memcpy(transposed + output * lanes + lane, args.pointwise[stage] + output * channels,
                    channels * sizeof(A));
      }
    });
  }
}

template <typename T>
void stage_forward(const Stage<T>& args, const void* prepared, const StageOutputs<T>& out, double* table, int64_t first,
                   int64_t last) {
  using A = accumulate_t<T>;
  const StagePacking<T> packing(args);
  const int64_t channels = packing.channels, lanes = packing.lanes, width = args.out_width;
  const int64_t rows = rows_worked_on<A>(args.out_height, width, lanes);
  int64_t padding = 0;
  for (int t = 0; t < packing.tile_groups; ++t) padding = packing.padding[t] > padding ? packing.padding[t] : padding;
  const PaddedTile tile(padding, args.height, args.width, lanes);
  cpu::ScratchArena scratch;
  A* const x = scratch.take<A>(tile.size);
  A* const z = scratch.take<A>(rows * width * lanes);
  A* const block = scratch.take<A>(rows * width * lanes);
  BatchStats<A> stats(scratch, lanes);
  std::memset(x, 0, tile.size * sizeof(A));
  StageTile<T> input(args, packing, tile);
  for (int64_t item = first; item < last; ++item) {
    const int64_t image = item / packing.tile_groups * packing.block_images;
    const int images = packing.images_of_block(image, args.count);
    const int tile_group = static_cast<int>(item % packing.tile_groups);
    input.begin(tile_group, image, images, x);
    for (int index = packing.first_group[tile_group]; index < packing.first_group[tile_group + 1]; ++index) {
      const StageGroup& group = packing.group[index];
      const A* depthwise = packing.depthwise(prepared, group);
      const A* pointwise_weights = packing.pointwise(prepared, group);
      T* const direct = out.y[packing.order[group.first]];
      const bool in_place =
          std::is_same_v<T, A> && lanes == channels && reinterpret_cast<uintptr_t>(direct) % kVectorBytes == 0;
      stats.begin();
      for (int64_t top = 0; top < args.out_height; top += rows) {
        const int64_t count = args.out_height - top < rows ? args.out_height - top : rows;
        const int64_t pixel = (image * args.out_height + top) * width;  // in the outputs
        input.fill_until(group, top + count);
        for (int64_t r = 0; r < count; ++r) {
          const Taps<A> taps = tile.taps<A>(x, group.kernel, group.dilation, args.stride, top + r);
          depthwise_row(taps, depthwise, width, z + r * width * lanes);
        }
        A* y = block;
        if constexpr (std::is_same_v<T, A>) y = in_place ? direct + pixel * channels : block;
        Prefetcher prefetcher;
        if (!in_place) {
          packing.for_slots(group, images, [&](int, int i, int stage) {
            prefetcher.add(out.y[stage] + (pixel + i * args.out_height * width) * channels, count * width * channels);
          });
        }
        input.prefetch(rows, prefetcher);
        if (packing.packed) {
          packed_pointwise(z, channels, pointwise_weights, count * width, y, prefetcher);
        } else {
          pointwise(z, lanes, channels, pointwise_weights, lanes, Lines{1, count * width, 0, 0}, y, prefetcher);
        }
        if (table) stats.add(y, count * width);
        if (in_place) continue;
        store_outputs(packing, group, images, args.out_height * width, pixel, count * width, y, out);
      }
      if (!table) continue;
      packing.for_slots(group, images, [&](int slot, int i, int stage) {
        stats.finish(slot * channels, channels, table + ((image + i) * args.stages + stage) * 2 * channels);
      });
    }
  }
}

#define INSTANTIATE(T)                                                   \
  template int64_t stage_prepared_bytes(const Stage<T>&);                \
  template StageWork stage_work(const Stage<T>&);                        \
  template void stage_prepare(const Stage<T>&, void*, int64_t, int64_t); \
  template void stage_forward(const Stage<T>&, const void*, const StageOutputs<T>&, double*, int64_t, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

}  // namespace fastnas::FASTNAS_ISA
