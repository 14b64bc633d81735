"""Runs a study: gives its units to an executor, waits for them, and shows how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fastnas.cli.command import print_text
from fastnas.cli.time_left import short_time
from fastnas.errors import UserError
from fastnas.report.study import write_study_report
from fastnas.study.directory import StudyDirectory
from fastnas.study.executors import Executor, Job
from fastnas.study.plan import Unit
from fastnas.study.time_left import StudyTime, epochs_done

POLL = 0.2  # seconds between two looks at the jobs
LOOK = 2.0  # between two looks at what others do, and at epochs
SHARE = 0.1  # of the time at most that is spent on writing the page

State: TypeAlias = Literal["finished", "failed", "blocked"]
"""failed: in this process, or in another one since this one began. blocked: what it needs has failed."""


class Runner:
    """Runs what is left of a study.

    Args:
        study: its directory.
        executor: runs the units.
        console: where progress is shown.
        epochs: of the runs of each cell and stage, where they have any.
    """

    def __init__(
        self, study: StudyDirectory, executor: Executor, console: Console, epochs: Mapping[tuple[str, str], int]
    ) -> None:
        self.study, self.executor, self.console = study, executor, console
        self.units = study.plan.units
        self.states: dict[str, State] = {}
        self._jobs: dict[str, Job] = {}
        self._killed: set[str] = set()  # whose process ended by no will of its own
        self._former = {unit.id: study.failure(unit) for unit in self.units.values()}
        planned = {unit.id: epochs.get((unit.cell.slug, unit.stage), 1) for unit in self.units.values()}
        self._planned = planned
        self._done: dict[str, int] = {}  # epochs of units that are not over
        self._time = StudyTime(planned, {unit.id: unit.stage for unit in self.units.values()})
        self._looked = -LOOK
        self._written = (0.0, 0.0)  # when the page was written, and how long that took

    def run(self) -> bool:
        """Returns whether all came to an end, well or not; False after Ctrl-C, once every process has stopped."""
        for unit in self.units.values():
            if self.study.is_finished(unit):
                self.states[unit.id] = "finished"
            else:
                self._done[unit.id] = epochs_done(self.study.folder(unit))
        if kept := len(self.states):
            print_text(self.console, f"{kept} of {len(self.units)} runs are there already")
        complete = True
        try:
            with self._shown() as refresh:
                while len(self.states) < len(self.units):
                    self._step()
                    refresh()
                    time.sleep(POLL)
        except KeyboardInterrupt:
            complete = False
            print_text(self.console, "stopping: every run ends after its step")
        finally:
            self.executor.stop()
            while self._jobs:
                self._reap(stopping=True)
                time.sleep(POLL)
            self.executor.close()
        self._write(at_once=True)
        return complete

    def _step(self) -> None:
        self._reap()
        looking = time.monotonic() - self._looked >= LOOK
        if looking:
            self._looked = time.monotonic()
        for unit in self.units.values():
            if unit.id in self.states or unit.id in self._jobs:
                continue
            ready = self._ready(unit)
            if ready == "blocked":
                self._settle(unit, "blocked")
            elif ready and (looking or len(self._jobs) < self.executor.slots):
                self._consider(unit)

    def _ready(self, unit: Unit) -> bool | Literal["blocked"]:
        """Whether a unit can begin; blocked where it never will."""
        needed = [self.states.get(name) for name in unit.needs]
        if not self._takes_chosen(unit):
            if any(state in ("failed", "blocked") for state in needed):
                return "blocked"
            return all(state == "finished" for state in needed)
        if None in needed:
            return False
        return True if "finished" in needed else "blocked"

    def _takes_chosen(self, unit: Unit) -> bool:
        return self.study.plan.chooses and unit.stage in ("train", "baseline")

    def _consider(self, unit: Unit) -> None:
        """Gives a unit away, unless somebody else works on it, or has done so."""
        if self.study.is_claimed(unit):
            return
        if self.study.is_finished(unit):
            self._settle(unit, "finished")
            return
        failure = self.study.failure(unit)
        if failure is not None and failure != self._former[unit.id]:
            self._settle(unit, "failed", str(failure.get("error")))
            return
        if len(self._jobs) >= self.executor.slots:
            return
        if self._takes_chosen(unit):
            try:
                self.study.choose(unit)
            except UserError as error:
                self.study.fail(unit, str(error), 0.0)
                self._settle(unit, "failed", str(error))
                return
        self._time.begin(unit.id, self._done[unit.id])
        self._jobs[unit.id] = self.executor.start(unit.id)

    def _reap(self, stopping: bool = False) -> None:
        """Takes note of the jobs that are over."""
        for name in [name for name, job in self._jobs.items() if job.is_over()]:
            unit, problem = self.units[name], self._jobs.pop(name).problem()
            finished = self.study.is_finished(unit)
            self._done[name] = self._planned[name] if finished else epochs_done(self.study.folder(unit))
            seconds = self._time.end(name, self._done[name])
            failure = self.study.failure(unit)
            if finished:
                self._settle(unit, "finished", short_time(seconds))
            elif stopping:
                continue
            elif failure is not None and failure != self._former[name]:
                self._settle(unit, "failed", str(failure.get("error")))
            elif problem is not None and not self.study.is_claimed(unit):
                if name not in self._killed:  # whatever it was, the run goes on at its last checkpoint
                    self._killed.add(name)
                    print_text(self.console, f"{name}: {problem}; once more", style="yellow")
                    continue
                self.study.fail(unit, problem, seconds)
                self._settle(unit, "failed", problem)

    def _settle(self, unit: Unit, state: State, said: str = "") -> None:
        self.states[unit.id] = state
        style = {"finished": "", "failed": "red", "blocked": "yellow"}[state]
        words = said or ("what it needs has failed" if state == "blocked" else "by another process")
        print_text(self.console, f"{state:<8} ", (unit.id, "bold"), f"  {words}", style=style)
        self._write()

    def _write(self, at_once: bool = False) -> None:
        """study.csv and the page anew, unless that would take more than a tenth of the time."""
        when, took = self._written
        begin = time.monotonic()
        if not at_once and begin - when < took / SHARE:
            return
        try:
            write_study_report(self.study.path)
        except UserError as error:
            print_text(self.console, f"no report: {error}", style="yellow")
        self._written = time.monotonic(), time.monotonic() - begin

    @contextmanager
    def _shown(self) -> Iterator[Callable[[], None]]:
        """A bar on a terminal: epochs of all runs, and what is left."""
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=32), TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(), console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        total = sum(self._planned.values())
        task = bar.add_task("", total=total, left="")
        drawn = -LOOK

        def refresh() -> None:
            nonlocal drawn
            if bar.disable or time.monotonic() - drawn < LOOK:
                return
            drawn = time.monotonic()
            for name in self._jobs:
                self._done[name] = epochs_done(self.study.folder(self.units[name]))
            waiting = {name: done for name, done in self._done.items() if name not in self.states}
            left = self._time.left(waiting, self.executor.slots)
            rest = sum(self._planned[name] - done for name, done in waiting.items())
            words = "" if left is None else f"{short_time(left.seconds)}{'' if left.all_known else ' and more'} left"
            bar.update(
                task,
                completed=total - rest,
                description=f"{len(self.states)}/{len(self.units)} runs, {len(self._jobs)} at work",
                left=words,
            )

        with bar:
            yield refresh
