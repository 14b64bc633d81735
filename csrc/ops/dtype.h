// The types that operators take, for the torch side.
#pragma once

#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

// For THO_DISPATCH_V2.
#define FASTNAS_FLOATING_TYPES \
  AT_EXPAND(AT_FLOATING_TYPES), torch::headeronly::ScalarType::BFloat16, torch::headeronly::ScalarType::Half

namespace fastnas {

using torch::headeronly::ScalarType;

/// The dtype of weights, statistics and their gradients for images of this dtype; see accumulate_t.
inline ScalarType acc_dtype(ScalarType images) {
  return images == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

/// The same, for messages.
inline const char* acc_dtype_name(ScalarType images) { return images == ScalarType::Double ? "float64" : "float32"; }

/// Bytes of an element of a type that operators sum; 0 for any other.
inline int64_t element_size(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return 8;
    case ScalarType::Float:
      return 4;
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return 2;
    default:
      return 0;
  }
}

/// Bytes of an element of a type that operators return: those that they sum, bytes of images, words of `philox`.
inline int64_t storage_size(ScalarType dtype) {
  return dtype == ScalarType::Byte ? 1 : dtype == ScalarType::Long ? 8 : element_size(dtype);
}

}  // namespace fastnas
