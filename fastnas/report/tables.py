"""Tables of a page: with a caption, and headers that say for what they stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def data_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0, markup: bool = False, caption: str = ""
) -> str:
    """A table whose rows are named by their first cell; it scrolls sideways where it is too wide.

    Args:
        head: titles of the columns.
        rows: one cell for each title.
        numbers: how many columns from the second on hold numbers.
        markup: whether cells are HTML already; otherwise they are escaped.
        caption: what the table holds, for those who hear the page; by default the titles.
    """

    def row(cells: Sequence[str]) -> str:
        shown = cells if markup else [escape(cell) for cell in cells]
        rest = "".join(f"<td{_kind(i, numbers)}>{cell}</td>" for i, cell in enumerate(shown[1:], start=1))
        return f'<tr><th scope="row">{shown[0]}</th>{rest}</tr>'

    titles = "".join(f'<th scope="col"{_kind(i, numbers)}>{escape(title)}</th>' for i, title in enumerate(head))
    return scroll(
        f'<table class="data"><caption>{escape(caption or ", ".join(head))}</caption><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(map(row, rows))}</tbody></table>"
    )


def _kind(column: int, numbers: int) -> str:
    return ' class="number"' if 0 < column <= numbers else ""


def key_table(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    """Names and their values; empty where there is no row."""
    body = "".join(f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in rows)
    return scroll(f"<table><caption>{escape(caption)}</caption>{body}</table>") if body else ""


def scroll(body: str) -> str:
    """A box in which `body` scrolls sideways where it is too wide, with a shadow at the side where it goes on."""
    return f'<div class="scroll">{body}</div>'
