"""What runs the units of a study: processes of this machine, SLURM, or Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastnas.study.executors.base import Executor, Job, Resources
from fastnas.study.executors.local import Local
from fastnas.study.executors.ray import Ray
from fastnas.study.executors.submitit import Submitit

__all__ = ["EXECUTORS", "Executor", "Job", "Resources"]

EXECUTORS: dict[str, Callable[[Path, Resources], Executor]] = {"local": Local, "submitit": Submitit, "ray": Ray}
