"""Reads a run directory: the only input of the report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from fastnas.errors import UserError
from fastnas.genotype import AnyGenotype, Genotype
from fastnas.input_file import check_file, read_text
from fastnas.spaces.nb201 import NB201Genotype, any_genotype
from fastnas.yaml_text import parse_yaml

Record = dict[str, Any]
LARGEST = 1e30  # of a number; charts of larger ones, and sums of their squares, are no numbers


@dataclass(frozen=True)
class Run:
    """The contents of a run directory; whatever is missing is empty.

    ``epochs``, ``populations``, ``updates``, ``fronts`` and ``alphas`` (the losses of α) are in the order in which they
    happened. Where a resumed run repeats an epoch or an evolution step, only the repetition is kept. All of them count
    epochs and steps from 0.
    """

    path: Path
    config: Record = field(default_factory=dict)
    starts: list[Record] = field(default_factory=list)
    epochs: list[Record] = field(default_factory=list)
    populations: list[Record] = field(default_factory=list)
    updates: list[Record] = field(default_factory=list)
    ending: Record | None = None
    genotype: AnyGenotype | None = None
    genotype_origin: str = ""
    problems: list[str] = field(default_factory=list)
    fronts: list[Record] = field(default_factory=list)
    alphas: list[Record] = field(default_factory=list)
    evidence: Record = field(default_factory=dict)

    @property
    def status(self) -> str:
        """``finished``, ``interrupted``, ``unfinished`` (no ending written) or ``not started``."""
        if self.ending is not None:
            return "finished" if self.ending["event"] == "end" else "interrupted"
        return "unfinished" if self.starts or self.epochs else "not started"

    @property
    def is_training(self) -> bool:
        """Whether the run trained the network of a genotype; it searched one otherwise."""
        return bool(self.starts) and self.starts[0].get("command") == "train"

    @property
    def environment(self) -> Record:
        return self._latest("environment")

    @property
    def network(self) -> Record:
        return self._latest("network")

    @property
    def data(self) -> Record:
        return self._latest("data")

    def _latest(self, key: str) -> Record:
        return next((mapping(start[key]) for start in reversed(self.starts) if key in start), {})

    @property
    def command(self) -> list[str]:
        """The arguments of the first start, the one that began the run; empty where none was recorded."""
        argv = self.starts[0].get("argv") if self.starts else None
        return [str(word) for word in argv] if isinstance(argv, list) else []

    @property
    def strategy(self) -> str | None:
        name = self.option("strategy", "name")
        return None if name is None else str(name)

    @property
    def planned_epochs(self) -> int | None:
        epochs = self.option("recipe" if self.is_training else "weights", "epochs")
        return int(epochs) if is_number(epochs) else None

    def option(self, group: str, name: str) -> object:
        """An option of config.yaml, None where it is missing."""
        return mapping(self.config.get(group)).get(name)

    @property
    def seconds(self) -> float | None:
        """Wall time: as recorded at the end of a run in one piece, otherwise the sum over the epochs' phases."""
        recorded = (self.ending or {}).get("seconds")
        if self.status == "finished" and len(self.starts) == 1 and is_number(recorded):
            return float(recorded)
        phases = [value for epoch in self.epochs for value in mapping(epoch.get("seconds")).values()]
        return float(sum(value for value in phases if is_number(value))) if phases else None

    @property
    def valid_accuracy(self) -> tuple[float, int | None] | None:
        """The last validation accuracy (0..1) and its epoch, from 0; the epoch is None for the one taken at the end."""
        recorded = (self.ending or {}).get("valid_accuracy")
        if is_number(recorded):
            return float(recorded), None
        for epoch in reversed(self.epochs):
            if is_number(epoch.get("valid_accuracy")):
                return float(epoch["valid_accuracy"]), epoch["epoch"]
        return None

    @property
    def validated(self) -> str:
        """Whose accuracy `valid_accuracy` is, in words."""
        if self.is_training:
            return "network in training"
        kind = next((epoch["valid_of"] for epoch in reversed(self.epochs) if "valid_of" in epoch), None)
        if kind is None:  # written by a version that did not say it
            kind = "cell" if any("evaluated" in update for update in self.updates) else "supernet"
        return {"cell": "found cell by shared weights"}.get(str(kind), "supernet")

    @property
    def chosen(self) -> Record:
        """The architecture that a strategy has chosen by evaluating architectures: the last record of its accuracy,
        `best_accuracy` in 0..1. Empty where the strategy derives its cell from α."""
        updates = (u for u in reversed(self.updates) if "evaluated" in u and is_number(u.get("best_accuracy")))
        return next(updates, {})

    @property
    def candidate_count(self) -> int | None:
        """Candidates of an edge, by the first operation weights."""
        tables = (table for epoch in self.epochs for table in mapping(epoch.get("op_weights")).values())
        return next((len(table[0]) for table in tables if is_table(table)), None)

    @property
    def peak_memory_mb(self) -> float | None:
        values = [epoch.get("peak_memory_mb") for epoch in self.epochs]
        return max((float(value) for value in values if is_number(value)), default=None)


def is_table(value: object) -> TypeGuard[list[list[float]]]:
    """Whether ``value`` is a non-empty list of equally long rows of numbers."""
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and row for row in value):
        return False
    return len({len(row) for row in value}) == 1 and all(is_number(v) for row in value for v in row)


