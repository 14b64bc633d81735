"""The results of a study on a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastnas.cli.time_left import short_time
from fastnas.report.study_results import Cell, Statistic, StudyResults

DASH = "-"
SEARCHES = ("search", "compare")
TRAININGS = ("train",)


def print_results(results: StudyResults, console: Console) -> None:
    """A row for each cell: mean ± standard deviation over the n finished runs; the best cell is bold."""
    columns = [column for column in COLUMNS if any(COLUMNS[column](cell) for cell in results.cells)]
    if not columns:
        return
    table = Table("cell", *columns, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    best = results.best if len(results.cells) > 1 else None
    for cell in results.cells:
        values = [COLUMNS[column](cell) or DASH for column in columns]
        table.add_row(Text(cell.label), *map(Text, values), style="bold" if cell is best else "")
    console.print(table)


def _percent(name: str, *stages: str) -> Callable[[Cell], str]:
    def text(cell: Cell) -> str:
        found = cell.mean(name, *stages)
        return "" if found is None else f"{found.text(scale=100)} ({found.n})"

    return text


def _mean(name: str, stages: tuple[str, ...], form: Callable[[Statistic], str]) -> Callable[[Cell], str]:
    def text(cell: Cell) -> str:
        found = cell.mean(name, *stages)
        return "" if found is None else form(found)

    return text


COLUMNS: dict[str, Callable[[Cell], str]] = {
    "search, valid. % (n)": _percent("valid_accuracy", *SEARCHES),
    "test % (n)": _percent("test_accuracy", "evaluate", *TRAININGS, *SEARCHES),
    "random % (n)": _percent("test_accuracy", "baseline"),
    "parameters": _mean("parameters", (*TRAININGS, *SEARCHES), lambda found: f"{found.mean:,.0f}"),
    "MACs (M)": _mean("macs", (*TRAININGS, *SEARCHES), lambda found: f"{found.mean / 1e6:,.1f}"),
    "search time": _mean("seconds", SEARCHES, lambda found: short_time(found.mean)),
    "core-days": lambda cell: _days(cell, "core"),
    "GPU-days": lambda cell: _days(cell, "GPU"),
}
"""What a cell has of each, as text; empty for nothing."""


def _days(cell: Cell, clock: str) -> str:
    known = [unit.days for unit in cell.units if unit.clock == clock and unit.days is not None]
    return f"{sum(known):.3g}" if known else ""
