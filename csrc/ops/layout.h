// Memory formats and allocation for the torch side of the operators.
//
// Kernels see flat memory, so all tensors of one call are brought into one format. It is that of the first input:
// channels-last where its last four dimensions are, contiguous otherwise. Tensors in any other format (slices,
// transposes) are copied.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "cpu/caching_allocator.h"
#include "ops/dtype.h"

namespace fastnas {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Sizes = std::vector<int64_t>;

enum class MemoryFormat { contiguous, channels_last };

inline Sizes sizes_of(const Tensor& t) { return Sizes(t.sizes().begin(), t.sizes().end()); }

inline bool has_sizes(const Tensor& t, const Sizes& expected) {
  if (t.dim() != static_cast<int64_t>(expected.size())) return false;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) != expected[d]) return false;
  }
  return true;
}

/// "[2, 16, 32, 32]", for messages.
inline std::string shape_of(const Sizes& sizes) {
  std::string text = "[";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
  return text + "]";
}
inline std::string shape_of(const Tensor& t) { return shape_of(sizes_of(t)); }

/// More values than any memory holds. Of tensors with no more, what kernels need of sizes can be computed in 64 bits.
constexpr int64_t kMostValues = int64_t{1} << 48;

/// The product of sizes, in which 0 counts as 1, so that no product of some of them is larger; nothing where that is
/// more than kMostValues.
template <typename Range>
std::optional<int64_t> extent_of(const Range& sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size > kMostValues / product) return std::nullopt;
    if (size > 1) product *= size;
  }
  return product;
}
inline std::optional<int64_t> extent_of(std::initializer_list<int64_t> sizes) {
  return extent_of<std::initializer_list<int64_t>>(sizes);
}

/// Strides of a dense tensor of these sizes; channels-last orders the last four dimensions as N, H, W, C.
inline Sizes dense_strides(const Sizes& sizes, MemoryFormat format) {
  const int64_t dims = static_cast<int64_t>(sizes.size());
  std::vector<int64_t> slowest_first(dims);
  for (int64_t d = 0; d < dims; ++d) slowest_first[d] = d;
  if (format == MemoryFormat::channels_last) {
    slowest_first[dims - 3] = dims - 2;
    slowest_first[dims - 2] = dims - 1;
    slowest_first[dims - 1] = dims - 3;
  }
  Sizes strides(dims);
  int64_t next = 1;
  for (int64_t i = dims - 1; i >= 0; --i) {
    strides[slowest_first[i]] = next;
    next *= sizes[slowest_first[i]] > 1 ? sizes[slowest_first[i]] : 1;
  }
  return strides;
}

/// Whether `t` is dense and of this format. A dimension of one element may have any stride.
inline bool has_memory_format(const Tensor& t, MemoryFormat format) {
  if (t.numel() == 0) return true;
  const Sizes dense = dense_strides(sizes_of(t), format);
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) > 1 && t.stride(d) != dense[d]) return false;
  }
  return true;
}

/// The format of a call whose first input is `t`, with `leading_dims` dimensions before those of an image.
inline MemoryFormat memory_format_of(const Tensor& t, int64_t leading_dims) {
  const bool image = t.dim() - leading_dims == 4 && !has_memory_format(t, MemoryFormat::contiguous) &&
                     has_memory_format(t, MemoryFormat::channels_last);
  return image ? MemoryFormat::channels_last : MemoryFormat::contiguous;
}

/// From this size on, memory of CPU tensors comes from the caching allocator (cpu/caching_allocator.h).
constexpr int64_t kCachedBytes = 64 << 10;

/// Uninitialised, on the device of `like`.
inline Tensor empty(const Tensor& like, const Sizes& sizes, MemoryFormat format, ScalarType dtype) {
  STD_TORCH_CHECK(extent_of(sizes), "fastnas: a tensor of shape ", shape_of(sizes),
                  " has more values than memory holds");
  const Sizes strides = dense_strides(sizes, format);
  int64_t bytes = storage_size(dtype);
  for (int64_t size : sizes) bytes *= size;
  if (like.device().is_cpu() && bytes >= kCachedBytes) {
    return torch::stable::from_blob(cpu::allocate(bytes), sizes, strides, like.device(), dtype,
                                    [](void* block) { cpu::recycle(block); });
  }
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const int32_t scalar = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  scalar, device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

/// What sums of nothing are.
inline void fill_with_zeros(Tensor& t) { torch::stable::zero_(t); }
inline void fill_with_zeros(Tensors& tensors) {
  for (Tensor& t : tensors) fill_with_zeros(t);
}

/// `t` itself where it has this format, otherwise a copy that does.
inline Tensor to_memory_format(const Tensor& t, MemoryFormat format) {
  if (has_memory_format(t, format)) return t;
  Tensor copy = empty(t, sizes_of(t), format, t.scalar_type());
  torch::stable::copy_(copy, t);
  return copy;
}
inline Tensors to_memory_format(const Tensors& tensors, MemoryFormat format) {
  Tensors result;
  for (const Tensor& t : tensors) result.push_back(to_memory_format(t, format));
  return result;
}

inline Tensor as_contiguous(const Tensor& t) { return to_memory_format(t, MemoryFormat::contiguous); }
inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& t) {
  return t ? std::optional(as_contiguous(*t)) : std::nullopt;
}

// --- images [N, C, H, W] whose pixels are vectors of channels ---
//
// The operators of a cell read channels-last images, or the first channels of wider ones, in place: the pixels of all
// images follow each other at one distance.

/// Elements from one pixel to the next.
inline int64_t pixel_stride(const Tensor& t) {
  for (int64_t d = 3; d >= 0; d -= d == 2 ? 2 : 1) {
    if (t.size(d) > 1) return t.stride(d);
  }
  return t.size(1);
}

/// Whether `t` [N, C, H, W] can be read in place.
inline bool is_nhwc(const Tensor& t) {
  if (t.numel() == 0) return true;
  const int64_t stride = pixel_stride(t), width = t.size(3), height = t.size(2);
  return stride >= t.size(1) && (t.size(1) == 1 || t.stride(1) == 1) &&
         (height == 1 || t.stride(2) == width * stride) && (t.size(0) == 1 || t.stride(0) == height * width * stride);
}

/// `t` [N, C, H, W] itself where it can be read in place, otherwise a channels-last copy.
inline Tensor as_nhwc(const Tensor& t) { return is_nhwc(t) ? t : to_memory_format(t, MemoryFormat::channels_last); }
inline Tensors as_nhwc(const Tensors& tensors) {
  Tensors result;
  for (const Tensor& t : tensors) result.push_back(as_nhwc(t));
  return result;
}

/// Pixels along a side of an output, for `size` along that of the input: one for every `stride`-th pixel.
inline int64_t strided_size(int64_t size, int64_t stride) { return (size + stride - 1) / stride; }

}  // namespace fastnas
