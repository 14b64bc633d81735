// A stack of its own that runs a function, can be left in the middle of it and entered again: a CUDA thread of the
// emulator. AddressSanitizer and ThreadSanitizer are told of every change.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  /// The stack that runs already.
  Fiber();
  /// A stack on which `entry` will run, from the first switch_to on. It must not return.
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Leaves this fiber, which must be the running one, for `next`; returns when this one is entered again.
  void switch_to(Fiber& next);

 private:
  static void start();
  void arrived();

  void (*entry_)() = nullptr;
  unsigned char* memory_ = nullptr;  // guard page and stack; null for the stack that ran already
  void* sanitizer_ = nullptr;        // ThreadSanitizer's fiber
  void* fake_stack_ = nullptr;       // AddressSanitizer's
  const void* bottom_ = nullptr;
  size_t size_ = 0;
#ifdef __x86_64__
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_{};
#endif
};

}  // namespace emulator
