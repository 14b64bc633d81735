"""The page of published results, against the figures of its sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLASSIFICATION, IMAGENET = "CIFAR-10 and CIFAR-100", "ImageNet, mobile setting"


def cells(section: str) -> dict[str, list[str]]:
    """The rows of a section's table, by method."""
    text = (ROOT / "docs" / "results" / "published.md").read_text(encoding="utf-8")
    lines = [line for line in text.partition(f"## {section}")[2].partition("\n## ")[0].splitlines() if line[:1] == "|"]
    rows = [[cell.strip().replace(",", "") for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row[1:] for row in rows}


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    path = ROOT / ".." / "shared" / "data" / "published.json"
    if not path.exists():
        pytest.skip("needs ../shared/data/published.json")
    return json.loads(path.read_text())


def test_the_runs_of_the_replication(figures):
    table, rows = cells(CLASSIFICATION), figures["seed_000"]["table2"]["rows"]
    for row in rows:
        kept = table[f"EG-NAS replication run {row['run']}"]
        assert [float(cell) for cell in kept[1:3]] == [row["cifar10"], row["cifar100"]]
    assert [sum(row[data] for row in rows) / 4 for data in ("cifar10", "cifar100")] == pytest.approx([2.735, 17.91])


def test_multi_level_cells_and_what_their_source_compares_them_with(figures):
    small = {row["name"]: row for row in figures["seed_002"]["table2"]}
    large = {row["name"]: row for row in figures["seed_002"]["table3"]}
    names = {"DenseNet": "DenseNet", "multi-level": "multi-level cells"}
    names["multi-level+entropy"] = "multi-level cells architecture entropy"
    for name, method in names.items():
        row = cells(CLASSIFICATION)[method]
        assert [float(row[1]), float(row[3])] == [small[name]["err"], small[name]["params_M"]]
    names = {"Inception": "Inception-v1", "MobileNet": "MobileNet", "ShuffleNet": "ShuffleNet 2×"} | {
        "multi-level+entropy": names["multi-level+entropy"]
    }
    for name, method in names.items():
        kept = [float(cell) if cell else None for cell in cells(IMAGENET)[method][1:5]]
        assert kept == [large[name].get(key) for key in ("top1", "top5", "params_M", "madds_M")]
