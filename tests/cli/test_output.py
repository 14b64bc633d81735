"""Standard output that cannot show a character, that is full, or that nobody reads any more: nothing dies, nothing is
lost, and a command that has only its output says so."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fastnas import search
from fastnas.cli.command import command, print_document, print_text, run_command
from fastnas.cli.output import Output, in_ascii, in_encoding, safe_output

FULL, GONE = OSError(errno.ENOSPC, "No space left on device"), BrokenPipeError(errno.EPIPE, "Broken pipe")


class Failing(io.StringIO):
    """A stream that takes some calls of `write`, then none."""

    def __init__(self, error: OSError, good: int = 0) -> None:
        super().__init__()
        self.error, self.good, self.calls = error, good, 0

    def write(self, text: str) -> int:
        self.calls += 1
        if self.calls > self.good:
            raise self.error
        return super().write(text)


def encoded(encoding: str) -> tuple[Output, io.BytesIO]:
    written = io.BytesIO()
    return Output(io.TextIOWrapper(written, encoding=encoding, write_through=True)), written


# --- characters ---


@pytest.mark.parametrize(
    ("sign", "expected"),
    [("α", "alpha"), ("Σ", "Sigma"), ("ω", "omega"), ("×", "x"), ("±", "+-"), ("─", "-"), ("│", "|"),
     ("╭", "+"), ("┐", "+"), ("▶", ">"), ("…", "..."), ("é", "\\xe9"), ("猫", "\\u732b"),
     ("\udcff", "\\udcff"), ("a", "a")],
)  # fmt: skip
def test_signs_in_ascii(sign: str, expected: str) -> None:
    assert in_ascii(sign) == expected
    assert expected.isascii()


def test_only_what_an_encoding_lacks_is_replaced() -> None:
    assert in_encoding("8×8 of α, café", "latin-1") == "8×8 of alpha, café"
    assert in_encoding("8×8 of α, café", "ascii") == "8x8 of alpha, caf\\xe9"
    assert in_encoding("8×8 of α, café \udcff", "utf-8") == "8×8 of α, café \\udcff"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_all_that_is_printed_can_be_encoded(encoding: str) -> None:
    out, written = encoded(encoding)
    console = Console(file=out, force_terminal=True, width=60)  # type: ignore[arg-type]
    print_text(console, "H(α) of 8×8 → ", ("猫/\udcff", "bold"))
    table = Table("α", "β")
    table.add_row("1±2", "…")
    console.print(table)
    with Progress(console=console) as bar:
        bar.update(bar.add_task("σ", total=2), completed=1)
    print("α", file=out)
    text = written.getvalue().decode(encoding)
    assert out.take_loss() is None
    assert ("H(alpha) of 8x8 ->" in text) == (encoding == "ascii")
    assert "\\udcff" in text


# --- output that is full, or gone ---


@pytest.mark.parametrize(("error", "status", "words"), [
    (FULL, 2, "error: cannot write to the standard output: No space left on device.\n"), (GONE, 141, "")
])  # fmt: skip
@pytest.mark.parametrize("good", [0, 1])
def test_a_command_goes_on_and_says_so_at_the_end(
    error: OSError, status: int, words: str, good: int, monkeypatch: Any, capsys: Any
) -> None:
    done = []

    def body(arguments: list[str], console: Console) -> int:
        for number in range(3):
            print_text(console, f"line {number}")
            print(number)
        done.append(arguments)
        return int(arguments[0])

    stream = Failing(error, good)
    monkeypatch.setattr(sys, "stdout", stream)
    assert command(body)(["0"]) == status
    assert capsys.readouterr().err == words
    assert command(body)(["7"]) == 7  # a failure is the more important news
    capsys.readouterr()
    assert run_command(body)(["0"]) == 0
    assert capsys.readouterr().err == words.replace(".\n", "; the results are in the files of the run.\n")
    assert len(done) == 3
    assert sys.stdout is stream
    assert stream.getvalue() == ("line 0\n" if good else "")


def test_help_and_configurations_that_cannot_be_written_end_the_process(monkeypatch: Any, capsys: Any) -> None:
    def helps(arguments: list[str], console: Console) -> int:
        print("usage")
        sys.exit(0)

    def configures(arguments: list[str], console: Console) -> int:
        print_document("data: digits\n")
        return 0

    for error, status in ((FULL, 2), (GONE, 141)):
        for body in (helps, configures):
            monkeypatch.setattr(sys, "stdout", Failing(error))
            with pytest.raises(SystemExit) as end:
                run_command(body)([])
            assert end.value.code == status
            assert capsys.readouterr().err.count("\n") == (error is FULL)
    monkeypatch.undo()
    with pytest.raises(SystemExit) as end:
        run_command(helps)([])
    assert end.value.code == 0
    assert run_command(configures)([]) == 0
    assert capsys.readouterr().out == "usage\ndata: digits\n"


def test_a_command_within_a_command_says_it_once(monkeypatch: Any, capsys: Any) -> None:
    @command
    def inner(arguments: list[str], console: Console) -> int:
        print("x")
        return 0

    @command
    def outer(arguments: list[str], console: Console) -> int:
        sys.exit(inner(arguments))

    monkeypatch.setattr(sys, "stdout", Failing(FULL))
    with pytest.raises(SystemExit) as end:
        outer([])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_streams_that_python_has_closed(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with safe_output() as out:
        print("α")
        Console().print("β")
        Console(stderr=True).print("γ")
        assert out.take_loss() is None
    assert sys.stdout is sys.stderr is None


def test_a_search_ends_without_its_output(monkeypatch: Any, tmp_path: Path) -> None:
    flags = "--data digits --limit 80 --batch-size 16 --image-size 8 --channels 4 --layers 3 --partial-channels 1 "
    flags += "--epochs 1 --warm-up 0 --population 4 --samples 1 --fitness-batch-size 20 --device cpu"
    monkeypatch.setattr(sys, "stdout", Failing(GONE, good=1))
    assert search.main([*flags.split(), "--out", str(tmp_path / "run")]) == 0
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["event"] == "end"
    assert (tmp_path / "run" / "report.html").is_file()


# --- as a shell sees it ---


def fastnas(*arguments: str, stdout: Any = subprocess.PIPE, encoding: str = "utf-8") -> tuple[int, bytes, bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"}
    result = subprocess.run(
        [sys.executable, "-m", "fastnas", *arguments],
        stdout=stdout, stderr=subprocess.PIPE, env=environment, timeout=120, check=False,
    )  # fmt: skip
    return result.returncode, result.stdout or b"", result.stderr


def test_help_in_ascii() -> None:
    status, shown, error = fastnas("search", "--help", encoding="ascii")
    assert (status, error) == (0, b"")
    assert b"alpha moves" in shown
    assert shown.isascii()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_and_a_closed_pipe() -> None:
    for arguments in (["--help"], ["env"]):
        with open("/dev/full", "wb") as full:
            status, _, error = fastnas(*arguments, stdout=full)
        assert (status, error) == (2, b"error: cannot write to the standard output: No space left on device.\n")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as gone:
        assert fastnas("--help", stdout=gone)[::2] == (141, b"")
