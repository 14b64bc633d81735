// Memory orders and allocation for the torch side of the operators.
//
// Kernels see flat memory, so all tensors of one call are brought into one order. That order is taken from the first
// input: channels-last where its last four dimensions are stored so, row-major otherwise. Tensors that are stored
// differently (slices, transposes) are copied.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/caching_allocator.h"
#include "ops/dtype.h"

namespace fastnas {

using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

enum class Order { row_major, channels_last };

inline Sizes sizes_of(const Tensor& t) { return Sizes(t.sizes().begin(), t.sizes().end()); }

/// Strides of a dense tensor of these sizes; channels-last orders the last four dimensions as N, H, W, C.
inline Sizes dense_strides(const Sizes& sizes, Order order) {
  const int64_t dims = static_cast<int64_t>(sizes.size());
  std::vector<int64_t> slowest_first(dims);
  for (int64_t d = 0; d < dims; ++d) slowest_first[d] = d;
  if (order == Order::channels_last) {
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

/// Whether `t` is dense and stored in this order. A dimension of one element may have any stride.
inline bool is_stored(const Tensor& t, Order order) {
  if (t.numel() == 0) return true;
  const Sizes dense = dense_strides(sizes_of(t), order);
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) > 1 && t.stride(d) != dense[d]) return false;
  }
  return true;
}

/// The order to use for a call whose first input is `t`.
inline Order order_of(const Tensor& t, int64_t leading_dims) {
  const bool image = t.dim() - leading_dims == 4;
  return image && !is_stored(t, Order::row_major) && is_stored(t, Order::channels_last) ? Order::channels_last
                                                                                        : Order::row_major;
}

/// From this size on, CPU tensors come from the caching allocator (cpu/caching_allocator.h).
constexpr int64_t kKeptBytes = 64 << 10;

/// Uninitialised, on the device of `like`.
inline Tensor empty(const Tensor& like, const Sizes& sizes, Order order, torch::headeronly::ScalarType dtype) {
  const Sizes strides = dense_strides(sizes, order);
  int64_t bytes = element_size(dtype);
  for (int64_t size : sizes) bytes *= size;
  if (like.device().is_cpu() && bytes >= kKeptBytes) {
    return torch::stable::from_blob(cpu::allocate(bytes), sizes, strides, like.device(), dtype,
                                    [](void* block) { cpu::recycle(block); });
  }
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const int32_t scalar = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), scalar, device_type, like.get_device_index(),
                                                         &handle));
  return Tensor(handle);
}

/// `t` itself where it is stored in this order, otherwise a copy that is.
inline Tensor stored(const Tensor& t, Order order) {
  if (is_stored(t, order)) return t;
  Tensor copy = empty(t, sizes_of(t), order, t.scalar_type());
  torch::stable::copy_(copy, t);
  return copy;
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
inline bool is_pixels(const Tensor& t) {
  if (t.numel() == 0) return true;
  const int64_t stride = pixel_stride(t), width = t.size(3), height = t.size(2);
  return stride >= t.size(1) && (t.size(1) == 1 || t.stride(1) == 1) &&
         (height == 1 || t.stride(2) == width * stride) && (t.size(0) == 1 || t.stride(0) == height * width * stride);
}

/// `t` [N, C, H, W] itself where it can be read in place, otherwise a channels-last copy.
inline Tensor pixels(const Tensor& t) { return is_pixels(t) ? t : stored(t, Order::channels_last); }

/// "[2, 16, 32, 32]", for messages.
inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + "]";
}

}  // namespace fastnas
