"""The fused operators in other code: `accelerate` speeds up a network that is there, `patch` those to come."""

from fastnas.compat.acceleration import accelerate, report, restore
from fastnas.compat.patching import ANCESTORS, Patch, patch, unpatch
from fastnas.compat.reporting import Entry, Report

__all__ = ["ANCESTORS", "Entry", "Patch", "Report", "accelerate", "patch", "report", "restore", "unpatch"]
