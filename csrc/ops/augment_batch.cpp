#include "ops/augment_batch.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

constexpr auto kOp = "fastnas::augment_batch";

// --- checks ----------------------------------------------------------------------------------------------------------

void check(const Tensor& images, const Tensor& table, const std::optional<Tensor>& index,
           const std::optional<Tensor>& draws, int64_t padding, int64_t cutout) {
  STD_TORCH_CHECK(images.dim() == 4 && images.scalar_type() == ScalarType::Byte, kOp,
                  ": images must be uint8 [N, H, W, C], got shape ", shape_of(images),
                  images.scalar_type() == ScalarType::Byte ? "" : " of another dtype");
  STD_TORCH_CHECK(has_memory_format(images, MemoryFormat::contiguous), kOp, ": images ", shape_of(images),
                  " must be contiguous: a copy of the whole set for each batch would be slow");
  check_extent(kOp, {"images"}, images);
  STD_TORCH_CHECK(images.size(1) * images.size(2) * images.size(3) <= std::numeric_limits<int32_t>::max(), kOp,
                  ": images ", shape_of(images), " hold more than 2³¹ - 1 values each");
  STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == images.size(3) && table.size(1) == kLevels, kOp,
                  ": table must be [C, 256] with C = ", images.size(3), " as in images, got shape ", shape_of(table));
  int64_t count = images.size(0);
  if (index) {
    STD_TORCH_CHECK(index->dim() == 1 && index->scalar_type() == ScalarType::Long, kOp,
                    ": index must be int64 [B], got shape ", shape_of(*index),
                    index->scalar_type() == ScalarType::Long ? "" : " of another dtype");
    count = index->size(0);
  }
  if (draws) {
    STD_TORCH_CHECK(draws->dim() == 2 && draws->size(0) == count && draws->size(1) == kDraws &&
                        draws->scalar_type() == ScalarType::Int,
                    kOp, ": draws must be int32 [B, 5] with B = ", count, ", got shape ", shape_of(*draws),
                    draws->scalar_type() == ScalarType::Int ? "" : " of another dtype");
  }
  for (const Tensor* t : {&table, index ? &*index : &table, draws ? &*draws : &table}) {
    STD_TORCH_CHECK(t->device() == images.device(), kOp, ": images, table, index and draws must be on one device");
  }
  for (const auto& [name, pixels] : {std::pair{"padding", padding}, std::pair{"cutout", cutout}}) {
    STD_TORCH_CHECK(pixels >= 0 && pixels <= std::numeric_limits<int32_t>::max(), kOp, ": ", name, " is ", pixels,
                    ", expected a number of pixels from 0 upwards");
  }
}

// --- kernels ---------------------------------------------------------------------------------------------------------

// Starting a thread pays from about this many values on.
constexpr int64_t kGrain = 1 << 19;

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  template <typename T>
  void forward(const AugmentBatch<T>& args, T* result) const {
    for (int64_t b = 0; args.index && b < args.count; ++b) {
      STD_TORCH_CHECK(args.index[b] >= 0 && args.index[b] < args.set, kOp, ": index[", b, "] is ", args.index[b],
                      ", but there are ", args.set, " images");
    }
    const int64_t values = args.height * args.width * args.channels;
    if (values == 0) return;
    parallel_for(0, args.count, std::max<int64_t>(1, kGrain / values),
                 [&](int64_t first, int64_t last) { FASTNAS_CPU_CALL(augment_batch, args, result, first, last); });
  }
};

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  template <typename T>
  void forward(const AugmentBatch<T>& args, T* result) const {
    cuda::augment_batch(args, result, stream());
  }
};

// --- operator --------------------------------------------------------------------------------------------------------

template <typename Backend>
Tensor forward(const Tensor& images, const Tensor& table, std::optional<Tensor> index, std::optional<Tensor> draws,
               int64_t padding, int64_t cutout) {
  check(images, table, index, draws, padding, cutout);
  const Backend backend(images);
  const Tensor dense_table = as_contiguous(table);
  const std::optional<Tensor> dense_index = as_contiguous(index), dense_draws = as_contiguous(draws);
  const int64_t count = index ? index->size(0) : images.size(0);
  const int64_t H = images.size(1), W = images.size(2), C = images.size(3);
  Tensor result = empty(images, {count, C, H, W}, MemoryFormat::channels_last, table.scalar_type());
  THO_DISPATCH_V2(table.scalar_type(), kOp, AT_WRAP([&] {
                    AugmentBatch<scalar_t> args{};
                    args.images = images.const_data_ptr<uint8_t>();
                    args.index = dense_index ? dense_index->const_data_ptr<int64_t>() : nullptr;
                    args.draws = dense_draws ? dense_draws->const_data_ptr<int32_t>() : nullptr;
                    args.table = dense_table.const_data_ptr<scalar_t>();
                    args.set = images.size(0);
                    args.count = count;
                    args.height = H;
                    args.width = W;
                    args.channels = C;
                    args.padding = padding;
                    args.cutout = cutout;
                    backend.forward(args, result.mutable_data_ptr<scalar_t>());
                  }),
                  FASTNAS_FLOATING_TYPES);
  return result;
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def("augment_batch(Tensor images, Tensor table, Tensor? index, Tensor? draws, int padding, int cutout) -> Tensor");
}

FASTNAS_IMPLEMENTATIONS(m, Backend) { m.impl("augment_batch", TORCH_BOX(&forward<Backend>)); }

}  // namespace fastnas
