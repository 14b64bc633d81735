// How an operator is registered, and what its two devices need to know of torch.
//
// An operator's file has a `struct Cpu : OnCpu` and a `struct Cuda : OnCuda`, each with a function for every kernel,
// and function templates that check, allocate and hand over to one of the two:
//
//   FASTNAS_SCHEMAS(m) { m.def("pool(Tensor x, …) -> …"); }
//   FASTNAS_IMPLEMENTATIONS(m, Backend) { m.impl("pool", TORCH_BOX(&pool<Backend>)); }
//
// The second is compiled with Cpu and, in a CUDA build, with Cuda. Under FASTNAS_EMULATE (tests/cuda_emulation) Cuda
// serves tensors of the CPU, as operators of another namespace beside the package's own.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <exception>
#include <mutex>

#include "ops/cuda_stream.h"
#include "ops/layout.h"

#define FASTNAS_IMPLEMENTATIONS(m, Backend)                       \
  template <typename Backend>                                     \
  static void implement(torch::stable::detail::StableLibrary& m); \
  FASTNAS_REGISTER_BACKENDS                                       \
  template <typename Backend>                                     \
  static void implement(torch::stable::detail::StableLibrary& m)

// FASTNAS_WITHOUT_KERNELS(m, CPU) { m.impl(…); }: functions without kernels, of which nothing is emulated.
#ifdef FASTNAS_EMULATE
#define FASTNAS_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(fastnas_emulated, m)
#define FASTNAS_REGISTER_BACKENDS \
  STABLE_TORCH_LIBRARY_IMPL(fastnas_emulated, CPU, m) { implement<Cuda>(m); }
#define FASTNAS_WITHOUT_KERNELS(m, key) \
  [[maybe_unused]] static void not_emulated_##key(torch::stable::detail::StableLibrary& m)
#else
#define FASTNAS_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(fastnas, m)
#define FASTNAS_WITHOUT_KERNELS(m, key) STABLE_TORCH_LIBRARY_IMPL(fastnas, key, m)
#ifdef FASTNAS_CUDA
#define FASTNAS_REGISTER_BACKENDS                                   \
  STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) { implement<Cpu>(m); } \
  STABLE_TORCH_LIBRARY_IMPL(fastnas, CUDA, m) { implement<Cuda>(m); }
#else
#define FASTNAS_REGISTER_BACKENDS \
  STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) { implement<Cpu>(m); }
#endif
#endif

namespace fastnas {

/// torch's parallel_for, which would print what f throws and replace its message: here the first exception gets out as
/// it is.
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  std::exception_ptr first_error;
  std::mutex mutex;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      f(first, last);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!first_error) first_error = std::current_exception();
    }
  });
  if (first_error) std::rethrow_exception(first_error);
}

/// Uninitialised memory that a kernel works in, on the device of `like`.
class Workspace {
 public:
  /// boundary: alignment in bytes; 0 for that of the device's allocator, which suffices for CUDA kernels.
  Workspace(const Tensor& like, int64_t bytes, int64_t boundary = 0)
      : memory_(empty(like, {(bytes + 3) / 4 + boundary / 4}, MemoryFormat::contiguous, ScalarType::Float)),
        boundary_(boundary > 0 ? static_cast<uintptr_t>(boundary) : 1) {}

  void* data() const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.data_ptr());
    return reinterpret_cast<void*>((address + boundary_ - 1) / boundary_ * boundary_);
  }

 private:
  Tensor memory_;
  uintptr_t boundary_;
};

/// A call on a CPU.
struct OnCpu {
  const Tensor& like;

  explicit OnCpu(const Tensor& like) : like(like) {}
  Workspace workspace(int64_t bytes) const { return Workspace(like, bytes, 64); }
  Tensor doubles(int64_t count) const { return empty(like, {count}, MemoryFormat::contiguous, ScalarType::Double); }
};

/// A call on the device of `like`, which is the current one as long as this lives.
struct OnCuda {
  const Tensor& like;
#ifdef FASTNAS_EMULATE
  explicit OnCuda(const Tensor& like) : like(like) {}
  CUstream_st* stream() const { return nullptr; }
#else
  torch::stable::accelerator::DeviceIndex index;
  torch::stable::accelerator::DeviceGuard guard;

  explicit OnCuda(const Tensor& like) : like(like), index(like.get_device_index()), guard(index) {}
  CUstream_st* stream() const { return current_cuda_stream(index); }
#endif
  Workspace workspace(int64_t bytes) const { return Workspace(like, bytes); }
};

}  // namespace fastnas
