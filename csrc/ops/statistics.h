// Mean and variance of whole batches, from those that kernels leave for each image (cpu/statistics.h).
#pragma once

#include <cstdint>

namespace fastnas {

/// table [P · images, J, 2, C] of (mean, Σ(y - mean)²) over `pixels` pixels each → mean and (biased) variance [J, P,
/// C]. Pairs of images are merged as Chan, Golub and LeVeque (1983) do, in the order of the images.
template <typename A>
void merge_statistics(const double* table, int64_t individuals, int64_t images, int64_t outputs, int64_t channels,
                      int64_t pixels, A* mean, A* variance) {
  constexpr int64_t kTogether = 8;  // channels at a time, whose chains of operations overlap
  const double count = double(images) * double(pixels);
  for (int64_t j = 0; j < outputs; ++j) {
    for (int64_t p = 0; p < individuals; ++p) {
      for (int64_t first = 0; first < channels; first += kTogether) {
        const int64_t wide = channels - first < kTogether ? channels - first : kTogether;
        double merged_mean[kTogether] = {}, merged_square[kTogether] = {};
        for (int64_t image = 0; image < images; ++image) {
          const double* const entry = table + ((p * images + image) * outputs + j) * 2 * channels + first;
          const double share = 1.0 / double(image + 1), weight = double(pixels) * double(image) * share;
          for (int64_t c = 0; c < wide; ++c) {
            const double difference = entry[c] - merged_mean[c];
            merged_mean[c] += difference * share;
            merged_square[c] += entry[channels + c] + difference * difference * weight;
          }
        }
        const int64_t result = (j * individuals + p) * channels + first;
        for (int64_t c = 0; c < wide; ++c) {
          mean[result + c] = A(merged_mean[c]);
          const double square = merged_square[c] < 0 ? 0 : merged_square[c];  // keeps NaN
          variance[result + c] = A(count > 0 ? square / count : 0);
        }
      }
    }
  }
}

}  // namespace fastnas
