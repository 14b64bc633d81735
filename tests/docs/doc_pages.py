"""What the pages tell a reader to type: fenced blocks, and commands within a line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path

ROOT = Path(__file__).parents[2]
USER_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
PROGRAMS = ("python", "make", "pip", "fastnas", "pytest", "setarch")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file.
        line: of its first line, from 1.
        language: after the fence.
        text: without the fences.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that the block is to be saved in, where its first line is `# NAME.py`."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found[1] if found else None

    def commands(self) -> list[str]:
        """The commands of a shell block, each on one line, without comments."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line for line in joined if shlex.split(line, comments=True)]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, block.start()) + 2, block[1], block[2]) for block in found]


def inline_commands(page: Path) -> list[str]:
    """Commands between backticks, within the text or a table."""
    outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`]+)`", outside)
    return [" ".join(span.split()) for span in spans if span.split()[0] in PROGRAMS and len(span.split()) > 1]


def report_blocks(report: Path) -> Iterator[tuple[str, str]]:
    """Title and text of everything that a report has a copy button for."""
    page = report.read_text(encoding="utf-8")
    pattern = r"<h3>([^<]*)</h3>(?:<p[^>]*>[^<]*</p>)?<div class=\"copy\"><pre[^>]*><code>(.*?)</code>"
    for title, text in re.findall(pattern, page, flags=re.DOTALL):
        yield title, unescape(text)
