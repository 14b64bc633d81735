"""A grid of two options as a heat map: a table whose cells are tinted by their value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from fastnas.report.sections import note, scroll
from fastnas.report.study_published import MARK, Published, is_part
from fastnas.report.study_results import Cell, StudyResults

STRONGEST = 50  # % of the accent in the best cell, so that text stays readable on it
SYMBOLS = {"zeta": "ζ", "eta": "η", "gamma": "γ", "population": "λ"}

# value in %, text below it
Square = tuple[float | None, str]


def symbol(option: str) -> str:
    """An option as papers write it."""
    return SYMBOLS.get(option, option.replace("_", " "))


def is_grid(results: StudyResults) -> bool:
    """Whether two options tell all cells apart."""
    names = list(results.grid)
    if len(names) != 2:
        return False
    places = [tuple(repr(cell.options.get(name)) for name in names) for cell in results.cells]
    known = [cell for cell in results.cells if all(name in cell.options for name in names)]
    return len(known) == len(results.cells) == len(set(places))


def heat_map(results: StudyResults) -> str:
    """The cells of the study, by what they are compared by."""

    def square(options: dict[str, Any]) -> Square:
        cell = next((cell for cell in results.cells if is_part(options, cell.options)), None)
        value = None if cell is None else results.value(cell)
        if cell is None or value is None:
            return None, "" if cell is None else progress(cell)
        deviation = "" if value.std is None else f"± {100 * value.std:.2f}, "
        return 100 * value.mean, f"{deviation}n {value.n}"

    title = f"{results.measure} (%)"
    return _figure(results, "Here:", title, "★ the best", square)


def published_map(results: StudyResults, published: Published) -> str:
    """The grid that the source prints; empty unless it has a number for each cell."""
    if not all(_row(published, cell) for cell in results.cells):
        return ""

    def square(options: dict[str, Any]) -> Square:
        row = next((row for row in published.rows if row.get("options") == options), None)
        if row is None:
            return None, ""
        size = f"{row['parameters_m']:.2f} M" if "parameters_m" in row else ""
        return float(row["value"]), size

    source = f"{published.source[:1].upper()}{published.source[1:]}."
    return _figure(results, MARK, published.measure, source, square, published.places)


def _row(published: Published, cell: Cell) -> bool:
    row = published.of(cell)
    return row is not None and len(row.get("options", ())) == 2


def progress(cell: Cell) -> str:
    """How far a cell without a value is."""
    for status in ("running", "failed", "interrupted"):
        if any(unit.status == status for unit in cell.units):
            return status
    return "waiting"


def _figure(
    results: StudyResults,
    mark: str,
    title: str,
    remark: str,
    square: Callable[[dict[str, Any]], Square],
    places: int = 2,
) -> str:
    """A caption and the table; `mark` is HTML."""
    (down, rows), (across, columns) = results.grid.items()
    squares = [[square({down: row, across: column}) for column in columns] for row in rows]
    known = [value for line in squares for value, _ in line if value is not None]
    table = _table(
        f"{title} by {symbol(down)} and {symbol(across)}",
        f"{symbol(down)} ↓ {symbol(across)} →",
        [f"{symbol(down)} = {_value(row)}" for row in rows],
        [f"{symbol(across)} = {_value(column)}" for column in columns],
        squares,
        (min(known, default=0.0), max(known, default=0.0)),
        places,
    )
    caption = f"<figcaption><h3>{mark} {escape(title)}</h3>{note(remark)}</figcaption>"
    return f"<figure>{caption}{scroll(table)}</figure>"


def _table(
    caption: str,
    corner: str,
    rows: Sequence[str],
    columns: Sequence[str],
    squares: Sequence[Sequence[Square]],
    limits: tuple[float, float],
    places: int,
) -> str:
    low, high = limits
    found = False  # the best one, of equal ones the first

    def cell(value: float | None, below: str) -> str:
        nonlocal found
        if value is None:
            return f'<td class="open">{escape(below or "–")}</td>'
        share = STRONGEST * (1.0 if high == low else (value - low) / (high - low))
        best, found = not found and value == high, found or value == high
        mark = '<span class="mark" role="img" aria-label="best">★</span>' if best else ""
        kind = ' class="best"' if best else ""
        style = f'style="--share:{share:.0f}%"'
        return f"<td{kind} {style}><strong>{value:.{places}f}</strong> {mark}<small>{escape(below)}</small></td>"

    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row)}</th>{"".join(cell(*each) for each in line)}</tr>'
        for row, line in zip(rows, squares, strict=True)
    )
    return (
        f'<table class="heat"><caption>{escape(caption)}</caption><thead><tr><th scope="col">{escape(corner)}</th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
