// The Python module fastnas._C: what was built, and which instruction set the CPU kernels use. Operators are not bound
// here; loading this library registers them with torch (csrc/ops).
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cpu/caching_allocator.h"
#include "cpu/isa.h"

namespace py = pybind11;
using fastnas::cpu::Isa;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = FASTNAS_VERSION;
  info["compiler"] = FASTNAS_COMPILER;
  info["build_type"] = FASTNAS_BUILD_TYPE;
  info["torch"] = FASTNAS_TORCH_VERSION;
#ifdef FASTNAS_CUDA
  info["cuda"] = FASTNAS_CUDA_VERSION;
  info["cuda_architectures"] = FASTNAS_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
#ifdef FASTNAS_X86
  info["instruction_sets"] = py::make_tuple("portable", "AVX2", "AVX-512");
#else
  info["instruction_sets"] = py::make_tuple("portable");
#endif
  return info;
}

py::dict memory_use() {
  const auto use = fastnas::cpu::memory_use();
  py::dict bytes;
  bytes["used"] = use.used;
  bytes["cached"] = use.cached;
  bytes["peak"] = use.peak;
  return bytes;
}

void set_cpu_capability(const std::string& name) {
  for (Isa value : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (name != fastnas::cpu::isa_name(value)) continue;
    if (fastnas::cpu::set_isa(value)) return;
    throw std::invalid_argument("this processor or this build lacks " + name + "; the widest is " +
                                fastnas::cpu::isa_name(fastnas::cpu::best_isa()));
  }
  throw std::invalid_argument("unknown instruction set '" + name + "'; expected portable, AVX2 or AVX-512");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  if (const std::string problem = fastnas::cpu::choose_isa_of_environment(); !problem.empty()) {
    throw std::invalid_argument(problem);
  }
  m.doc() = "Compiled operators of fastnas; importing it registers torch.ops.fastnas.";
  m.def("build_info", &build_info, "What this extension was built from and for.");
  m.def(
      "cpu_capability", [] { return fastnas::cpu::isa_name(fastnas::cpu::isa()); },
      "The instruction set that the CPU kernels use.");
  m.def(
      "best_cpu_capability", [] { return fastnas::cpu::isa_name(fastnas::cpu::best_isa()); },
      "The widest instruction set that this processor and this build share.");
  m.def("memory_use", &memory_use,
        "Bytes of large CPU tensors of the operators: used now, cached for the next ones, most ever used.");
  m.def("set_cpu_capability", &set_cpu_capability, py::arg("name"),
        "Makes the CPU kernels use another instruction set; for tests and measurements.");
}
