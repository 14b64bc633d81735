"""Studies of searches and trainings that take a second, and executors that need no process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from fastnas.genotype import Genotype
from fastnas.study.definition import read_definition
from fastnas.study.directory import StudyDirectory
from fastnas.study.executors import Executor, Resources
from fastnas.study.worker import work

SEARCH: dict[str, Any] = {
    "strategy": {"name": "egnas", "warm_up": 1, "population": 4, "samples": 1, "fitness_batch_size": 20},
    "data": {"data": "digits", "limit": 60, "batch_size": 16, "image_size": 8},
    "network": {"channels": 4, "layers": 3},
    "weights": {"epochs": 2, "learning_rate": 0.05},
    "run": {"device": "cpu", "evidence": False},
}
TRAIN: dict[str, Any] = {"channels": 2, "layers": 3, "epochs": 1, "limit": 60, "batch_size": 16, "device": "cpu"}
QUIET = Console(quiet=True)


def begin(path: Path, **plan: Any) -> StudyDirectory:
    """The directory of a study."""
    return StudyDirectory.begin(path, read_definition({"name": "tiny", "base": SEARCH, **plan}))


def write_search(folder: Path, accuracy: float | None, cell: str = "DARTS_V2", ended: bool = True) -> None:
    """The run directory of a search, as far as a study looks at it."""
    folder.mkdir(parents=True)
    records: list[dict[str, Any]] = [{"event": "run", "data": {}, "environment": {}}]
    records += [{"event": "end", "valid_accuracy": accuracy, "seconds": 1.0}] if ended else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    Genotype.published(cell).to_json(folder / "genotype.json")


class Over:
    """A job that is over."""

    def __init__(self, problem: str | None = None) -> None:
        self._problem = problem

    def is_over(self) -> bool:
        return True

    def problem(self) -> str | None:
        return self._problem


class InProcess(Executor):
    """Does the work of each unit at once, in this process.

    Args:
        study: the directory.
        do: the work, which gets the directory of the study and the id of a unit; what it returns is a problem.
    """

    slots = 1

    def __init__(self, study: Path, do: Callable[[Path, str], str | None] | None = None) -> None:
        super().__init__(study, Resources())
        self.do = do
        self.started: list[str] = []
        self.stopped = self.closed = 0

    def start(self, unit: str) -> Over:
        self.started.append(unit)
        if self.do is None:
            work(self.directory, unit)
            return Over()
        return Over(self.do(self.directory, unit))

    def stop(self) -> None:
        self.stopped += 1

    def close(self) -> None:
        self.closed += 1
