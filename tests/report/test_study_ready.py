"""The studies that come with the package: every option of theirs is one of the commands, at each scale."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastnas.cli.configuration import parse_search, parse_train
from fastnas.report.study_published import STUDIES, published_of
from fastnas.report.study_results import Cell
from fastnas.search import prepare

FOLDER = Path(__file__).parents[2] / "fastnas/presets/study"
READY = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
SCALES = ("small", "paper")
KEYS = {
    "name", "title", "note", "published", "table", "stages", "choose", "baseline", "seeds", "grid", "list", "base",
    "train", "scales",
}  # fmt: skip


def at(name: str, scale: str) -> dict[str, Any]:
    content = yaml.safe_load(READY[name].read_text(encoding="utf-8"))
    assert set(content) <= KEYS
    assert set(content["scales"]) == set(SCALES)
    chosen = content.pop("scales")[scale]
    assert set(chosen) <= KEYS - {"scales"}
    return content | chosen


def cells(study: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and options of each cell."""
    grid = study.get("grid", {})
    for each in study.get("list", [{}]):
        options = {key: value for key, value in each.items() if key != "name"}
        for values in product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            yield each.get("name") or ", ".join(f"{k} {v}" for k, v in point.items()), options | point


def flags(options: dict[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return words


def test_all_studies_of_the_papers_are_there() -> None:
    assert set(READY) == {
        "egnas-table1", "egnas-figure2", "egnas-figure3", "egnas-table2", "multi-level-table1", "multi-level-table2",
        "multi-level-table3", "multi-level-figure3", "nb201-oneshot",
    }  # fmt: skip


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_is_a_search_that_the_command_accepts(name: str, scale: str, tmp_path: Path) -> None:
    study = at(name, scale)
    config = tmp_path / "base.yaml"
    config.write_text(yaml.safe_dump(study["base"]))
    for _, options in cells(study):
        parsed = parse_search(["--config", str(config), *flags(options)], "search", "")
        parsed.strategy.check_epochs(parsed.weights.epochs)
        assert parsed.data.data is not None
        every = {k: v for group in parsed.to_dict().values() for k, v in group.items()}
        renamed = {("name" if k == "strategy" else k): v for k, v in options.items()}
        assert {k: every[k] for k in renamed} == renamed
        assert (parsed.data.data == "digits") == (scale == "small")


def test_every_strategy_of_a_small_study_begins(tmp_path: Path) -> None:
    begun = set()
    for name in READY:
        study = at(name, "small")
        config = tmp_path / f"{name}.yaml"
        config.write_text(yaml.safe_dump(study["base"]))
        for _, options in cells(study):
            out = str(tmp_path / str(len(begun)))
            words = ["--config", str(config), *flags(options), "--no-evidence", "--out", out]
            parsed = parse_search(words, "search", "")
            kind = type(parsed.strategy), parsed.network.space
            if kind not in begun:
                begun.add(kind)
                prepare(parsed, words)
    assert len(begun) == 8


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("scale", SCALES)
def test_trainings_have_options_that_the_command_accepts(name: str, scale: str, tmp_path: Path) -> None:
    study = at(name, scale)
    groups = dict(study.get("train", {}))
    seeds = groups.pop("seeds", [0])
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump(groups))
    parsed = parse_train(["--config", str(config), "--seeds", ",".join(map(str, seeds))], "train", "")
    for group, options in groups.items():
        assert {key: parsed.to_dict()[group][key] for key in options} == options
    assert ("train" in study["stages"]) or not groups
    assert ("baseline" not in study) or ("train" in study["stages"])


@pytest.mark.parametrize("name", READY)
def test_notes_say_what_is_small_and_what_replaces_the_images(name: str) -> None:
    note = at(name, "small")["note"]
    assert note.startswith("Small: digits")
    assert "CIFAR-10" in note
    paper = at(name, "paper")["note"]
    assert "Small" not in paper


def test_published_numbers_belong_to_ready_studies_and_fit_their_cells() -> None:
    known = json.loads(STUDIES.read_text(encoding="utf-8"))
    assert set(known) == set(READY)
    for name in READY:
        study = at(name, "paper")
        published = published_of(study["published"])
        assert published is not None
        assert published.source
        found = [Cell(label, label, options, ()) for label, options in cells(study)]
        matched = [row for row in map(published.of, found) if row is not None]
        wanted = [row for row in published.rows if "options" in row or "cell" in row]
        assert all(row in matched for row in wanted), name


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("egnas-table1", {"zeta": 1.0, "eta": 0.4}, 84.088),
        ("egnas-table1", {"zeta": 0.4, "eta": 1.0}, 83.768),
        ("egnas-table1", {"zeta": 0.2, "eta": 0.2}, 83.096),
        ("egnas-figure3", {"population": 50}, 84.09),
        ("multi-level-table1", {"gamma": 10.0, "reduction": "sum"}, 3.64),
    ],
)
def test_published_numbers_are_those_of_the_sources(name: str, options: dict[str, Any], value: float) -> None:
    published = published_of(name)
    assert published is not None
    row = published.of(Cell("x", "x", options, ()))
    assert row is not None
    assert row["value"] == value
