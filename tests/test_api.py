"""`fastnas.api`: what the commands do, from Python, with images in memory and strategies that are not registered."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import TensorDataset

import fastnas
from fastnas import api, search
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.spaces import SPACES, CellSpace
from fastnas.strategies import Strategy

SPACE = CellSpace(name="three-candidates", candidates=("none", "skip_connect", "max_pool_3x3"), pool_norm=True, nodes=2)
SMALL: dict[str, Any] = {"epochs": 2, "channels": 4, "layers": 3, "batch_size": 8, "threads": 1, "progress": False}


@dataclass
class OnlyWeights(Strategy):
    """Trains the weights and leaves α alone."""

    name: ClassVar[str] = "only-weights"
    plain_step: ClassVar[bool] = True

    patience: int = 3
    """Of no effect."""


@pytest.fixture(autouse=True)
def spaces_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastnas.spaces.SPACES", dict(SPACES))


def labelled(count: int, generator: int = 0) -> TensorDataset:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(generator))
    return TensorDataset(images, torch.arange(count) % 2)


def find(data: Any, out: Path, **options: Any) -> api.SearchResult:
    """A small search."""
    own = {"strategy": OnlyWeights(patience=5), "space": SPACE, "partial_channels": 1}
    return api.search(data, **{**SMALL, **own, "out": str(out), **options})


def interrupt_at(epoch: int, step: int) -> Any:
    def on_step(progress: dict[str, Any]) -> None:
        if (progress["epoch"], progress["step"], progress["phase"]) == (epoch, step, "weights"):
            signal.raise_signal(signal.SIGINT)

    return on_step


def test_dir_shows_what_there_is() -> None:
    assert {"api", "data", "nn", "ops", "strategies", "Genotype"} <= set(dir(fastnas))
    assert all(getattr(fastnas, name) is not None for name in dir(fastnas))


def test_a_search_gives_its_genotype_its_history_and_its_files(tmp_path: Path, capsys: Any) -> None:
    epochs: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    result = find(labelled(40), tmp_path / "run", on_epoch=epochs.append, on_step=steps.append, seed=7)
    assert (result.status, result.directory) == ("finished", tmp_path / "run")
    assert Genotype.from_json(result.directory / "genotype.json") == result.genotype
    assert result.report.stat().st_size > 0
    assert capsys.readouterr() == ("", "")  # progress=False

    lines = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["event"] == "epoch"]
    assert result.history["train_loss"].tolist() == [line["train_loss"] for line in logged]
    assert result.history["op_weights"]["normal"].shape == (2, 5, 3)
    assert result.history["valid_accuracy"][-1] == result.valid_accuracy
    assert [(record["seed"], record["epoch"], record["train_loss"]) for record in epochs] == [
        (7, line["epoch"], line["train_loss"]) for line in logged
    ]
    weights = [(step["epoch"], step["step"], step["steps"]) for step in steps if step["phase"] == "weights"]
    assert weights == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2)]

    config = yaml.safe_load((result.directory / "config.yaml").read_text())
    assert config["data"]["data"].startswith("memory:")
    assert config["strategy"] == {"name": f"python:{__name__}:OnlyWeights", "patience": 5}
    (call,) = lines[0]["argv"]
    assert call.startswith("fastnas.api.search(data=data, strategy=OnlyWeights(patience=5), space=space, ")
    assert "fastnas.api.search(data=data" in result.report.read_text().replace("&#x27;", "'")


def test_an_interrupted_search_says_how_it_goes_on_and_does(tmp_path: Path, capsys: Any) -> None:
    whole = find(labelled(40), tmp_path / "whole")
    capsys.readouterr()
    part = find(labelled(40), tmp_path / "part", on_step=interrupt_at(1, 0))
    assert part.status == "interrupted"
    said = capsys.readouterr()
    assert said.out == ""
    again = f"fastnas.api.search(data=data, resume={str(tmp_path / 'part')!r})"
    assert f"interrupted after 1 epochs; continue with: {again}" in said.err
    with pytest.raises(UserError, match=r"is not finished \(interrupted\): go on with fastnas.api.search"):
        api.train(part, labelled(40))

    how = {"strategy": OnlyWeights, "space": SPACE, "progress": False}
    with pytest.raises(UserError, match="were in the memory of a Python program: go on from Python"):
        api.search(resume=part, **how)
    with pytest.raises(UserError, match=r"these are not the images that the run in .* began with"):
        api.search(labelled(40, generator=1), resume=part, **how)
    with pytest.raises(UserError, match="epochs is 9 but was 2"):
        api.search(labelled(40), resume=part, epochs=9, **how)
    with pytest.raises(UserError, match="patience is 4 but was 5"):
        api.search(labelled(40), resume=part, strategy=OnlyWeights(patience=4), progress=False)
    assert search.main(["--resume", str(part.directory)]) == 2
    assert "go on from Python" in capsys.readouterr().err

    resumed = api.search(labelled(40), resume=part, progress=False)  # the class is found by the name of its module
    assert resumed.status == "finished"
    assert resumed.genotype == whole.genotype
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_array_equal(resumed.history[name], whole.history[name])


def test_a_callback_that_raises_ends_the_run_and_leaves_it_resumable(tmp_path: Path) -> None:
    def fail(record: dict[str, Any]) -> None:
        if record["epoch"] == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        find(labelled(40), tmp_path / "run", on_epoch=fail)
    resumed = api.search(labelled(40), resume=tmp_path / "run", progress=False)
    assert resumed.history["epoch"].tolist() == [0, 1]


def test_a_genotype_is_trained_evaluated_and_exported(tmp_path: Path) -> None:
    found = find(labelled(40), tmp_path / "found", epochs=1)
    seen: list[tuple[int, int]] = []
    result = api.train(
        found, labelled(40), test=labelled(10, 1), out=str(tmp_path / "run"), seeds="1,2", cutout=0,
        on_epoch=lambda record: seen.append((record["seed"], record["epoch"])), **SMALL,
    )  # fmt: skip
    assert seen == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert result.status == "finished"
    assert [trained.seed for trained in result.trained] == [1, 2]
    assert result.report.exists()
    first = result.trained[0]
    assert first.test is not None
    assert (first.test.images, first.history["train_loss"].shape) == (10, (2,))
    assert Genotype.from_json(first.directory / "genotype.json") == found.genotype

    # The training images normalise the test images, in the training and afterwards.
    images, labels = labelled(10, 1).tensors
    arrays = images.mul(255).round().byte().permute(0, 2, 3, 1).numpy(), labels.numpy()
    for network in (first, first.directory, first.network()):
        results = api.evaluate(network, arrays, runs=0, progress=False)
        assert results["evaluation"]["loss"] == pytest.approx(first.test.loss, rel=1e-5)
    with pytest.raises(UserError, match="several seeds"):
        api.evaluate(result, arrays)
    assert api.evaluate(first.network(), runs=0, progress=False)["image_size"] == [3, 8, 8]

    # Where no test images are given, a fifth of each class is kept for the test, from the search on.
    kept = api.train(found, labelled(40), out=str(tmp_path / "kept"), **SMALL).trained[0]
    assert kept.test is not None
    assert kept.test.images == 8
    results = api.evaluate(kept, labelled(40), runs=0, progress=False)
    assert results["evaluation"]["images"] == 8
    assert results["evaluation"]["loss"] == pytest.approx(kept.test.loss, rel=1e-5)
    assert api.evaluate(kept, labelled(10, 1), runs=0, progress=False)["evaluation"]["images"] == 10

    (file,) = api.export(first, save=tmp_path / "network.json", progress=False)
    same = fastnas.nn.DerivedNetwork.load(file)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), first.network().parameters(), strict=True))

    before = result.accuracies
    again = api.train(data=labelled(40), test=labelled(10, 1), resume=result, progress=False)  # both are done
    np.testing.assert_array_equal(again.accuracies, before)
    assert again.trained[0].test == first.test


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    found = find(labelled(40), tmp_path / "found", epochs=1)

    def on_step(progress: dict[str, Any]) -> None:
        if (progress["epoch"], progress["step"], progress["phase"]) == (1, 1, "training"):
            signal.raise_signal(signal.SIGINT)

    how = {"test": "none", "cutout": 0, **SMALL}
    whole = api.train(found.genotype, labelled(40), out=str(tmp_path / "whole"), **how)
    part = api.train(found.genotype, labelled(40), out=str(tmp_path / "part"), on_step=on_step, **how)
    assert part.status == "interrupted"
    resumed = api.train(found.genotype, labelled(40), resume=part, progress=False)
    assert resumed.status == "finished"
    expected = whole.trained[0].history["train_loss"]
    np.testing.assert_array_equal(resumed.trained[0].history["train_loss"], expected)
    assert np.isnan(resumed.accuracies).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epoch": 3}, r"option 'epoch' is unknown: did you mean 'epochs'\?"),
        ({"epochs": "many"}, "epochs is 'many', expected a whole number from 1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"pipeline": "fast"}, "pipeline is 'fast', expected auto, dali, tensor or torchvision"),
        ({"download": "perhaps"}, "download is 'perhaps', expected True or False"),
        ({"seed": -1}, "seed is -1"),
        ({"strategy": "egnass"}, r"did you mean 'egnas'\?"),
        ({"strategy": int}, "expected a name, or a class or an object derived from fastnas.strategies.Strategy"),
        ({"space": "dart"}, "unknown search space 'dart'"),
        ({"space": CellSpace("darts", ("none", "skip_connect"), True)}, "name 'darts' of another space"),
        ({"preset": "cifer10"}, "unknown preset 'cifer10'"),
        ({"config": "nowhere.yaml"}, "cannot read config nowhere.yaml"),
        ({"resume": "nowhere"}, "nothing to resume in nowhere"),
        ({"data": "folder:nowhere"}, "nowhere"),
        ({"data": 5}, "the data is a int: expected a source such as folder:ROOT"),
        ({"device": "cuda:99"}, "there is no device"),
    ],
)
def test_what_cannot_work_is_a_user_error_in_one_line(tmp_path: Path, monkeypatch, options, expected) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"data": labelled(40), "strategy": OnlyWeights, "batch_size": 8, "progress": False, **options}
    with pytest.raises(UserError, match=expected) as error:
        api.search(given.pop("data"), **given)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_strategies_of_ones_own_are_dataclasses_with_a_name_of_their_own() -> None:
    @dataclass
    class Other(Strategy):
        name: ClassVar[str] = "egnas"

    with pytest.raises(UserError, match="has the name 'egnas' of another"):
        api.search(labelled(40), strategy=Other)

    class Plain(Strategy):
        name: ClassVar[str] = "plain"

    with pytest.raises(UserError, match="is no dataclass: write @dataclass above the class"):
        api.search(labelled(40), strategy=Plain)


def test_keywords_override_files_and_an_object_keeps_its_options(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("weights: {epochs: 1, momentum: 0.5}\nstrategy: {name: darts, unrolled: true}\n")
    result = find(labelled(40), tmp_path / "run", config=config, momentum=0.25, epochs=1)
    options = yaml.safe_load((result.directory / "config.yaml").read_text())
    assert options["weights"]["momentum"] == 0.25
    assert options["strategy"]["patience"] == 5


def test_the_commands_are_thin_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(options: Any, arguments: Any, console: Any) -> Any:
        asked.append((options.data.data, arguments))
        return api.SearchResult("interrupted", Path("run"), Genotype.published("DARTS_V2"), None)

    monkeypatch.setattr(api, "run_search", run)
    assert search.main(["--data", "digits"]) == 130
    assert asked == [("digits", ["--data", "digits"])]
