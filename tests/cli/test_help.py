"""--help as it is read: 80 columns, whole sentences, and words instead of None."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import pytest

from fastnas import __main__ as fastnas_command
from fastnas.cli import command
from fastnas.cli.arguments import parse_arguments
from fastnas.cli.help import described, docstring
from fastnas.cli.options import TrainRunOptions
from fastnas.option_types import Count, Options
from fastnas.strategies import STRATEGIES
from fastnas.version import __version__


def help_of(name: str, capsys: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"fastnas.{name}").main([*arguments, "--help"])
    assert not end.value.code
    shown: str = capsys.readouterr().out
    return shown


COMMANDS = ["search", "train", "evaluate", "export", "compare", "study.__main__"]
COMMANDS += [f"search --strategy {name}" for name in STRATEGIES]


@pytest.mark.parametrize("words", COMMANDS)
def test_help_fits_and_names_no_none(words: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name, *arguments = words.split()
    shown = help_of(name, capsys, *arguments)
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert "None" not in shown
    assert "options" in shown


@dataclass(frozen=True)
class Sample(Options):
    """A sample."""

    amount: Count | None = None
    """How many of them are taken,
    2 to 5 at a time; None for all."""


def test_a_docstring_is_one_paragraph(capsys: Any, monkeypatch: Any) -> None:
    """A line that begins with a number would otherwise begin a new paragraph."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse_arguments(Sample, ["--help"], "sample", "")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--amount INT How many of them are taken, 2 to 5 at a time. (default: all)" in shown
    assert docstring(TrainRunOptions, "threads").startswith("CPU threads")  # of the base class


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("A size; None: as it is.", None, ("A size.", "(default: as it is)")),
        ("The page; None: evaluation.html in the run.", None, ("The page.", "(default: evaluation.html in the run)")),
        ("A share, as 0.875; None for what suits the data.", 0.5, None),
        ("A file.", None, ("A file.", "")),
    ],
)
def test_what_none_means(text: str, default: Any, expected: tuple[str, str] | None) -> None:
    assert described(text, default) == (expected or (text, f"(default: {default})"))


def test_the_version(capsys: Any) -> None:
    assert fastnas_command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastnas {__version__}\n"


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        (["python", "-m", "fastnas."], "python -m fastnas.train --from 'my run'"),
        (["python", "-m", "fastnas"], "python -m fastnas train --from 'my run'"),
        (["fastnas"], "fastnas train --from 'my run'"),
    ],
)
def test_commands_are_printed_as_this_one_was_called(called: list[str], expected: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(command, "called", called)
    assert command.command_line("fastnas.train", "--from", "my run") == expected
