// torch::stable's Stream has given its handle since torch 2.13 only; AOTInductor's function does so in every torch that
// the operators run on. It is in libtorch_cuda, which a torch without CUDA lacks, so it is looked up at the first call
// instead of linked: one library serves both.
#include "ops/cuda_stream.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/macros.h>

#include <type_traits>

#include "ops/layout.h"

namespace fastnas {
namespace {

using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);
#ifdef USE_CUDA
static_assert(std::is_same_v<CurrentStream, decltype(&aoti_torch_get_current_cuda_stream)>);
#endif

CurrentStream find() {
  // Python has loaded it for itself alone, so its symbols are found through its own handle only.
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  return library ? reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
}

CurrentStream current_stream() {
  static const CurrentStream found = find();
  return found;
}

}  // namespace

bool has_current_cuda_stream() { return current_stream() != nullptr; }

CUstream_st* current_cuda_stream(int32_t device) {
  STD_TORCH_CHECK(
      has_current_cuda_stream(),
      "fastnas: aoti_torch_get_current_cuda_stream is not in libtorch_cuda.so: install torch 2.11 or later, "
      "built with CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(current_stream()(device, &stream));
  return static_cast<CUstream_st*>(stream);
}

}  // namespace fastnas
