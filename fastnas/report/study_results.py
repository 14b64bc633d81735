"""What the run directories of a study hold: the status and the numbers of each unit, and their means over the seeds."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from fastnas.atomic_file import replace_file
from fastnas.errors import UserError
from fastnas.evaluators import NB201
from fastnas.genotype import AnyGenotype
from fastnas.input_file import read_json, read_text
from fastnas.report.evidence import evidence_words
from fastnas.report.result import derived_networks
from fastnas.report.results import read_results
from fastnas.report.run import Record, Run, is_number, mapping, read_run
from fastnas.report.training import test_of
from fastnas.spaces.encoding import encoding_of
from fastnas.spaces.nb201 import SPACE, NB201Genotype, any_genotype
from fastnas.yaml_text import parse_yaml

PLAN, STUDY, CHOSEN, TABLE = "plan.json", "study.yaml", "chosen.json", "study.csv"
EVALUATION = "evaluate.json"
SILENCE = 120.0  # seconds without a sign of life, which comes every 30, after which a claim is that of a killed process

Status = Literal["waiting", "running", "interrupted", "finished", "failed"]
Point = tuple[int, float]


@dataclass(frozen=True)
class UnitResult:
    """One unit of a study: a search, a training, an evaluation. Whatever is not known yet is None or empty.

    Args:
        options: what grid and list set; names without the group.
        directory: relative to that of the study.
        needs: ids of the units that have to end before it.
        error, failed_after: of a unit that failed; seconds.
        epochs, planned_epochs: done, and of the whole run.
        valid_accuracy: the last one, in 0..1.
        test_accuracy: of the trained network, in 0..1; of a searched cell of NAS-Bench-201 that of the table, if the
            study names it.
        parameters, macs: of the network of the found cell that is to be trained, or of the trained one.
        seconds: wall time.
        days: GPU-days on a GPU (one for each process), core-days on a CPU (as many as it had threads).
        gap: derivation gap at the end of a search, a difference of accuracies.
        beats: how many of the random cells of its size the found cell beats by shared weights, equal ones half; in %.
        skips: skip connections of the cells, by kind.
        curve: (epochs done, validation accuracy in 0..1).
    """

    id: str
    stage: str
    cell: str
    label: str
    options: Mapping[str, Any]
    seed: int
    directory: Path
    needs: tuple[str, ...] = ()
    status: Status = "waiting"
    error: str = ""
    failed_after: float | None = None
    epochs: int = 0
    planned_epochs: int | None = None
    valid_accuracy: float | None = None
    test_accuracy: float | None = None
    parameters: int | None = None
    macs: int | None = None
    seconds: float | None = None
    days: float | None = None
    clock: Literal["core", "GPU"] | None = None
    gap: float | None = None
    beats: float | None = None
    skips: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[Point, ...] = ()
    genotype: AnyGenotype | None = None
    evidence: str = ""
    warnings: tuple[str, ...] = ()
    page: Path | None = None


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
    units = tuple(_read_unit(unit, directory, table, problems) for unit in planned)
    chosen = _json(directory / CHOSEN, problems)
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


def _json(path: Path, problems: list[str]) -> Record:
    """The object in a file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        return mapping(read_json(path, path.name, "copy it again"))
    except UserError as error:
        problems.append(str(error))
        return {}


def _table(path: Any, problems: list[str]) -> NB201 | None:
    if not isinstance(path, str):
        return None
    try:
        return NB201(path)
    except UserError as error:
        problems.append(f"No test accuracies: {error}")
        return None


# --- a unit ---


def _read_unit(unit: UnitResult, study: Path, table: NB201 | None, problems: list[str]) -> UnitResult:
    folder = study / unit.directory
    claimed = _is_alive(folder.with_name(f"{folder.name}.claim"))
    failure = folder.with_name(f"{folder.name}.failed.json")
    if unit.stage == "evaluate":
        unit = _evaluated(unit, folder, problems)
    elif unit.stage == "compare":
        unit = _compared(unit, folder, problems)
    elif folder.is_dir():
        unit = _ran(unit, read_run(folder), table)
    if unit.status == "finished":
        return unit
    if claimed:
        return replace(unit, status="running")
    if failure.is_file():
        record = _json(failure, problems)
        seconds = record.get("seconds")
        error = str(record.get("error") or "its error was not recorded")
        return replace(unit, status="failed", error=error, failed_after=seconds if is_number(seconds) else None)
    return unit


