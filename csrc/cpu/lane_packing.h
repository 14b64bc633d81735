// Which image and which member of a group computes in which lanes of a vector.
//
// Where C channels fill at most half a vector, several things that a kernel does to the same pixel are put side by
// side: first the *members* of a group (stages of `stage` that have one geometry, edges of `edge_sum`), and in lanes
// that are left further images. The images that are worked on together are a *block*. Member m of the block's image i
// has *lane slot* i · members + m, which is C lanes wide, so with members = 2 and C = 2 a vector of 8 lanes holds
//
//   slot      0               1               2               3
//   lanes     0 1             2 3             4 5             6 7
//   is        image 0, m 0    image 0, m 1    image 1, m 0    image 1, m 1
//
// A single stage fills a vector as well, then, with the images of a block alone. From more than half a vector of
// channels on there is one slot, a group is one member, a block one image, and channels are padded with zeros.
#pragma once

#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {

template <typename A>
struct LanePacking {
  int64_t channels;  // C
  int64_t lanes;     // of a pixel in scratch memory
  bool packed;       // several slots in a vector
  int members;       // of a group, at most
  int block_images;

  /// For groups of `wanted` members, or as many as fit.
  LanePacking(int64_t channels, int wanted)
      : channels(channels), lanes(2 * channels <= kLanes<A> ? kLanes<A> : padded<A>(channels)) {
    packed = 2 * channels <= kLanes<A>;
    set_members(wanted);
  }

  void set_members(int wanted) {
    const int fitting = packed ? static_cast<int>(lanes / channels) : 1;
    members = wanted < 1 ? 1 : wanted < fitting ? wanted : fitting;
    block_images = packed ? static_cast<int>(lanes / (channels * members)) : 1;
  }

  int slots() const { return members * block_images; }
  int slot(int image, int member) const { return image * members + member; }
  /// The first lane of a slot.
  int64_t lane(int64_t image, int member) const { return (image * members + member) * channels; }

  int64_t blocks(int64_t images) const { return (images + block_images - 1) / block_images; }
  /// Images of a block that begins at image `first` of `images`.
  int images_of_block(int64_t first, int64_t images) const {
    return images - first < block_images ? static_cast<int>(images - first) : block_images;
  }
};

/// The weights of one separable convolution at the lanes of one slot: depthwise [C, taps] → [taps, lanes], pointwise
/// [outputs, inputs] → [inputs, lanes].
template <typename A>
void pack_weights(const A* depthwise, int64_t taps, const A* pointwise, int64_t channels, int64_t lanes,
                  A* packed_depthwise, A* packed_pointwise) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) packed_depthwise[t * lanes + c] = depthwise[c * taps + t];
  }
  for (int64_t input = 0; input < channels; ++input) {
    for (int64_t c = 0; c < channels; ++c) packed_pointwise[input * lanes + c] = pointwise[c * channels + input];
  }
}

}  // namespace fastnas::FASTNAS_ISA
