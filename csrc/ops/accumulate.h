// The type in which a kernel accumulates values that are stored as T.
#pragma once

namespace fastnas {

template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using accumulate_t = typename Accumulate<T>::type;

}  // namespace fastnas
