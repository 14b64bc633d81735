"""Units as jobs of SLURM, through submitit; its cluster "local" runs them as processes of this machine."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from fastnas.engine.interrupt import deferred_interrupts
from fastnas.errors import UserError
from fastnas.study.executors.base import Executor, Resources, StopFile, cores, engine
from fastnas.study.worker import work_until

FOLDER = "submitit"  # for its scripts and logs, in the directory of the study
QUEUED = 100  # jobs at a time
DEFAULTS = {"timeout_min": 24 * 60, "name": "fastnas"}


class Task:
    """The work of one job. At the end of its time it is queued again, and the run goes on at its last checkpoint."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __call__(self) -> str:
        return work_until(*self.arguments)

    def checkpoint(self) -> Any:
        return engine("submitit", "fastnas[slurm]").helpers.DelayedSubmission(Task(*self.arguments))


class SubmititJob:
    def __init__(self, job: Any) -> None:
        self.job = job

    def is_over(self) -> bool:
        return bool(self.job.done())

    def problem(self) -> str | None:
        error = self.job.exception()
        return None if error is None else f"its job {self.job.job_id} ended: {' '.join(str(error).split())}"


class Submitit(Executor):
    """Jobs that go on where the study is killed: the next one waits for them."""

    def __init__(self, directory: Path, resources: Resources) -> None:
        super().__init__(directory, resources)
        submitit = engine("submitit", "fastnas[slurm]")
        try:
            self._executor = submitit.AutoExecutor(folder=directory / FOLDER, cluster=resources.cluster)
            self.cluster = self._executor.cluster
            wanted = {"cpus_per_task": resources.threads, **resources.parameters}
            self._executor.update_parameters(**{**DEFAULTS, **wanted})
        except Exception as error:  # it has errors of several kinds for what it does not like
            raise UserError(f"submitit cannot be used: {' '.join(str(error).split())}.") from error
        self._stop = StopFile(directory)
        self._jobs: list[SubmititJob] = []

    @property
    def slots(self) -> int:
        wanted = self.resources.parallel
        if self.cluster != "local":
            return wanted or QUEUED
        return wanted or self.resources.gpus or max(1, cores() // self.resources.threads)

    def start(self, unit: str) -> SubmititJob:
        with deferred_interrupts():
            job = SubmititJob(self._executor.submit(Task(self.directory, unit, list(sys.path), self._stop.path)))
        self._jobs.append(job)
        return job

    def stop(self) -> None:
        self._stop.touch()
        for each in self._jobs:
            if each.job.state == "PENDING":
                with contextlib.suppress(Exception):
                    each.job.cancel(check=False)

    def close(self) -> None:
        self._stop.remove()
