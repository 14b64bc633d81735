"""The runs of a comparison on disk: one JSON object per line, and the options that all of them have in common."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from fastnas.errors import UserError
from fastnas.input_file import read_json, read_text
from fastnas.report.run import is_number

RUNS_FILE = "runs.jsonl"
OPTIONS_FILE = "comparison.json"
MOST_BYTES = 2**30  # of the runs


@dataclass(frozen=True)
class Result:
    """One run: a strategy, a seed, and the result.

    Args:
        strategy: with its options, as it was given.
        evaluations: architectures that were counted.
        seconds: on the evaluator's clock.
        accuracy: validation accuracy of the best architecture, in 0..1.
        judged: its test accuracy, in 0..1; None where the evaluator has none.
        genotype: of the best architecture.
        curve: (seconds, accuracy, judged) whenever a better architecture was found.
    """

    strategy: str
    seed: int
    evaluations: int
    seconds: float
    accuracy: float
    judged: float | None
    genotype: dict[str, Any]
    curve: list[tuple[float, float, float | None]] = field(default_factory=list)

    @classmethod
    def from_record(cls, record: Any) -> Result:
        """The inverse of `dataclasses.asdict`, once it went through JSON. ValueError for anything else."""
        number = (int, float)
        kinds: dict[str, Any] = {
            "strategy": str, "seed": int, "evaluations": int, "seconds": number, "accuracy": number,
            "judged": (*number, NoneType), "genotype": dict, "curve": list,
        }  # fmt: skip
        if not isinstance(record, dict) or set(record) != set(kinds):
            raise ValueError("it is not that of a run")
        for name, kind in kinds.items():
            if not isinstance(record[name], kind) or isinstance(record[name], bool):
                raise ValueError(f"{name} is a {type(record[name]).__name__}")
        if not all(is_number(record[name]) for name in ("seconds", "accuracy")):
            raise ValueError("seconds or accuracy is not finite")
        for each in record["curve"]:
            if not isinstance(each, list) or len(each) != 3 or not all(map(is_number, each[:2])):
                raise ValueError("curve holds something else than points")
        judged = [record["judged"], *(each[2] for each in record["curve"])]
        if not all(value is None or is_number(value) for value in judged):
            raise ValueError("judged is not finite")
        return cls(**{**record, "curve": [tuple(each) for each in record["curve"]]})

    @property
    def score(self) -> float:
        """The accuracy that is compared: test accuracy if there is one, else validation accuracy, in 0..1."""
        return self.accuracy if self.judged is None else self.judged

    def score_at(self, seconds: np.ndarray) -> np.ndarray:
        """The score of the best architecture so far, at ascending times [n]; NaN before the first one."""
        times = np.array([point[0] for point in self.curve])
        scores = np.array([np.nan, *(point[1] if point[2] is None else point[2] for point in self.curve)])
        return scores[np.searchsorted(times, seconds, side="right")]


def read_results(directory: Path) -> list[Result]:
    """The runs that a comparison has finished, in the order of strategies and seeds. A torn last line is left out.

    Raises:
        UserError: the file cannot be read, or a line is damaged; the message names it.
    """
    path = directory / RUNS_FILE
    results: dict[tuple[str, int], Result] = {}
    lines = read_text(path, str(path), "make it readable", MOST_BYTES).split("\n") if path.exists() else []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) - 1:
                continue
            record = None
        try:
            result = Result.from_record(record)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number + 1} is damaged ({error}): remove the line and compare again."
            ) from error
        results[result.strategy, result.seed] = result
    return [results[key] for key in sorted(results, key=lambda key: key[1])]


def read_options(directory: Path) -> dict[str, Any]:
    """What all runs of a comparison have in common. UserError if the file cannot be read or is damaged."""
    path = directory / OPTIONS_FILE
    options = read_json(path, str(path), "restore it, or give another --out")
    if not isinstance(options, dict) or not all(isinstance(options.get(name), str) for name in ("clock", "evaluator")):
        raise UserError(f"{path} holds no options of a comparison: restore it, or give another --out.")
    if not is_number(options.get("budget")) or options["budget"] <= 0:
        raise UserError(f"{path} says no budget, a number of seconds: restore it, or give another --out.")
    return options
