"""The page of an evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_page_reader import Page

from fastnas.report.evaluated import PAGE, write_evaluation

EVIL = "<img src=x>&'"


def page(tmp_path: Path, classes: list[str], **changes: Any) -> Page:
    folder = tmp_path / "flowers" / "seed-1"
    folder.mkdir(parents=True, exist_ok=True)
    count = len(classes)
    confusion = [[2 if i == j else 0 for j in range(count)] for i in range(count)]
    confusion[0][1], confusion[0][0] = 1, 1
    result: dict[str, Any] = {
        "network": str(folder), "environment": {"device": "cpu", "torch": "2.14"}, "parameters": 6063,
        "image_size": [3, 32, 24], "macs": 2_031_808, "flops_counter": 1, "backend": "fused",
        "data": "folder:/images/tulips", "split": "test", "classes": classes, "peak_memory_mb": 800.4,
        "evaluation": {
            "images": 2 * count, "loss": 0.25, "top1": 0.875, "top5": 0.99, "per_class": [0.5, *[1.0] * (count - 1)],
            "confusion": confusion,
        },
        "latency": [{"batch": 1, "runs": 30, "median": 0.002, "p95": 0.003}],
    }  # fmt: skip
    path = write_evaluation(result | changes, folder / PAGE, ["python", "-m", "fastnas.evaluate", "my run"])
    assert path == folder / PAGE
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_names_network_images_and_every_number(tmp_path: Path) -> None:
    found = page(tmp_path, ["a", "b", EVIL])
    assert "<h1>Evaluation of flowers, seed 1, on tulips, test images</h1>" in found.text
    assert found.tiles() == {
        "Data": "tulips test split, 6 images, 3 classes",
        "Accuracy": "87.50 % network after training, test images",
        "Loss": "0.2500 mean cross-entropy in nats",
        "Network": "6,063 parameters, 2.0 M multiply-adds",
        "Latency": "2.00 ms median, batch 1",
        "Peak memory": "800 MiB whole process",
    }
    assert "a 50.0 % 2 " in found.section("classes")
    assert 'title="a taken for b: 1 of 2">1<' in found.text
    assert "1 2.00 3.00 30" in found.section("latency")
    assert "32 × 24" in found.section("settings")
    assert "python -m fastnas.evaluate 'my run'" in found.section("repeat")
    assert "<img" not in found.text


@pytest.mark.parametrize(("count", "shown"), [(5, False), (6, True)])
def test_the_five_likeliest_count_only_among_more_classes(tmp_path: Path, count: int, shown: bool) -> None:
    assert ("Top-5 accuracy" in page(tmp_path, [str(k) for k in range(count)]).tiles()) == shown


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    found = page(tmp_path, ["a", "b"], latency=[])
    assert "Latency" not in found.tiles()
    assert re.findall(r'<section id="(\w+)">', found.text) == ["classes", "settings", "repeat"]
