"""NAS-Bench-201 as a table (Dong, Yang, ICLR 2020): accuracies and costs of all 15,625 cells, training time
simulated."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastnas.errors import UserError
from fastnas.evaluators.base import Evaluation, Evaluator
from fastnas.input_file import MOST_BYTES, cannot_read, check_file, path_of
from fastnas.spaces.encoding import Code, encoding_of
from fastnas.spaces.nb201 import SPACE, NB201Genotype

SEARCH_EPOCHS = 12
COSTS = {"parameters": "params_m", "macs": "mflops", "latency": "latency_ms_edge_gpu"}  # in millions and milliseconds
NUMBERS = ("valid_acc_12_epochs", "test_acc_200_epochs_mean", "train_s_per_epoch", *COSTS.values())
ADVICE = "give the CSV file of NAS-Bench-201"


class NB201(Evaluator):
    """Evaluates by looking up the validation accuracy after 12 epochs, judges by the test accuracy after 200.

    An evaluation costs 12 epochs on half of the training images, as the table timed them on one GTX 1080 Ti.

    Args:
        path: the table as CSV, may be gzipped: columns `arch`, `valid_acc_12_epochs` and `test_acc_200_epochs_mean` in
            %, `train_s_per_epoch` on all training images, `params_m`, `mflops`, `latency_ms_edge_gpu`.

    Raises:
        UserError: no such file, a column is missing, a value is no number of its range, or the cells of the space are
            not there, each once.
    """

    encoding = encoding_of(SPACE)
    clock = "simulated"

    def __init__(self, path: str | Path) -> None:
        self.path = path_of(path)
        self._columns = _read(self.path)

    def evaluate(self, codes: Sequence[Code]) -> list[Evaluation]:
        columns = self._columns
        evaluations = []
        for row in map(_row, codes):
            seconds = SEARCH_EPOCHS * 0.5 * float(columns["train_s_per_epoch"][row])
            costs = {name: float(columns[column][row]) for name, column in COSTS.items()}
            evaluations.append(Evaluation(float(columns["valid_acc_12_epochs"][row]) / 100, seconds, costs))
        return evaluations

    def judge(self, code: Code) -> float:
        return float(self._columns["test_acc_200_epochs_mean"][_row(code)]) / 100

    @property
    def best(self) -> float:
        """The highest number that `judge` gives, in 0..1."""
        return float(self._columns["test_acc_200_epochs_mean"].max()) / 100


@functools.cache
def _read(path: Path) -> dict[str, np.ndarray]:
    """Columns by name, [15625] each, in the order of the codes."""
    rows = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        header = next(rows, [])
        wanted = {name: column for column, name in enumerate(header) if name in NUMBERS}
        if missing := [name for name in ("arch", *NUMBERS) if name not in header]:
            raise UserError(f"the table {path} has no column {missing[0]!r}: {ADVICE}.")
        size = len(SPACE.candidates) ** len(SPACE.edges)
        columns = {name: np.full(size, np.nan) for name in wanted}  # [15625]
        lines = np.zeros(size, dtype=np.int64)  # [15625], where each cell is; 0 for nowhere
        for row in filter(None, rows):
            place = f"the table {path}, line {rows.line_num}"
            if len(row) != len(header):
                raise UserError(f"{place} has {len(row)} values for {len(header)} columns: {ADVICE}.")
            cell = _row(_code(row[header.index("arch")], place))
            if lines[cell]:
                raise UserError(f"{place} has the cell of line {lines[cell]} for the second time: {ADVICE}.")
            lines[cell] = rows.line_num
            for name, column in wanted.items():
                columns[name][cell] = _number(name, row[column], place)
    except csv.Error as error:
        raise UserError(f"the table {path}, line {rows.line_num} is no CSV ({error}): {ADVICE}.") from error
    if unknown := int((lines == 0).sum()):
        raise UserError(f"the table {path} lacks {unknown} of the {size} cells of NAS-Bench-201: give the whole one.")
    return columns


def _text(path: Path) -> str:
    check_file(path, f"the table {path}", ADVICE)
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"the table {path} has more than {MOST_BYTES:,} bytes, which no such table has: {ADVICE}.")
        return content.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise cannot_read(f"the table {path}", error, ADVICE) from error


def _row(code: Code) -> int:
    return functools.reduce(lambda row, value: row * len(SPACE.candidates) + value, code, 0)


def _code(text: str, place: str) -> Code:
    try:
        return encoding_of(SPACE).encode(NB201Genotype.from_string(text))
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _number(name: str, text: str, place: str) -> float:
    """A number of the table: an accuracy in %, a time, a cost."""
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"{place}: {name} is {text!r}, expected a number.") from error
    if "acc" in name and not 0 <= value <= 100:
        raise UserError(f"{place}: {name} is {text}, expected 0 to 100.")
    if not (math.isfinite(value) and value >= 0) or (name == "train_s_per_epoch" and value == 0):
        raise UserError(f"{place}: {name} is {text}, expected a finite number above 0.")
    return value
