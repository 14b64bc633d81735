// Which instruction set the kernels use, chosen when the program runs.
//
// A package is built once and runs on any processor, but AVX2 doubles and AVX-512 quadruples the lanes that a portable
// build may use. So every kernel file in this folder is compiled once for each instruction set, each time into its own
// namespace, whose name CMakeLists.txt passes as FASTNAS_ISA; the files differ in nothing but the width of Vec (vec.h)
// and the number of registers. Everything that a kernel file defines or instantiates must be in that namespace, or the
// linker would keep one variant for all of them. Callers know no variant: FASTNAS_CPU_VARIANTS declares all, and
// FASTNAS_CPU_CALL picks one.
#pragma once

#include <string>

namespace fastnas::cpu {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

/// The instruction set that kernels use: the widest one that this build and this processor share, unless overridden.
Isa isa();

/// The widest instruction set that this build and this processor share.
Isa best_isa();

/// Makes kernels use `wanted` from now on (tests compare instruction sets with it). False, and nothing changed, where
/// the processor or the build lacks it. Not meant to be called while kernels run.
bool set_isa(Isa wanted);

/// Makes kernels use what the variable FASTNAS_ISA names, if it is set. Returns what is wrong with its value, or "".
std::string choose_isa_of_environment();

const char* isa_name(Isa value);

}  // namespace fastnas::cpu

// FASTNAS_CPU_VARIANTS(declarations): declares a kernel in the namespace of every instruction set of this build.
// FASTNAS_CPU_CALL(kernel, arguments...): calls the variant that isa() names.
#ifdef FASTNAS_X86
#define FASTNAS_CPU_VARIANTS(...) \
  namespace fastnas::portable {   \
  __VA_ARGS__                     \
  }                               \
  namespace fastnas::avx2 {       \
  __VA_ARGS__                     \
  }                               \
  namespace fastnas::avx512 {     \
  __VA_ARGS__                     \
  }
#define FASTNAS_CPU_CALL(kernel, ...)                    \
  [&] {                                                  \
    switch (::fastnas::cpu::isa()) {                     \
      case ::fastnas::cpu::Isa::avx512:                  \
        return ::fastnas::avx512::kernel(__VA_ARGS__);   \
      case ::fastnas::cpu::Isa::avx2:                    \
        return ::fastnas::avx2::kernel(__VA_ARGS__);     \
      default:                                           \
        return ::fastnas::portable::kernel(__VA_ARGS__); \
    }                                                    \
  }()
#else
#define FASTNAS_CPU_VARIANTS(...) \
  namespace fastnas::portable {   \
  __VA_ARGS__                     \
  }
#define FASTNAS_CPU_CALL(kernel, ...) ::fastnas::portable::kernel(__VA_ARGS__)
#endif
