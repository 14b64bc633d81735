// How node_sum, its gradients and bypass_grad check their arguments, and how they hand them to kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/node_sum.h"

namespace fastnas {

// --- checks ----------------------------------------------------------------------------------------------------------

/// An image of `channels` channels that fits `like`, whatever its number of images.
inline void check_image(const char* op, const Argument& argument, const Tensor& t, const Tensor& like,
                        int64_t channels) {
  STD_TORCH_CHECK(t.dim() == 4, op, ": ", argument, " must be [N, C, H, W], got shape ", shape_of(t));
  check_like(op, argument, t, "the first image", like);
  check_extent(op, argument, t);
  STD_TORCH_CHECK(t.size(1) == channels && t.size(2) == like.size(2) && t.size(3) == like.size(3), op, ": ", argument,
                  " has shape ", shape_of(t), ", expected [N, ", channels, ", ", like.size(2), ", ", like.size(3), "]");
}

inline void check_images(const char* op, const char* name, const Tensors& tensors, const Tensor& like,
                         int64_t channels) {
  for (size_t i = 0; i < tensors.size(); ++i) check_image(op, nth(name, i), tensors[i], like, channels);
}

/// As many images as `like` has.
inline void check_batch(const char* op, const char* name, const Tensors& tensors, const Tensor& like) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    STD_TORCH_CHECK(tensors[i].size(0) == like.size(0), op, ": ", nth(name, i), " has shape ", shape_of(tensors[i]),
                    ", but there are ", like.size(0), " images");
  }
}

/// The number of groups g, where `bypassing` channels bypass the `channels` that are summed.
inline int64_t groups_of(const char* op, int64_t channels, int64_t bypassing) {
  STD_TORCH_CHECK(channels > 0 && bypassing > 0 && bypassing % channels == 0, op, ": ", bypassing,
                  " channels bypass the ", channels, " that are summed; they must be a positive multiple, (g - 1) ",
                  "times as many");
  return bypassing / channels + 1;
}

// --- arguments of kernels --------------------------------------------------------------------------------------------

/// Values of all groups' channels that are worked on at a time: a tile's buffers stay in the first-level cache while
/// candidate after candidate streams by.
constexpr int64_t kTileValues = 4096;
/// Whole blocks of vectors of every instruction set, so that tiles need no padding.
constexpr int64_t kTileUnit = 64;

inline NodeShape node_shape(int64_t individuals, int64_t images, const Tensor& like, int64_t channels, int64_t groups) {
  NodeShape s{individuals, images, like.size(2) * like.size(3), channels, groups, 1, 0};
  if (channels > 0 && s.pixels > 0) {
    const int64_t unit = kTileUnit / std::gcd(kTileUnit, channels);  // pixels
    s.tile = unit * std::max<int64_t>(1, kTileValues / (unit * channels * std::min<int64_t>(groups, 2)));
    s.tiles = (s.pixels + s.tile - 1) / s.tile;
  }
  return s;
}

/// Items of work from which on starting a thread pays: 65536 values of all inputs together.
inline int64_t node_grain(int64_t values_per_item) {
  return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, values_per_item));
}

template <typename T>
NodePixels<T> node_pixels(const Tensor& t, bool shared = false) {
  return {t.const_data_ptr<T>(), pixel_stride(t), shared};
}

template <typename T>
void set_pixels(NodePixels<T>* table, const Tensors& tensors, const NodeShape& shape) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    table[i] = node_pixels<T>(tensors[i], shape.individuals > 1 && tensors[i].size(0) == shape.images);
  }
}

/// Candidates, their statistics and the bypass as the kernels take them; keeps the copies alive.
struct NodeInputs {
  Tensors candidates, bypass;
  Tensor mean, rstd;

  NodeInputs(const Tensors& candidates, const Tensors& bypass, const Tensor& mean, const Tensor& rstd)
      : candidates(as_nhwc(candidates)),
        bypass(as_nhwc(bypass)),
        mean(as_contiguous(mean)),
        rstd(as_contiguous(rstd)) {}

  template <typename T>
  NodeSum<T> arguments(const NodeShape& shape) const {
    NodeSum<T> args{};
    set_pixels(args.candidates, candidates, shape);
    set_pixels(args.bypass, bypass, shape);
    args.mean = mean.const_data_ptr<accumulate_t<T>>();
    args.rstd = rstd.const_data_ptr<accumulate_t<T>>();
    args.candidate_count = static_cast<int64_t>(candidates.size());
    args.bypass_count = static_cast<int64_t>(bypass.size());
    args.shape = shape;
    return args;
  }
};

}  // namespace fastnas
