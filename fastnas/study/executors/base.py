"""What a study needs from whatever runs its units."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fastnas.errors import UserError


@dataclass(frozen=True)
class Resources:
    """What runs get.

    Args:
        threads: CPU threads of each.
        gpus: of this machine that runs may take, one each; 0 for runs on the CPU.
        parallel: runs at a time; None for what the executor finds.
        cluster: of submitit: slurm, local, or None for what is there.
        parameters: of submitit's jobs, such as timeout_min and slurm_partition.
    """

    threads: int = 1
    gpus: int = 0
    parallel: int | None = None
    cluster: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Job(Protocol):
    """A unit that was given away. What came of it is in the files of the unit."""

    def is_over(self) -> bool:
        """Whether its process has ended, however."""

    def problem(self) -> str | None:
        """How it ended, where that was not by itself."""


class Executor(ABC):
    """Runs units, each in a process of its own.

    Args:
        directory: of the study.
        resources: of the runs.

    Raises:
        UserError: a package is missing.
    """

    def __init__(self, directory: Path, resources: Resources) -> None:
        self.directory, self.resources = directory, resources

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many units may be given away at a time."""

    @abstractmethod
    def start(self, unit: str) -> Job:
        """Gives a unit away, by its id."""

    @abstractmethod
    def stop(self) -> None:
        """Asks all to end after their step; whoever has not begun does not begin."""

    def close(self) -> None:  # noqa: B027  (an empty hook)
        """Once all jobs are over."""


class StopFile:
    """A file beside the study that stops its jobs on whatever machine."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f".stop-{secrets.token_hex(4)}"

    def touch(self) -> None:
        with contextlib.suppress(OSError):
            self.path.touch()

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def engine(name: str, requirement: str) -> Any:
    """A package that is an extra. UserError, with the command that installs it, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--executor {name} needs the package {name}: python -m pip install '{requirement}', or take --executor "
            "local."
        ) from error


def cores() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
