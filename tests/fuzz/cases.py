"""One kind of input after another, each case in a process that may crash or hang without ending the others.

A kind is a function of a `Case`. It makes an input from the case's random numbers, gives it to fastnas, and returns
what came of it: "refused", by an error that is one line, or "result", the same as that of the input's canonical form.
Whatever else it raises is a failure.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import random
import re
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from fastnas.errors import MOST_CHARACTERS, UserError

PATIENCE_SECONDS = 180  # that a case may take; the slowest, a process of its own, takes seconds on a machine at rest
MEMORY_BYTES = 3 << 30  # that a case may add to the process
MOST_FAILURES = 10  # after which a kind ends
POOL, USES = 64, 1000  # values that hypothesis draws at once, and cases that choose among them

Result = TypeVar("Result")


@dataclass
class Case:
    """One input: all that is random about it follows from seed and number."""

    seed: int
    number: int
    folder: Path
    """An empty folder of its own."""
    given: str = ""
    """The input, for the report of a failure."""
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed}-{self.number}")

    def draw(self, strategy: st.SearchStrategy[Result]) -> Result:
        """A value of hypothesis."""
        return self.rng.choice(_values(strategy, self.seed + 7919 * (self.number // USES)))

    def chance(self, share: float) -> bool:
        return self.rng.random() < share


Kind = Callable[[Case], str]
Prepare = Callable[[Path], None]
ALL = range(10**9)


@cache
def _values(strategy: st.SearchStrategy[Any], seed: int) -> list[Any]:
    found: list[Any] = []

    @seeded(seed)
    @settings(
        max_examples=POOL,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found


def outcome(read: Callable[[], Result], check: Callable[[Result], Any]) -> str:
    """Of something that may raise UserError; `check` compares the result with that of the canonical form."""
    try:
        result = read()
    except UserError as error:
        check_line(str(error))
        return "refused"
    check(result)
    return "result"


def check_line(text: str) -> None:
    assert text.strip(), "an error says nothing"
    assert not re.search(r"[\x00-\x1f\x7f]", text), f"an error is more than one line: {text!r}"
    assert len(text) <= MOST_CHARACTERS + 10, f"an error has {len(text)} characters: {text!r}"
    assert "Traceback" not in text, text


def command(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> tuple[int, str]:
    """A command in this process: its exit status, 0 or 2, and what it printed. With 2 that is one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(arguments))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    assert status in (0, 2), f"exit status {status}: {err.getvalue()}"
    if status == 2:
        last = err.getvalue().rstrip("\n").rpartition("\n")[2]
        assert last.startswith("error: "), err.getvalue()
        assert err.getvalue().count("error: ") == 1, err.getvalue()
        check_line(last)
    return status, out.getvalue()


def run_kind(
    kind: Kind, deadline: float, seed: int, prepare: Prepare | None = None, numbers: range = ALL
) -> dict[str, int]:
    """Cases of a seed until `deadline`, of time.monotonic(): how many gave a "result", how many were "refused".

    Args:
        kind: what a case is.
        deadline, seed: see above.
        prepare: makes what all cases need in the folder that `Case.folder` lies in.
        numbers: of the cases.

    Raises:
        AssertionError: cases that did neither, with what repeats them.
    """
    counts: Counter[str] = Counter(result=0, refused=0)
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fastnas-fuzz-", ignore_cleanup_errors=True) as folder:
        if prepare is not None:
            prepare(Path(folder))
        while numbers and time.monotonic() < deadline and len(failures) < MOST_FAILURES:
            number = _watch(kind, deadline, seed, numbers, Path(folder), counts, failures)
            numbers = range(number, numbers.stop)
    if failures:
        raise AssertionError("\n\n".join(failures))
    return dict(counts)


def _watch(
    kind: Kind, deadline: float, seed: int, numbers: range, folder: Path, counts: Counter[str], failures: list[str]
) -> int:
    """A process with the cases of these numbers; the one after the last."""
    number = numbers.start
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            _work(kind, deadline, seed, numbers, folder, writing)
        finally:
            os._exit(0)
    os.close(writing)
    ended, unread = "", b""
    while not ended:
        if not select.select([reading], [], [], PATIENCE_SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
            ended = f"took more than {PATIENCE_SECONDS} seconds"
        elif not (part := os.read(reading, 65536)):
            break
        else:
            *lines, unread = (unread + part).split(b"\n")
            for line in map(bytes.decode, lines):
                if line.startswith("failed "):
                    failures.append(_report(seed, number, ast.literal_eval(line.removeprefix("failed "))))
                else:
                    counts[line] += 1
                number += 1
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if ended or status:
        failures.append(_report(seed, number, ended or f"ended the process: {status}"))
        number += 1
    return number


def _report(seed: int, number: int, text: str) -> str:
    return f"seed {seed}, number {number}: {text}"


def _work(kind: Kind, deadline: float, seed: int, numbers: range, folder: Path, answers: int) -> None:
    failed = 0
    before = _memory()
    for number in numbers:
        if time.monotonic() >= deadline or failed == MOST_FAILURES:
            return
        own = folder / f"case-{number}"
        own.mkdir()
        case = Case(seed, number, own)
        try:
            answer = kind(case)
            assert answer in ("result", "refused"), answer
            if (taken := _memory() - before) > MEMORY_BYTES:
                raise AssertionError(f"took {taken / 2**30:.1f} GiB")
        except BaseException:
            failed += 1
            answer = "failed " + ascii(f"{case.given[:2000]}\n{traceback.format_exc()}")
        before = max(before, _memory())
        os.chdir(folder)
        shutil.rmtree(own, ignore_errors=True)
        os.write(answers, f"{answer}\n".encode())


def _memory() -> int:
    """The most that the process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
