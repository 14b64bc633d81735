"""Small sources and image files for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastnas.data import Augmentation, Source
from fastnas.data.dali import is_installed
from fastnas.data.source import ArraySource

needs_dali = pytest.mark.skipif(not is_installed(), reason="needs NVIDIA DALI: pip install nvidia-dali-cuda130")
DALI = pytest.param("dali", marks=needs_dali)
every_kind = pytest.mark.parametrize("kind", ["tensor", DALI, "torchvision"])


def array_source(
    count: int = 23,
    size: tuple[int, int] = (8, 6),
    channels: int = 3,
    classes: int = 3,
    augmentation: Augmentation | None = None,
) -> Source:
    """Random images. The first pixel of image i holds i (for up to 256 images), and its label is i modulo `classes`."""
    array = np.random.default_rng(count).integers(0, 256, (count, *size, channels), dtype=np.uint8)  # [N, H, W, C]
    array[:, 0, 0, 0] = np.arange(count)
    return ArraySource(
        spec="random",
        name="random",
        split="train",
        classes=tuple(f"class{label}" for label in range(classes)),
        labels=np.arange(count) % classes,
        channels=channels,
        image_size=size,
        augmentation=augmentation or Augmentation(crop_padding=2, flip=True, cutout=3),
        array=array,
    )


def pixels(seed: int, size: tuple[int, int] = (10, 10), channels: int = 3) -> np.ndarray:
    """A random image, uint8 [H, W, C]."""
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


def write_folder(root: Path, classes: dict[str, int], size: tuple[int, int] = (10, 10)) -> Path:
    """Writes random PNG images root/<class>/<number>.png, different for every class and number."""
    for place, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(pixels(1000 * place + number, size)).save(root / name / f"{number}.png")
    return root
