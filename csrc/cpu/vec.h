// The vector of an instruction set, and the padding that lets every loop run over whole vectors.
//
// Kernels compute on images in scratch memory, pixel after pixel, whose channels are padded with zeros to a multiple of
// the vector: then all loads are aligned and no loop has a remainder, whatever the number of channels. Storage types
// (bfloat16, float16) are converted on the way in and out, so vectors hold float or double only. Vec<A> is GCC's vector
// extension and not intrinsics: one source serves SSE, AVX2, AVX-512 and other processors, and the compiler fuses
// products and sums.
//
// `load` and `store` mean aligned vectors. Everything else says so in its name: load_unaligned here, load_run in
// convert.h (of any storage type), load_into in shuffle.h, store_row in node_tile.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

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

/// W values, at most a vector: GCC takes what is wider apart, and comparisons of it value by value.
template <typename A, int W>
struct RunOf {
  static_assert(W <= kLanes<A>);
  typedef A type __attribute__((vector_size(W * sizeof(A))));
};
template <typename A, int W>
using Run = typename RunOf<A, W>::type;

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

/// Integers as wide as the lanes: what comparisons give, and which lane a shuffle takes each lane from.
template <typename A>
using LaneIndex = decltype(Vec<A>{} < Vec<A>{});

/// The number of values that `n` take in scratch memory: a multiple of the vector.
template <typename A>
constexpr int64_t padded(int64_t n) {
  return (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

}  // namespace fastnas::FASTNAS_ISA
