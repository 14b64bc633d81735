// Checks of arguments that several operators share. Every message names operator, argument and what was given.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <ostream>

#include "ops/dtype.h"
#include "ops/layout.h"

namespace fastnas {

/// An argument: "mean", or "candidates[3]" of a list.
struct Argument {
  const char* name;
  int64_t index = -1;

  friend std::ostream& operator<<(std::ostream& out, const Argument& argument) {
    out << argument.name;
    return argument.index < 0 ? out : out << "[" << argument.index << "]";
  }
};

inline Argument nth(const char* name, size_t index) { return {name, static_cast<int64_t>(index)}; }

/// A list of `least` to `most` tensors.
inline void check_count(const char* op, const char* name, size_t count, size_t least, size_t most) {
  STD_TORCH_CHECK(count >= least && count <= most, op, ": ", name, " must hold ", least, " to ", most, " tensors, got ",
                  count);
}

/// Sizes that can be computed with: those of tensors without values, and of expanded ones, may be anything.
inline void check_extent(const char* op, const Argument& argument, const Tensor& t) {
  STD_TORCH_CHECK(extent_of(t.sizes()), op, ": ", argument, " has shape ", shape_of(t),
                  ", which is more values than memory holds");
}

inline void check_extents(const char* op, const char* name, const Tensors& tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) check_extent(op, nth(name, i), tensors[i]);
}

/// Individuals whose images may be none: a result that has a row for each of them stays small.
constexpr int64_t kMostWithoutImages = 1 << 16;

/// Whether `images` can be those of so many individuals.
inline bool can_share(int64_t images, int64_t individuals) {
  return individuals >= 1 && images % individuals == 0 && (images > 0 || individuals <= kMostWithoutImages);
}

inline void check_stride(const char* op, int64_t stride) {
  STD_TORCH_CHECK(stride == 1 || stride == 2, op, ": stride is ", stride, ", expected 1 or 2");
}

/// For operators that look at the dtype before they dispatch on it.
inline void check_floating(const char* op, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(element_size(dtype) > 0, op, ": ", name, " must be float16, bfloat16, float32 or float64");
}

inline void check_sizes(const char* op, const Argument& argument, const Tensor& t, const Sizes& expected) {
  STD_TORCH_CHECK(has_sizes(t, expected), op, ": ", argument, " has shape ", shape_of(t), ", expected ",
                  shape_of(expected));
}

inline void check_device(const char* op, const Argument& argument, const Tensor& t, const char* of,
                         const Tensor& like) {
  STD_TORCH_CHECK(t.device() == like.device(), op, ": ", argument, " must be on the device of ", of);
}

/// Dtype and device of `like`, the argument that is called `of`.
inline void check_like(const char* op, const Argument& argument, const Tensor& t, const char* of, const Tensor& like) {
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type() && t.device() == like.device(), op, ": ", argument,
                  " must have the dtype and the device of ", of);
}

/// The dtype in which the images `like`, called `of`, are summed, and their device.
inline void check_acc_dtype(const char* op, const Argument& argument, const Tensor& t, const char* of,
                            const Tensor& like) {
  STD_TORCH_CHECK(t.scalar_type() == acc_dtype(like.scalar_type()) && t.device() == like.device(), op, ": ", argument,
                  " must be ", acc_dtype_name(like.scalar_type()), " and on the device of ", of);
}

/// Weights, statistics or coefficients for the images `like`.
inline void check_table(const char* op, const Argument& argument, const Tensor& t, const Sizes& expected,
                        const char* of, const Tensor& like) {
  check_sizes(op, argument, t, expected);
  check_acc_dtype(op, argument, t, of, like);
}

/// Weights of a depthwise convolution for the images `like` with `channels` channels: [C, 1, K, K] with an odd K.
inline void check_depthwise(const char* op, size_t index, const Tensor& t, int64_t channels, const char* of,
                            const Tensor& like) {
  const bool square = t.dim() == 4 && t.size(2) == t.size(3) && t.size(2) % 2 == 1;
  STD_TORCH_CHECK(square && t.size(0) == channels && t.size(1) == 1, op, ": depthwise[", index, "] has shape ",
                  shape_of(t), ", expected [", channels, ", 1, K, K] with an odd K");
  check_acc_dtype(op, nth("depthwise", index), t, of, like);
}

/// Pixels that a convolution may reach beyond an image of any size, by its dilation.
constexpr int64_t kLeastReach = 1024;

/// The dilation at which `taps` [C, 1, K, K] are computed over images of height × width: the given one, or the nearest
/// at which all taps but the middle one read zeros, as at any further one they do. So the border that kernels put
/// around an image is bounded by its size.
inline int64_t check_dilation(const char* op, size_t index, int64_t dilation, const Tensor& taps, int64_t height,
                              int64_t width) {
  const int64_t side = std::max<int64_t>(1, std::max(height, width)), most = std::max(side, kLeastReach);
  STD_TORCH_CHECK(dilation >= 1 && dilation <= most, op, ": dilations[", index, "] is ", dilation, ", expected 1 to ",
                  most, " for images of ", height, " × ", width, " pixels");
  const int64_t nearest = std::min(dilation, side), arm = (taps.size(3) - 1) / 2;
  STD_TORCH_CHECK(
      arm <= 4 * most / nearest && extent_of({height + 2 * arm * nearest, width + 2 * arm * nearest, taps.size(0)}), op,
      ": depthwise[", index, "] has shape ", shape_of(taps), ", too large at dilation ", dilation, " for images of ",
      height, " × ", width, " pixels");
  return nearest;
}

}  // namespace fastnas
