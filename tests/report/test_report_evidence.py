"""The section "Evidence" of a page, and its lines in the terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_synthetic_run import run_events, write_run

from fastnas.report.evidence import evidence, evidence_words
from fastnas.report.page import render
from fastnas.report.run import Run, read_run

EVENT: dict[str, Any] = {
    "event": "evidence",
    "cells": {
        "normal": {"operations": {"skip_connect": 5, "sep_conv_3x3": 3}, "skips": 5, "many_skips": True},
        "reduce": {"operations": {"max_pool_3x3": 8}, "skips": 0, "many_skips": False},
    },
    "comparison": {
        "images": 64, "of_images": 719, "accuracy": 0.5, "random": [0.4] * 87 + [0.5] * 2 + [0.6] * 11,
        "better_than": 87, "equal": 2, "percentile": 88.0, "parameters": 1200, "random_parameters": [1100, 1300],
        "drawn": 2000,
    },
    "derivation": {"supernet": 0.75, "cell": 0.5},
    "alpha": {
        "choices": 28, "decided": 9,
        "kinds": {
            "normal": {"choices": 14, "decided": 7, "entropy": 1.5, "uniform": 1.946},
            "reduce": {"choices": 14, "decided": 2, "entropy": 1.25, "uniform": 1.946},
        },
    },
    "seconds": 1.5,
}  # fmt: skip


def page(directory: Path, event: dict[str, Any] | None) -> str:
    events, genotype = run_events(directory, epochs=4, warm_up=1, samples=1, population=4)
    for number, epoch in enumerate(e for e in events if e["event"] == "epoch"):
        epoch["derivation"] = {"supernet": 0.3 + 0.1 * number, "cell": 0.25}
    run = read_run(write_run(directory, [*events[:-1], *([] if event is None else [event]), events[-1]], genotype))
    return render(run)


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_words() -> None:
    said, warned = evidence_words(EVENT)
    assert said == [
        "better than 87 and as good as 2 of 100 random cells of its size (shared weights, 64 images); 9 of 28 choices "
        "are decided",
        "derivation gap 25.0 points: supernet 75.0 %, its cell 50.0 %, same weights and images",
    ]
    (warning,) = warned
    assert warning.startswith("the normal cell has 5 skip connections")
    one = {**EVENT, "alpha": {"choices": 6, "decided": 1}, "comparison": {**EVENT["comparison"], "equal": 0}}
    assert evidence_words(one)[0][0] == (
        "better than 87 of 100 random cells of its size (shared weights, 64 images); 1 of 6 choices is decided"
    )
    assert evidence_words({"cells": {}}) == ([], [])


def test_section(tmp_path: Path) -> None:
    html = page(tmp_path, EVENT)
    shown = text(html[html.index('<section id="evidence">') : html.index('<section id="curves">')])
    for words in (
        "Better than 87 and as good as 2 of 100 random cells",
        "on the same 64 images of the validation half, which has 719",
        "1,100 to 1,300 parameters, the found cell 1,200",
        "found cell 50.0 %",
        "supernet 60.0 %",  # the curve's last value
        "its cell 25.0 %",
        "5 × skip_connect, 3 × sep_conv_3x3",
        "7 of 14",
        "1.250 of 1.946",
    ):
        assert words in shown, words


def test_strategies_without_alpha_and_runs_without_evidence(tmp_path: Path) -> None:
    kept = {key: value for key, value in EVENT.items() if key not in ("alpha", "derivation")}
    shown = text(page(tmp_path / "discrete", kept))
    assert "better than" in shown.lower()
    assert "decided" not in shown
    assert 'id="evidence"' not in page(tmp_path / "none", None)


@pytest.mark.parametrize("damage", [[], None, "x", {}, {"random": []}, {"random": ["x"]}, {"accuracy": None}])
def test_damaged_records_are_left_out(tmp_path: Path, damage: Any) -> None:
    comparison = {**EVENT["comparison"], **damage} if isinstance(damage, dict) and damage else damage
    for name in ("comparison", "derivation", "alpha", "cells"):
        event = {**EVENT, name: comparison if name == "comparison" else damage}
        assert "Cells and choices" in evidence(Run(tmp_path, evidence=event))


def test_accuracies_that_are_all_equal(tmp_path: Path) -> None:
    same = {**EVENT["comparison"], "random": [0.5] * 100, "equal": 100, "better_than": 0}
    assert "found cell 50.0 %" in evidence(Run(tmp_path, evidence={**EVENT, "comparison": same}))
