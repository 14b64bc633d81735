// Runs CUDA kernels on the CPU, one block after another, every thread of a block on a stack of its own (fiber.h).
//
// include/cuda_runtime.h, which the kernels see instead of CUDA's, is written in terms of this. What a GPU would leave
// undefined ends the launch with std::runtime_error: a barrier that not all threads reach, a shuffle with a lane that
// does not take part. Errors that only memory accesses show are left to the sanitizers, which follow the fibers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

namespace emulator {

using Site = std::source_location;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
/// Of a block, on every card: more must be asked for.
constexpr size_t kSharedBytes = 48 << 10;
/// Few, so that kernels that size their grid by it stride.
constexpr int kMultiprocessors = 3;

/// Runs `kernel(argument)` for each thread of the grid. Throws std::runtime_error where one of them fails.
void run(Dim3 grid, Dim3 block, size_t shared_bytes, void (*kernel)(const void*), const void* argument);

/// Stops the running kernel; run() throws `message` with the thread and the block.
[[noreturn]] void fail(const std::string& message);

/// The order in which threads and blocks run. Whatever depends on it is a race.
enum class Order { forward, reverse, shuffled };
void set_order(Order order, uint64_t seed);

/// The most shared memory that a block may ask for; a multiprocessor has 1 KiB more. 163 KiB, those of sm_80, where it
/// is not set.
void set_most_shared_bytes(size_t bytes);
size_t most_shared_bytes();

/// While set, kernels are launched (checked, counted) but not run.
void set_dry(bool dry);
bool dry();

// --- for kernels, that is within run() -------------------------------------------------------------------------------

/// Waits for all threads of the block.
void barrier(Site site);

/// The same, and the number of threads that came with `flag`.
unsigned barrier_count(bool flag, Site site);

/// Waits for the lanes of `mask`; what they wrote to memory is visible then.
void warp_barrier(unsigned mask, Site site);

/// Waits for the lanes of `mask`, each with a value of 8 bytes, and returns the one of lane `source`. Orders no memory.
uint64_t exchange(unsigned mask, uint64_t value, unsigned source, Site site);

/// Waits for the lanes of `mask` and returns the bits of those that came with `flag`. Orders no memory.
unsigned ballot(unsigned mask, bool flag, Site site);

/// The block's dynamic shared memory: a block of the heap that is exactly as large as the launch said, filled with NaN.
unsigned char* dynamic_shared();

unsigned lane();

}  // namespace emulator

// What kernels read. Set at every change of threads.
inline emulator::Dim3 threadIdx, blockIdx, blockDim, gridDim;
