#include "emulator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <vector>

#include "fiber.h"

#ifdef EMULATOR_THREAD
#include <sanitizer/tsan_interface.h>
#endif

namespace emulator {
namespace {

// Under ThreadSanitizer a CUDA thread keeps its fiber: what it leaves on its stack is nobody else's.
#ifdef EMULATOR_THREAD
constexpr bool kShareStacks = false;
void publish(void* clock) { __tsan_release(clock); }
void observe(void* clock) { __tsan_acquire(clock); }
#else
constexpr bool kShareStacks = true;
void publish(void*) {}
void observe(void*) {}
#endif

struct Thread {
  Dim3 index;
  unsigned linear = 0;
  Fiber* fiber = nullptr;  // null until it starts
  Thread* next = nullptr;  // in the queue that it waits in
  bool done = false;
  const char* waits_at = nullptr;  // the function of CUDA, where it waits
  Site site;
  // of a lane that waits for others:
  uint64_t value = 0, received = 0;
  unsigned source = 0;
  bool flag = false;
};

// First in, first out. Without memory of its own: what fibers allocate looks like a race to ThreadSanitizer.
struct Queue {
  Thread* first = nullptr;
  Thread* last = nullptr;
  unsigned count = 0;

  void push(Thread* thread) {
    thread->next = nullptr;
    (first ? last->next : first) = thread;
    last = thread;
    ++count;
  }
  Thread* pop() {
    Thread* thread = first;
    first = thread->next;
    --count;
    return thread;
  }
  void append(Queue& other) {
    if (other.first) {
      (first ? last->next : first) = other.first;
      last = other.last;
      count += other.count;
    }
    other = Queue{};
  }
};

// Threads that have come to one point, and the two clocks that order what they wrote: a thread that leaves late must
// not see what others wrote on their way to the next meeting.
struct Meeting {
  Queue here;
  unsigned phase = 0;
  char clocks[2] = {};
};

struct Group : Meeting {
  unsigned mask = 0;  // lanes that meet
};

struct Warp {
  Group groups[kWarp];  // masks of waiting lanes do not overlap, so there are never more
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Meeting barrier;
  unsigned flags = 0, last_flags = 0;
  std::unique_ptr<unsigned char, void (*)(void*)> shared{nullptr, std::free};
};

// One launch at a time; all of this belongs to it.
std::mutex launching;
Fiber* host = nullptr;
Block block;
Thread* current = nullptr;
Queue ready;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;
void (*body)(const void*) = nullptr;
const void* body_argument = nullptr;
std::string failure;
char begin_clock, end_clock;

Order order = Order::forward;
std::mt19937_64 random_order;
bool is_dry = false;
size_t most_shared = 163 << 10;

template <typename... Values>
std::string format(const char* pattern, Values... values) {
  char buffer[64];
  std::snprintf(buffer, sizeof(buffer), pattern, values...);
  return buffer;
}

std::string text(Dim3 v) { return format("(%u, %u, %u)", v.x, v.y, v.z); }

std::string text(const Site& site) {
  const char* slash = std::strrchr(site.file_name(), '/');
  return std::string(slash ? slash + 1 : site.file_name()) + ":" + std::to_string(site.line());
}

std::string place(const Thread& thread) { return std::string(thread.waits_at) + " in " + text(thread.site); }

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

void thread_loop();

void become(Thread* next) {
  current = next;
  threadIdx = next->index;
}

Fiber* fiber_for(const Thread& thread) {
  if (!kShareStacks) return fibers[thread.linear].get();
  if (idle.empty()) {
    fibers.push_back(std::make_unique<Fiber>(&thread_loop));
    return fibers.back().get();
  }
  Fiber* fiber = idle.back();
  idle.pop_back();
  return fiber;
}

// Leaves `self` for the next thread that can run, or for the host where there is none.
void leave(Fiber& self) {
  if (!ready.first) {
    self.switch_to(*host);
    return;
  }
  Thread* next = ready.pop();
  if (!next->fiber) next->fiber = fiber_for(*next);
  become(next);
  if (next->fiber != &self) self.switch_to(*next->fiber);
}

// What a fiber does for ever: run a thread to its end, then whichever has been put on this fiber.
void thread_loop() {
  for (;;) {
    Thread* self = current;
    Fiber* fiber = self->fiber;
    observe(&begin_clock);
    body(body_argument);
    publish(&end_clock);
    self->done = true;
    if (kShareStacks) idle.push_back(fiber);
    leave(*fiber);
  }
}

void wait(Meeting& meeting, const char* what, Site site) {
  Thread* self = current;
  self->waits_at = what;
  self->site = site;
  meeting.here.push(self);
  leave(*self->fiber);
}

// Lets all that wait go on.
void open(Meeting& meeting) {
  ready.append(meeting.here);
  ++meeting.phase;
}

std::string mask_text(unsigned mask) { return format("0x%08x", mask); }

// The group of lanes `mask` that the current thread belongs to.
Group& group_of(unsigned mask, const char* what) {
  const unsigned warp = current->linear / kWarp, first = warp * kWarp;
  if (!(mask >> lane() & 1)) fail(std::string(what) + " by a lane that is not in its mask " + mask_text(mask));
  Group* result = nullptr;
  for (Group& group : block.warps[warp].groups) {
    if (group.here.first && group.mask != mask && (group.mask & mask)) {
      fail(std::string(what) + " with mask " + mask_text(mask) + ", while thread " + text(group.here.first->index) +
           " waits with mask " + mask_text(group.mask) + " at " + place(*group.here.first));
    }
    if (group.mask == mask) result = &group;
    if (!result && !group.here.first) result = &group;
    if (!group.mask) break;  // the rest was never used
  }
  result->mask = mask;
  if (!result->here.first) {
    for (unsigned l = 0; l < kWarp; ++l) {
      if (!(mask >> l & 1)) continue;
      if (first + l >= block.threads.size() || block.threads[first + l].done) {
        fail(std::string(what) + " with mask " + mask_text(mask) + ", but lane " + std::to_string(l) +
             (first + l >= block.threads.size() ? " does not exist: the last warp of the block is not full"
                                                : " has left the kernel"));
      }
    }
  }
  return *result;
}

// Waits for the lanes of the group; the last one runs `combine`.
template <typename Combine>
void meet(Group& group, const char* what, Site site, const Combine& combine) {
  if (group.here.first && (group.here.first->waits_at != what || !same(group.here.first->site, site))) {
    fail(std::string(what) + " in " + text(site) + ", while thread " + text(group.here.first->index) +
         " of the same warp waits at " + place(*group.here.first));
  }
  if (group.here.count + 1 < unsigned(__builtin_popcount(group.mask))) {
    wait(group, what, site);
  } else {
    combine();
    open(group);
  }
}

Thread& lane_thread(unsigned l) { return block.threads[current->linear / kWarp * kWarp + l]; }

template <typename T>
void arrange(std::vector<T>& items) {
  if (order == Order::reverse) std::reverse(items.begin(), items.end());
  if (order == Order::shuffled) std::shuffle(items.begin(), items.end(), random_order);
}

// A block whose threads will not go on: their stacks cannot be used again.
void abandon() {
  ready = Queue{};
  idle.clear();
  fibers.clear();
  block = Block{};
}

void run_block(Dim3 index, Dim3 size, size_t shared_bytes) {
  const unsigned count = size.x * size.y * size.z;
  blockIdx = index;
  if (block.threads.size() != count) {
    block = Block{};
    block.threads.resize(count);
    block.warps.resize((count + kWarp - 1) / kWarp);
  }
  void* shared = nullptr;
  if (posix_memalign(&shared, 128, shared_bytes ? shared_bytes : 1) != 0) throw std::bad_alloc();
  std::memset(shared, 0xff, shared_bytes);
  block.shared.reset(static_cast<unsigned char*>(shared));
  std::vector<Thread*> threads(count);
  for (unsigned t = 0; t < count; ++t) {
    Thread& thread = block.threads[t];
    thread = Thread{};
    thread.index = {t % size.x, t / size.x % size.y, t / (size.x * size.y)};
    thread.linear = t;
    threads[t] = &thread;
  }
  arrange(threads);
  for (Thread* thread : threads) ready.push(thread);
  while (!kShareStacks && fibers.size() < count) fibers.push_back(std::make_unique<Fiber>(&thread_loop));
  publish(&begin_clock);
  leave(*host);
  observe(&end_clock);
  const auto left = std::find_if(threads.begin(), threads.end(), [](const Thread* t) { return !t->done; });
  if (failure.empty() && left != threads.end()) {
    const auto gone = std::find_if(threads.begin(), threads.end(), [&](const Thread* t) {
      return t->done || t->waits_at != (*left)->waits_at || !same(t->site, (*left)->site);
    });
    current = *left;
    failure = "waits at " + place(**left) + " for threads that never come";
    if (gone != threads.end()) {
      failure +=
          ": thread " + text((*gone)->index) + ((*gone)->done ? " has left the kernel" : " waits at " + place(**gone));
    }
  }
  if (failure.empty()) return;
  const std::string message =
      "emulated kernel: thread " + text(current->index) + " of block " + text(blockIdx) + ": " + failure;
  abandon();
  throw std::runtime_error(message);
}

}  // namespace

void run(Dim3 grid, Dim3 size, size_t shared_bytes, void (*kernel)(const void*), const void* argument) {
  const std::lock_guard lock(launching);
  Fiber here;
  host = &here;
  body = kernel;
  body_argument = argument;
  failure.clear();
  blockDim = size;
  gridDim = grid;
  const uint64_t count = uint64_t(grid.x) * grid.y * grid.z;
  std::vector<uint64_t> blocks(order == Order::forward ? 0 : count);
  for (uint64_t b = 0; b < blocks.size(); ++b) blocks[b] = b;
  arrange(blocks);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t b = blocks.empty() ? i : blocks[i];
    const unsigned x = unsigned(b % grid.x), y = unsigned(b / grid.x % grid.y), z = unsigned(b / grid.x / grid.y);
    run_block({x, y, z}, size, shared_bytes);
  }
}