def _is_alive(claim: Path) -> bool:
    try:
        return time.time() - claim.stat().st_mtime < SILENCE
    except OSError:  # there is none, or its holder has just removed it
        return False


def _ran(unit: UnitResult, run: Run, table: NB201 | None) -> UnitResult:
    """The unit with the numbers of its run directory."""
    sizes = run.network if run.is_training else next(iter(derived_networks(run)[-1:]), {})
    top1 = test_of(run).get("top1")
    said, warned = evidence_words(run.evidence)
    derivation = mapping(run.evidence.get("derivation"))
    supernet, cell = derivation.get("supernet"), derivation.get("cell")
    beats = mapping(run.evidence.get("comparison")).get("percentile")
    days, clock = _days(run)
    page = run.path / "report.html"
    validated = ((epoch["epoch"] + 1, epoch.get("valid_accuracy")) for epoch in run.epochs)
    return replace(
        unit,
        # A run that has ended well is finished; whatever it has written so far, nobody is at work on any other.
        status="finished" if run.status == "finished" else "waiting" if run.status == "not started" else "interrupted",
        epochs=len(run.epochs),
        planned_epochs=run.planned_epochs,
        valid_accuracy=None if run.valid_accuracy is None else run.valid_accuracy[0],
        test_accuracy=float(top1) if is_number(top1) else _judged(run.genotype, table),
        parameters=_whole(sizes.get("parameters")),
        macs=_whole(sizes.get("macs")),
        seconds=run.seconds,
        days=days,
        clock=clock,
        gap=float(supernet) - float(cell) if is_number(supernet) and is_number(cell) else None,
        beats=float(beats) if is_number(beats) else None,
        skips={} if run.genotype is None else {kind: run.genotype.skip_count(kind) for kind in run.genotype.kinds},
        curve=tuple((epoch, float(accuracy)) for epoch, accuracy in validated if is_number(accuracy)),
        genotype=run.genotype,
        evidence="; ".join(said),
        warnings=tuple(warned),
        page=unit.directory / page.name if page.is_file() else None,
    )  # fmt: skip


def _evaluated(unit: UnitResult, folder: Path, problems: list[str]) -> UnitResult:
    record = _json(folder / EVALUATION, problems)
    top1 = mapping(record.get("evaluation")).get("top1")
    if not record:
        return replace(unit, status="interrupted" if folder.is_dir() else "waiting")
    page = folder / "evaluation.html"
    return replace(
        unit,
        status="finished",
        test_accuracy=float(top1) if is_number(top1) else None,
        parameters=_whole(record.get("parameters")),
        macs=_whole(record.get("macs")),
        page=unit.directory / page.name if page.is_file() else None,
    )


def _compared(unit: UnitResult, folder: Path, problems: list[str]) -> UnitResult:
    """The mean over the runs of a comparison; the genotype is the best one by validation accuracy."""
    page = folder / "report.html"  # written at the end
    status: Status = "finished" if page.is_file() else "interrupted" if folder.is_dir() else "waiting"
    try:
        runs = read_results(folder)
    except UserError as error:
        problems.append(str(error))
        runs = []
    if not runs:
        return replace(unit, status=status)
    judged = [run.judged for run in runs if run.judged is not None]
    return replace(
        unit,
        status=status,
        valid_accuracy=fmean(run.accuracy for run in runs),
        test_accuracy=fmean(judged) if len(judged) == len(runs) else None,
        genotype=any_genotype(max(runs, key=lambda run: run.accuracy).genotype),
        page=unit.directory / page.name if page.is_file() else None,
    )


def _days(run: Run) -> tuple[float | None, Literal["core", "GPU"] | None]:
    """GPU-days or core-days of a run: its wall time, on a CPU times its threads."""
    device, threads = str(run.environment.get("device", "")), run.environment.get("threads")
    if run.seconds is None or not device:
        return None, None
    if device.startswith("cuda"):
        return run.seconds / 86400, "GPU"
    return (run.seconds * threads / 86400, "core") if is_number(threads) else (None, None)


def _judged(genotype: AnyGenotype | None, table: NB201 | None) -> float | None:
    """The table's test accuracy of a cell of NAS-Bench-201."""
    if table is None or not isinstance(genotype, NB201Genotype):
        return None
    return table.judge(encoding_of(SPACE).encode(genotype))


def _whole(value: object) -> int | None:
    return int(value) if is_number(value) else None


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