def mapping(value: object) -> Record:
    """``value`` if it is a dict, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an int or float that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def read_run(run_dir: str | Path) -> Run:
    """Reads a run directory. A missing or damaged file becomes a line in ``problems``, not an error.

    Raises:
        UserError: ``run_dir`` is not a directory.
    """
    path = Path(run_dir)
    if not os.path.isdir(path):
        found = "is a file" if os.path.exists(path) else "does not exist"
        raise UserError(f"run directory {str(path)!r} {found}; give the folder that a search or a training wrote")
    problems: list[str] = []
    config = _read_config(path / "config.yaml", problems)
    starts: list[Record] = []
    tables: dict[str, _Table] = {event: {} for event in _KEYS}
    ending = None
    evidence: Record = {}
    for record in _read_records(path / "metrics.jsonl", problems):
        event = record["event"]
        if event == "run":
            starts.append(record)
            ending, evidence = None, {}
        elif event == "evidence":
            evidence = record
        elif event in ("end", "interrupted"):
            ending = record
        elif event in tables:
            _keep(tables, event, record)
    epochs, populations, updates, fronts, alphas = (list(table.values()) for table in tables.values())
    recorded = {epoch["epoch"] for epoch in epochs}
    if lost := [str(epoch + 1) for epoch in range(max(recorded, default=-1)) if epoch not in recorded]:
        which = f"epoch {lost[0]}" if len(lost) == 1 else f"{len(lost)} epochs, the first of them {lost[0]},"
        problems.append(f"metrics.jsonl lacks the records of {which} which a file of before held.")
    genotype, origin = _read_genotype(path / "genotype.json", epochs, problems)
    return Run(
        path, config, starts, epochs, populations, updates, ending, genotype, origin, problems, fronts, alphas, evidence
    )


_KEYS = {
    "epoch": ("epoch",),
    "population": ("epoch", "step", "sample", "generation"),
    "update": ("epoch", "step"),
    "front": ("epoch",),
    "alpha": ("epoch",),
}
_Table = dict[tuple[int, ...], Record]
_FORMER_PHASES = {"evolution": "strategy"}  # as earlier versions named what an epoch's time went into


def _keep(tables: dict[str, _Table], event: str, record: Record) -> None:
    """Stores ``record`` in its table and forgets what a process before a resume wrote for later epochs."""
    if event == "front":  # whose key has another name, which keeps it out of TensorBoard
        record.setdefault("epoch", record.get("after_epoch"))
    key = tuple(record.get(name, 0) for name in _KEYS[event])
    if "epoch" not in record or not all(isinstance(number, int) for number in key):
        return
    for table in tables.values():
        while table and next(reversed(table))[0] > key[0]:
            table.popitem()
    if isinstance(seconds := record.get("seconds"), dict):
        record["seconds"] = _current_phases(seconds)
    tables[event][key] = record


def _current_phases(seconds: Record) -> Record:
    """Seconds by phase under the names of today; an epoch that two versions ran may have both."""
    renamed: Record = {}
    for phase, value in seconds.items():
        name = _FORMER_PHASES.get(phase, phase)
        renamed[name] = renamed[name] + value if is_number(value) and is_number(renamed.get(name)) else value
    return renamed


def _read_config(path: Path, problems: list[str]) -> Record:
    if not path.exists():
        problems.append("config.yaml is missing, so the settings are not known.")
        return {}
    try:
        config = parse_yaml(read_text(path, str(path), "copy them again"))
    except (UserError, ValueError) as error:
        problems.append(f"config.yaml could not be read: {error}")
        return {}
    if not isinstance(config, dict):
        problems.append("config.yaml holds no options.")
        return {}
    return config


def _read_records(path: Path, problems: list[str]) -> Iterator[Record]:
    if not path.exists():
        problems.append("metrics.jsonl is missing: nothing was measured yet.")
        return
    try:
        check_file(path, str(path), "copy them again")
        text = path.read_text(encoding="utf-8", errors="replace")
    except (UserError, OSError) as error:
        problems.append(f"metrics.jsonl could not be read: {error}")
        return
    lines = text.split("\n")
    damaged = 0
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            # A process that is killed while writing leaves half of the last line: expected, so it is no problem.
            damaged += number < len(lines)
            continue
        if isinstance(record, dict) and isinstance(record.get("event"), str):
            yield record
        else:
            damaged += record is not None
    if damaged:
        problems.append(f"{damaged} damaged {'line' if damaged == 1 else 'lines'} of metrics.jsonl left out.")


def _read_genotype(path: Path, epochs: list[Record], problems: list[str]) -> tuple[AnyGenotype | None, str]:
    """The genotype and where it is from: the file, or the last epoch that recorded one."""
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
            kind = NB201Genotype if '"nb201"' in text else Genotype
            return kind.from_json(path), path.name
        except (UserError, OSError) as error:
            problems.append(f"genotype.json could not be read: {error}")
    else:
        problems.append("genotype.json is missing: it is written after every epoch.")
    for epoch in reversed(epochs):
        if "genotype" in epoch:
            try:
                genotype = any_genotype(mapping(epoch["genotype"]))
            except UserError as error:
                problems.append(f"The genotype of epoch {epoch['epoch'] + 1} could not be read: {error}")
                break
            return genotype, f"the record of epoch {epoch['epoch'] + 1}"
    return None, ""
