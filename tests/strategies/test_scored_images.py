"""The images that architectures are scored on within a search, the finalists, and the recipe of the shared weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_every_strategy import events, make

from fastnas.cli.configuration import parse_search
from fastnas.engine.search import Search
from fastnas.errors import UserError
from fastnas.evaluators import Evaluation
from fastnas.search import prepare
from fastnas.strategies import STRATEGIES, DiscreteStrategy

CHOOSING = [name for name, strategy in STRATEGIES.items() if issubclass(strategy, DiscreteStrategy)]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, torch.Tensor]]:
    """What is scored during the test: the number of architectures, and their images [B, C, H, W]."""
    calls = []

    def spy(self: Search, images: torch.Tensor, paths: list, bn_mode: str) -> torch.Tensor:
        calls.append((len(paths), images))
        return torch.zeros(len(paths), len(images), 10)

    monkeypatch.setattr("fastnas.nn.Supernet.path_population_logits", spy)
    return calls


def found(search: Search, codes: int) -> None:
    encoding = search.strategy.encoding
    search.strategy.score([encoding.sample(search.strategy.random) for _ in range(codes)])


def differ(batches: list[torch.Tensor]) -> bool:
    return all(not torch.equal(a, b) for index, a in enumerate(batches) for b in batches[:index])


def test_a_generation_of_random_search_sees_new_images_and_a_population_the_same(scored, tmp_path: Path):
    """Of the 40 images of the α half, in batches of 10: two generations see all of them once."""
    small = ("--fitness-batch-size", "10", "--fitness-batches", "2", "--bn-mode", "batch", "--flip", "False")
    search = make(tmp_path / "random", "random", *small, "--crop-padding", "0")
    for _ in range(3):
        found(search, 3)
    assert [paths for paths, _ in scored] == [3] * 6
    seen = torch.cat([images for _, images in scored[:4]])
    whole = torch.cat([images for images, _ in search.valid_pipeline.epoch(0)])
    assert sorted(image.sum().item() for image in seen) == pytest.approx(sorted(image.sum().item() for image in whole))
    assert differ([images for _, images in scored])

    for name in ("genetic", "aging-evolution", "nsga2", "particle-swarm"):
        scored.clear()
        search = make(tmp_path / name, name, *small[:4], "--bn-mode", "batch")
        for _ in range(3):
            found(search, 3)
        batches = [images for _, images in scored]
        assert all(torch.equal(batch, batches[index % 2]) for index, batch in enumerate(batches))
        assert differ(batches[:2])


@pytest.mark.parametrize("name", ["reinforce", "nasnet-ppo", "enas"])
def test_a_controller_sees_new_images_in_each_update_that_of_enas_for_each_sample(name: str, scored, tmp_path: Path):
    search = make(tmp_path / "run", name, "--fitness-batch-size", "10", "--fitness-batches", "1")
    for _ in range(2):
        found(search, 2)
    assert [paths for paths, _ in scored] == ([1] * 4 if name == "enas" else [2] * 2)
    assert differ([images for _, images in scored])


def test_the_finalists_are_scored_on_the_whole_validation_half(tmp_path: Path):
    # One batch of all 40, as in the validation: BatchNorm takes its statistics.
    flags = ("--finalists", "3", "--bn-mode", "batch", "--fitness-batches", "1", "--batch-size", "40")
    search = make(tmp_path / "run", "random", *flags)
    outcome = search.run()
    (event,) = [event for event in events(search.directory) if event["event"] == "finalists"]
    assert event["images"] == 40
    assert len(event["accuracy"]) == 3
    assert event["before"] == sorted(event["before"], reverse=True)
    best = outcome.chosen["accuracy"]
    assert best == max(event["accuracy"]) == pytest.approx(outcome.valid_accuracy)
    assert round(best * 40, 6) % 1 == 0
    assert outcome.chosen["by"] == "shared weights, all 40 images of the validation half"
    (update,) = [event for event in events(search.directory) if event["event"] == "update"]
    assert (update["best_accuracy"], update["by"]) == (best, outcome.chosen["by"])


def test_a_search_that_stops_among_the_finalists_continues_exactly(tmp_path: Path):
    flags = ("--finalists", "3", "--bn-mode", "batch")
    whole = make(tmp_path / "whole", "genetic", *flags)
    expected = whole.run()
    search = make(tmp_path / "pieces", "genetic", *flags)

    def show(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("finalists", 1):
            search._guard.requested = "SIGTERM"

    search.show = show
    assert search.run().status == "interrupted"
    outcome = make(tmp_path / "pieces", "genetic").run()
    assert (outcome.chosen, outcome.genotype) == (expected.chosen, expected.genotype)
    assert events(search.directory) == events(whole.directory)


def test_the_finalists_are_the_best_of_different_architectures(tmp_path: Path):
    strategy = make(tmp_path / "run", "random", "--finalists", "2").strategy
    encoding = strategy.encoding
    codes = [encoding.sample(strategy.random) for _ in range(3)]
    for code, accuracy in ((0, 0.2), (1, 0.9), (1, 0.8), (2, 0.5), (1, 0.7)):
        strategy.learn([codes[code]], [Evaluation(accuracy, 1.0)])
    assert [(leader.code, leader.accuracy) for leader in strategy.leaders] == [(codes[1], 0.9), (codes[2], 0.5)]


def test_only_shared_weights_have_finalists(tmp_path: Path):
    with pytest.raises(UserError, match="finalists is 2, but the evaluator 'training:1' scores no architecture twice"):
        make(tmp_path / "run", "random", "--evaluator", "training:1", "--finalists", "2")
    assert make(tmp_path / "none", "random", "--evaluator", "training:1").strategy.places == 0


# --- recipes ---


@pytest.mark.parametrize("name", CHOOSING)
def test_no_strategy_that_chooses_takes_over_the_recipe_of_egnas(name: str):
    options = parse_search(["--strategy", name, "--data", "digits"], "test", "")
    weights, network = options.weights, options.network
    if name == "enas":
        assert (network.channels, network.partial_channels, options.data.split) == (20, 1, 0.9)
        return
    assert (network.channels, network.layers, network.partial_channels) == (24, 8, 1)
    assert (weights.epochs, weights.learning_rate, weights.learning_rate_min) == (150, 0.025, 0.001)
    assert (weights.weight_decay, weights.clip, options.data.batch_size) == (3e-4, 1.0, 64)
    assert options.data.split == {"random": 0.5, "genetic": 0.5, "nsga2": 0.8}.get(name, 0.9)


@pytest.mark.parametrize(("name", "images"), [("aging-evolution", 64 * 10), ("enas", 160), ("random", 64 * 10)])
def test_by_default_architectures_are_scored_on_several_batches_or_on_all_images_there_are(
    name: str, images: int, scored, tmp_path: Path
):
    flags = [
        "--data",
        "digits",
        "--batch-size",
        "8",
        "--image-size",
        "4",
        "--channels",
        "4",
        "--layers",
        "3",
        "--epochs",
        "1",
    ]
    for limit, expected in (("1400", min(images, 640)), ("60", None)):
        scored.clear()
        options = ["--strategy", name, "--limit", limit, "--split", "0.5" if limit == "1400" else "0.9"]
        options += ["--test", "none", "--device", "cpu", "--out", str(tmp_path / limit)]
        search = prepare(parse_search([*flags, *options], "test", ""))
        found(search, 1)
        whole = len(search.valid_pipeline.indices)
        assert sum(len(batch) for _, batch in scored) == (expected or whole)
        assert expected or 1 < whole < 64
