// The functions of the library that emulation.py calls besides the operators.
#include <map>
#include <string>

#include "cuda/device.h"
#include "ops/cuda_stream.h"

namespace {

std::map<std::string, int64_t>& launches() {
  static std::map<std::string, int64_t> counts;
  return counts;
}

void count(const char* name) { ++launches()[name]; }

const bool observed = (fastnas::cuda::launch_observer = count, true);

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

/// Threads and blocks run forward (0), backward (1) or in an order drawn from `seed` (2).
EXPORT void emulated_set_order(int order, uint64_t seed) {
  emulator::set_order(static_cast<emulator::Order>(order), seed);
}

/// KiB of shared memory that a block may ask for.
EXPORT void emulated_set_shared_kib(uint64_t kib) { emulator::set_most_shared_bytes(kib << 10); }

/// Whether kernels are only counted, not run.
EXPORT void emulated_set_dry(bool dry) { emulator::set_dry(dry); }

/// "name count\n" for every kernel that has been launched; valid until the next call. Counts from zero again.
EXPORT const char* emulated_take_launches() {
  static std::string text;
  text.clear();
  for (const auto& [name, count] : launches()) text += name + " " + std::to_string(count) + "\n";
  launches().clear();
  return text.c_str();
}

/// Whether torch's current stream would be found, which no emulated call asks for.
EXPORT bool emulated_finds_the_stream() { return fastnas::has_current_cuda_stream(); }
