"""What fastnas runs on: `python -m fastnas.env` prints it, every run records it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from fastnas._library import _C
from fastnas.version import __version__

PACKAGES = ("torchvision", "numpy", "cmaes", "nvidia-dali-cuda130")


def environment(device: torch.device | str = "cpu") -> dict[str, str | int | None]:
    """Versions, build and hardware, as a run records them."""
    info: dict[str, str | int | None] = {
        "fastnas": __version__,
        "commit": source_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version for name in PACKAGES if (version := _version(name))},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _C.cpu_capability(),
        "device": str(device),
    }
    if torch.device(device).type == "cuda":
        info["gpu"] = torch.cuda.get_device_name(device)
    return info


def source_commit() -> str | None:
    """The commit of the checkout that this package runs from, with "+" if tracked files changed; None elsewhere."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those that the CPU kernels can use on this machine, as FASTNAS_ISA names them, the narrowest first."""
    names = {"portable": "portable", "AVX2": "avx2", "AVX-512": "avx512"}
    best = list(names).index(_C.best_cpu_capability())
    return list(names.values())[: best + 1]


def report() -> str:
    """The text of `python -m fastnas.env`."""
    build = _C.build_info()
    rows = {name: str(value) for name, value in environment().items() if value is not None and name != "device"}
    rows["isa"] += f" (of {', '.join(build['instruction_sets'])}; best here: {_C.best_cpu_capability()})"
    rows["extension"] = (
        f"{build['version']}, {build['compiler']}, {build['build_type']}, against torch {build['torch']}"
    )
    rows["extension cuda"] = (
        f"nvcc {build['cuda']}, architectures {build['cuda_architectures']}" if build["cuda"] else "not built"
    )
    rows["torch cuda"] = torch.version.cuda or "not built"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            rows[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        rows["devices"] = "cpu (no CUDA device)"
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    from fastnas.cli.command import command

    @command
    def main(arguments: list[str], console: object) -> int:
        print(report())
        return 0

    sys.exit(main())
