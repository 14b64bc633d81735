// The vector of an instruction set, and the padding that lets every loop run over whole vectors.
//
// Kernels compute on images in scratch memory, pixel after pixel, whose channels are padded with zeros to a multiple of
// the vector: then all loads are aligned and no loop has a remainder, whatever the number of channels. Storage types
// (bfloat16, float16) are converted on the way in and out.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace fastnas::FASTNAS_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

/// Values of type A (float or double) in one vector.
template <typename A>
constexpr int kLanes = kVectorBytes / sizeof(A);

// GCC's vector extension: +, -, *, comparison and [] work lane by lane, on every processor.
template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vec = typename VectorOf<A>::type;

/// `p` is aligned to the vector.
template <typename A>
inline Vec<A> load(const A* p) {
  return *reinterpret_cast<const Vec<A>*>(p);
}
template <typename A>
inline void store(A* p, Vec<A> v) {
  *reinterpret_cast<Vec<A>*>(p) = v;
}
template <typename A>
inline Vec<A> load_unaligned(const A* p) {
  Vec<A> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename A>
inline void store_unaligned(A* p, Vec<A> v) {
  std::memcpy(p, &v, sizeof v);
}
template <typename A>
inline Vec<A> broadcast(A value) {
  return value - Vec<A>{};  // 0 + value would cost an addition: it turns -0 into 0
}

/// to[lane] += v[lane]; `to` need not be aligned.
template <typename A>
inline void add_lanes(const Vec<A>& v, double* to) {
  constexpr int kParts = sizeof(double) / sizeof(A), kEach = kLanes<double>;
  for (int part = 0; part < kParts; ++part) {
    typedef A Part __attribute__((vector_size(kVectorBytes / kParts)));
    Part values;
    std::memcpy(&values, reinterpret_cast<const char*>(&v) + part * sizeof values, sizeof values);
    const Vec<double> wide = __builtin_convertvector(values, Vec<double>);
    store_unaligned(to + part * kEach, load_unaligned(to + part * kEach) + wide);
  }
}

/// The number of values that `n` take in scratch memory: a multiple of the vector.
template <typename A>
constexpr int64_t padded(int64_t n) {
  return (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

/// Hands out parts of one block of scratch memory, each aligned to a cache line. With a null block it only counts, so
/// the same code that lays a kernel's buffers out tells how many bytes they take.
class Layout {
 public:
  explicit Layout(void* block) : base_(static_cast<char*>(block)) {}

  template <typename A>
  A* take(int64_t count) {
    A* part = base_ ? reinterpret_cast<A*>(base_ + bytes_) : nullptr;
    const int64_t end = bytes_ + count * static_cast<int64_t>(sizeof(A));
    bytes_ = (end + 63) / 64 * 64;
#ifdef __SANITIZE_ADDRESS__
    bytes_ += 64;  // a gap after each part, so that whoever leaves one does not reach the next unseen
    if (base_) ASAN_POISON_MEMORY_REGION(base_ + end, bytes_ - end);
#endif
    return part;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace fastnas::FASTNAS_ISA
