// Scratch memory of kernels: tiles, rows and tables that live for one call.
//
// A kernel opens an arena and takes one part after the other from it, each at the beginning of a cache line and so
// aligned to any vector. When the arena goes out of scope, the thread keeps its memory for the next one: a training
// step makes the same calls again and again, and from the second on none of them allocates anything or touches a page
// for the first time. Parts follow each other in one block, so what a kernel works on lies close together.
//
// In a build with AddressSanitizer every part comes from the system, with a gap after it, and goes back there with the
// arena: an access outside of a part, or later than its arena, is reported.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastnas::cpu {

/// One at a time on each thread; parts are valid as long as the arena is.
class ScratchArena {
 public:
  ScratchArena();
  ~ScratchArena();
  ScratchArena(const ScratchArena&) = delete;
  ScratchArena& operator=(const ScratchArena&) = delete;

  /// `count` uninitialised values. Throws OutOfMemory. Always inlined: of a function that all instruction sets share
  /// the linker keeps one copy, perhaps with instructions that this processor lacks.
  template <typename A>
  [[gnu::always_inline]] A* take(int64_t count) {
    return static_cast<A*>(take_bytes(static_cast<std::size_t>(count) * sizeof(A)));
  }

 private:
  void* take_bytes(std::size_t bytes);
};

}  // namespace fastnas::cpu
