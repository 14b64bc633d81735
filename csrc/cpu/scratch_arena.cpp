// The memory behind ScratchArena: one block a thread, which grows and never shrinks.
//
// How much a kernel needs is not known in advance. As long as its parts fit the thread's block they are cut from it,
// one after the other. A part that does not fit comes from the system and goes back there with the arena; the next
// arena then begins with a block that would have held them all. So the first call of a kernel allocates, and a call
// that needs no more than the ones before does not. Compiled once, for any processor.
#include "cpu/scratch_arena.h"

#include <cassert>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cpu/caching_allocator.h"

namespace fastnas::cpu {
namespace {

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char, Free>;

Memory from_system(std::size_t bytes) { return Memory(static_cast<char*>(allocate_from_system(bytes))); }

struct ThreadScratch {
  Memory block;
  std::size_t size = 0;       // of the block
  std::size_t taken = 0;      // by the newest arena, whether it fitted the block or not
  std::vector<Memory> parts;  // that did not fit
  bool open = false;
};

ThreadScratch& thread_scratch() {
  thread_local ThreadScratch scratch;
  return scratch;
}

}  // namespace

ScratchArena::ScratchArena() {
  ThreadScratch& scratch = thread_scratch();
  assert(!scratch.open && "a thread has one ScratchArena at a time");
  if (kReuseMemory && scratch.taken > scratch.size) {
    scratch.block.reset();
    scratch.size = 0;
    scratch.block = from_system(scratch.taken);
    scratch.size = scratch.taken;
  }
  scratch.taken = 0;
  scratch.open = true;
}

ScratchArena::~ScratchArena() {
  thread_scratch().parts.clear();
  thread_scratch().open = false;
}

void* ScratchArena::take_bytes(std::size_t bytes) {
  ThreadScratch& scratch = thread_scratch();
  const std::size_t begin = scratch.taken;
  scratch.taken += (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
  if (kReuseMemory && scratch.taken <= scratch.size) return scratch.block.get() + begin;
  return scratch.parts.emplace_back(from_system(bytes)).get();
}

}  // namespace fastnas::cpu
