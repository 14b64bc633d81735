"""Which images a search validates on, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastnas import data
from fastnas.cli.configuration import parse_search
from fastnas.cli.search_run import read_search
from fastnas.cli.searching import prepare
from fastnas.engine.search import Search
from fastnas.errors import UserError

SMALL = "--limit 80 --batch-size 16 --image-size 8 --channels 4 --layers 3 --epochs 2 --warm-up 1 --device cpu"
FEW = ["--fitness-batch-size", "8", "--population", "4"]


def search_of(directory: Path, *flags: str, images: str = "digits") -> Search:
    arguments = ["--data", images, *SMALL.split(), "--out", str(directory), *flags]
    return prepare(parse_search(arguments, "test", ""), arguments)


@pytest.mark.parametrize(
    ("flags", "augmented"),
    [
        ("--variant paper", False),
        ("--variant official", True),
        ("--variant official_imagenet", True),
        ("--variant reproduction", True),
        ("--variant official --validation-augment False", False),
        ("--variant paper --validation-augment True", True),
        ("--strategy darts --validation-augment True", True),
        ("--strategy darts", False),
    ],
)
def test_validates_on_augmented_images_where_the_source_does(flags: str, augmented: bool, tmp_path: Path):
    few = [] if "darts" in flags else FEW
    search = search_of(tmp_path / "run", *few, *flags.split())
    assert (search.augmented_pipeline is not None) == augmented
    assert not search.valid_pipeline.augment  # what others measure on stays as it is


def test_augmented_validation_takes_every_image_and_new_draws_each_epoch(tmp_path: Path, monkeypatch: Any):
    search = search_of(tmp_path / "run", *FEW, "--variant", "official", "--crop-padding", "2", "--no-evidence")
    seen: list[torch.Tensor] = []
    real = search.strategy.validation_logits

    def record(context: Any, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return real(context, images)

    monkeypatch.setattr(search.strategy, "validation_logits", record)
    search.run()
    plain = torch.cat([images for images, _ in search.valid_pipeline.epoch(0)])
    first, second = torch.cat(seen).chunk(2)
    assert first.shape == second.shape == plain.shape
    totals = [sorted(images.sum((1, 2, 3)).tolist()) for images in (first, second, plain)]
    assert totals[0] != totals[1] != totals[2] != totals[0]


def write_images(folder: Path, count: int) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.mark.parametrize("flags", ["--strategy darts", "--variant official --validation-augment True"])
def test_the_folder_val_may_hold_the_images_for_alpha(flags: str, tmp_path: Path):
    """As the programs for ImageNet have it: all of train/ for the weights, all of val/ for α."""
    for name, count in (("train", 20), ("val", 12)):
        write_images(tmp_path / "images" / name, count)
    few = [] if "darts" in flags else FEW
    spec = f"folder:{tmp_path / 'images'}"
    search = search_of(tmp_path / "run", *few, *flags.split(), "--alpha-images", "val", "--epochs", "2", images=spec)
    train, val = search.weight_pipeline, search.valid_pipeline
    assert (len(train.indices), len(val.indices)) == (40, 24)
    alpha = search.alpha_pipeline(8)
    assert [each.source.split for each in (train, val, alpha)] == ["train", "val", "val"]
    assert (len(train), len(alpha)) == (2, 3)
    assert search.augmented_pipeline is None or search.augmented_pipeline.source is val.source
    search.stop_after = 1
    assert search.run().status == "stopped"
    found = read_search(tmp_path / "run").check(data.open(spec), data.open(spec, "test"))
    assert str(found).endswith("took α from val: it has seen the images that are tested here")

    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "val" / "one" / "new.png")
    with pytest.raises(UserError, match="images have been renamed, exchanged, added or removed"):
        prepare(parse_search(["--resume", str(tmp_path / "run")], "test", ""))


def test_images_without_a_folder_val_give_none_to_alpha(tmp_path: Path):
    write_images(tmp_path / "images", 8)
    for spec, words in (("digits", "has no folder val"), (f"folder:{tmp_path / 'images'}", "the subfolder val beside")):
        with pytest.raises(UserError, match=f"{words}.*Or take them from the training images: --alpha-images split"):
            search_of(tmp_path / "run", *FEW, "--alpha-images", "val", images=spec)


def test_batches_of_a_validation_mix_the_classes_of_folders(tmp_path: Path):
    """By the statistics of a batch of one class, a network guesses."""
    write_images(tmp_path / "images", 40)
    search = search_of(tmp_path / "run", *FEW, "--test", "none", images=f"folder:{tmp_path / 'images'}")
    batches = [labels for _, labels in search.valid_pipeline.epoch(0)]
    assert all(0 < labels.sum() < len(labels) for labels in batches)
    again = [labels for _, labels in search.valid_pipeline.epoch(0)]
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))
