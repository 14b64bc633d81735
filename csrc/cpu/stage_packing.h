// How the stages of a call are put into vectors, for the forward and the backward kernel of `stage`.
//
// Stages of one kernel size and dilation form a *group*: its members lie side by side in the lanes of a vector
// (lane_packing.h), and their weights are prepared as vectors of lanes, so one depthwise and one pointwise product
// compute them all. The groups that read one tile, the padded and rectified copy of a block of images (stage_tile.h),
// form a *tile group*: all of them where the stages share an input, which is then rectified once for every kernel size.
// Where each stage has an input of its own, each group is a tile group, and its tile holds the inputs of its members in
// their slots. A block of images and a tile group are one item of work for a thread.
#pragma once

#include "cpu/lane_packing.h"
#include "ops/stage.h"

namespace fastnas::FASTNAS_ISA {

struct StageGroup {
  int first, size;  // stages order[first] … order[first + size - 1]
  int64_t kernel, dilation;
  int64_t weights;   // where its prepared weights begin
  int64_t gradient;  // where its part of a gradient begins

  int64_t taps() const { return kernel * kernel; }
  int64_t padding() const { return dilation * (kernel - 1) / 2; }
};

template <typename T>
struct StagePacking : LanePacking<accumulate_t<T>> {
  using A = accumulate_t<T>;
  using LanePacking<A>::channels, LanePacking<A>::lanes;

  int groups = 0, tile_groups = 0;
  StageGroup group[kMaxStages];
  int first_group[kMaxStages + 1];  // of each tile group
  int64_t padding[kMaxStages];      // of each tile group's tile
  int order[kMaxStages];
  int64_t weights = 0, gradient = 0;  // values in all

  explicit StagePacking(const Stage<T>& args) : LanePacking<A>(args.channels, args.stages) {
    int largest = 0;
    bool placed[kMaxStages] = {};
    int ordered = 0;
    for (int j = 0; j < args.stages; ++j) {
      if (placed[j]) continue;
      StageGroup& g = group[groups++];
      g = {ordered, 0, args.kernel[j], args.dilation[j], weights, gradient};
      for (int other = j; other < args.stages && g.size < this->members; ++other) {
        if (placed[other] || args.kernel[other] != g.kernel || args.dilation[other] != g.dilation) continue;
        placed[other] = true;
        order[ordered++] = other;
        ++g.size;
      }
      largest = g.size > largest ? g.size : largest;
      weights += 2 * (g.taps() + channels) * lanes;
      gradient += (g.taps() + channels) * lanes;
    }
    this->set_members(largest);  // what no group needs goes to further images
    tile_groups = args.shared ? (groups > 0) : groups;
    for (int t = 0; t <= tile_groups; ++t) first_group[t] = args.shared && t > 0 ? groups : t;
    for (int t = 0; t < tile_groups; ++t) {
      padding[t] = 0;
      for (int g = first_group[t]; g < first_group[t + 1]; ++g) {
        padding[t] = group[g].padding() > padding[t] ? group[g].padding() : padding[t];
      }
    }
  }

  /// use(slot, image, stage) for the stages of a group and `images` images of a block, slot after slot.
  template <typename F>
  void for_slots(const StageGroup& g, int images, const F& use) const {
    for (int image = 0; image < images; ++image) {
      for (int m = 0; m < g.size; ++m) use(this->slot(image, m), image, order[g.first + m]);
    }
  }
  /// Gradients of weights are summed in this many parts of the batch, whatever the number of threads.
  int64_t parts(int64_t images) const { return this->blocks(images) < 16 ? this->blocks(images) : 16; }

  // Prepared weights of a group, [.., lanes] each: depthwise [taps], the same flipped (tap t is tap taps - 1 - t),
  // pointwise [inputs] for the forward pass, and transposed [outputs] for the backward pass.
  const A* depthwise(const void* prepared, const StageGroup& g) const {
    return static_cast<const A*>(prepared) + g.weights;
  }
  const A* flipped(const void* prepared, const StageGroup& g) const {
    return depthwise(prepared, g) + g.taps() * lanes;
  }
  const A* pointwise(const void* prepared, const StageGroup& g) const {
    return flipped(prepared, g) + g.taps() * lanes;
  }
  const A* transposed(const void* prepared, const StageGroup& g) const {
    return pointwise(prepared, g) + channels * lanes;
  }
};

}  // namespace fastnas::FASTNAS_ISA
