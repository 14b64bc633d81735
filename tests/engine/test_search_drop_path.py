"""--search-drop-path: which steps drop edges, and how many."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastnas.engine.options import WeightOptions, drop_path_at

sys.path.append(str(Path(__file__).parents[1] / "strategies"))
from test_every_strategy import events, make


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [0.3] * 3), ("linear", [0, 0.1, 0.2]), ("scheduled", [0, 0.1, 0.2])]
)
def test_the_schedule_of_a_search(schedule, expected):
    assert [drop_path_at(0.3, schedule, epoch, 3) for epoch in range(3)] == pytest.approx(expected)
    assert WeightOptions().search_drop_path == 0


def test_weight_steps_drop_edges_and_nothing_else_does(tmp_path: Path):
    flags = ("--search-drop-path", "0.5", "--search-drop-path-schedule", "scheduled", "--limit", "32")
    search = make(tmp_path / "run", "darts", "--order", "1", "--batch-size", "8", *flags)
    calls: list[tuple[bool, float]] = []

    def forward(*arguments, **options):
        depth = search.network.drop_path_by_depth
        calls.append((search.network.training, search.network.drop_path_prob if depth else -1.0))
        return plain(*arguments, **options)

    plain = search.network.forward
    search.network.forward = forward
    search.run()
    training = [probability for trains, probability in calls if trains]
    # Each epoch has a step of α, which drops nothing, and one of the weights; the probability rises from 0.
    assert training == [-1.0, 0.0, 0.0, 0.25]
    assert {probability for trains, probability in calls if not trains} == {0.0}


def test_drop_path_of_snas_is_that_of_its_commands(tmp_path: Path):
    search = make(tmp_path / "run", "snas", "--limit", "40")
    assert (search.weights.search_drop_path, search.weights.search_drop_path_schedule) == (0.3, "constant")
    whole = search.run()
    first = make(tmp_path / "pieces", "snas", "--limit", "40", "--stop-after", "1").run()
    again = make(tmp_path / "pieces", "snas").run()
    assert (first.status, again.status) == ("stopped", "finished")
    assert again.genotype == whole.genotype
    assert events(tmp_path / "pieces") == events(tmp_path / "run")
