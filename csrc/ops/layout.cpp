#include "ops/layout.h"

#include "ops/backend.h"

namespace fastnas {
namespace {

Tensor empty_images(const Tensor& like, Sizes size) {
  STD_TORCH_CHECK(size.size() == 4, "fastnas::empty_images: size has ", size.size(), " entries, expected [N, C, H, W]");
  return empty(like, size, Order::channels_last, like.scalar_type());
}

}  // namespace
}  // namespace fastnas

// Uninitialised channels-last images of the dtype and device of `like`, in memory that is kept for the next step: what
// operators such as node_sum_into write into.
FASTNAS_OPERATORS(m) { m.def("empty_images(Tensor like, int[] size) -> Tensor"); }

FASTNAS_OPERATORS_CPU(m) { m.impl("empty_images", TORCH_BOX(&fastnas::empty_images)); }

#if defined(FASTNAS_CUDA) && !defined(FASTNAS_EMULATE)  // no kernel: nothing to compare
FASTNAS_OPERATORS_CUDA(m) { m.impl("empty_images", TORCH_BOX(&fastnas::empty_images)); }
#endif
