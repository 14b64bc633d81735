"""Versions, what is missing, and the ceilings that all times are held against."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from functools import partial
from pathlib import Path

from gpu_steps.ground import ROOT, Ground

# As they are imported.
WANTED = ("numpy", "setuptools", "pybind11", "pytest", "hypothesis", "expecttest", "torchvision", "PIL", "yaml",
          "tensorboard", "safetensors", "sklearn", "rich", "tyro", "cmaes", "pymoo", "matplotlib")  # fmt: skip
TOOLS = ("nvcc", "cmake", "ninja", "compute-sanitizer", "cuobjdump", "ncu", "g++", "git")
PRODUCT = 8192  # side of the matrices of the bfloat16 product


def find(tool: str) -> str | None:
    """A program on PATH, beside nvcc where toolkits have it, or in this Python's environment."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(home, sub) for home in homes if home for sub in ("bin", "compute-sanitizer")]
    return shutil.which(tool) or shutil.which(tool, path=os.pathsep.join(map(str, folders)))


def first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return lines[-1 if "nvcc" in command[0] else 0].strip() if lines else None


def run(ground: Ground) -> None:
    tools = {tool: find(tool) for tool in TOOLS}
    ground.say(
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)),
        commit=first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        tools={tool: path and (first_line(path, "--version") or path) for tool, path in tools.items()},
        missing=[name for name in WANTED if importlib.util.find_spec(name) is None],
        driver=first_line("nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm", "--format=csv,noheader"),
    )
    import torch

    ground.say(torch=torch.__version__, cuda=torch.version.cuda)
    device = ground.device
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        ground.say(
            gpu=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            gigabytes=round(properties.total_memory / 2**30, 1),
            multiprocessors=properties.multi_processor_count,
            shared_bytes_of_a_block=properties.shared_memory_per_block_optin,
        )
    ground.prepare_benchmarks()
    from benchmarks.harness.ceilings import ceilings
    from benchmarks.harness.clock import milliseconds

    limits = ceilings(device)
    ground.say(copy_gbs=limits.copy_gbs, float32_tflops=limits.gemm_gflops / 1e3)
    side = 64 if ground.rehearse else PRODUCT
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)  # [side, side]
    product = partial(torch.mm, a, b)
    for _ in range(3):
        product()
    ground.say(bfloat16_tflops=2 * side**3 / min(milliseconds(product, device) for _ in range(10)) / 1e9)
