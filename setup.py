"""Builds fastnas._C with CMake.

Every flag is in CMakeLists.txt and the metadata in pyproject.toml; this file only finds torch, pybind11 and a CUDA
compiler. It never imports torch, and no GPU is needed for a CUDA build.

FASTNAS_CUDA=0 builds without CUDA, FASTNAS_CUDA=1 insists on it; by default CUDA is built where nvcc is found.
FASTNAS_SANITIZE=address,undefined or =thread builds for `make sanitize`, into build/sanitize-* and nowhere else.
FASTNAS_EMULATE=emulation or =emulation_sanitized builds the CUDA kernels for the CPU (tests/cuda_emulation), into
build/emulate and nowhere else.
TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX") replaces the default architectures. MAX_JOBS limits parallel compilers.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_REQUIREMENT = "torch>=2.11"

FIND_PACKAGES = """
import importlib.util as u, os
torch, nvidia = u.find_spec("torch"), u.find_spec("nvidia")
print(os.path.dirname(torch.origin) if torch else "")
print(os.pathsep.join(nvidia.submodule_search_locations) if nvidia else "")
"""


def find_torch() -> tuple[Path | None, Path | None]:
    """Folder of torch, and nvidia/cu13 beside it, in the environment that fastnas is installed into.

    pip builds in an isolated environment without torch (a second copy would cost gigabytes). `-I` drops the path of
    that environment, so the interpreter sees its own site-packages. Where torch is not installed yet, pip has put it
    into the build environment (see `setup_requires` below).
    """
    for isolated in (["-I"], []):
        command = [sys.executable, *isolated, "-c", FIND_PACKAGES]
        torch, nvidia = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:2]
        if torch:
            wheels = (Path(folder, "cu13") for folder in nvidia.split(os.pathsep) if folder)
            return Path(torch), next((folder for folder in wheels if folder.is_dir()), None)
    return None, None


TORCH, CUDA_WHEELS = find_torch()


def find_nvcc() -> Path | None:
    """The CUDA compiler to use, or None. `nvcc` on PATH comes last: it may be a wrapper script outside its toolkit."""
    wanted = os.environ.get("FASTNAS_CUDA", "auto")
    if wanted == "0":
        return None
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    homes += [CUDA_WHEELS] if CUDA_WHEELS else []
    candidates = [home / "bin" / "nvcc" for home in [*homes, Path("/usr/local/cuda")]]
    candidates += [Path(found)] if (found := shutil.which("nvcc")) else []
    nvcc = next((candidate for candidate in candidates if candidate.is_file()), None)
    if nvcc is None and wanted == "1":
        tried = ", ".join(str(candidate.parent) for candidate in candidates)
        raise SystemExit(
            f"FASTNAS_CUDA=1, but no nvcc in {tried}: set CUDA_HOME, or pip install 'cuda-toolkit[nvcc,cccl]==13.0.*'"
        )
    return nvcc


def cuda_architectures() -> str:
    """TORCH_CUDA_ARCH_LIST in CMake's words, for instance "8.0;9.0+PTX" → "80-real;90"."""
    entries = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(",", ";").replace(" ", ";").split(";")
    numbers = [(entry.removesuffix("+PTX").replace(".", ""), entry.endswith("+PTX")) for entry in entries if entry]
    return ";".join(number if ptx else f"{number}-real" for number, ptx in numbers)


def find_tool(name: str) -> str | None:
    """A build tool of this environment, even where its bin folder is not on PATH."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin:
        folder = {"cmake": "CMAKE_BIN_DIR", "ninja": "BIN_DIR"}[name]
        return str(Path(getattr(importlib.import_module(name), folder), name))
    return shutil.which(name)


def pybind11_folder() -> str:
    """Of pybind11's CMake files; nothing where it is missing, as CMake then takes the copy in torch."""
    return importlib.import_module("pybind11").get_cmake_dir() if importlib.util.find_spec("pybind11") else ""


class CMakeBuild(build_ext):
    def run(self) -> None:
        if TORCH is None:
            raise SystemExit(f"fastnas needs torch to build: pip install '{TORCH_REQUIREMENT}' first")
        sanitize = os.environ.get("FASTNAS_SANITIZE", "")
        emulate = os.environ.get("FASTNAS_EMULATE", "")
        nvcc = None if sanitize or emulate else find_nvcc()
        package = ROOT / "fastnas" if self.inplace else Path(self.build_lib).resolve() / "fastnas"
        kind = f"sanitize-{sanitize.partition(',')[0]}" if sanitize else "cuda" if nvcc else "cpu"
        build = ROOT / "build" / (kind if sanitize else f"{sys.implementation.cache_tag}-{kind}")
        if emulate:
            build = ROOT / "build" / "emulate"
        options = {
            "Python_EXECUTABLE": sys.executable,
            "TORCH_DIR": TORCH,
            "CUDA_WHEELS": CUDA_WHEELS or "",
            "pybind11_DIR": pybind11_folder(),
            "FASTNAS_CUDA": "ON" if nvcc else "OFF",
            "FASTNAS_SANITIZE": sanitize,
            "FASTNAS_EMULATE": "ON" if emulate else "OFF",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": build / "lib",
        }
        if nvcc:
            options["CMAKE_CUDA_COMPILER"] = nvcc
            options["CMAKE_CUDA_ARCHITECTURES"] = cuda_architectures()
        generator: list[str] = []
        if ninja := find_tool("ninja"):
            generator, options["CMAKE_MAKE_PROGRAM"] = ["-G", "Ninja"], ninja
        environment = dict(os.environ)
        if nvcc and CUDA_WHEELS and nvcc.is_relative_to(CUDA_WHEELS):
            # nvcc from PyPI looks for its libraries in lib64, the packages have lib.
            environment["LIBRARY_PATH"] = f"{CUDA_WHEELS / 'lib'}:{os.environ.get('LIBRARY_PATH', '')}"
        cmake = find_tool("cmake")
        if cmake is None:
            raise SystemExit("fastnas needs CMake to build: pip install 'cmake>=3.26'")
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        print(f"fastnas: torch {TORCH}, nvcc {nvcc or 'none (CPU only)'}", flush=True)
        subprocess.run([cmake, "-S", ROOT, "-B", build, *generator, *definitions], check=True, env=environment)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        targets = {"": ["_C"], "thread": ["sanitize_threads"]}.get(sanitize, ["_C", "sanitize_threads"])
        targets = [emulate] if emulate else targets
        subprocess.run([cmake, "--build", build, "--target", *targets, "-j", jobs], check=True, env=environment)
        if sanitize or emulate:
            return
        # Copied, not built in place: builds with and without CUDA take turns there, and each must find its own newest.
        # Replaced, not overwritten: a process that has loaded the old one keeps it.
        package.mkdir(parents=True, exist_ok=True)
        for library in (build / "lib").glob("_C.*"):
            shutil.copy2(library, package / f".{library.name}")
            (package / f".{library.name}").replace(package / library.name)


setup(
    # Reported to pip as a build requirement only where the target environment has no torch.
    setup_requires=[] if TORCH else [TORCH_REQUIREMENT],
    ext_modules=[Extension("fastnas._C", [])],
    cmdclass={"build_ext": CMakeBuild},
)
