"""Schedules of a retraining against the published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastnas import Genotype
from fastnas.cli.configuration import parse_train
from fastnas.engine.recipe import TrainingRecipe
from fastnas.errors import UserError
from fastnas.nn import DerivedNetwork
from fastnas.nn.derived_cell import DerivedCell


@pytest.fixture
def oracles(shared_data: Path) -> dict[str, Any]:
    return json.loads((shared_data / "published.json").read_text())["numeric_oracles"]


def preset(name: str, *flags: str) -> TrainingRecipe:
    return parse_train(["--preset", name, *flags], "test", "").recipe


def test_cosine(oracles: dict[str, Any]) -> None:
    recipe = TrainingRecipe(epochs=50, learning_rate=0.025, learning_rate_min=0.001)
    for epoch, rate in oracles["cosine_0.025_to_0.001_over_50"].items():
        assert recipe.rate(int(epoch)) == pytest.approx(rate, abs=5e-7)


def test_linear(oracles: dict[str, Any]) -> None:
    recipe = preset("egnas-imagenet", "--learning-rate-warm-up", "0")
    for epoch, rate in oracles["imagenet_linear_lr0.5_E250"].items():
        assert recipe.rate(int(epoch)) == pytest.approx(rate, abs=5e-7)


def test_warm_up_exponential_and_the_legacy_order() -> None:
    recipe = preset("egnas-imagenet")
    assert [recipe.rate(epoch) for epoch in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5 * 240 / 245])
    recipe = preset("darts-imagenet")
    assert [recipe.rate(epoch) for epoch in (0, 1, 10)] == pytest.approx([0.1, 0.097, 0.1 * 0.97**10])
    legacy, now = TrainingRecipe(epochs=4, legacy_scheduler=True), TrainingRecipe(epochs=4)
    assert [legacy.rate(epoch) for epoch in range(3)] == [now.rate(epoch) for epoch in range(1, 4)]
    assert legacy.rate(3) == 0
    assert [TrainingRecipe(epochs=2, schedule="linear").rate(e) for e in (0, 1)] == pytest.approx([0.025, 0.0125])


def test_drop_path_rises_linearly_and_with_the_depth(oracles: dict[str, Any], monkeypatch: Any) -> None:
    recipe = TrainingRecipe(epochs=600, drop_path=0.3)
    assert [recipe.drop_path_at(epoch) for epoch in (0, 300, 599)] == pytest.approx([0, 0.15, 0.3 * 599 / 600])
    assert TrainingRecipe(drop_path=0.3, drop_path_schedule="constant").drop_path_at(0) == 0.3
    network = DerivedNetwork(
        Genotype.published("DARTS_V2"), channels=2, layers=20, auxiliary=False, drop_path=0.4, drop_path_by_depth=True
    )
    seen: list[float] = []

    def record(cell: DerivedCell, s0: Any, s1: Any, drop_path_prob: float, join: bool) -> Any:
        seen.append(drop_path_prob)
        return s1

    monkeypatch.setattr(DerivedCell, "forward", record)
    network.classifier = network.pool  # the widths do not fit without cells
    import torch

    with torch.no_grad():
        network(torch.zeros(1, 3, 4, 4))
    for cell, keep in oracles["scheduled_drop_path_keep0.6_cells20_final"].items():
        assert 1 - seen[int(cell)] == pytest.approx(keep)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: TrainingRecipe(epochs=0), "epochs is 0, expected a whole number from 1 to"),
        (lambda: TrainingRecipe(accumulate=0), "accumulate is 0"),
        (lambda: TrainingRecipe(learning_rate=float("nan")), "learning_rate is nan"),
        (lambda: TrainingRecipe(drop_path=1.0), "drop_path is 1.0, expected a number from 0 to less than 1"),
        (lambda: TrainingRecipe(ema=-0.1), "ema is -0.1"),
    ],
)
def test_impossible_options(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options()
