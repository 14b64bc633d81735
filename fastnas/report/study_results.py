"""What the run directories of a study hold: the status and the numbers of each unit, and their means over the seeds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from fastnas.atomic_file import replace_file
from fastnas.errors import UserError
from fastnas.evaluators import NB201
from fastnas.input_file import read_json, read_text
from fastnas.report.run import Record, mapping
from fastnas.report.study_unit import Status, UnitResult, json_object, read_unit
from fastnas.yaml_text import parse_yaml

PLAN, STUDY, CHOSEN, TABLE = "plan.json", "study.yaml", "chosen.json", "study.csv"


@dataclass(frozen=True)
class Statistic:
    """Mean and deviation of a sample; no deviation of a single value."""

    n: int
    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Statistic | None:
        """None where no value is known."""
        known = [float(value) for value in values if value is not None]
        return cls(len(known), fmean(known), stdev(known) if len(known) > 1 else None) if known else None

    def text(self, form: str = "{:.2f}", scale: float = 1.0) -> str:
        deviation = "" if self.std is None else f" ± {form.format(scale * self.std)}"
        return form.format(scale * self.mean) + deviation


@dataclass(frozen=True)
class Cell:
    """All units of one cell of a study, that is of one set of options."""

    slug: str
    label: str
    options: Mapping[str, Any]
    units: tuple[UnitResult, ...]
    chosen: str | None = None
    """The unit whose genotype was trained."""

    def of(self, stage: str) -> list[UnitResult]:
        return [unit for unit in self.units if unit.stage == stage]

    def mean(self, name: str, *stages: str) -> Statistic | None:
        """Statistic of a number of the finished units of these stages: of the first stage that has one."""
        for stage in stages:
            found = Statistic.of(getattr(unit, name) for unit in self.of(stage) if unit.status == "finished")
            if found:
                return found
        return None

    def best_trained(self, by: Literal["validation", "test"]) -> UnitResult | None:
        """The best of the networks that several searches led to: by the accuracy on held-out images (where there are
        none, by that of its search), or by test accuracy, which is too high as an estimate for new images. None where
        one search led to all."""
        trained = [unit for unit in self.of("train") if unit.status == "finished" and unit.test_accuracy is not None]
        if len({unit.needs for unit in trained}) < 2:
            return None
        validated = {unit.id: unit.valid_accuracy for unit in self.units}

        def score(unit: UnitResult) -> float | None:
            if by == "test":
                return unit.test_accuracy
            return next((found for i in (unit.id, *unit.needs) if (found := validated.get(i)) is not None), None)

        scored = [(found, unit) for unit in trained if (found := score(unit)) is not None]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None

    @property
    def measure(self) -> tuple[str, Statistic] | None:
        """What cells are compared by, and its value: the test accuracy where networks are tested, else the validation
        accuracy of the searches; None before there is one."""
        for words, name, stages in MEASURES:
            if found := self.mean(name, *stages):
                return words, found
        return None


# An evaluation repeats the test of a training on the images of its own options: it comes first.
MEASURES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("test accuracy", "test_accuracy", ("evaluate", "train", "compare", "search")),
    ("validation accuracy", "valid_accuracy", ("search", "compare", "train")),
)


@dataclass(frozen=True)
class StudyResults:
    """A study as its directory has it now."""

    directory: Path
    plan: Record
    study: Record
    units: tuple[UnitResult, ...]
    chosen: Record = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def count(self, status: Status) -> int:
        return sum(unit.status == status for unit in self.units)

    @property
    def is_finished(self) -> bool:
        return all(unit.status == "finished" for unit in self.units)

    @property
    def name(self) -> str:
        return str(self.plan.get("name") or self.directory.resolve().name)

    @property
    def title(self) -> str:
        return str(self.plan.get("title") or self.name)

    @property
    def grid(self) -> dict[str, list[Any]]:
        found = mapping(self.plan.get("grid"))
        return {str(name): list(values) for name, values in found.items() if isinstance(values, list)}

    @property
    def option_names(self) -> list[str]:
        """Options that grid and list set, those of the grid first."""
        return list(dict.fromkeys([*self.grid, *(name for unit in self.units for name in unit.options)]))

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells of the study, in its order. Random baselines that several cells share are none."""
        groups: dict[str, list[UnitResult]] = {}
        for unit in self.units:
            groups.setdefault(unit.cell, []).append(unit)
        return [
            Cell(slug, units[0].label, units[0].options, tuple(units), mapping(self.chosen.get(slug)).get("unit"))
            for slug, units in groups.items()
        ]

    @property
    def measure(self) -> str:
        """What cells are compared by: what the most of them have, as long as only some are tested."""
        known = [found[0] for cell in self.cells if (found := cell.measure)]
        return max(dict.fromkeys(known), key=known.count, default="validation accuracy")

    def value(self, cell: Cell) -> Statistic | None:
        """The value by which this cell is compared with the others."""
        name, stages = next((name, stages) for words, name, stages in MEASURES if words == self.measure)
        return cell.mean(name, *stages)

    def is_best(self, cell: Cell) -> bool:
        """Whether a cell is the best one of several."""
        return len(self.cells) > 1 and cell is self.best

    @property
    def best(self) -> Cell | None:
        """The cell with the best mean; of equal ones the first. None before there is one."""
        known = [(found.mean, cell) for cell in self.cells if (found := self.value(cell))]
        return max(known, key=lambda pair: pair[0], default=(0.0, None))[1]


