// Where operators are registered, and what their CUDA side needs to know of torch.
//
//   FASTNAS_OPERATORS(m) { m.def(…); }       schemas
//   FASTNAS_OPERATORS_CPU(m) { m.impl(…); }
//   FASTNAS_OPERATORS_CUDA(m) { m.impl(…); } within #ifdef FASTNAS_CUDA
//
// Under FASTNAS_EMULATE (tests/cuda_emulation) the CUDA side serves tensors of the CPU, as operators of another
// namespace beside the package's own.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

struct CUstream_st;

#ifdef FASTNAS_EMULATE
#define FASTNAS_OPERATORS(m) STABLE_TORCH_LIBRARY_FRAGMENT(fastnas_emulated, m)
#define FASTNAS_OPERATORS_CPU(m) [[maybe_unused]] static void not_emulated(torch::stable::detail::StableLibrary& m)
#define FASTNAS_OPERATORS_CUDA(m) STABLE_TORCH_LIBRARY_IMPL(fastnas_emulated, CPU, m)
#else
#define FASTNAS_OPERATORS(m) STABLE_TORCH_LIBRARY_FRAGMENT(fastnas, m)
#define FASTNAS_OPERATORS_CPU(m) STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m)
#define FASTNAS_OPERATORS_CUDA(m) STABLE_TORCH_LIBRARY_IMPL(fastnas, CUDA, m)
#endif

namespace fastnas {

/// Makes the device of a tensor the current one for a scope, and knows torch's current stream there.
class DeviceScope {
 public:
#ifdef FASTNAS_EMULATE
  explicit DeviceScope(const torch::stable::Tensor&) {}
  CUstream_st* stream() const { return nullptr; }
#else
  explicit DeviceScope(const torch::stable::Tensor& t) : index_(t.get_device_index()), guard_(index_) {}
  CUstream_st* stream() const {
    return static_cast<CUstream_st*>(torch::stable::accelerator::getCurrentStream(index_).nativeHandle());
  }

 private:
  torch::stable::accelerator::DeviceIndex index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

}  // namespace fastnas
