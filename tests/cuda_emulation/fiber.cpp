#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

// This file is compiled without instrumentation, so the build says which sanitizer the kernels run under.
#ifdef EMULATOR_ADDRESS
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATOR_THREAD
#include <sanitizer/tsan_interface.h>
#endif

#ifdef __x86_64__
// swapcontext makes a system call each time; this is ten times faster. Saves what the calling convention asks for.
extern "C" void emulator_switch(void** save, void* enter);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");
#endif

namespace emulator {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // sanitizers make frames large; untouched pages cost nothing
constexpr size_t kGuardBytes = 4 << 10;

// Between leaving one fiber and arriving in the next.
Fiber* leaving = nullptr;
Fiber* entering = nullptr;

}  // namespace

Fiber::Fiber() {
#ifdef EMULATOR_THREAD
  sanitizer_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(void (*entry)()) : entry_(entry), size_(kStackBytes) {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<unsigned char*>(memory);
  mprotect(memory_, kGuardBytes, PROT_NONE);
  bottom_ = memory_ + kGuardBytes;
#ifdef __x86_64__
  // What emulator_switch pops: six registers and the address to return to, with the stack aligned as after a call.
  void** top = reinterpret_cast<void**>(memory_ + kGuardBytes + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::start);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = memory_ + kGuardBytes;
  context_.uc_stack.ss_size = kStackBytes;
  makecontext(&context_, &Fiber::start, 0);
#endif
#ifdef EMULATOR_THREAD
  sanitizer_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (!memory_) return;
#ifdef EMULATOR_THREAD
  __tsan_destroy_fiber(sanitizer_);
#endif
#ifdef EMULATOR_ADDRESS
  ASAN_UNPOISON_MEMORY_REGION(bottom_, size_);  // it may have been left in the middle of a function
#endif
  munmap(memory_, kGuardBytes + kStackBytes);
}

void Fiber::switch_to(Fiber& next) {
  leaving = this;
  entering = &next;
#ifdef EMULATOR_ADDRESS
  __sanitizer_start_switch_fiber(&fake_stack_, next.bottom_, next.size_);
#endif
#ifdef EMULATOR_THREAD
  __tsan_switch_to_fiber(next.sanitizer_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __x86_64__
  emulator_switch(&stack_pointer_, next.stack_pointer_);
#else
  swapcontext(&context_, &next.context_);
#endif
  arrived();
}

void Fiber::arrived() {
#ifdef EMULATOR_ADDRESS
  __sanitizer_finish_switch_fiber(fake_stack_, &leaving->bottom_, &leaving->size_);
#endif
}

void Fiber::start() {
  Fiber& self = *entering;
  self.arrived();
  self.entry_();
  __builtin_unreachable();
}

}  // namespace emulator
