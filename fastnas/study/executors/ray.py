"""Units as tasks of Ray: of the cluster that RAY_ADDRESS names, else of this machine."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from fastnas.engine.interrupt import deferred_interrupts
from fastnas.study.executors.base import Executor, Resources, StopFile, cores, engine
from fastnas.study.worker import work_until

STORE = 100 * 2**20  # bytes for objects: runs exchange files, and nothing else


class RayJob:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def is_over(self) -> bool:
        over, _ = self._ray.wait([self._reference], timeout=0)
        return bool(over)

    def problem(self) -> str | None:
        try:
            self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:
            return f"its task ended: {' '.join(str(error).split())}"
        return None


class Ray(Executor):
    """Tasks that end with the study."""

    def __init__(self, directory: Path, resources: Resources) -> None:
        super().__init__(directory, resources)
        self._ray = engine("ray", "fastnas[ray]")
        self._own = not self._ray.is_initialized()
        if self._own:
            os.environ.setdefault("RAY_worker_niceness", "0")  # else runs give way to everything else on the machine
            with deferred_interrupts():
                here = {"num_cpus": self._wanted_cores(), "object_store_memory": STORE}
                self._ray.init(
                    **({} if os.environ.get("RAY_ADDRESS") else here),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        gpus = min(1, resources.gpus)
        # A process for each: what a run leaves behind in its process must not matter to the next one.
        options = {"num_cpus": resources.threads, "num_gpus": gpus, "max_calls": 1, "max_retries": 0}
        self._work = self._ray.remote(**options)(work_until)
        self._stop = StopFile(directory)
        there = self._ray.cluster_resources()
        most = int(there.get("GPU", 0)) if gpus else int(there.get("CPU", 1)) // resources.threads
        self._slots = max(1, min(resources.parallel or most, most))

    def _wanted_cores(self) -> int:
        return max(cores(), (self.resources.parallel or 1) * self.resources.threads)

    @property
    def slots(self) -> int:
        return self._slots

    def start(self, unit: str) -> RayJob:
        return RayJob(self._ray, self._work.remote(self.directory, unit, list(sys.path), self._stop.path))

    def stop(self) -> None:
        self._stop.touch()

    def close(self) -> None:
        self._stop.remove()
        if self._own:
            self._ray.shutdown()
