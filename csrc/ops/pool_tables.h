// pool_tables: what pool_grad needs to know of the candidates that leave a state, by node and by kind of pool, from the
// rows of coefficients of a cell (bn_backward.h). The contract of its kernels.
#pragma once

#include <cstdint>

#include "ops/host_device.h"

struct CUstream_st;

namespace fastnas {

/// Entries of one launch on a GPU, whose list is an argument of the kernel.
constexpr int kPoolEntries = 128;

/// A row that counts towards a place: 0 to 2G - 1 of the scales [2, G], then 2 of the normalised pools, then G of the
/// identities.
struct PoolEntry {
  int32_t row;
  int32_t place;
};

template <typename A>
struct PoolTables {
  const A* coeffs;   // [K, 4, C]: scale, slope, mean, offset
  int64_t channels;  // C
  int64_t nodes;     // G
  PoolEntry entries[kPoolEntries];
  int64_t count;
  bool adds;     // to what earlier entries left, which is written otherwise
  A* scales;     // [2, G, C]
  A* bn_coeffs;  // [2, 3, C]: slope, mean, offset
  A* skip;       // [G, C]

  FASTNAS_HOST_DEVICE int64_t places() const { return 3 * nodes + 2; }
};

/// Channel c of a place. Slopes and offsets of the edges add up; the mean is the same for all.
template <typename A>
static FASTNAS_HOST_DEVICE void pool_table(const PoolTables<A>& args, int64_t place, int64_t c) {
  const int64_t C = args.channels, normalised = place - 2 * args.nodes;
  if (normalised == 0 || normalised == 1) {
    A* const to = args.bn_coeffs + normalised * 3 * C + c;
    A slope = args.adds ? to[0] : A(0), mean = args.adds ? to[C] : A(0), offset = args.adds ? to[2 * C] : A(0);
    for (int64_t i = 0; i < args.count; ++i) {
      if (args.entries[i].place != place) continue;
      const A* const from = args.coeffs + args.entries[i].row * 4 * C + c;
      slope += from[C];
      mean = from[2 * C];
      offset += from[3 * C];
    }
    to[0] = slope;
    to[C] = mean;
    to[2 * C] = offset;
    return;
  }
  A* const to = (normalised < 0 ? args.scales + place * C : args.skip + (normalised - 2) * C) + c;
  A scale = args.adds ? to[0] : A(0);
  for (int64_t i = 0; i < args.count; ++i) {
    if (args.entries[i].place == place) scale += args.coeffs[args.entries[i].row * 4 * C + c];
  }
  to[0] = scale;
}

}  // namespace fastnas

namespace fastnas::cuda {

/// All pointers are device memory. Asynchronous on `stream`; errors of a launch throw std::runtime_error.
template <typename A>
void pool_tables(const PoolTables<A>& args, CUstream_st* stream);

}  // namespace fastnas::cuda
