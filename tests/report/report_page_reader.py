"""Writes the report of a run directory and reads it back."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

from fastnas.report import write_report

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced while it collects them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = text
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.stack):
            self.words.append(data)

    def section(self, key: str) -> str:
        """The text of a section."""
        found = re.search(rf'<section id="{key}">(.*?)</section>', self.text, re.DOTALL)
        assert found is not None
        return " ".join(
            unescape(re.sub(r"<(style|title|desc).*?</\1>|<[^>]*>", "\n", found[1], flags=re.DOTALL)).split()
        )

    def tiles(self) -> dict[str, str]:
        found = re.findall(r"<div><dt>(.*?)</dt>(.*?)</div>", self.text)
        return {label: " ".join(unescape(re.sub("<[^>]*>", " ", value)).split()) for label, value in found}

    def svgs(self) -> Iterator[ET.Element]:
        for svg in re.findall(r"<svg.*?</svg>", self.text, re.DOTALL):
            yield ET.fromstring(svg)


def report(directory: Path) -> Page:
    path = write_report(directory)
    assert path == directory / "report.html"
    return Page(path.read_text(encoding="utf-8"))
