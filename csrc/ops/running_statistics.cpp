// running_statistics: moves the running statistics of many normalisations towards those of a batch, in one call.
//
// There is no kernel: each normalisation has a few values only. What takes time is calling torch for every buffer.
#include <algorithm>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/layout.h"

namespace fastnas {
namespace {

constexpr auto kOp = "fastnas::running_statistics";

template <typename T>
void follow(T* running, int64_t stride, const T* batch, int64_t channels, double factor, double momentum) {
  const T weight = T(momentum), scale = T(factor);
  for (int64_t c = 0; c < channels; ++c) {
    T& value = running[c * stride];
    const T target = batch[c] * scale;
    // As torch's lerp, which gives either end exactly.
    value = weight < T(0.5) ? value + weight * (target - value) : target - (target - value) * (T(1) - weight);
  }
}

void check_buffer(const char* name, size_t norm, const Tensor& buffer, const Tensor& batch) {
  STD_TORCH_CHECK(buffer.dim() == 1 && buffer.size(0) == batch.size(1) && buffer.scalar_type() == batch.scalar_type(),
                  kOp, ": ", name, "[", norm, "] has shape ", shape_of(buffer), ", expected [", batch.size(1),
                  "] in the dtype of the batch's statistics");
}

// Before any buffer moves.
void check(const Tensors& mean, const Tensors& variance, const Tensors& tracked, const Tensors& batch_mean,
           const Tensors& batch_variance, size_t counts) {
  STD_TORCH_CHECK(batch_mean.size() == batch_variance.size() && batch_mean.size() == counts, kOp, ": got ",
                  batch_mean.size(), " batch_mean, ", batch_variance.size(), " batch_variance and ", counts,
                  " counts; expected one of each for every batch");
  int64_t norms = 0;
  for (size_t b = 0; b < batch_mean.size(); ++b) {
    const Tensor &means = batch_mean[b], &variances = batch_variance[b];
    STD_TORCH_CHECK(means.dim() == 2, kOp, ": batch_mean has shape ", shape_of(means), ", expected [norms, C]");
    check_extent(kOp, nth("batch_mean", b), means);
    STD_TORCH_CHECK(sizes_of(variances) == sizes_of(means) && variances.scalar_type() == means.scalar_type(), kOp,
                    ": batch_variance[", b, "] has shape ", shape_of(variances), ", batch_mean ", shape_of(means));
    STD_TORCH_CHECK(means.scalar_type() == ScalarType::Double || means.scalar_type() == ScalarType::Float, kOp,
                    ": statistics must be float32 or float64");
    norms += means.size(0);
  }
  const auto all = static_cast<size_t>(norms);
  STD_TORCH_CHECK(mean.size() == all && variance.size() == all && tracked.size() == all, kOp, ": got ", mean.size(),
                  " mean, ", variance.size(), " variance and ", tracked.size(), " tracked for statistics of ", norms,
                  " normalisations");
  size_t norm = 0;
  for (const Tensor& batch : batch_mean) {
    for (int64_t row = 0; row < batch.size(0); ++row, ++norm) {
      check_buffer("mean", norm, mean[norm], batch);
      check_buffer("variance", norm, variance[norm], batch);
      STD_TORCH_CHECK(tracked[norm].dim() == 0 && tracked[norm].scalar_type() == ScalarType::Long, kOp, ": tracked[",
                      norm, "] must be one int64, got shape ", shape_of(tracked[norm]));
    }
  }
}

void running_statistics(Tensors mean, Tensors variance, Tensors tracked, Tensors batch_mean, Tensors batch_variance,
                        std::vector<int64_t> counts, double momentum) {
  check(mean, variance, tracked, batch_mean, batch_variance, counts.size());
  size_t norm = 0;
  for (size_t b = 0; b < batch_mean.size(); ++b) {
    const Tensor means = as_contiguous(batch_mean[b]);
    const Tensor variances = as_contiguous(batch_variance[b]);
    const int64_t channels = means.size(1);
    const double unbiased = double(counts[b]) / std::max(1.0, double(counts[b]) - 1);
    const auto follow_all = [&]<typename T>(const T* from_mean, const T* from_variance) {
      for (int64_t row = 0; row < means.size(0); ++row, ++norm) {
        follow(mean[norm].mutable_data_ptr<T>(), mean[norm].stride(0), from_mean + row * channels, channels, 1.0,
               momentum);
        follow(variance[norm].mutable_data_ptr<T>(), variance[norm].stride(0), from_variance + row * channels, channels,
               unbiased, momentum);
        ++*tracked[norm].mutable_data_ptr<int64_t>();
      }
    };
    if (means.scalar_type() == ScalarType::Double) {
      follow_all(means.const_data_ptr<double>(), variances.const_data_ptr<double>());
    } else {
      follow_all(means.const_data_ptr<float>(), variances.const_data_ptr<float>());
    }
  }
}

}  // namespace

FASTNAS_SCHEMAS(m) {
  m.def(
      "running_statistics(Tensor(a!)[] mean, Tensor(b!)[] variance, Tensor(c!)[] tracked, Tensor[] batch_mean, "
      "Tensor[] batch_variance, int[] counts, float momentum) -> ()");
}

FASTNAS_WITHOUT_KERNELS(m, CPU) { m.impl("running_statistics", TORCH_BOX(&running_statistics)); }

}  // namespace fastnas
