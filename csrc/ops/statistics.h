// Mean and variance of whole batches, from those of the images that kernels leave (cpu/statistics.h).
#pragma once

#include <cstdint>

namespace fastnas {

/// table [P · images, J, 2, C] of (mean, Σ(y - mean)²) over `pixels` pixels each → mean and (biased) variance [J, P,
/// C]. Pairs of images are merged as Chan, Golub and LeVeque (1983) do, in the order of the images.
template <typename A>
void merge_statistics(const double* table, int64_t individuals, int64_t images, int64_t outputs, int64_t channels,
                      int64_t pixels, A* mean, A* variance) {
  for (int64_t j = 0; j < outputs; ++j) {
    for (int64_t p = 0; p < individuals; ++p) {
      for (int64_t c = 0; c < channels; ++c) {
        double merged_mean = 0, merged_square = 0;
        for (int64_t image = 0; image < images; ++image) {
          const double* entry = table + (((p * images + image) * outputs + j) * 2) * channels + c;
          const double difference = entry[0] - merged_mean;
          merged_mean += difference / double(image + 1);
          merged_square +=
              entry[channels] + difference * difference * double(pixels) * double(image) / double(image + 1);
        }
        const int64_t result = (j * individuals + p) * channels + c;
        const double count = double(images) * double(pixels);
        mean[result] = A(merged_mean);
        variance[result] = A(count > 0 ? (merged_square < 0 ? 0 : merged_square) / count : 0);  // keeps NaN
      }
    }
  }
}

}  // namespace fastnas
