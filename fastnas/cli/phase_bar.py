"""A bar for the phase in progress: on a terminal, or in a notebook, where it is one output that is drawn anew."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Show: TypeAlias = Callable[[str, int, int], None]
"""Is told the phase, and how many of its steps are done."""

INTERVAL = 0.1  # seconds between two drawings


def phase_bar(console: Console, more: Callable[[], str] = lambda: "") -> AbstractContextManager[Show]:
    """A context that draws what its function is told; it draws nothing where nobody would see it.

    more: gives the words that stand after it, such as the time that the whole run still takes."""
    if console.quiet:
        return nullcontext(lambda name, done, total: None)
    return _notebook_bar(more) if in_notebook() else _terminal_bar(console, more)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return Console().is_jupyter


@contextmanager
def _terminal_bar(console: Console, more: Callable[[], str]) -> Iterator[Show]:
    bar = Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[more]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("starting", total=None, more="")

    def draw(name: str, done: int, total: int, begun: bool) -> None:
        if begun:
            bar.reset(task, description=name, total=total)
        bar.update(task, completed=done, total=total, more=more())

    with bar:
        yield _now_and_then(draw)


@contextmanager
def _notebook_bar(more: Callable[[], str]) -> Iterator[Show]:
    # rich draws its own bars as widgets, which need another package and swallow what is printed meanwhile.
    from IPython.display import display  # type: ignore[import-not-found]

    handle = display({"text/plain": "", "text/html": ""}, raw=True, display_id=True)
    since = time.perf_counter()

    def draw(name: str, done: int, total: int, begun: bool) -> None:
        nonlocal since
        if begun:
            since = time.perf_counter()
        text = ", ".join(filter(None, [f"{name} {done}/{total}", f"{time.perf_counter() - since:.0f} s", more()]))
        bar = f'<progress value="{done}" max="{total}" style="width: 20em"></progress> {html.escape(text)}'
        handle.update({"text/plain": text, "text/html": bar}, raw=True)

    try:
        yield _now_and_then(draw)
    finally:
        handle.update({"text/plain": "", "text/html": ""}, raw=True)


def _now_and_then(draw: Callable[[str, int, int, bool], None]) -> Show:
    """`draw`, also told whether a phase begins: then, at its end, and in between once in an interval."""
    phase, drawn = "", 0.0

    def show(name: str, done: int, total: int) -> None:
        nonlocal phase, drawn
        now, begun = time.perf_counter(), name != phase
        if begun or done >= total or now - drawn >= INTERVAL:
            phase, drawn = name, now
            draw(name, done, total, begun)

    return show
