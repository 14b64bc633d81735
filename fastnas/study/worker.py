"""One unit of a study in this process: claimed, begun or resumed, and its failure recorded.

A process of the local executor calls `main`. It stops, at the next place where the run can be resumed exactly, once its
standard input is closed: by the study, or because the study is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Literal, TypeAlias

from rich.console import Console

from fastnas.api import run_evaluate, run_search, run_train
from fastnas.cli.comparison import compare
from fastnas.cli.configuration import parse_search, parse_train
from fastnas.cli.run_directory import CHECKPOINT, locked_directory
from fastnas.cli.run_lock import InUseError
from fastnas.errors import UserError
from fastnas.report import write_report
from fastnas.report.comparison import write_comparison
from fastnas.report.run import read_run
from fastnas.study.baseline import genotype_of
from fastnas.study.directory import StudyDirectory
from fastnas.study.plan import Unit
from fastnas.study.unit_options import COMMANDS, compare_options, evaluate_options, search_options, train_options

Status: TypeAlias = Literal["finished", "failed", "interrupted", "elsewhere"]


class Stopped(BaseException):
    """This process was asked to end while no run was in progress that saves its state."""


def work(directory: Path, unit_id: str) -> Status:
    """Begins a unit, or goes on with it.

    Returns:
        finished: it is done, by this process or another one.
        failed: which is recorded beside its directory.
        interrupted: it goes on another time.
        elsewhere: another process is at work on it.
    """
    study = StudyDirectory.open(directory)
    unit = study.plan.units[unit_id]
    begin = time.perf_counter()
    try:
        with study.claim(unit):
            try:
                study.forget_failure(unit)
                return _run(study, unit)
            except InUseError:  # the run itself, by a process whose claim has just run out
                raise
            except Exception as error:
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                where = {} if isinstance(error, UserError) else {"traceback": traceback.format_exc()}
                said = " ".join(f"{kind}{error}".split())
                study.fail(unit, said, time.perf_counter() - begin, **where)
                return "failed"
    except InUseError:
        return "elsewhere"
    except (Stopped, KeyboardInterrupt):
        return "interrupted"


def _run(study: StudyDirectory, unit: Unit) -> Status:
    folder = study.folder(unit)
    if not study.is_finished(unit):
        return RUN[unit.stage](study, unit, folder)
    if (
        unit.stage in ("search", "train", "baseline") and not (folder / "report.html").exists()
    ):  # killed at the very end
        write_report(folder)
    return "finished"


def _search(study: StudyDirectory, unit: Unit, folder: Path) -> Status:
    if _can_resume(folder):
        arguments = ["--resume", str(folder)]
        options = parse_search(arguments, COMMANDS["search"], "")
    else:
        options, arguments = search_options(study.plan.settings(unit.cell, "search"), unit.seed, folder)
    return _ended(run_search(options, arguments, Console(quiet=True)).status)


def _train(study: StudyDirectory, unit: Unit, folder: Path) -> Status:
    if _can_resume(folder):
        arguments = ["--resume", str(folder)]
        options = parse_train(arguments, COMMANDS["train"], "")
    else:
        search = study.source(unit)
        run = None if search is None else study.folder(search)
        genotype = genotype_of(study, unit) if unit.stage == "baseline" else None
        settings = study.plan.settings(unit.cell, "train")
        options, arguments = train_options(settings, unit.seed, folder, run, genotype)
    return _ended(run_train(options, arguments, Console(quiet=True)).status)


def _evaluate(study: StudyDirectory, unit: Unit, folder: Path) -> Status:
    network = study.folder(study.plan.units[unit.needs[0]])
    settings = {"data": _tested_on(network)} | study.plan.settings(unit.cell, "evaluate")
    options = evaluate_options(settings, network, folder)
    folder.mkdir(exist_ok=True)
    run_evaluate(options, [str(network)], Console(quiet=True))
    return "finished"


def _tested_on(training: Path) -> str | None:
    """The images that a training was tested on; None for none."""
    run = read_run(training)
    data, test = (str(run.option("data", name)) for name in ("data", "test"))
    if test == "none":
        return None
    return data if test == "same" or test.replace(".", "").isdecimal() else test


def _compare(study: StudyDirectory, unit: Unit, folder: Path) -> Status:
    options = compare_options(study.plan.settings(unit.cell, "compare"), unit.seed, folder)
    with locked_directory(folder):
        compare(options, Console(quiet=True))
        write_comparison(folder)
    return "finished"


RUN: dict[str, Callable[[StudyDirectory, Unit, Path], Status]] = {
    "search": _search, "train": _train, "baseline": _train, "evaluate": _evaluate, "compare": _compare,
}  # fmt: skip


def _ended(status: str) -> Status:
    return "finished" if status == "finished" else "interrupted"


def _can_resume(folder: Path) -> bool:
    return (folder / CHECKPOINT).exists() and (folder / "config.yaml").exists()


# --- being stopped ---


@contextlib.contextmanager
def stoppable(wait: Callable[[], object]) -> Iterator[None]:
    """While the context is open, SIGTERM ends the work at the next good place, and is sent to this process once `wait`,
    which another thread calls, has returned.

    A run that is in progress hears it and saves its state; anything else is left by `Stopped`. Off the main thread
    there are no signals, and nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()

    def stop() -> None:
        wait()
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=stop, name="study", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def work_until(directory: Path, unit_id: str, path: Sequence[str], stop: Path) -> Status:
    """`work` in a process that some engine has started.

    Args:
        directory, unit_id: as of `work`.
        path: where modules are found.
        stop: a file; once it is there, the work ends.
    """
    sys.path.extend(each for each in path if each not in sys.path)

    def wait() -> None:
        while not stop.exists():
            time.sleep(1)

    if stop.exists():
        return "interrupted"
    try:
        with stoppable(wait):
            return work(directory, unit_id)
    except Stopped:  # after the work
        return "interrupted"


def main() -> int:
    """The process of the local executor. Returns 0, whatever the unit came to: its files say it."""
    directory, unit_id = sys.argv[1:]
    # Not sys.stdin: at the end of the process, its lock would be waited for.
    with contextlib.suppress(Stopped), stoppable(lambda: os.read(0, 1)):
        work(Path(directory), unit_id)
    return 0
