"""The fused operators in other code: `accelerate` speeds up an existing network, `patch` those yet to be built."""

import warnings
from typing import Any

from fastnas.compat.acceleration import accelerate, report, restore
from fastnas.compat.load_supernet import foreign_state_dict, load_betas, load_supernet
from fastnas.compat.patching import BASELINES, Patch, patch, unpatch
from fastnas.compat.reporting import Entry, Report

__all__ = [
    "BASELINES",
    "Entry",
    "Patch",
    "Report",
    "accelerate",
    "foreign_state_dict",
    "load_betas",
    "load_supernet",
    "patch",
    "report",
    "restore",
    "unpatch",
]


def __getattr__(name: str) -> Any:
    if name == "ANCESTORS":
        warnings.warn("fastnas.compat.ANCESTORS is called BASELINES now", DeprecationWarning, stacklevel=2)
        return BASELINES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
