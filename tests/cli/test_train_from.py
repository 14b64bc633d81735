"""From a search to a trained network: `fastnas.train --from RUN`, and which images search and training never see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fastnas import evaluate, search, train
from fastnas.cli.configuration import SearchOptions, TrainOptions, parse_search, parse_train
from fastnas.cli.images import open_search_source, open_train_sources
from fastnas.report.run import read_run
from fastnas.spaces.nb201 import NB201Genotype

SEARCH = ["--image-size", "8", "--epochs", "1", "--warm-up", "0", "--population", "4", "--batch-size", "8"]
SEARCH += ["--layers", "3", "--channels", "4", "--fitness-batch-size", "8", "--device", "cpu"]
SMALL = ["--epochs", "1", "--channels", "2", "--layers", "3", "--device", "cpu"]


def search_options(*arguments: str) -> SearchOptions:
    return parse_search(arguments, "search", "")


def train_options(*arguments: str) -> TrainOptions:
    return parse_train(arguments, "train", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes and of several sizes, without a test split."""
    root = tmp_path_factory.mktemp("images") / "pets"
    generator = np.random.default_rng(0)
    for number in range(40):
        (root / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (8 + number % 3, 9, 3), dtype=np.uint8)  # [H, W, 3]
        Image.fromarray(pixels).save(root / f"class{number % 2}" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def searched(folder: Path) -> Path:
    """The run directory of a finished search."""
    out = folder.parent / "search"
    assert search.main(["--data", f"folder:{folder}", *SEARCH, "--normalise", "cifar10", "--out", str(out)]) == 0
    return out


def last_line(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return record


def test_the_printed_next_step_runs(searched: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    """Searched, trained and tested on the same folder, with no image in two of these roles."""
    page = (searched / "report.html").read_text()
    assert f"python -m fastnas.train --from {searched}" in page
    run = read_run(searched)
    assert (run.data["test_images"], run.data["test_share"], run.data["images"]) == (8, 0.2, 32)
    out = tmp_path / "trained"
    assert train.main(["--from", str(searched), *SMALL, "--out", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"from {searched}: its genotype and images, and the recipe egnas-cifar10" in shown
    assert "has no test split: 8 of its images, 20% of each class and always the same ones" in shown
    assert last_line(out)["test"]["images"] == 8
    assert "normalise: cifar10" in (out / "config.yaml").read_text()
    assert (out / "genotype.json").read_text() == (searched / "genotype.json").read_text()
    assert evaluate.main([str(out), "--data", f"folder:{folder}", "--runs", "0", "--json", str(out / "e.json")]) == 0
    found = json.loads((out / "e.json").read_text())["evaluation"]
    assert found["confusion"] == last_line(out)["test"]["confusion"]


def test_search_and_training_keep_the_same_images(folder: Path) -> None:
    spec = ["--data", f"folder:{folder}", "--image-size", "8"]
    searched = open_search_source(search_options(*spec).data)
    sources = open_train_sources(train_options(*spec))
    assert sources.test is not None
    seen = {image.tobytes() for source in (searched, sources.train) for image in source.images()}
    assert len(seen) == 32
    assert not seen & {image.tobytes() for image in sources.test.images()}
    everything = open_search_source(search_options(*spec, "--test", "none").data)
    assert (len(everything), everything.kept_for_test) == (40, 0)
    assert open_train_sources(train_options(*spec, "--test", "none")).test is None


def test_what_is_taken_from_the_search(searched: Path, folder: Path) -> None:
    options = train_options("--from", str(searched))
    assert options.network.genotype == str(searched / "genotype.json")
    assert (options.data.data, options.data.image_size, options.data.test) == (f"folder:{folder}", 8, "same")
    assert options.data.cutout == 4  # the recipe's 16 would erase whole images
    assert options.network.auxiliary is None
    assert (options.recipe.epochs, options.recipe.drop_path, options.network.layers) == (800, 0.3, 20)
    options = train_options("--from", str(searched), "--preset", "darts-imagenet", "--test", "0.4", "--layers", "5")
    assert (options.data.image_size, options.data.test, options.network.layers) == (224, "0.4", 5)
    assert (options.recipe.schedule, options.network.stem) == ("exponential", "imagenet")
    options = train_options("--from", str(searched), "--preset", "demo")
    assert (options.data.data, options.recipe.epochs) == (f"folder:{folder}", 20)  # a recipe, not its images


@pytest.mark.parametrize(
    ("strategy", "stem", "data", "preset"),
    [
        ("egnas", "cifar", "folder:x", "egnas-cifar10"),
        ("darts", "cifar", "cifar10:x", "darts-cifar10"),
        ("pc-darts", "cifar", "folder:x", "pc-darts-cifar10"),
        ("p-darts", "cifar", "folder:x", "p-darts-cifar10"),
        ("random", "cifar", "folder:x", "darts-cifar10"),
        ("pc-darts", "imagenet", "imagenet:x", "pc-darts-imagenet"),
        ("p-darts", "imagenet", "imagenet:x", "p-darts-imagenet"),
        ("gdas", "imagenet", "imagenet:x", "darts-imagenet"),
        ("egnas", "imagenet", "imagenet:x", "egnas-imagenet"),
        ("egnas", "cifar", "digits", "demo"),
    ],
)
def test_the_recipe_belongs_to_the_strategy(
    searched: Path, tmp_path: Path, strategy: str, stem: str, data: str, preset: str
) -> None:
    config = yaml.safe_load((searched / "config.yaml").read_text())
    config["strategy"] = {"name": strategy}
    config["network"]["stem"], config["data"]["data"] = stem, data
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "genotype.json").write_text((searched / "genotype.json").read_text())
    found, recipe = train_options("--from", str(tmp_path)), train_options("--preset", preset)
    assert found.recipe == recipe.recipe
    assert (found.network.channels, found.network.layers) == (recipe.network.channels, recipe.network.layers)


def test_images_that_the_search_has_seen_are_named(folder: Path, searched: Path, tmp_path: Path, capsys: Any) -> None:
    """A search of an earlier version took all images, and so does --test none."""
    config = yaml.safe_load((searched / "config.yaml").read_text())
    del config["data"]["test"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "old" / "genotype.json").write_text((searched / "genotype.json").read_text())
    assert train.main(["--from", str(tmp_path / "old"), *SMALL, "--out", str(tmp_path / "trained")]) == 0
    assert "kept none for the test: it has seen images that are tested here" in " ".join(
        capsys.readouterr().out.split()
    )
    more = ["--test", "0.4", "--out", str(tmp_path / "more")]
    assert train.main(["--from", str(searched), *SMALL, *more]) == 0
    assert "kept 20% of them for the test: it has seen images" in " ".join(capsys.readouterr().out.split())


def test_searches_of_before_go_on_with_all_images(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "old"
    arguments = ["--data", f"folder:{folder}", *SEARCH, "--epochs", "2", "--test", "none", "--stop-after", "1"]
    assert search.main([*arguments, "--out", str(out)]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    del config["data"]["test"]
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    import torch

    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    del checkpoint["options"]["data"]["test"]
    torch.save(checkpoint, out / "checkpoint.pt")
    assert search.main(["--resume", str(out)]) == 0
    assert last_line(out)["event"] == "end"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "nowhere"], "run directory 'nowhere' does not exist"),
        (["--from", "{training}"], "is the run of a training: give --from the run directory of fastnas.search"),
        (["--from", "{empty}"], "has no config.yaml of a search"),
        (["--from", "{searched}", "--resume", "{training}"], "leave out --from"),
        (["--from", "{searched}", "--test", "1.5"], "test is 1.5, expected a share above 0 and below 1"),
        (
            ["--from", "{searched}", "--data", "digits"],
            "normalise is 'cifar10', whose images have 3 channels; digits has 1",
        ),
        (
            ["--from", "{searched}", "--data", "digits", "--normalise", "own", "--test", "0.3"],
            "digits, which has a test split",
        ),
        (["--from", "{begun}"], "has found no genotype yet"),
        (["--from", "{nb201}"], "holds a cell of NAS-Bench-201, whose network fastnas.train does not build: train"),
        (["--data", "digits", "--genotype", "{nb201}/genotype.json"], "it is a cell of NAS-Bench-201, whose network"),
    ],
)
def test_what_cannot_work_is_one_line(
    searched: Path, tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    places = {name: tmp_path / name for name in ("training", "empty", "begun", "nb201")}
    for place in places.values():
        place.mkdir()
    (places["training"] / "config.yaml").write_text("recipe: {epochs: 1}\n")
    (places["training"] / "metrics.jsonl").write_text(json.dumps({"event": "run", "command": "train"}) + "\n")
    (places["begun"] / "config.yaml").write_text((searched / "config.yaml").read_text())
    (places["nb201"] / "config.yaml").write_text((searched / "config.yaml").read_text())
    (places["nb201"] / "metrics.jsonl").write_text((searched / "metrics.jsonl").read_text())
    NB201Genotype(("nor_conv_3x3",) * 6).to_json(places["nb201"] / "genotype.json")
    assert train.main([word.format(searched=searched, **places) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_classes_that_have_changed_are_named(searched: Path, folder: Path, capsys: Any) -> None:
    (folder / "class9").mkdir()
    for number in range(3):
        (folder / "class9" / f"{number}.png").write_bytes((folder / "class0" / "0.png").read_bytes())
    try:
        assert train.main(["--from", str(searched), *SMALL]) == 2
    finally:
        for path in (folder / "class9").iterdir():
            path.unlink()
        (folder / "class9").rmdir()
    assert "has 3 classes, of other names or another number than the 2" in capsys.readouterr().err
