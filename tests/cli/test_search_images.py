"""Which images a search validates on, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastnas.cli.configuration import parse_search
from fastnas.cli.searching import prepare
from fastnas.engine.search import Search

SMALL = "--limit 80 --batch-size 16 --image-size 8 --channels 4 --layers 3 --epochs 2 --warm-up 1 --device cpu"
FEW = ["--fitness-batch-size", "8", "--population", "4"]


def search_of(directory: Path, *flags: str, data: str = "digits") -> Search:
    arguments = ["--data", data, *SMALL.split(), "--out", str(directory), *flags]
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


def test_batches_of_a_validation_mix_the_classes_of_folders(tmp_path: Path):
    """By the statistics of a batch of one class, a network guesses."""
    for name in ("one", "two"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(40):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    search = search_of(tmp_path / "run", *FEW, "--test", "none", data=f"folder:{tmp_path / 'images'}")
    batches = [labels for _, labels in search.valid_pipeline.epoch(0)]
    assert all(0 < labels.sum() < len(labels) for labels in batches)
    again = [labels for _, labels in search.valid_pipeline.epoch(0)]
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))
