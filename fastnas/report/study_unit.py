"""What a study knows of one unit, a search, a training, an evaluation or a comparison: from its directory and the files
beside it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from fastnas.errors import UserError
from fastnas.evaluators import NB201
from fastnas.genotype import AnyGenotype
from fastnas.input_file import read_json
from fastnas.report.evidence import evidence_words
from fastnas.report.result import derived_networks
from fastnas.report.results import read_results
from fastnas.report.run import Record, Run, is_number, mapping, read_run
from fastnas.report.training import test_of
from fastnas.spaces.encoding import encoding_of
from fastnas.spaces.nb201 import SPACE, NB201Genotype, any_genotype

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


def json_object(path: Path, problems: list[str]) -> Record:
    """The object in a file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        return mapping(read_json(path, path.name, "copy it again"))
    except UserError as error:
        problems.append(str(error))
        return {}


def read_unit(unit: UnitResult, study: Path, table: NB201 | None, problems: list[str]) -> UnitResult:
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
        record = json_object(failure, problems)
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
    record = json_object(folder / EVALUATION, problems)
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
