"""Runs of search, train and compare that take seconds, each in a process of its own, and what they leave behind.

A process is forked from one that has imported everything, so that what happens to it happens in its work, not in its
imports.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
from run_files import SMALL, events, same_bits

from fastnas import compare, search, train
from fastnas.engine.checkpoint import load_checkpoint

TRAIN = shlex.split(
    "--data digits --limit 120 --image-size 8 --genotype PDARTS --channels 2 --layers 3 --batch-size 16 --epochs 3 "
    "--learning-rate 0.1 --cutout 2 --device cpu --validation 0.2 --seeds 1,2"
)
COMPARE = shlex.split(
    "--strategies random,aging-evolution --evaluator python:small_runs:score --runs 40 --budget 300 --processes 1"
)
TIMES = ("seconds", "log_position", "options")


def score(genotype: Any) -> dict[str, float]:
    """An evaluator with a simulated clock: every evaluation takes a second."""
    return {"accuracy": sum("conv" in name for name, _ in genotype.normal) / 8, "seconds": 1.0}


@dataclass(frozen=True, eq=False)
class Command:
    """A command on one set of arguments.

    Args:
        name: of the command.
        main: the command.
        begin: its arguments; a comparison goes on by the same ones.
        resumes: whether it goes on by --resume.
        finished: what is there once it is done.
    """

    name: str
    main: Callable[[list[str]], int]
    begin: list[str]
    resumes: bool
    finished: str

    def arguments(self, directory: Path) -> list[str]:
        """To begin, or to go on with what is there."""
        if self.resumes and checkpoints(directory) and (directory / "config.yaml").exists():
            return ["--resume", str(directory)]
        return [*self.begin, "--out", str(directory)]


COMMANDS = (
    Command("search", search.main, SMALL, True, "genotype.json"),
    Command("train", train.main, TRAIN, True, "results.json"),
    Command("compare", compare.main, COMPARE, False, "report.html"),
)


def start(command: Command, directory: Path, output: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Begins or goes on in a process of its own, which calls `prepare` first; its pid. What it says is in `output`."""
    arguments = command.arguments(directory)
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
            prepare()
            status = command.main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid


def wait(pid: int) -> int:
    """Exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def complete(command: Command, directory: Path, output: Path) -> None:
    """Runs to the end."""
    status = wait(start(command, directory, output))
    assert status == 0, f"{command.name} ended with status {status}: {output.read_text()[-2000:]}"


def checkpoints(directory: Path) -> list[Path]:
    return sorted(directory.glob("checkpoint.pt")) + sorted(directory.glob("seed-*/checkpoint.pt"))


def result(command: Command, directory: Path) -> dict[str, Any]:
    """All that two equal runs have in common: every number, weight and random state, but no clock."""
    if command.name == "compare":
        return {"runs": sorted((directory / "runs.jsonl").read_text().splitlines())}
    found: dict[str, Any] = {"genotype": (directory / "genotype.json").read_text()}
    for path in checkpoints(directory):
        state = load_checkpoint(path)
        where = path.parent.relative_to(directory)
        found[f"{where} state"] = {key: value for key, value in state.items() if key not in TIMES}
        found[f"{where} events"] = events(path.parent)
        if (path.parent / "network.safetensors").exists():
            found[f"{where} network"] = (path.parent / "network.safetensors").read_bytes()
    return found


def assert_same(command: Command, directory: Path, whole: dict[str, Any]) -> None:
    """That a run ended as the uninterrupted one, and left nothing behind."""
    found = result(command, directory)
    assert found.keys() == whole.keys()
    for name in whole:
        assert same_bits(found[name], whole[name]), f"{command.name}: {name} differs"
    left = [str(path) for path in directory.rglob(".*")]
    assert not left, f"left behind: {left}"


def one_line(text: str) -> str:
    """The error in what a process said, which must be the only one and no traceback."""
    errors = [line for line in text.splitlines() if re.match("error: ", line)]
    assert len(errors) == 1, text
    assert "Traceback" not in text, text
    assert len(errors[0]) <= 600, errors[0]
    return errors[0]


def remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
