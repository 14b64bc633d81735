"""Whose accuracy a page shows, the front of two objectives, and tables that say what they hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_chart_reader import by_name, hovers, texts
from report_page_reader import Page, report
from report_synthetic_run import run_events, start_event, write_run

from fastnas.report.front import front_charts, front_table
from fastnas.report.run import Run, read_run

DERIVED = [
    {"channels": 16, "layers": 8, "parameters": 200_000, "macs": 30_000_000},
    {"channels": 36, "layers": 20, "parameters": 3_000_000, "macs": 500_000_000},
]
CONFIG = {"strategy": {"name": "nsga2"}, "weights": {"epochs": 2}}


def front(epoch: int, *points: tuple[float, float], cost: str = "macs") -> dict[str, Any]:
    members = [{"accuracy": accuracy, cost: value, "genotype": {}} for value, accuracy in points]
    return {"event": "front", "after_epoch": epoch, "members": members}


def chosen_run(tmp_path: Path, **epoch: Any) -> Page:
    """A search whose strategy chose one of 8 architectures."""
    by = "shared weights, 32 images of the validation half"
    update = {"event": "update", "epoch": 1, "step": 0, "evaluated": 8, "asked": 8, "by": by, "best_accuracy": 0.75}
    events = [
        start_event(tmp_path),
        {"event": "epoch", "epoch": 0, "train_accuracy": 0.5, "valid_accuracy": 0.3, **epoch},
        update,
        front(1, (20.0, 0.75), (10.0, 0.5)),
        {"event": "epoch", "epoch": 1, "train_accuracy": 0.5, "valid_accuracy": 0.4, **epoch},
        {"event": "end", "valid_accuracy": 0.4, "derived": DERIVED},
    ]
    return report(write_run(tmp_path, events, None, CONFIG))


@pytest.mark.parametrize("epoch", [{"valid_of": "cell"}, {}], ids=["now", "a log of before"])
def test_what_a_strategy_chose_stands_beside_the_validation(tmp_path: Path, epoch: dict[str, str]) -> None:
    page = chosen_run(tmp_path, **epoch)
    tiles = page.tiles()
    assert tiles["Chosen architecture"] == "75.00 % shared weights, 32 images of the validation half, best of 8"
    assert tiles["Found cell by shared weights"] == "40.00 % validation half, 719 images, at the end"
    assert tiles["Network of the cell"] == "3,000,000 parameters, 500.0 M multiply-adds, 36 channels, 20 cells"
    result = page.section("result")
    assert "chosen architecture, as the strategy scored it 75.00 – – shared weights, 32 images" in result
    assert "found cell by shared weights 40.00" in result
    assert "network of the cell, 16 channels, 8 cells – 200,000 30.0 not trained" in result
    assert "<h1>Search with nsga2 on digits, 2 epochs</h1>" in page.text
    assert "the supernet on the weight half" in page.section("curves")


def test_the_accuracy_of_a_supernet_is_called_so(tmp_path: Path) -> None:
    events, genotype = run_events(tmp_path, epochs=3, warm_up=1, samples=1, population=4)
    page = report(write_run(tmp_path, events, genotype))
    assert "Supernet accuracy" in page.tiles()
    assert "Chosen architecture" not in page.tiles()
    assert "supernet, all candidates" in page.section("result")


def test_the_front_is_drawn_with_its_costs_and_its_choice(tmp_path: Path) -> None:
    records = [front(0, (10.0, 0.4)), front(1, (20.0, 0.75), (10.0, 0.5), (30.0, 0.9))]
    run = read_run(write_run(tmp_path, records, None))
    chart = by_name(front_charts(run))["front"]
    assert hovers(chart) == [
        "10 multiply-adds (M)\n50.00 %", "20 multiply-adds (M)\n75.00 %", "30 multiply-adds (M)\n90.00 %",
    ]  # fmt: skip
    assert {"multiply-adds (M)", "accuracy (%)", "most accurate 90.0 %"} <= set(texts(chart))
    assert [tuple(line.get_data()[0]) for line in chart.axes.lines] == [(10,), (10, 20, 30), (30,)]
    assert "earlier epochs" in chart.note
    assert front_table(run).count("<tr>") == 4
    assert "latency (ms)" in texts(
        by_name(front_charts(Run(tmp_path, fronts=[front(0, (1, 1), cost="latency") | {"epoch": 0}])))["front"]
    )


def test_runs_without_a_front_have_none(tmp_path: Path) -> None:
    assert list(front_charts(Run(tmp_path))) == []
    assert front_table(Run(tmp_path)) == ""
    for members in (None, [], ["x"], [{"accuracy": None, "macs": 1}], [{"accuracy": 0.5}]):
        damaged = Run(tmp_path, fronts=[{"epoch": 0, "members": members}])
        assert list(front_charts(damaged)) == []
        assert front_table(damaged) == ""


def test_tables_have_captions_and_headers_say_for_what_they_stand(tmp_path: Path) -> None:
    page = chosen_run(tmp_path)
    tables = re.findall(r"<table.*?</table>", page.text, re.DOTALL)
    assert len(tables) >= 5
    for table in tables:
        assert re.match(r"<table[^>]*><caption>[^<]+</caption>", table)
        assert table.count("<th") - table.count("<thead") == len(re.findall(r'<th scope="(?:row|col)"', table))
    assert all(
        page.text[: match.start()].endswith('<div class="scroll">') for match in re.finditer("<table", page.text)
    )
    for svg in page.svgs():
        assert svg.get("role") == "img"
        assert (svg[0].tag.endswith("title"), bool(svg[0].text)) == (True, True)
