"""fastnas: neural architecture search for PyTorch whose inner loops run on fused C++ and CUDA operators."""

import importlib
from types import ModuleType

from fastnas.counting import count_macs, count_parameters
from fastnas.genotype import Genotype
from fastnas.version import __version__

__all__ = ["Genotype", "__version__", "count_macs", "count_parameters"]

# Imported on first use: some of them pull in torchvision or TensorBoard, which take seconds to import.
_SUBPACKAGES = {"api", "compat", "data", "engine", "evaluators", "nn", "ops", "report", "spaces", "strategies"}


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"fastnas.{name}")
    raise AttributeError(f"module 'fastnas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBPACKAGES})
