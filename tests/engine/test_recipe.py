"""Schedules and presets of a retraining against the published numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastnas import Genotype
from fastnas.data import Augmentation
from fastnas.engine.recipe import RecipeOptions, TrainDataOptions, TrainRunOptions
from fastnas.errors import UserError
from fastnas.nn import DerivedNetwork
from fastnas.nn.derived_cell import DerivedCell
from fastnas.train_configuration import parse_train


@pytest.fixture
def oracles(shared_data: Path) -> dict[str, Any]:
    return json.loads((shared_data / "published.json").read_text())["numeric_oracles"]


def preset(name: str, *flags: str) -> RecipeOptions:
    return parse_train(["--preset", name, *flags], "test", "").recipe


def test_cosine(oracles: dict[str, Any]) -> None:
    recipe = RecipeOptions(epochs=50, learning_rate=0.025, learning_rate_min=0.001)
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
    legacy, now = RecipeOptions(epochs=4, legacy_scheduler=True), RecipeOptions(epochs=4)
    assert [legacy.rate(epoch) for epoch in range(3)] == [now.rate(epoch) for epoch in range(1, 4)]
    assert legacy.rate(3) == 0
    assert [RecipeOptions(epochs=2, schedule="linear").rate(e) for e in (0, 1)] == pytest.approx([0.025, 0.0125])


def test_drop_path_rises_linearly_and_with_the_depth(oracles: dict[str, Any], monkeypatch: Any) -> None:
    recipe = RecipeOptions(epochs=600, drop_path=0.3)
    assert [recipe.drop_path_at(epoch) for epoch in (0, 300, 599)] == pytest.approx([0, 0.15, 0.3 * 599 / 600])
    assert RecipeOptions(drop_path=0.3, drop_path_schedule="constant").drop_path_at(0) == 0.3
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


PUBLISHED = {  # of section "Evaluation-stage recipes": epochs, batch, drop path, rate, weight decay, smoothing
    "darts-cifar10": (600, 96, 0.2, 0.025, 3e-4, 0.0),
    "pc-darts-cifar10": (600, 96, 0.3, 0.025, 3e-4, 0.0),
    "p-darts-cifar10": (600, 128, 0.3, 0.025, 3e-4, 0.0),
    "egnas-cifar10": (800, 96, 0.3, 0.025, 3e-4, 0.0),
    "egnas-cifar100": (800, 96, 0.3, 0.025, 3e-4, 0.0),
    "darts-imagenet": (250, 128, 0.0, 0.1, 3e-5, 0.1),
    "egnas-imagenet": (250, 1024, 0.0, 0.5, 3e-5, 0.1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets(name: str) -> None:
    options = parse_train(["--preset", name], "test", "")
    recipe, imagenet = options.recipe, name.endswith("imagenet")
    assert PUBLISHED[name] == (
        *(recipe.epochs, options.data.batch_size, recipe.drop_path, recipe.learning_rate),
        *(recipe.weight_decay, recipe.label_smoothing),
    )
    assert (recipe.clip, recipe.auxiliary_weight, recipe.momentum) == (5.0, 0.4, 0.9)
    assert (options.network.channels, options.network.layers) == ((48, 14) if imagenet else (36, 20))
    assert options.network.auxiliary is True
    assert options.data.cutout == (0 if imagenet else 16)
    assert options.run.select == "last"
    # CIFAR's: what suits the data, which is a crop of the padded image and a flip.
    images, nothing = options.data, (None,) * 4
    assert (images.image_size, images.evaluated_share) == ((224, 0.875) if imagenet else (None, None))
    assert (images.crop_scale, images.flip) == ((0.08, True) if imagenet else (None, None))
    jitter = (images.brightness, images.contrast, images.saturation, images.hue)
    assert jitter == ((0.4, 0.4, 0.4, 0.2) if imagenet else nothing)
    changed = parse_train(["--preset", name, "--epochs", "3", "--drop-path", "0.5"], "test", "")
    assert (changed.recipe.epochs, changed.recipe.drop_path) == (3, 0.5)


PADDED = Augmentation(crop_padding=4, flip=True)
RESIZED = Augmentation(crop_padding=0, flip=True, crop_area=(0.08, 1.0), color_jitter=(0.4, 0.4, 0.4, 0.2))


@pytest.mark.parametrize(
    ("flags", "own", "expected"),
    [
        ("", PADDED, replace(PADDED, cutout=16)),
        ("", RESIZED, replace(RESIZED, cutout=16)),
        ("--preset darts-imagenet", PADDED, RESIZED),
        ("--preset egnas-imagenet", RESIZED, RESIZED),
        ("--preset egnas-imagenet --crop-scale 0 --hue 0.1", PADDED, replace(
            PADDED, color_jitter=(0.4, 0.4, 0.4, 0.1))),
        ("--preset darts-imagenet --flip False --crop-scale 0.2 --saturation 0", PADDED, replace(
            RESIZED, flip=False, crop_area=(0.2, 1.0), color_jitter=(0.4, 0.4, 0.0, 0.2))),
        ("--cutout 0 --crop-scale 0 --crop-padding 2", RESIZED, replace(RESIZED, crop_area=None, crop_padding=2)),
        ("--cutout 0 --brightness 0.3", PADDED, replace(PADDED, color_jitter=(0.3, 0.0, 0.0, 0.0))),
    ],
)  # fmt: skip
def test_augmentation_is_the_datas_but_for_what_is_asked(flags: str, own: Augmentation, expected: Augmentation) -> None:
    assert parse_train(flags.split(), "test", "").data.augmentation(own) == expected


def test_two_kinds_of_crops_are_refused() -> None:
    options = parse_train(["--preset", "darts-imagenet", "--crop-padding", "4"], "test", "").data
    with pytest.raises(
        UserError, match=r"random resized crops; give crop_padding 0 .* or no crop_area \(--crop-scale 0\)"
    ):
        options.augmentation(PADDED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: RecipeOptions(epochs=0), "epochs is 0, expected at least 1"),
        (lambda: RecipeOptions(accumulate=0), "accumulate is 0"),
        (lambda: RecipeOptions(learning_rate=float("nan")), "learning_rate is nan"),
        (lambda: RecipeOptions(drop_path=1.0), "drop_path is 1.0, expected at least 0 and less than 1"),
        (lambda: RecipeOptions(ema=-0.1), "ema is -0.1"),
        (lambda: TrainDataOptions(validation=1.0), "validation is 1.0"),
        (lambda: TrainRunOptions(seeds="1,x"), "seeds is '1,x', expected whole numbers with commas"),
        (lambda: TrainRunOptions(seeds="1,1"), "expected different whole numbers"),
        (lambda: TrainRunOptions(validate_every=0), "validate_every is 0"),
    ],
)
def test_impossible_options(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options()
