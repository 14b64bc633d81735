"""NAS-Bench-201 as a table (Dong, Yang, ICLR 2020): accuracies and costs of all 15,625 cells, training time
simulated."""

from __future__ import annotations

import csv
import functools
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastnas.errors import UserError
from fastnas.evaluators.base import Evaluation, Evaluator
from fastnas.spaces.encoding import Code, encoding_of
from fastnas.spaces.nb201 import SPACE, NB201Genotype

SEARCH_EPOCHS = 12
COSTS = {"parameters": "params_m", "macs": "mflops", "latency": "latency_ms_edge_gpu"}  # in millions and milliseconds


class NB201(Evaluator):
    """Evaluates by looking up the validation accuracy after 12 epochs, judges by the test accuracy after 200.

    An evaluation costs 12 epochs on half of the training images, as the table timed them on one GTX 1080 Ti.

    Args:
        path: the table as CSV, may be gzipped: columns `arch`, `valid_acc_12_epochs` and `test_acc_200_epochs_mean` in
            %, `train_s_per_epoch` on all training images, `params_m`, `mflops`, `latency_ms_edge_gpu`.

    Raises:
        UserError: no such file, a column is missing, or not all cells of the space are there.
    """

    encoding = encoding_of(SPACE)
    clock = "simulated"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._columns = _read(self.path)

    def _row(self, code: Code) -> int:
        row = 0
        for value in code:
            row = row * len(SPACE.candidates) + value
        return row

    def evaluate(self, codes: Sequence[Code]) -> list[Evaluation]:
        columns = self._columns
        evaluations = []
        for row in map(self._row, codes):
            seconds = SEARCH_EPOCHS * 0.5 * float(columns["train_s_per_epoch"][row])
            costs = {name: float(columns[column][row]) for name, column in COSTS.items()}
            evaluations.append(Evaluation(float(columns["valid_acc_12_epochs"][row]) / 100, seconds, costs))
        return evaluations

    def judge(self, code: Code) -> float:
        return float(self._columns["test_acc_200_epochs_mean"][self._row(code)]) / 100

    @property
    def best(self) -> float:
        """The highest number that `judge` gives, in 0..1."""
        return float(self._columns["test_acc_200_epochs_mean"].max()) / 100


@functools.cache
def _read(path: Path) -> dict[str, np.ndarray]:
    """Columns by name, [15625] each, in the order of the codes."""
    wanted = ("valid_acc_12_epochs", "test_acc_200_epochs_mean", "train_s_per_epoch", *COSTS.values())
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the table {path}: {error}; give the CSV file of NAS-Bench-201.") from error
    if missing := [name for name in ("arch", *wanted) if not rows or name not in rows[0]]:
        raise UserError(f"the table {path} has no column {missing[0]!r}: give the CSV file of NAS-Bench-201.")
    size = len(SPACE.candidates) ** len(SPACE.edges)
    columns = {name: np.full(size, np.nan) for name in wanted}  # [15625]
    places = [len(SPACE.candidates) ** power for power in reversed(range(len(SPACE.edges)))]
    for line, row in enumerate(rows, start=2):
        code = encoding_of(SPACE).encode(NB201Genotype.from_string(row["arch"]))
        index = sum(value * place for value, place in zip(code, places, strict=True))
        for name in wanted:
            try:
                columns[name][index] = float(row[name])
            except ValueError as error:
                raise UserError(
                    f"the table {path}, line {line}: {name} is {row[name]!r}, expected a number."
                ) from error
    if unknown := int(np.isnan(columns["train_s_per_epoch"]).sum()):
        raise UserError(f"the table {path} lacks {unknown} of the {size} cells of NAS-Bench-201: give the whole one.")
    return columns
