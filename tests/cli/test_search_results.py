"""What a search says it has found: whose accuracy each number is, on the terminal and in its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastnas import search
from fastnas.cli.configuration import parse_search, parse_train, to_text
from fastnas.cli.progress import update_legend, update_line
from fastnas.counting import count_macs, count_parameters
from fastnas.genotype import Genotype
from fastnas.nn import DerivedNetwork
from fastnas.search import prepare

TINY = ["--data", "digits", "--limit", "80", "--batch-size", "16", "--channels", "4", "--layers", "3", "--epochs", "1"]


def found(out: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """What a tiny search prints, and its events by kind."""
    assert search.main([*TINY, "--out", str(out), *flags]) == 0
    events: dict[str, list[dict[str, Any]]] = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        events.setdefault(record["event"], []).append(record)
    return capsys.readouterr().out, events


@pytest.mark.parametrize(("strategy", "evaluated"), [("random", 5), ("genetic:population=4", 8)])
def test_a_strategy_that_chooses_reports_its_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str, evaluated: int
) -> None:
    out = tmp_path / "run"
    name, _, option = strategy.partition(":")
    flags = [f"--{option.split('=')[0]}", option.split("=")[1]] if option else []
    text, events = found(out, capsys, "--strategy", name, *flags, "--evaluations", "5", "--fitness-batch-size", "20")
    (update,), (end,), (epoch,) = events["update"], events["end"], events["epoch"]
    assert (update["evaluated"], update["asked"]) == (evaluated, 5)
    assert ("(5 asked for, rounded up to whole generations)" in text) == (evaluated > 5)
    assert update["by"] == "shared weights, all 40 images of the validation half"  # the finalists
    chosen = {"accuracy": update["best_accuracy"], "by": update["by"], "evaluated": evaluated}
    assert end["chosen"] == chosen
    assert (epoch["valid_of"], end["valid_of"]) == ("cell", "cell")
    assert f"chosen architecture: accuracy {chosen['accuracy']:.2%} by {chosen['by']}, the best of {evaluated}" in text
    assert f"found cell by shared weights, validation half: accuracy {end['valid_accuracy']:.2%} on 40 images" in text


def test_a_search_of_alpha_reports_the_supernet_and_the_sizes_of_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    text, events = found(out, capsys, "--strategy", "darts", "--flip", "True", "--cutout", "3")
    (run,), (end,) = events["run"], events["end"]
    assert (end["valid_of"], end["chosen"]) == ("supernet", None)
    assert f"supernet, validation half: accuracy {end['valid_accuracy']:.2%} on 40 images" in text
    genotype = Genotype.from_json(out / "genotype.json")
    assert [(size["channels"], size["layers"]) for size in end["derived"]] == [(4, 3), (36, 20)]
    for size in end["derived"]:
        network = DerivedNetwork(genotype, size["channels"], size["layers"], 10, in_channels=1, auxiliary=False)
        image = (1, *run["data"]["image_size"])
        assert (size["parameters"], size["macs"]) == (count_parameters(network), count_macs(network, image))
    assert run["network"]["macs"] > end["derived"][0]["macs"]
    assert run["data"]["augmentation"] | {"flip": True, "cutout": 3} == run["data"]["augmentation"]
    config = (out / "config.yaml").read_text()
    assert yaml.safe_load(config)["data"]["crop_padding"] is None
    for line in ("  backend: auto  # fused", "  device: auto  # cpu", "  flip: true", "  space: null  # darts"):
        assert line in config.splitlines()
    padding = run["data"]["augmentation"]["crop_padding"]
    assert f"  crop_padding: null  # {padding}" in config.splitlines()
    page = re.sub(r"<[^>]*>", " ", (out / "report.html").read_text())
    assert "flip true" in page
    assert "cutout 3" in page


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ("egnas --variant official --warm-up 0", ("center: null  # false", "bn_mode: null  # running")),
        ("egnas --variant official --warm-up 0 --bn-mode batch", ("center: null  # false", "bn_mode: batch")),
        ("random", ("warm_up: null  # 0", "evaluations: null  # 1000")),
    ],
)
def test_options_that_a_strategy_decides_stand_in_comments(tmp_path: Path, flags: str, lines: tuple[str, ...]) -> None:
    arguments = [*TINY, "--fitness-batch-size", "20", "--out", str(tmp_path / "run"), "--strategy", *flags.split()]
    (tmp_path / "run").mkdir()
    prepare(parse_search(arguments, "test", ""), arguments, tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text().splitlines()
    assert [line for line in lines if f"  {line}" not in config] == []


def test_a_search_begins_with_seed_0_as_everything() -> None:
    assert parse_search([], "test", "").run.seed == 0
    assert parse_train([], "test", "").run.seed_list() == [0]


def test_comments_change_nothing() -> None:
    asked = {"run": {"out": None, "device": "auto", "note": "a: b\n\n  device: auto\n"}, "data": {"out": None, "n": 3}}
    resolved = {"run": {"device": "cpu", "out": None, "note": "x"}, "data": {"out": {"a": [1]}}}
    text = to_text(asked, resolved, {"data": {"n": "fitted"}})
    assert "  n: 3  # fitted" in text.splitlines()
    assert yaml.safe_load(text) == asked
    assert "  device: auto  # cpu" in text.splitlines()
    assert "  out: null  # {a: [1]}" in text.splitlines()


def test_an_evolution_step_says_whose_its_two_accuracies_are() -> None:
    record = {
        "step": 1,
        "sigma": 0.5,
        "best_accuracy": 0.438,
        "current_accuracy": 0.469,
        "best_fitness": 1.25,
        "form": "eq3",
    }
    line = update_line(record)
    assert line.strip() == "evolution step 2: σ 0.500, α has 46.9%, taken 43.8%, fitness 1.2500"
    assert len(line) < 80
    legend = list(update_legend(record))
    assert "towards which α moves" in legend[0]
    assert "equation 3" in legend[1]
    assert len(list(update_legend(record | {"form": "rebased"}))) == 1
    assert len(list(update_legend(record | {"best_accuracy": 0.469}))) == 1
