"""What every command does alike: its arguments, its console, its errors and its exit status.

Whatever a user has named (paths, classes, strategies) is printed as it is. rich takes `[red]` in a string for a style
and `:car:` for a picture, so a string with such a name goes through `print_text`, never to `Console.print`.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from fastnas.cli.output import Output, safe_output
from fastnas.errors import UserError
from fastnas.world import ToldElsewhereError, launched

USER_ERROR = 2
INTERRUPTED = 130  # as a shell reports a program that SIGINT has ended
READER_GONE = 141  # as a shell reports a program that SIGPIPE has ended


class Main(Protocol):
    """A command; by default its arguments are those of the process."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int: ...


Body = Callable[[list[str], Console], int]


def command(body: Body) -> Main:
    """Decorator that makes a command's `main` of a function that is given arguments and console.

    The result returns the exit status: that of `body`; 2 after a `UserError` or where the memory does not suffice, each
    of which becomes one line on stderr; 130 after Ctrl-C. Flags with wrong values raise SystemExit(2), once the parser
    has explained them.

    Where standard output is closed or full, the body goes on. A success is then reported as 141 without a word if the
    reader is gone, otherwise as 2 with one line.
    """
    return _main(body, in_files=False)


def run_command(body: Body) -> Main:
    """`command` for a body whose results are in files: without standard output it is still a success."""
    return _main(body, in_files=True)


def _main(body: Body, in_files: bool) -> Main:
    @functools.wraps(body)
    def main(arguments: Sequence[str] | None = None) -> int:
        with safe_output() as output, interrupted_once() as stay_deaf:
            try:
                follows = launched()[0] > 0
                status = body(list(sys.argv[1:] if arguments is None else arguments), Console(quiet=follows))
            except ToldElsewhereError:
                return USER_ERROR
            except UserError as error:
                print_error(str(error))
                return USER_ERROR
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                print_error(f"out of memory: {' '.join(str(error).split())}; take smaller images, batches or networks.")
                return USER_ERROR
            except KeyboardInterrupt:
                print_text(Console(stderr=True), "interrupted")
                status = INTERRUPTED
            except SystemExit as end:
                if end.code or not (lost := output.take_loss()):
                    raise
                sys.exit(_report_loss(lost))
            if arguments is None and status == INTERRUPTED:  # a process that has nothing left to do
                stay_deaf()
            if lost := output.take_loss():
                reported = _report_loss(lost, "; the results are in the files of the run" if in_files else "")
                return status if in_files else status or reported
            return status

    return main


def _out_of_memory(error: Exception) -> bool:
    """Whether memory could not be allocated; torch says so by errors of no class of their own."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _report_loss(lost: OSError, more: str = "") -> int:
    """Says that standard output could not be written, and gives the exit status of a command that only writes there."""
    if isinstance(lost, BrokenPipeError):  # whoever has read enough wants to hear no more
        return READER_GONE
    print_error(f"cannot write to the standard output: {lost.strerror}{more}.")
    return USER_ERROR


def print_document(text: str) -> None:
    """Prints what the user has asked for itself, such as a configuration; where that cannot be, the process ends."""
    print(text, end="")
    if isinstance(sys.stdout, Output) and (lost := sys.stdout.take_loss()):
        sys.exit(_report_loss(lost))


@contextlib.contextmanager
def interrupted_once() -> Iterator[Callable[[], None]]:
    """While the context is open, the first Ctrl-C is a KeyboardInterrupt, and those that follow are ignored: the
    command is about to end, and another exception would come out of whatever is being closed, as a traceback.

    Yields:
        What makes it stay so when the context is closed.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield lambda: None
        return
    after: Any = signal.signal(signal.SIGINT, _interrupt_once)

    def stay_deaf() -> None:
        nonlocal after
        after = signal.SIG_IGN

    try:
        yield stay_deaf
    finally:
        signal.signal(signal.SIGINT, after)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def print_text(console: Console, *parts: str | tuple[str, str], style: str = "") -> None:
    """Prints `parts`, each a text or a (text, style), as one line, which the terminal wraps where it is long."""
    console.print(Text.assemble(*parts, style=style), soft_wrap=True)


def print_error(message: str) -> None:
    """One line on stderr."""
    print_text(Console(stderr=True), ("error:", "bold red"), f" {message}")


called: list[str] = ["python", "-m", "fastnas."]
"""The words before the name of a command, as this process was called: `fastnas.__main__` sets others."""


def program_name(program: str) -> str:
    """How a user calls `program`, such as fastnas.search: as this process was called."""
    name = program.removeprefix("fastnas.")
    return " ".join(called) + (name if called[-1].endswith(".") else f" {name}")


def command_line(program: str, *arguments: str) -> str:
    """What a user types to run `program`, quoted for a shell."""
    return f"{program_name(program)} {shlex.join(arguments)}".rstrip()
