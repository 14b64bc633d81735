// Checks of arguments that several operators share. Every message names operator, argument and what was given.
#pragma once

#include <torch/csrc/stable/tensor.h>

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

inline void check_dilations(const char* op, const std::vector<int64_t>& dilations) {
  for (size_t s = 0; s < dilations.size(); ++s) {
    STD_TORCH_CHECK(dilations[s] >= 1, op, ": dilations[", s, "] is ", dilations[s], ", expected at least 1");
  }
}

}  // namespace fastnas
