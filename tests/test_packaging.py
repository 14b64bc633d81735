"""The installed package is complete and consistent."""

from __future__ import annotations

import fnmatch
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
        if stem in ("layout", "running_statistics"):  # no kernel
            continue
        if stem in ("node_sum_grad", "bypass_grad"):  # parts of node_sum
            continue
        layers = ["csrc/ops/{}.h", "csrc/cpu/{}.cpp", "fastnas/ops/{}.py", "tests/ops/test_{}.py",
                  "benchmarks/ops/{}.py"]  # fmt: skip
        assert [layer for layer in layers if not (ROOT / layer.format(stem)).exists()] == []
