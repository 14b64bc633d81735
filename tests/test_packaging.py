"""The installed package is complete and consistent."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import fastnas
from fastnas._library import _C

ROOT = Path(__file__).resolve().parents[1]


def test_one_version():
    assert metadata.version("fastnas") == fastnas.__version__ == _C.build_info()["version"]


def test_every_data_file_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["fastnas"]
    listed = subprocess.run(["git", "ls-files", "fastnas"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [Path(line).relative_to("fastnas").as_posix() for line in listed.splitlines() if not line.endswith(".py")]
    assert {"presets/demo.yaml", "published_genotypes.json", "py.typed"} <= set(files)
    assert [file for file in files if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)] == []


def test_the_extension_asks_torch_for_what_torch_2_11_has():
    """Of libtorch, the functions of its stable interface (torch_2_11_shim.txt: what torch 2.11 exports of it), and
    nothing in C++. So one build runs on torch 2.11 and every later one."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", _C.__file__], capture_output=True, text=True, check=True)
    asked = {line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()}
    interface = set((ROOT / "tests" / "torch_2_11_shim.txt").read_text().split())
    of_torch = {name for name in asked if name.startswith(("torch_", "aoti_torch_"))}
    assert "torch_call_dispatcher" in of_torch
    assert of_torch <= interface, f"newer than torch 2.11: {sorted(of_torch - interface)}"
    mangled = [name for name in asked if re.match(r"_ZNK?(2at|3c10|5torch)", name)]
    assert mangled == []


def test_every_file_says_the_same_about_torch():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {"torch>=2.11", "torchvision>=0.26"}
    assert {line for line in settings["project"]["dependencies"] if line.startswith("torch")} == wanted
    assert 'TORCH_REQUIREMENT = "torch>=2.11"' in (ROOT / "setup.py").read_text()
    assert "set(TORCH_TARGET_VERSION 0x020b000000000000)" in (ROOT / "CMakeLists.txt").read_text()
    assert "torch 2.11 and later" in (ROOT / "fastnas" / "_library.py").read_text()
    assert "torch 2.11 and every later" in " ".join((ROOT / "README.md").read_text().split())


def test_networks_and_operators_need_nothing_but_torch_and_numpy():
    """What `tools/gpu_check.py` imports on a machine that has nothing else."""
    code = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torchvision", "yaml", "safetensors", "cmaes", "pymoo", "sklearn", "tensorboard",
                                      "rich", "tyro", "matplotlib", "PIL", "pytest", "hypothesis"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refused())
from benchmarks import derived_step, population, supernet_step
from benchmarks.analysis import roofline
from benchmarks.harness.ceilings import ceilings
from fastnas import env
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_importing_is_light_and_touches_no_gpu():
    """`import fastnas` must not wait for torchvision and TensorBoard; subpackages come when they are used."""
    code = (
        "import sys, fastnas, torch\n"
        "assert not {'torchvision', 'tensorboard', 'matplotlib'} & set(sys.modules)\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert fastnas.nn.Supernet and fastnas.ops.mixed_sum and fastnas.strategies.create\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_operator_has_its_files():
    """An operator has the same file name in every layer."""
    for source in (ROOT / "csrc" / "ops").glob("*.cpp"):
        stem = source.stem
        if stem in ("layout", "running_statistics", "cuda_stream"):  # no kernel
            continue
        if stem in ("node_sum_grad", "bypass_grad"):  # parts of node_sum
            continue
        layers = ["csrc/ops/{}.h", "csrc/cpu/{}.cpp", "fastnas/ops/{}.py", "tests/ops/test_{}.py",
                  "benchmarks/ops/{}.py"]  # fmt: skip
        if stem in ("norm_rows", "pool_tables"):  # a few values: the contract itself is the CPU kernel
            layers.remove("csrc/cpu/{}.cpp")
        assert [layer for layer in layers if not (ROOT / layer.format(stem)).exists()] == []
