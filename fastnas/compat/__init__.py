"""The fused operators in other code: `accelerate` speeds up a network that is there, `patch` those to come."""

from fastnas.compat.acceleration import accelerate, report, restore
from fastnas.compat.load_supernet import foreign_state_dict, load_betas, load_supernet
from fastnas.compat.patching import ANCESTORS, Patch, patch, unpatch
from fastnas.compat.reporting import Entry, Report

__all__ = [
    "ANCESTORS",
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
