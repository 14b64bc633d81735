// Which instruction sets this processor has, and which one the kernels use.
//
// AVX2 here means AVX2, FMA and BMI2, and AVX-512 its F, BW, DQ and VL parts: what CMakeLists.txt compiles the variants
// with (F16C is older than AVX2). Processors have all of a group or none, but a virtual machine may hide any of them.
// The choice is made once, at the first call, and lies in an atomic: a test that overrides it need not lock, and a
// kernel call pays one relaxed load. The variable FASTNAS_ISA=portable|avx2|avx512 makes another choice when the
// extension is loaded, so that one machine can test and measure what others run. Other processors than x86 have the
// portable variant alone, whose vectors of 16 bytes GCC maps to whatever the architecture guarantees (SSE2, NEON).
// Compiled once, for any processor.
#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fastnas::cpu {
namespace {

struct Name {
  const char* text;  // in FASTNAS_ISA
  Isa value;
};
constexpr Name kNames[] = {{"portable", Isa::portable}, {"avx2", Isa::avx2}, {"avx512", Isa::avx512}};

std::atomic<Isa>& current() {
  static std::atomic<Isa> value{best_isa()};
  return value;
}

}  // namespace

Isa best_isa() {
#ifdef FASTNAS_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa isa() { return current().load(std::memory_order_relaxed); }

bool set_isa(Isa wanted) {
  if (wanted > best_isa()) return false;
  current().store(wanted, std::memory_order_relaxed);
  return true;
}

std::string choose_isa_of_environment() {
  const char* wanted = std::getenv("FASTNAS_ISA");
  if (wanted == nullptr || *wanted == '\0') return "";
  for (const auto& [name, value] : kNames) {
    if (std::strcmp(wanted, name) != 0) continue;
    if (set_isa(value)) return "";
    return std::string("FASTNAS_ISA is ") + wanted + ", but this processor or this build lacks it; the widest is " +
           isa_name(best_isa());
  }
  return std::string("FASTNAS_ISA is '") + wanted + "', expected portable, avx2 or avx512";
}

const char* isa_name(Isa value) {
  switch (value) {
    case Isa::avx512:
      return "AVX-512";
    case Isa::avx2:
      return "AVX2";
    default:
      return "portable";
  }
}

}  // namespace fastnas::cpu
