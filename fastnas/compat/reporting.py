"""What `accelerate` fused, what it skipped, and why."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One module.

    Attributes:
        path: its name within the network; "" for the network itself.
        kind: the name of its class.
        level: "cell", "mixed operation", "candidate"; "" where nothing is fused.
        fused: what is fused.
        skipped: what runs unchanged, and why.
    """

    path: str
    kind: str
    level: str
    fused: str
    skipped: tuple[str, ...]

    @property
    def left_alone(self) -> tuple[str, ...]:
        """Deprecated: the old name of `skipped`."""
        warnings.warn("Entry.left_alone is called Entry.skipped now", DeprecationWarning, stacklevel=2)
        return self.skipped


@dataclass(frozen=True)
class Report:
    """What is fused in a network. When printed, modules whose paths differ only in numbers share a line."""

    entries: tuple[Entry, ...]

    @property
    def fused(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.level)

    @property
    def skipped(self) -> tuple[Entry, ...]:
        """Entries of modules in which something runs unchanged."""
        return tuple(entry for entry in self.entries if entry.skipped)

    @property
    def left_alone(self) -> tuple[Entry, ...]:
        """Deprecated: the old name of `skipped`."""
        warnings.warn("Report.left_alone is called Report.skipped now", DeprecationWarning, stacklevel=2)
        return self.skipped

    def __str__(self) -> str:
        if not self.entries:
            return "Nothing that looks like a cell, a mixed operation or a list of candidates."
        groups: dict[tuple[str, str, str, tuple[str, ...]], int] = {}
        for entry in self.entries:
            pattern = re.sub(r"\d+", "*", entry.path) or "(itself)"
            what = f"{entry.level}: {entry.fused}" if entry.level else "nothing"
            key = (pattern, entry.kind, what, entry.skipped)
            groups[key] = groups.get(key, 0) + 1
        rows = [("module", "class", "number", "fused", "skipped")]
        for (pattern, kind, what, left), number in groups.items():
            for line, text in enumerate(left or ("",)):
                rows.append((pattern, kind, str(number), what, text) if line == 0 else ("", "", "", "", text))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
            for row in rows
        )
