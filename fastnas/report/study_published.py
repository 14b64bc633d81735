"""The numbers that a source printed for a ready study, shown beside those of a run and always marked as published."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fastnas.report.sections import note
from fastnas.report.study_results import Cell
from fastnas.report.tables import data_table

STUDIES = Path(__file__).parents[1] / "published_studies.json"
MARK = '<span class="published">published</span>'
DASH = "–"
MOST_ROWS = 8  # of a table that is not folded
MORE = {
    "top5": "top-5 test error (%)",
    "parameters_m": "parameters (M)",
    "macs_m": "multiply-adds (M)",
    "gpu_days": "GPU-days of the search",
}


@dataclass(frozen=True)
class Published:
    """What a source says of a study.

    Args:
        source: a paper, in words.
        measure: what `value` of a row is, with its unit.
        about: how it was measured.
        rows: each with "label", "value", and perhaps "options" (those of the cell that it belongs to), "cell" (the
            label of that cell), "std", "n", "parameters_m", "macs_m", "gpu_days", "top5", "read_off" (how exact a
            number is that was read off a chart).
    """

    source: str
    measure: str
    about: str
    rows: tuple[Mapping[str, Any], ...]

    def of(self, cell: Cell) -> Mapping[str, Any] | None:
        """The row that belongs to a cell: of the same label, or of options that the cell has as well."""
        for row in self.rows:
            options = row.get("options")
            if row.get("cell") == cell.label or (options and is_part(options, cell.options)):
                return row
        return None

    @property
    def places(self) -> int:
        """Digits after the point that the source prints."""
        return max(len(str(row[key]).partition(".")[2]) for row in self.rows for key in ("value", "std") if key in row)

    def text(self, row: Mapping[str, Any]) -> str:
        """``3.00``, ``2.57 ± 0.07`` or ``83.3 (read off a chart, ± 0.3)``."""
        deviation = f" ± {row['std']:.{self.places}f}" if "std" in row else ""
        remark = f" (read off a chart, {row['read_off']})" if "read_off" in row else ""
        return f"{row['value']:.{self.places}f}{deviation}{remark}"

    def section(self) -> str:
        """A table of all rows."""
        shown = {key: title for key, title in MORE.items() if any(key in row for row in self.rows)}
        rows = [
            (escape(str(row["label"])), self.text(row), *(f"{row[key]:,g}" if key in row else DASH for key in shown))
            for row in self.rows
        ]
        head = ("what", self.measure, *shown.values())
        table = data_table(head, rows, numbers=len(head) - 1, markup=True, caption="Published numbers")
        if len(rows) > MOST_ROWS:
            table = f"<details><summary>Published numbers ({len(rows)})</summary>{table}</details>"
        return f'<p class="note">{MARK} {escape(self.source)}.</p>' + note(self.about) + table


def is_part(options: Mapping[str, Any], of: Mapping[str, Any]) -> bool:
    """Whether a cell has all these options, with equal values."""
    return all(name in of and of[name] == value for name, value in options.items())


@functools.cache
def _studies() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(STUDIES.read_text(encoding="utf-8"))
    return found


def published_of(key: object) -> Published | None:
    """What is known of the study of this name; None where nothing is."""
    found = _studies().get(key) if isinstance(key, str) else None
    return None if found is None else Published(**{**found, "rows": tuple(found["rows"])})
