// Mean and variance of channels, one image at a time.
//
// A kernel keeps a MomentSums for every image and output, and leaves (mean, Σ(y - mean)²) of each channel in a table of
// doubles [N, J, 2, C]; ops/statistics.h merges the images in their order, so results do not depend on threads. Sums
// are taken of deviations from the image's first pixel: plain sums of squares would cancel where the mean is large.
#pragma once

#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {

template <typename A>
class MomentSums {
 public:
  /// For `channels` channels, padded; its tables come from `layout`.
  MomentSums(Layout& layout, int64_t channels)
      : channels_(channels),
        shift_(layout.take<A>(channels)),
        sum_(layout.take<double>(channels)),
        square_(layout.take<double>(channels)) {}

  void begin() { pixels_ = 0; }

  /// y [pixels, channels], padded.
  void add(const A* y, int64_t pixels) {
    if (pixels == 0) return;
    if (pixels_ == 0) {
      std::memcpy(shift_, y, channels_ * sizeof(A));
      std::memset(sum_, 0, channels_ * sizeof(double));
      std::memset(square_, 0, channels_ * sizeof(double));
    }
    for (int64_t c = 0; c < channels_; c += kLanes<A>) {
      const Vec<A> shift = load(shift_ + c);
      Vec<A> sum[4] = {}, square[4] = {};  // hide the latency of an addition
      int64_t p = 0;
      for (; p + 4 <= pixels; p += 4) {
        for (int i = 0; i < 4; ++i) {
          const Vec<A> d = load(y + (p + i) * channels_ + c) - shift;
          sum[i] += d;
          square[i] += d * d;
        }
      }
      for (; p < pixels; ++p) {
        const Vec<A> d = load(y + p * channels_ + c) - shift;
        sum[0] += d;
        square[0] += d * d;
      }
      add_lanes<A>((sum[0] + sum[1]) + (sum[2] + sum[3]), sum_ + c);
      add_lanes<A>((square[0] + square[1]) + (square[2] + square[3]), square_ + c);
    }
    pixels_ += pixels;
  }

  /// Writes `count` channels from `first` on: table [2, count].
  void finish(int64_t first, int64_t count, double* table) const {
    for (int64_t c = 0; c < count; ++c) {
      const double mean = pixels_ ? sum_[first + c] / pixels_ : 0;
      table[c] = pixels_ ? shift_[first + c] + mean : 0;
      table[count + c] = pixels_ ? square_[first + c] - mean * sum_[first + c] : 0;
    }
  }

 private:
  int64_t channels_;
  int64_t pixels_ = 0;
  A* shift_;
  double* sum_;
  double* square_;
};

}  // namespace fastnas::FASTNAS_ISA
