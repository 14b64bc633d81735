"""What a search or a training gives to a Python program; all of it is read from the files of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastnas.engine.evaluation import Evaluation
from fastnas.engine.loop import Status
from fastnas.engine.trained import load_trained
from fastnas.genotype import AnyGenotype
from fastnas.nn import DerivedNetwork
from fastnas.report.run import read_run

History = dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """How a search ended, for now or for good.

    Attributes:
        status: "finished", "interrupted" (Ctrl-C or SIGTERM) or "stopped" (by `stop_after`). The last two leave a run
            that goes on with `resume=result`.
        directory: of the run.
        genotype: the architecture; of an unfinished search the one that it has arrived at.
        valid_accuracy: of the last validation, in 0..1; None before the first one.
        evidence: what the search is worth, as the event "evidence" of metrics.jsonl has it: "comparison" (with
            "better_than", "random", …), "derivation", "alpha", "cells"; docs/evidence.md explains them. None until
            finished, or without evidence.
    """

    status: Status
    directory: Path
    genotype: AnyGenotype
    valid_accuracy: float | None
    evidence: dict[str, Any] | None = None

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.directory / "report.html"

    @cached_property
    def history(self) -> History:
        """One array over the epochs for each number of metrics.jsonl, by its name, NaN where there is none:
        "train_loss" [epochs], "valid_accuracy" [epochs]; in dicts where the log has them: "op_weights" {"normal":
        [epochs, edges, candidates], "reduce": …}, "alpha_entropy", "skip_count", "seconds"."""
        return read_history(self.directory)

    def __fspath__(self) -> str:
        return str(self.directory)


@dataclass(frozen=True)
class TrainedNetwork:
    """The training of one seed.

    Attributes:
        seed: of its random decisions.
        status: as of `SearchResult`.
        directory: of its run.
        test: the results on the test images; None until finished, or without test images.
    """

    seed: int
    status: Status
    directory: Path
    test: Evaluation | None

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.directory / "report.html"

    @cached_property
    def history(self) -> History:
        """One array over the epochs for each number of metrics.jsonl: "train_loss" [epochs], …; see `SearchResult`."""
        return read_history(self.directory)

    def network(self, backend: str = "auto") -> DerivedNetwork:
        """The trained network in evaluation mode, on the CPU: the selected weights, or the latest if unfinished."""
        return load_trained(self.directory, backend)

    def __fspath__(self) -> str:
        return str(self.directory)


@dataclass(frozen=True)
class TrainResult:
    """How the trainings of one or several seeds ended, for now or for good.

    Attributes:
        status: "finished", or that of the last training, see `SearchResult`.
        directory: of the run, with a folder for each of several seeds.
        trained: one for each seed so far.
    """

    status: Status
    directory: Path
    trained: tuple[TrainedNetwork, ...]

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.directory / "report.html"

    @property
    def accuracies(self) -> np.ndarray:
        """Test accuracies in 0..1, [seeds]; NaN where there is none."""
        return np.array([math.nan if each.test is None else each.test.top1 for each in self.trained])

    def __fspath__(self) -> str:
        return str(self.directory)


def read_history(directory: Path) -> History:
    """The epochs of a run directory, see `SearchResult.history`."""
    return _columns(read_run(directory).epochs)


def recorded_test(directory: Path) -> Evaluation | None:
    """The test results of a run directory."""
    test = (read_run(directory).ending or {}).get("test")
    return Evaluation(**test) if isinstance(test, dict) else None


def _columns(records: list[dict[str, Any]]) -> History:
    names = dict.fromkeys(name for record in records for name in record)
    columns: History = {}
    for name in names:
        values = [record.get(name) for record in records]
        if name in ("event", "genotype"):
            continue
        if any(isinstance(value, Mapping) for value in values):
            columns[name] = _columns([value if isinstance(value, dict) else {} for value in values])
        else:
            columns[name] = _array(values)
    return columns


def _array(values: list[Any]) -> np.ndarray:
    """One entry for each epoch; of tables that change their shape, an array of arrays."""
    arrays = [np.array(math.nan if value is None else value) for value in values]
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    ragged = np.empty(len(arrays), dtype=object)
    ragged[:] = arrays
    return ragged
