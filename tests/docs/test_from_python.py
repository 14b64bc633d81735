"""README.md, "From Python": from tensors to a genotype in five lines, and to a strategy of one's own in twenty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doc_pages import ROOT, Block, blocks

from fastnas import Genotype, api

TITLE, END = "## From Python", "## Networks and batches"
SHRUNK = {"epochs": 1, "limit": 32, "channels": 4, "layers": 3, "batch_size": 8, "image_size": 8, "progress": False}


@pytest.fixture
def section() -> list[Block]:
    page = ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    first, last = (text.count("\n", 0, text.index(title)) for title in (TITLE, END))
    return [block for block in blocks(page) if first < block.line < last and block.language == "python"]


def test_five_lines_and_twenty(section: list[Block]) -> None:
    five, _, twenty = (len([line for line in block.text.splitlines() if line.strip()]) for block in section)
    assert five <= 5
    assert twenty <= 20


def test_they_run(section: list[Block], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    search, train = api.search, api.train

    def small_search(data: Any, strategy: Any, **options: Any) -> api.SearchResult:
        fewer = {} if isinstance(strategy, str) else {"evaluations": 2, "fitness_batch_size": 8}
        return search(data, strategy=strategy, **{**options, **SHRUNK, **fewer, "partial_channels": 1})

    monkeypatch.setattr(api, "search", small_search)
    monkeypatch.setattr(api, "train", lambda *given, **options: train(*given, **{**options, **SHRUNK, "cutout": 0}))
    names: dict[str, Any] = {}
    for block in section:
        exec(compile(block.text, "README.md", "exec", dont_inherit=True), names)
    found = names["result"]
    assert found.status == "finished"
    assert isinstance(found.genotype, Genotype)
    assert (tmp_path / "network.onnx").exists()
    assert "name: hill-climbing" in (found.directory / "config.yaml").read_text()
