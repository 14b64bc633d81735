"""What `accelerate` fused, what it left alone, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One module.

    Attributes:
        path: its name within the network; "" for the network itself.
        kind: the name of its class.
        level: "cell", "mixed operation", "candidate"; "" where nothing is fused.
        fused: what is fused.
        left_alone: what runs as it is, and why.
    """

    path: str
    kind: str
    level: str
    fused: str
    left_alone: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What is fused in a network. Printed, modules that differ only in the numbers of their path share a line."""

    entries: tuple[Entry, ...]

    @property
    def fused(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.level)

    @property
    def left_alone(self) -> tuple[Entry, ...]:
        """Those of which something runs as it is."""
        return tuple(entry for entry in self.entries if entry.left_alone)

    def __str__(self) -> str:
        if not self.entries:
            return "Nothing that looks like a cell, a mixed operation or a list of candidates."
        groups: dict[tuple[str, str, str, tuple[str, ...]], int] = {}
        for entry in self.entries:
            pattern = re.sub(r"\d+", "*", entry.path) or "(itself)"
            what = f"{entry.level}: {entry.fused}" if entry.level else "nothing"
            key = (pattern, entry.kind, what, entry.left_alone)
            groups[key] = groups.get(key, 0) + 1
        rows = [("module", "class", "number", "fused", "left alone")]
        for (pattern, kind, what, left), number in groups.items():
            for line, text in enumerate(left or ("",)):
                rows.append((pattern, kind, str(number), what, text) if line == 0 else ("", "", "", "", text))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
            for row in rows
        )
