// Memory that outlives a step: large blocks are kept instead of going back to the system, which would have to fault in
// and zero their pages again at the next step.
#pragma once

#include <cstddef>

namespace fastnas::cpu {

/// At least `bytes`, aligned to a cache line, uninitialised, of huge pages where the system has them. Give it back with
/// `recycle`. Throws std::bad_alloc.
void* allocate(std::size_t bytes);

/// Any thread may call it. The block is kept for further allocations, whole or in parts. Memory that is free as the
/// system gave it is returned before more is asked for, once used and kept memory together would pass the most that was
/// ever in use.
void recycle(void* block) noexcept;

/// Scratch of the calling thread, aligned to a cache line, valid until the thread's next call; grows, never shrinks.
/// Not null, even for 0 bytes.
void* scratch(std::size_t bytes);

struct MemoryUse {
  std::size_t used;  // bytes handed out
  std::size_t kept;  // bytes that wait for their next use
  std::size_t peak;  // the most that was handed out at any time
};
MemoryUse memory_use();

}  // namespace fastnas::cpu
