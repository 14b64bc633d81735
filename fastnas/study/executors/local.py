"""Units as processes of this machine: one for each GPU, or as many as there are cores for their threads."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from fastnas.study.executors.base import Executor, Resources, cores

LAST_WORDS = 2000  # characters of a log
WORK = "import sys; from fastnas.study.worker import main; sys.exit(main())"


class LocalJob:
    """A process, whose standard input stops it once it is closed. What it says is in a file beside the unit."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, over: Callable[[], None]) -> None:
        self._process, self._log, self._over = process, log, over

    def stop(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def is_over(self) -> bool:
        if self._process.poll() is None:
            return False
        self.stop()
        self._over()
        with contextlib.suppress(OSError):
            if not self._log.stat().st_size:
                self._log.unlink()
        return True

    def problem(self) -> str | None:
        status = self._process.returncode
        if status == 0:
            return None
        if status < 0:
            kill = " (which the system does where memory runs out)" if -status == signal.SIGKILL else ""
            return f"its process was ended by {signal.Signals(-status).name}{kill}"
        said = self._log.read_text(errors="replace").strip()[-LAST_WORDS:] if self._log.exists() else ""
        return f"its process ended with status {status}: {said.splitlines()[-1] if said else 'without a word'}"


class Local(Executor):
    """Processes that end with the study."""

    def __init__(self, directory: Path, resources: Resources) -> None:
        super().__init__(directory, resources)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(number) for number in range(resources.gpus)]
        self._free = [device.strip() for device in devices[: resources.gpus]]
        self._jobs: list[LocalJob] = []

    @property
    def slots(self) -> int:
        wanted = self.resources.parallel
        if self.resources.gpus:
            return min(wanted or self.resources.gpus, self.resources.gpus)
        return wanted or max(1, cores() // self.resources.threads)

    def start(self, unit: str) -> LocalJob:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH", "")])),
            # Pools of threads that read it at the start, and so the bits, do not depend on the caller's.
            "OMP_NUM_THREADS": str(self.resources.threads),
        }
        device = self._free.pop(0) if self._free else None
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        log = self.directory / "cells" / f"{unit}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", WORK, str(self.directory), unit],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # a terminal sends Ctrl-C to all of its own
            )

        def over() -> None:
            nonlocal device
            if device is not None:
                self._free.append(device)
                device = None

        job = LocalJob(process, log, over)
        self._jobs.append(job)
        return job

    def stop(self) -> None:
        for job in self._jobs:
            job.stop()
