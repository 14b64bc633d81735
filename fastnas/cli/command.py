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
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from rich.console import Console
from rich.text import Text

from fastnas.errors import UserError

USER_ERROR = 2
INTERRUPTED = 130  # as a shell reports a program that SIGINT has ended


class Main(Protocol):
    """A command; by default its arguments are those of the process."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int: ...


def command(body: Callable[[list[str], Console], int]) -> Main:
    """Decorator that makes a command's `main` of a function that is given arguments and console.

    The result returns the exit status: that of `body`; 2 after a `UserError`, which becomes one line on stderr; 130
    after Ctrl-C. Flags with wrong values raise SystemExit(2), once the parser has explained them.
    """

    @functools.wraps(body)
    def main(arguments: Sequence[str] | None = None) -> int:
        try:
            return body(list(sys.argv[1:] if arguments is None else arguments), Console())
        except UserError as error:
            print_error(str(error))
            return USER_ERROR
        except KeyboardInterrupt:
            # Whoever presses Ctrl-C again and again still gets an end without a traceback.
            with interrupts_ignored(forever=arguments is None):
                print_text(Console(stderr=True), "interrupted")
            return INTERRUPTED

    return main


@contextlib.contextmanager
def interrupts_ignored(forever: bool = False) -> Iterator[None]:
    """Ctrl-C does nothing while the context is open, or, in a process that is about to end, from then on."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # only the main thread hears signals
        yield
        return
    try:
        yield
    finally:
        if not forever:
            signal.signal(signal.SIGINT, before)


def print_text(console: Console, *parts: str | tuple[str, str], style: str = "") -> None:
    """Prints `parts`, each a text or a (text, style), as one line, which the terminal wraps where it is long."""
    console.print(Text.assemble(*parts, style=style), soft_wrap=True)


def print_error(message: str) -> None:
    """One line on stderr."""
    print_text(Console(stderr=True), ("error:", "bold red"), f" {message}")


def command_line(program: str, *arguments: str) -> str:
    """What a user types to run `program`, quoted for a shell."""
    return shlex.join(["python", "-m", program, *arguments])
