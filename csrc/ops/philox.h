// philox: four random 32-bit words for each position of a stream, whatever was drawn before and by whichever thread.
//
// Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011): ten rounds of
// multiplications turn a 128-bit counter (the position and the stream, 64 bits each) under a 64-bit key into 128 bits.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "ops/host_device.h"

struct CUstream_st;

namespace fastnas {

struct PhiloxWords {
  uint32_t values[4];
};

// Static: each instruction set gets a copy of its own.
static FASTNAS_HOST_DEVICE PhiloxWords philox_words(uint64_t key, uint64_t stream, uint64_t position) {
  constexpr uint32_t kMultipliers[] = {0xD2511F53u, 0xCD9E8D57u};
  constexpr uint32_t kWeyl[] = {0x9E3779B9u, 0xBB67AE85u};  // golden ratio and √3 - 1, which move the key on
  uint32_t a = uint32_t(position), b = uint32_t(position >> 32), c = uint32_t(stream), d = uint32_t(stream >> 32);
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t x = uint64_t(kMultipliers[0]) * a, y = uint64_t(kMultipliers[1]) * c;
    a = uint32_t(y >> 32) ^ b ^ k0;
    b = uint32_t(y);
    c = uint32_t(x >> 32) ^ d ^ k1;
    d = uint32_t(x);
    k0 += kWeyl[0];
    k1 += kWeyl[1];
  }
  return {{a, b, c, d}};
}

struct Philox {
  const int64_t* positions;  // [n]
  int64_t count;             // n
  int64_t key;
  int64_t stream;
};

}  // namespace fastnas

FASTNAS_CPU_VARIANTS(
    // Positions first..last; words [n, 4], each 0..2³²-1.
    void philox(const Philox& args, int64_t* words, int64_t first, int64_t last);)

namespace fastnas::cuda {

// All pointers are device memory. Asynchronous on `stream`; errors of the launch throw std::runtime_error.
void philox(const Philox& args, int64_t* words, CUstream_st* stream);

}  // namespace fastnas::cuda
