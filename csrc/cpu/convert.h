// Values as tensors store them, in vectors of the type of accumulation, and back.
//
// float and double are accumulated as they are; bfloat16 and float16 in float. Converted value by value, each would
// cost a comparison and a branch, for NaN, in every kernel that reads or writes them. Here a whole vector is converted
// at once. bfloat16 is the upper half of a float: reading is a shift, and rounding to nearest, ties to even, is an
// addition and a shift of integers, with a selection for NaN. float16 has instructions (F16C, AVX-512) wherever there
// is AVX2; elsewhere it goes value by value. Results equal those of torch's conversions, bit by bit except that the
// payload of a NaN may differ.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/vec.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastnas::FASTNAS_ISA {
namespace detail {

template <typename I, int W>
struct IntegersOf {
  typedef I type __attribute__((vector_size(W * sizeof(I))));
};
template <typename I, int W>
using Integers = typename IntegersOf<I, W>::type;

template <int W>
inline Run<float, W> widen(const c10::BFloat16* from) {
  Integers<uint16_t, W> upper;
  std::memcpy(&upper, from, sizeof upper);
  return reinterpret_cast<Run<float, W>>(__builtin_convertvector(upper, Integers<uint32_t, W>) << 16);
}

template <int W>
inline void narrow(const Run<float, W>& values, c10::BFloat16* to) {
  using Bits = Integers<uint32_t, W>;
  const Bits bits = reinterpret_cast<Bits>(values);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const auto number = reinterpret_cast<Bits>(values == values);
  const Bits result = (rounded & number) | (0x7fc0 & ~number);
  const auto upper = __builtin_convertvector(result, Integers<uint16_t, W>);
  std::memcpy(static_cast<void*>(to), &upper, sizeof upper);
}

template <int W>
inline Run<float, W> widen(const c10::Half* from) {
#if defined(__F16C__)
  if constexpr (W >= 4) {
    Integers < uint16_t, W<8 ? 8 : W> halves{};
    std::memcpy(&halves, from, W * sizeof(uint16_t));
#if defined(__AVX512F__)
    if constexpr (W == 16) {  // maskz: of the plain form GCC 12 warns that it reads what it does not use
      return reinterpret_cast<Run<float, W>>(_mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(halves)));
    }
#endif
    if constexpr (W == 8) return reinterpret_cast<Run<float, W>>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(halves)));
    if constexpr (W == 4) return reinterpret_cast<Run<float, W>>(_mm_cvtph_ps(reinterpret_cast<__m128i>(halves)));
  }
#endif
  Run<float, W> values;
  for (int i = 0; i < W; ++i) values[i] = float(from[i]);
  return values;
}

template <int W>
inline void narrow(const Run<float, W>& values, c10::Half* to) {
#if defined(__F16C__)
  constexpr int kNearestEven = _MM_FROUND_TO_NEAREST_INT;
  const auto write = [to](auto halves) { std::memcpy(static_cast<void*>(to), &halves, W * sizeof(uint16_t)); };
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    return write(_mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(values), kNearestEven));
  }
#endif
  if constexpr (W == 8) return write(_mm256_cvtps_ph(reinterpret_cast<__m256>(values), kNearestEven));
  if constexpr (W == 4) return write(_mm_cvtps_ph(reinterpret_cast<__m128>(values), kNearestEven));
#endif
  for (int i = 0; i < W; ++i) to[i] = c10::Half(values[i]);
}

}  // namespace detail

/// W values that are stored as T, from anywhere.
template <int W, typename A, typename T>
inline Run<A, W> load_run(const T* from) {
  if constexpr (std::is_same_v<T, A>) {
    Run<A, W> values;
    std::memcpy(&values, from, sizeof values);
    return values;
  } else {
    return detail::widen<W>(from);
  }
}

template <int W, typename A, typename T>
inline void store_run(T* to, const Run<A, W>& values) {
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(to, &values, sizeof values);
  } else {
    detail::narrow<W>(values, to);
  }
}

/// A flat row of n values, as tensors store them.
template <typename T, typename A>
inline void store_row(const A* __restrict__ from, int64_t n, T* __restrict__ to) {
  int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) store_run<kLanes<A>, A>(to + i, load_unaligned(from + i));
  for (; i < n; ++i) store_run<1, A>(to + i, Run<A, 1>{from[i]});
}

/// The same in the other direction; with kAdd, onto what is there.
template <bool kAdd = false, typename T, typename A>
inline void load_row(const T* __restrict__ from, int64_t n, A* __restrict__ to) {
  int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) {
    const Vec<A> values = load_run<kLanes<A>, A>(from + i);
    store_unaligned(to + i, kAdd ? load_unaligned(to + i) + values : values);
  }
  for (; i < n; ++i) to[i] = (kAdd ? to[i] : A(0)) + A(from[i]);
}

}  // namespace fastnas::FASTNAS_ISA
