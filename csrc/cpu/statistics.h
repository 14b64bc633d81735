// Mean and variance of channels, one image at a time: what a kernel leaves for BatchNorm.
//
// A kernel sums the deviations of an image's pixels, and their squares, while the output is in registers or in the
// nearest cache, and leaves (mean, Σ(y - mean)²) of each channel in a table of doubles [N, J, 2, C]; ops/statistics.h
// merges the images in their order, so results do not depend on threads. Deviations are from the image's first pixel:
// plain sums of squares would cancel where the mean is large. Within a block of pixels the sums are vectors in the type
// of accumulation, four at a time to hide the latency of an addition; from block to block they are doubles, so that
// rounding does not grow with the size of the image. Pixels may be padded (BatchStats) or dense (RunBatchStats).
#pragma once

#include "cpu/periodic.h"
#include "cpu/scratch_arena.h"
#include "cpu/vec.h"

namespace fastnas::FASTNAS_ISA {

/// Of pixels whose channels are padded.
template <typename A>
class BatchStats {
 public:
  /// For `channels` channels, padding included.
  BatchStats(cpu::ScratchArena& scratch, int64_t channels)
      : channels_(channels),
        shift_(scratch.take<A>(channels)),
        sum_(scratch.take<double>(channels)),
        square_(scratch.take<double>(channels)) {}

  /// An image begins.
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

/// Of dense pixels, a flat run of values (periodic.h).
template <typename A>
class RunBatchStats {
 public:
  RunBatchStats(cpu::ScratchArena& scratch, int64_t channels)
      : channels_(channels),
        period_(period_of<A>(channels)),
        shift_(scratch.take<A>(period_)),
        sum_(scratch.take<double>(period_)),
        square_(scratch.take<double>(period_)) {}

  /// An image begins.
  void begin() { values_ = 0; }

  /// y [pixels, C]: `values` in all, of which the last period is completed here, without effect on the result.
  void add(A* y, int64_t values) {
    if (values_ == 0) {
      repeat_rows(y, 1, channels_, period_, shift_);
      fill(sum_, 0.0, period_);
      fill(square_, 0.0, period_);
    }
    values_ += values;
    for (int64_t i = values; i % period_ != 0; ++i) y[i] = shift_[i % period_];
    for (int64_t k = 0; k < period_; k += kLanes<A>) {
      const Vec<A> shift = load(shift_ + k);
      Vec<A> sum[4] = {}, square[4] = {};  // hide the latency of an addition
      const auto value = [&](int64_t i, int u) {
        const Vec<A> d = load(y + i) - shift;
        sum[u] += d;
        square[u] += d * d;
      };
      int64_t i = k;
      for (; i + 3 * period_ < values; i += 4 * period_) {
        for (int u = 0; u < 4; ++u) value(i + u * period_, u);
      }
      for (; i < values; i += period_) value(i, 0);
      add_lanes<A>((sum[0] + sum[1]) + (sum[2] + sum[3]), sum_ + k);
      add_lanes<A>((square[0] + square[1]) + (square[2] + square[3]), square_ + k);
    }
  }

  /// table [2, C]
  void finish(double* table) const {
    const double pixels = values_ / channels_;
    for (int64_t c = 0; c < channels_; ++c) {
      double sum = 0, square = 0;
      for (int64_t k = c; k < period_; k += channels_) {
        sum += sum_[k];
        square += square_[k];
      }
      table[c] = shift_[c] + sum / pixels;
      table[channels_ + c] = square - sum * sum / pixels;
    }
  }

 private:
  int64_t channels_;
  int64_t period_;
  int64_t values_ = 0;
  A* shift_;
  double* sum_;
  double* square_;
};

}  // namespace fastnas::FASTNAS_ISA
