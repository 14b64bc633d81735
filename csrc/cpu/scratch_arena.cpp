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
#include <utility>
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
  // Whoever asks for more than there is fails alone: the next arena begins anew.
  const std::size_t wanted = std::exchange(scratch.taken, 0);
  if (kReuseMemory && wanted > scratch.size) {
    scratch.block.reset();
    scratch.size = 0;
    scratch.block = from_system(wanted);
    scratch.size = wanted;
  }
  scratch.open = true;
}

ScratchArena::~ScratchArena() {
  thread_scratch().parts.clear();
  thread_scratch().open = false;
}

void* ScratchArena::take_bytes(std::size_t bytes) {
  ThreadScratch& scratch = thread_scratch();
  const std::size_t begin = scratch.taken, end = begin + (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
  char* const part = kReuseMemory && end <= scratch.size ? scratch.block.get() + begin
                                                         : scratch.parts.emplace_back(from_system(bytes)).get();
  scratch.taken = end;
  return part;
}

}  // namespace fastnas::cpu
