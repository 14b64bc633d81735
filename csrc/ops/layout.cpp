#include "ops/layout.h"

#include "ops/backend.h"

namespace fastnas {
namespace {

// Uninitialised channels-last images of the dtype and device of `like`, in memory of the caching allocator: what
// operators such as node_sum_into write into.
Tensor empty_images(const Tensor& like, Sizes size) {
  STD_TORCH_CHECK(size.size() == 4, "fastnas::empty_images: size has ", size.size(), " entries, expected [N, C, H, W]");
  for (int64_t each : size) {
    STD_TORCH_CHECK(each >= 0, "fastnas::empty_images: size is ", shape_of(size), ", expected sizes from 0 upwards");
  }
  return empty(like, size, MemoryFormat::channels_last, like.scalar_type());
}

}  // namespace

FASTNAS_SCHEMAS(m) { m.def("empty_images(Tensor like, int[] size) -> Tensor"); }

FASTNAS_WITHOUT_KERNELS(m, CPU) { m.impl("empty_images", TORCH_BOX(&empty_images)); }

#ifdef FASTNAS_CUDA
FASTNAS_WITHOUT_KERNELS(m, CUDA) { m.impl("empty_images", TORCH_BOX(&empty_images)); }
#endif

}  // namespace fastnas