def is_study(directory: Path) -> bool:
    return (directory / PLAN).is_file()


def read_study(directory: str | Path) -> StudyResults:
    """Reads a study while it runs or afterwards. What a process has not finished writing, or has written badly, is
    left out and named in `problems`.

    Raises:
        UserError: the directory has no plan.json, or one that is damaged.
    """
    directory = Path(directory)
    path = directory / PLAN
    advice = "give the folder that python -m fastnas.study wrote"
    plan = read_json(path, f"the plan {path}", advice)
    listed = plan.get("units") if isinstance(plan, dict) else None
    if not isinstance(listed, list):
        raise UserError(f"{path} is no plan of a study: {advice}.")
    planned = [_planned(unit, path) for unit in listed]
    problems: list[str] = []
    study = _study(directory / STUDY, problems)
    table = _table(study.get("table"), problems)
    units = tuple(read_unit(unit, directory, table, problems) for unit in planned)
    chosen = json_object(directory / CHOSEN, problems)
    return StudyResults(directory, plan, study, units, chosen, tuple(problems))


def _planned(unit: Any, path: Path) -> UnitResult:
    kinds: dict[str, type] = {
        "id": str, "stage": str, "cell": str, "label": str, "options": dict, "seed": int, "directory": str,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(mapping(unit).get(name), kind):
            raise UserError(f"{path}: a unit has no {name} ({kind.__name__}): start the study again.")
    fields = {name: unit[name] for name in kinds}
    needs = unit.get("needs")
    fields["needs"] = tuple(map(str, needs)) if isinstance(needs, list) else ()
    return UnitResult(**{**fields, "directory": Path(fields["directory"])})


def _study(path: Path, problems: list[str]) -> Record:
    try:
        return mapping(parse_yaml(read_text(path, str(path), "copy it again")))
    except (UserError, ValueError) as error:
        problems.append(f"{STUDY} could not be read: {error}")
        return {}


def _table(path: Any, problems: list[str]) -> NB201 | None:
    if not isinstance(path, str):
        return None
    try:
        return NB201(path)
    except UserError as error:
        problems.append(f"No test accuracies: {error}")
        return None


# --- the table of all units ---

Column = Callable[[UnitResult], Any]
COLUMNS: Mapping[str, Column] = {
    "unit": lambda unit: unit.id,
    "stage": lambda unit: unit.stage,
    "cell": lambda unit: unit.cell,
    "label": lambda unit: unit.label,
    "seed": lambda unit: unit.seed,
    "status": lambda unit: unit.status,
    "epochs": lambda unit: unit.epochs,
    "planned_epochs": lambda unit: unit.planned_epochs,
    "valid_accuracy": lambda unit: unit.valid_accuracy,
    "test_accuracy": lambda unit: unit.test_accuracy,
    "parameters": lambda unit: unit.parameters,
    "macs": lambda unit: unit.macs,
    "seconds": lambda unit: unit.seconds,
    "core_days": lambda unit: unit.days if unit.clock == "core" else None,
    "gpu_days": lambda unit: unit.days if unit.clock == "GPU" else None,
    "derivation_gap": lambda unit: unit.gap,
    "beats_random_percent": lambda unit: unit.beats,
    "skip_connections": lambda unit: json.dumps(dict(unit.skips)) if unit.skips else None,
    "genotype": lambda unit: None if unit.genotype is None else json.dumps(unit.genotype.to_dict()),
    "evidence": lambda unit: "; ".join([unit.evidence, *unit.warnings]).removeprefix("; ") or None,
    "error": lambda unit: unit.error or None,
    "directory": lambda unit: unit.directory.as_posix(),
}


def write_csv(results: StudyResults) -> Path:
    """Writes study.csv, a row for each unit, and returns its path.

    The columns are those of `COLUMNS`, then one for each option that grid and list set, as ``option.zeta``. Accuracies
    are shares in 0..1; what is not known is empty.

    Raises:
        UserError: the file cannot be written; the old one is still there.
    """
    options = results.option_names
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"option.{name}" for name in options)])
    for unit in results.units:
        row = [column(unit) for column in COLUMNS.values()] + [unit.options.get(name) for name in options]
        writer.writerow(["" if value is None else value for value in row])
    path = results.directory / TABLE
    replace_file(path, text.getvalue(), "the table of the study")
    return path
