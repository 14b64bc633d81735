"""The engine: loops, checkpoints and logs that every strategy shares."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastnas.engine.loop import DivergedError
    from fastnas.engine.search import Outcome, Search

__all__ = ["DivergedError", "Outcome", "Search"]

# Imported on first use: CUDA graphs are recorded without images, logs and what these need.
_MODULES = {"DivergedError": "loop", "Outcome": "search", "Search": "search"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"fastnas.engine.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'fastnas.engine' has no attribute {name!r}")
