"""What holds for every strategy: a search runs from images to a report; cut into pieces, it ends in the same bits."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fastnas import strategies
from fastnas.cli.configuration import parse_search
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.search import Search
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.report import write_report
from fastnas.search import prepare
from fastnas.strategies import STRATEGIES, registry

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from run_files import events, same_bits

FLAGS = shlex.split(
    "--data digits --limit 80 --batch-size 16 --split 0.5 --image-size 8 --channels 4 --layers 3 --partial-channels 1 "
    "--epochs 2 --device cpu"
)
EVALUATED = "--evaluations 8 --fitness-batch-size 20"
OWN = {
    "egnas": "--warm-up 1 --population 4 --samples 1 --fitness-batch-size 20",
    "pc-darts": "--warm-up 1 --partial-channels 2",
    "p-darts": "--epochs 3 --warm-up 0 --add-layers-2 1 --add-layers-3 2 --dropout-1 0.3",
    "darts-plus": "--base pc-darts:warm_up=0 --skips 20",
    "multi-level": "--layers 4",
    "random": f"{EVALUATED} --bn-mode recalibrate",
    "aging-evolution": f"{EVALUATED} --population 3 --warm-up 0",
    "genetic": f"{EVALUATED} --population 4 --warm-up 0 --bn-mode running",
    "nsga2": f"{EVALUATED} --population 4 --cost parameters --warm-up 0",
    "particle-swarm": f"{EVALUATED} --particles 4 --warm-up 0",
    "reinforce": f"{EVALUATED} --children-per-update 2",
    "nasnet-ppo": f"{EVALUATED} --children-per-update 4",
    "enas": f"{EVALUATED} --children-per-update 4 --derive-samples 2",
}


@pytest.fixture(autouse=True)
def few_random_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the evidence comes out of every strategy does not depend on how many they are."""
    monkeypatch.setattr("fastnas.engine.evidence.RANDOM_CELLS", 3)


def make(directory: Path, name: str, *flags: str) -> Search:
    resumed = (directory / "checkpoint.pt").exists()
    begin = [*FLAGS, "--strategy", name, "--out", str(directory), *shlex.split(OWN.get(name, ""))]
    arguments = [*(["--resume", str(directory)] if resumed else begin), *flags]
    torch.rand(7)  # whatever state the process is in, a search must not depend on it
    return prepare(parse_search(arguments, "test", ""), arguments)


def final_state(search: Search) -> dict:
    state = load_checkpoint(search.checkpoint_path)
    return {key: value for key, value in state.items() if key not in ("seconds", "log_position", "options")}


def without_seconds(state: object) -> object:
    """A strategy's state where individuals are [code, accuracy, seconds, costs]."""
    if isinstance(state, dict):
        return {key: without_seconds(value) for key, value in state.items()}
    if isinstance(state, list):
        if len(state) == 4 and isinstance(state[0], list) and isinstance(state[3], dict):
            return [state[0], state[1], state[3]]
        return [without_seconds(value) for value in state]
    return state


@pytest.mark.parametrize(("name", "flags"), [*((name, "") for name in STRATEGIES), ("egnas", "--variant decided")])
def test_runs_and_resumes_exactly(name: str, flags: str, tmp_path: Path):
    whole = make(tmp_path / "whole", name, *flags.split())
    outcome = whole.run()
    assert outcome.status == "finished"
    for stop in (2, 3, None):  # after the last weight step, then among the evaluations where there are any, then never
        search = make(tmp_path / "pieces", name, *flags.split())
        calls = 0

        def check_stop(search: Search = search, look=search.check_stop, stop=stop) -> None:
            nonlocal calls
            calls += 1
            if calls == stop:
                search._guard.requested = "SIGTERM"
            look()

        search.check_stop = check_stop
        assert search.run().status == ("finished" if stop is None else "interrupted")
    assert events(search.directory) == events(whole.directory)
    assert same_bits(without_seconds(final_state(search)), without_seconds(final_state(whole)))

    page = write_report(whole.directory).read_text()
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoint.pt", "genotype.json", "report.html"} <= {
        path.name for path in whole.directory.iterdir()
    }
    assert "could not be read" not in page
    assert yaml.safe_load((whole.directory / "config.yaml").read_text())["strategy"]["name"] == name
    assert Genotype.from_json(whole.directory / "genotype.json") == outcome.genotype
    epochs = [event for event in events(whole.directory) if event["event"] == "epoch"]
    assert len(epochs) == whole.epochs
    assert all(0 <= event["valid_accuracy"] <= 1 for event in epochs)


@pytest.mark.parametrize("name", STRATEGIES)
def test_published_options_are_the_defaults_and_can_be_overridden(name: str):
    options = parse_search(["--strategy", name, "--data", "digits"], "test", "")
    for group, values in STRATEGIES[name].published_defaults.items():
        for option, value in values.items():
            assert getattr(getattr(options, group), option) == value
    assert parse_search(["--strategy", name, "--data", "digits", "--epochs", "7"], "test", "").weights.epochs == 7


def test_a_strategy_of_ones_own_needs_no_change_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """That of the documentation, in a file of its own."""
    page = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page.partition("## Adding one")[2], re.M | re.S)
    (tmp_path / "coin.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "STRATEGIES", dict(STRATEGIES))
    main = importlib.import_module("coin").main

    search = make(tmp_path / "run", "coin", "--step", "1.5")
    assert search.run().status == "finished"
    first, last = [event for event in events(search.directory) if event["event"] == "epoch"]
    assert first["op_weights"]["normal"][0] != last["op_weights"]["normal"][0]
    assert max(first["op_weights"]["normal"][0]) == pytest.approx(torch.e**1.5 / (torch.e**1.5 + 7), rel=0.02)
    assert make(tmp_path / "run", "coin").epoch == 2
    assert main(["--strategy", "coin", "--step", "2", "--print-config"]) == 0
    assert main(["--strategy", "coins"]) == 2


def test_unknown_strategies_and_options_are_explained():
    with pytest.raises(UserError, match="did you mean 'pc-darts'"):
        strategies.create("pcdarts")
    with pytest.raises(UserError, match="'orders=1' is not an option of darts: expected OPTION=VALUE with one of al"):
        strategies.parse("darts:orders=1")
    assert strategies.parse("darts:order=1,warm_up=3") == strategies.create("darts", order=1, warm_up=3)
