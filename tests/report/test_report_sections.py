"""Settings, commands and genotype on the page: exact, and ready to be used."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from report_page_reader import Page, report
from report_synthetic_run import CONFIG, run_events, start_event, write_run

from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.report import training
from fastnas.report.run import Run
from fastnas.report.sections import AUXILIARY_SIDES


def test_the_command_is_exact(tmp_path: Path) -> None:
    argv = ["python", "-m", "fastnas.search", "--data", "folder:my images/a'b", "--out", "$HOME/x y", ""]
    text = report(write_run(tmp_path, [start_event(tmp_path, argv=argv)], None)).text
    block = re.search(r"Repeat this run.*?<code>(.*?)</code>", text, re.DOTALL)
    assert block is not None
    assert shlex.split(unescape(block[1])) == argv


def code_blocks(page: Page) -> dict[str, str]:
    blocks = re.findall(
        r"<h3>([^<]*)</h3>(?:<p[^>]*>[^<]*</p>)?<div class=\"copy\"><pre[^>]*><code>(.*?)</code>", page.text, re.DOTALL
    )
    return {title: unescape(code) for title, code in blocks}


def test_the_training_command_names_the_run(tmp_path: Path) -> None:
    directory = tmp_path / "my run"
    events, genotype = run_events(directory, epochs=1, warm_up=3)
    command = code_blocks(report(write_run(directory, events, genotype)))["Train this genotype"]
    assert shlex.split(command) == ["python", "-m", "fastnas.train", "--from", str(directory)]


@pytest.mark.parametrize(
    ("size", "stem", "arguments"),
    [
        ([16, 16], "cifar", "num_classes=10, in_channels=1, auxiliary=False"),
        ([32, 32], "cifar", "num_classes=10, in_channels=1"),
        ([224, 224], "imagenet", "num_classes=10, in_channels=1, stem='imagenet'"),
    ],
)
def test_the_python_snippet_works(tmp_path: Path, size: list[int], stem: str, arguments: str) -> None:
    events, genotype = run_events(tmp_path, epochs=1, warm_up=3)
    events[0]["data"]["image_size"] = size
    config = CONFIG | {"network": {"stem": stem}}
    snippet = code_blocks(report(write_run(tmp_path, events, genotype, config)))["Use it in Python"]
    assert snippet.endswith(f"DerivedNetwork(genotype, {arguments})")
    names: dict[str, Any] = {}
    with torch.device("meta"):
        exec(snippet, names)
        assert names["genotype"] == genotype
        outputs = names["network"].train()(torch.zeros(2, 1, *size))  # [B, C, H, W]
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    assert logits.shape == (2, 10)
    assert isinstance(outputs, tuple) == ("auxiliary=False" not in arguments)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_the_auxiliary_head_takes_exactly_the_sides_that_the_snippet_assumes(stem: str) -> None:
    from fastnas.nn import DerivedNetwork

    sides = AUXILIARY_SIDES[stem]
    with torch.device("meta"):
        network = DerivedNetwork(Genotype.published("DARTS_V2"), channels=4, layers=3, stem=stem).train()
        for side in (sides[0], sides[-1]):
            network(torch.zeros(2, 3, side, side))  # [B, C, H, W]
        for side in (sides[0] - 1, sides[-1] + 1):
            with pytest.raises(UserError, match="auxiliary head"):
                network(torch.zeros(2, 3, side, side))  # [B, C, H, W]


def test_the_genotype_text_is_valid_json(tmp_path: Path) -> None:
    events, genotype = run_events(tmp_path, epochs=1, warm_up=3)
    page = report(write_run(tmp_path, events, genotype))
    block = re.search(r'<section id="genotype">.*?<code>(.*?)</code>', page.text, re.DOTALL)
    assert block is not None
    assert Genotype.from_dict(json.loads(unescape(block[1]))) == genotype


def test_config_values_are_shown_as_yaml_means_them(tmp_path: Path) -> None:
    config = {"data": {"flip": True, "limit": None, "empty": {}, "list": [1, "a"], "day": yaml.safe_load("2026-01-31")}}
    settings = report(write_run(tmp_path, [], None, config)).section("settings")
    for text in ("data.flip true", "data.limit null", "data.empty {}", "data.list 1, a", "data.day 2026-01-31"):
        assert text in settings


@pytest.mark.parametrize("classes", [3, 30])
def test_confusion_is_read_as_a_table_and_as_pairs(classes: int) -> None:
    table = [[0] * classes for _ in range(classes)]
    table[0][0], table[0][2], table[1][0], table[2][2] = 5, 2, 1, 4
    pairs = [(k, j, table[k][j]) for k in range(classes) for j in range(classes) if table[k][j]]
    columns = dict(zip(("class", "prediction", "count"), map(list, zip(*pairs, strict=True)), strict=True))
    shares = [5 / 7, 0.0, 1.0, *[None] * (classes - 3)]

    def page(confusion: object) -> str:
        start = {"command": "train", "data": {"classes": [f"class-{k}" for k in range(classes)]}}
        test = {"top1": 0.75, "per_class": shares, "confusion": confusion}
        return training.result(Run(Path("run"), starts=[start], ending={"event": "end", "test": test}))

    assert page(columns) == page(table)
    assert "class-2" in page(table)
    assert ("Most confused" in page(table)) == (classes == 30)
    for damaged in (
        None,
        table[1:],
        {"class": [0]},
        {**columns, "count": [1]},
        {**columns, "class": [0, 0, 1, 99]},
        [1],
    ):
        assert "class-2" not in page(damaged)
