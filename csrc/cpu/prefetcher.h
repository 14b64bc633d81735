// Prefetching: what the next block of pixels needs comes into the second-level cache while this one is computed.
//
// The hardware prefetches a sequence of lines only while it is being read, but kernels read a block at once and then
// compute for thousands of cycles. So a kernel tells a Prefetcher which ranges of memory come next, and the matrix
// products, which take most of the time and touch little memory, ask for one cache line of them at each of their steps:
// a core has few requests in flight at a time, and this spreads them evenly. A product takes the lines of one inner
// loop beforehand (`take`), so that each step costs two instructions and no branch; where nothing is left, they all
// name one line that is in a cache already.
#pragma once

#include <cstdint>

namespace fastnas::FASTNAS_ISA {

/// Cache lines, `step` bytes apart; 0 where there is nothing to read.
struct PrefetchLines {
  const char* at;
  int64_t step;

  void fetch_next() {
    __builtin_prefetch(at, 0, 2);
    at += step;
  }
};

class Prefetcher {
 public:
  /// `values` values from `from` on. They need not exist: a prefetch of any address is harmless.
  template <typename T>
  void add(const T* from, int64_t values) {
    if (last_ == kRanges || values <= 0) return;
    const char* const first = reinterpret_cast<const char*>(from);
    range_[last_++] = {first, (values * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine, kLine};
  }

  /// `width` values of each of `pixels` pixels, `stride` values apart.
  template <typename T>
  void add_pixels(const T* from, int64_t width, int64_t stride, int64_t pixels) {
    const int64_t size = static_cast<int64_t>(sizeof(T));
    if (stride * size <= kLine || width * size > kLine) return add(from, pixels * stride);
    if (last_ == kRanges || pixels <= 0) return;
    range_[last_++] = {reinterpret_cast<const char*>(from), pixels, stride * size};
  }

  /// The next `count` lines; `near` is any address in a cache.
  PrefetchLines take(int64_t count, const void* near) {
    if (first_ == last_) return {static_cast<const char*>(near), 0};
    Range& range = range_[first_];
    const PrefetchLines lines{range.at, range.step};  // perhaps some more than the range has
    range.at += count * range.step;
    range.left -= count;
    if (range.left <= 0) ++first_;
    return lines;
  }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int kRanges = 16;
  struct Range {
    const char* at;
    int64_t left;  // lines
    int64_t step;  // bytes from one to the next
  };

  int first_ = 0, last_ = 0;
  Range range_[kRanges];
};

}  // namespace fastnas::FASTNAS_ISA
