"""A short form of the fuzz of files, folders, options and evaluators; `python tests/fuzz/run.py` for more."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fuzz import cases
from fuzz.run import KINDS

from fastnas.errors import UserError

RUN = Path(__file__).with_name("run.py")
COUNTS = {"genotypes": 200, "arrays": 100, "evaluators": 100, "configurations": 20, "tables": 12, "checkpoints": 12}
COUNT = 20  # of the other kinds


@pytest.mark.parametrize("name", [name for name in KINDS if name != "operators"])
def test_every_input_is_refused_in_one_line_or_gives_its_result(name: str, seed: int) -> None:
    if torch.cuda.is_available():  # autograd's threads for a GPU do not survive a fork
        command = [sys.executable, str(RUN), "--kinds", name, "--seconds", "20", "--seed", str(seed)]
        subprocess.run(command, check=True)
        return
    kind, count = importlib.import_module(f"fuzz.{name}"), COUNTS.get(name, COUNT)
    found = cases.run_kind(kind.one, time.monotonic() + 600, seed, getattr(kind, "prepare", None), numbers=range(count))
    assert sum(found.values()) == count
    assert found.keys() == {"result", "refused"}


def raising(error: BaseException) -> Callable[[], None]:
    def read() -> None:
        raise error

    return read


FAULTS: dict[str, tuple[cases.Kind, str]] = {
    "traceback": (lambda case: cases.outcome(raising(KeyError("x")), lambda _: None), "KeyError: 'x'"),
    "silence": (lambda case: cases.outcome(raising(UserError(" ")), lambda _: None), "an error says nothing"),
    "other result": (lambda case: cases.outcome(lambda: 1, lambda found: 1 / (found - 1)), "ZeroDivisionError"),
    "exit": (lambda case: os._exit(3), "ended the process: 3"),
    "crash": (lambda case: os.kill(os.getpid(), 9), "ended the process: -9"),  # type: ignore[dict-item,func-returns-value]
    "hang": (lambda case: time.sleep(60), "took more than 1 seconds"),  # type: ignore[dict-item,func-returns-value]
    "memory": (lambda case: str(len(bytearray(2**28))), "took"),
    "traceback of a command": (lambda case: str(cases.command(lambda _: 1 // 0, [])), "ZeroDivisionError"),
    "status": (lambda case: str(cases.command(lambda _: 1, [])), "exit status 1"),
    "no line": (lambda case: str(cases.command(lambda _: 2, [])), "AssertionError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_else_happens_is_a_failure_with_seed_and_number(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "PATIENCE_SECONDS", 1)
    monkeypatch.setattr(cases, "MEMORY_BYTES", 2**27)
    kind, message = FAULTS[fault]

    def one(case: cases.Case) -> str:
        case.given = f"input {case.number}"
        if case.number != 1:
            return "result"
        answer = kind(case)
        return "result" if fault == "memory" else answer

    with pytest.raises(AssertionError, match=rf"(?s)seed 7, number 1: .*{message}"):
        cases.run_kind(one, time.monotonic() + 60, 7, numbers=range(3))


def test_a_case_is_the_same_whenever_it_is_made(tmp_path_factory: pytest.TempPathFactory) -> None:
    from hypothesis import strategies as st

    first, again, other = (cases.Case(1, number, tmp_path_factory.mktemp("case")) for number in (5, 5, 6))
    numbers = [(case.rng.random(), case.draw(st.integers()), case.rng.random()) for case in (first, again, other)]
    assert numbers[0] == numbers[1] != numbers[2]