void fail(const std::string& message) {
  failure = message;
  ready = Queue{};
  current->fiber->switch_to(*host);
  std::terminate();  // nobody enters a fiber that failed
}

void set_order(Order wanted, uint64_t seed) {
  const std::lock_guard lock(launching);
  order = wanted;
  random_order.seed(seed);
}

void set_dry(bool dry) { is_dry = dry; }

bool dry() { return is_dry; }

void set_most_shared_bytes(size_t bytes) { most_shared = bytes; }

size_t most_shared_bytes() { return most_shared; }

unsigned lane() { return current->linear % kWarp; }

unsigned char* dynamic_shared() { return block.shared.get(); }

unsigned barrier_count(bool flag, Site site) {
  Meeting& meeting = block.barrier;
  if (meeting.here.first && !same(meeting.here.first->site, site)) {
    fail("__syncthreads in " + text(site) + ", while thread " + text(meeting.here.first->index) + " waits at " +
         place(*meeting.here.first) + ": all threads of a block must come to the same one");
  }
  void* clock = &meeting.clocks[meeting.phase % 2];
  publish(clock);
  block.flags += flag;
  if (meeting.here.count + 1 < block.threads.size()) {
    wait(meeting, "__syncthreads", site);
  } else {
    block.last_flags = block.flags;
    block.flags = 0;
    open(meeting);
  }
  observe(clock);
  return block.last_flags;
}

