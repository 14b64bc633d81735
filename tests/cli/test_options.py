"""The options of a retraining: presets against the published numbers, augmentation, and invalid options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fastnas.cli.configuration import parse_train
from fastnas.cli.options import TrainDataOptions, TrainRunOptions
from fastnas.data import Augmentation
from fastnas.errors import UserError

PUBLISHED = {  # in the papers and their code: epochs, batch, drop path, rate, weight decay, smoothing
    "darts-cifar10": (600, 96, 0.2, 0.025, 3e-4, 0.0),
    "pc-darts-cifar10": (600, 96, 0.3, 0.025, 3e-4, 0.0),
    "p-darts-cifar10": (600, 128, 0.3, 0.025, 3e-4, 0.0),
    "egnas-cifar10": (800, 96, 0.3, 0.025, 3e-4, 0.0),
    "egnas-cifar100": (800, 96, 0.3, 0.025, 3e-4, 0.0),
    "darts-imagenet": (250, 128, 0.0, 0.1, 3e-5, 0.1),
    "pc-darts-imagenet": (250, 1024, 0.0, 0.5, 3e-5, 0.1),
    "p-darts-imagenet": (250, 256, 0.0, 0.1, 3e-5, 0.1),
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
    assert options.network.auxiliary_norm is (True if name == "p-darts-imagenet" else None)
    assert options.data.cutout == (0 if imagenet else 16)
    assert options.data.normalise == ("cifar10" if name == "egnas-cifar100" else "own")
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
        (lambda: TrainDataOptions(validation=1.0), "validation is 1.0"),
        (lambda: TrainRunOptions(seeds="1,x"), "seeds is '1,x', expected whole numbers with commas"),
        (lambda: TrainRunOptions(seeds="1,1"), "expected different whole numbers"),
        (lambda: TrainRunOptions(validate_every=0), "validate_every is 0"),
    ],
)
def test_impossible_options(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options()
