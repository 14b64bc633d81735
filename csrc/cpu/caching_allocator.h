// The caching allocator behind large CPU tensors of the operators.
//
// A training step allocates the same large tensors again and again. Given back to the system, their pages would have to
// be faulted in and zeroed again at the next step, which is one more pass over the same memory. So
// freed memory is cached, as torch's allocator does on a GPU: free neighbours become one block, and a request
// is cut from the smallest free block that holds it. Blocks begin at a cache line, so that a tensor's first vector is
// aligned, and at varying lines, so that tensors of one size do not meet in the same sets of a cache. Scratch memory
// within a kernel is separate: cpu/scratch_arena.h.
#pragma once

#include <cstddef>
#include <stdexcept>

namespace fastnas::cpu {

constexpr std::size_t kCacheLine = 64;

/// Says how much was asked for. In Python a RuntimeError, as where torch's own memory does not suffice.
struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// AddressSanitizer knows where a block ends, and keeps what was freed out of use for a while: in such a build blocks
// have exactly the size that was asked for, and none is used again.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kReuseMemory = false;
#else
constexpr bool kReuseMemory = true;
#endif

/// At least `bytes`, aligned to a cache line, uninitialised, of huge pages where the system has them. Give it back with
/// `recycle`. Throws OutOfMemory.
void* allocate(std::size_t bytes);

/// Any thread may call it. The block is cached for further allocations, whole or in parts. Regions that are
/// free as a whole go back to the system before more is asked for, once used and cached memory together would exceed
/// the most that was ever in use.
void recycle(void* block) noexcept;

/// Bypasses the cache, for memory that is kept; with the same alignment. Give it back with std::free. Throws
/// OutOfMemory.
void* allocate_from_system(std::size_t bytes);

struct MemoryUse {
  std::size_t used;    // bytes handed out
  std::size_t cached;  // bytes that wait for their next use
  std::size_t peak;    // the most that was handed out at any time
};
MemoryUse memory_use();

}  // namespace fastnas::cpu