void barrier(Site site) { barrier_count(false, site); }

void warp_barrier(unsigned mask, Site site) {
  Group& group = group_of(mask, "__syncwarp");
  void* clock = &group.clocks[group.phase % 2];
  publish(clock);
  meet(group, "__syncwarp", site, [] {});
  observe(clock);
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned source, Site site) {
  Thread* self = current;
  Group& group = group_of(mask, "a shuffle");
  if (!(mask >> source & 1)) {
    fail("a shuffle in " + text(site) + " reads lane " + std::to_string(source) + ", which is not in its mask " +
         mask_text(mask));
  }
  self->value = value;
  self->source = source;
  meet(group, "a shuffle", site, [&] {
    for (unsigned l = 0; l < kWarp; ++l) {
      if (mask >> l & 1) lane_thread(l).received = lane_thread(lane_thread(l).source).value;
    }
  });
  return self->received;
}

unsigned ballot(unsigned mask, bool flag, Site site) {
  Thread* self = current;
  self->flag = flag;
  meet(group_of(mask, "a vote"), "a vote", site, [&] {
    uint64_t bits = 0;
    for (unsigned l = 0; l < kWarp; ++l) {
      if ((mask >> l & 1) && lane_thread(l).flag) bits |= uint64_t(1) << l;
    }
    for (unsigned l = 0; l < kWarp; ++l) {
      if (mask >> l & 1) lane_thread(l).received = bits;
    }
  });
  return unsigned(self->received);
}

}  // namespace emulator

// --- what the compiler asks of a pointer or an index (-fsanitize=alignment,bounds) -----------------------------------
//
// Without UndefinedBehaviorSanitizer's own library these two end the launch like any other failure. Both get the place
// in the source first; what else they are told is not needed.

#ifndef EMULATOR_ADDRESS
extern "C" {

struct SanitizerPlace {
  const char* file;
  uint32_t line;
  uint32_t column;
};

static std::string described(const SanitizerPlace* place) {
  const char* slash = std::strrchr(place->file, '/');
  return std::string(slash ? slash + 1 : place->file) + ":" + std::to_string(place->line);
}

void __ubsan_handle_type_mismatch_v1(SanitizerPlace* place, uintptr_t pointer) {
  emulator::fail(emulator::format("access to the misaligned address that ends in 0x%02x", unsigned(pointer % 256)) +
                 " in " + described(place));
}

void __ubsan_handle_out_of_bounds(SanitizerPlace* place, uintptr_t index) {
  emulator::fail("index " + std::to_string(static_cast<int64_t>(index)) + " is outside of its array in " +
                 described(place));
}
}
#endif
