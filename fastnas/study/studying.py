"""A study from its plan to its results: what the command and Python call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from fastnas.cli.command import print_text
from fastnas.cli.summary import print_report
from fastnas.errors import UserError
from fastnas.input_file import path_of
from fastnas.report.study import write_study_report
from fastnas.report.study_results import StudyResults, read_study
from fastnas.study import estimate
from fastnas.study.definition import AnyPlan, read_definition
from fastnas.study.directory import StudyDirectory
from fastnas.study.executors import EXECUTORS, Executor, Resources
from fastnas.study.executors.base import cores
from fastnas.study.plan import StudyPlan
from fastnas.study.running import Runner
from fastnas.study.table import print_results
from fastnas.study.unit_options import check


@dataclass(frozen=True)
class StudyResult:
    """How a study ended, for now or for good.

    Attributes:
        status: "finished", "failed" (some of its runs, or what they need) or "interrupted" (Ctrl-C).
        directory: of the study.
        failed: the units that failed, by id, with the error of each.
        blocked: the units that need them.
    """

    status: Literal["finished", "failed", "interrupted"]
    directory: Path
    failed: Mapping[str, str]
    blocked: tuple[str, ...]

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.directory / "report.html"

    @cached_property
    def results(self) -> StudyResults:
        """The numbers of all units, and their means over the seeds by cell."""
        return read_study(self.directory)

    def __fspath__(self) -> str:
        return str(self.directory)


def run_study(
    plan: AnyPlan,
    out: Path,
    console: Console,
    *,
    scale: str | None = None,
    threads: int | None = None,
    executor: str | Executor = "local",
    parallel: int | None = None,
    cluster: str | None = None,
    submit: Mapping[str, Any] | None = None,
) -> StudyResult:
    """Begins a study, or goes on with it, and prints its results; see `fastnas.study.run` for the arguments."""
    if isinstance(executor, str) and executor not in EXECUTORS:
        raise UserError(f"unknown executor {executor!r}: expected one of {', '.join(EXECUTORS)}.")
    definition = read_definition(plan, scale, threads)
    epochs = check(StudyPlan(definition), console)
    study = StudyDirectory.begin(path_of(out), definition)
    print_head(study.plan, console)
    print_text(console, f"directory {study.path}")
    if isinstance(executor, str):
        resources = resources_of(study.plan, parallel, cluster, submit)
        executor = EXECUTORS[executor](study.path, resources)
    runner = Runner(study, executor, console, epochs)
    complete = runner.run()
    units = study.plan.units
    failed = {name: _error(study, name) for name, state in runner.states.items() if state == "failed"}
    blocked = tuple(name for name, state in runner.states.items() if state == "blocked")
    if complete:
        print_results(read_study(study.path), console)
        if failed:
            print_text(console, f"{len(failed)} of {len(units)} runs failed; the same command tries them again:")
            for name, error in failed.items():
                print_text(console, f"  {name}: {error}", style="red")
    print_report(study.path / "report.html", console)
    status: Literal["finished", "failed", "interrupted"] = "failed" if failed or blocked else "finished"
    return StudyResult(status if complete else "interrupted", study.path, failed, blocked)


def show_study(
    plan: AnyPlan, out: Path | None, console: Console, *, scale: str | None, threads: int | None, slots: int | None
) -> None:
    """--dry-run: prints what would run and what it would need, and writes nothing."""
    wanted = StudyPlan(read_definition(plan, scale, threads))
    check(wanted, console)
    waiting = list(wanted.units.values())
    if out is not None:
        study = StudyDirectory(path_of(out).absolute(), wanted)
        waiting = [unit for unit in waiting if not study.is_finished(unit)]
    print_head(wanted, console)
    resources = resources_of(wanted, None)
    estimate.show(wanted, waiting, slots or resources.gpus or max(1, cores() // resources.threads), console)


def rewrite(directory: Path, console: Console) -> None:
    """--report: study.csv and the page anew, from the files of the runs."""
    page = write_study_report(directory)
    print_results(read_study(directory), console)
    print_report(page, console)


def print_head(plan: StudyPlan, console: Console) -> None:
    definition = plan.definition
    scale = f", scale {definition.scale}" if definition.scale else ""
    print_text(
        console,
        (definition.title, "bold"),
        f": {len(plan.cells)} cells, {len(plan.units)} runs ({', '.join(definition.stages)}){scale}",
    )
    if definition.note:
        print_text(console, definition.note, style="dim")


def resources_of(
    plan: StudyPlan, parallel: int | None, cluster: str | None = None, submit: Mapping[str, Any] | None = None
) -> Resources:
    """What the runs of a study get: GPUs where there are some, unless it asks for the CPU."""
    base = plan.definition.base
    device = str(next((value for name, value in base.items() if name.rpartition(".")[2] == "device"), "auto"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() and device != "cpu" else 0
    threads = max(value for name, value in base.items() if name.rpartition(".")[2] == "threads")
    return Resources(threads, gpus, parallel, cluster, dict(submit or {}))


def _error(study: StudyDirectory, name: str) -> str:
    return str((study.failure(study.plan.units[name]) or {}).get("error", "unknown"))
