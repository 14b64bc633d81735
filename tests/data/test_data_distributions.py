"""Every pipeline against the usual torchvision recipe: crops, flips, holes, and means and variances of channels.

The recipe draws from torch's generator, ours from a counter, so they are compared as samples: each statistic of ours
must lie within five standard errors of what the recipe gives. Coordinates are read off images that hold them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_sources import DALI, array_source, every_kind
from torch import Tensor
from torchvision.transforms import v2

from fastnas import data

SIZE, PADDING, HOLE = 16, 3, 6
IMAGES = 3000


def coordinates() -> data.Source:
    """One image, many times, whose pixels hold their row + 1 and column + 1; normalisation changes nothing."""
    source = array_source(count=IMAGES, size=(SIZE, SIZE), augmentation=data.Augmentation(PADDING, True, HOLE))
    row, column = np.mgrid[1 : SIZE + 1, 1 : SIZE + 1]
    source.images()[:] = np.stack([row, column, np.full_like(row, 255)], axis=-1)
    return replace(source, published=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))


class Cutout(torch.nn.Module):
    """As in the code of DeVries & Taylor and of DARTS: a hole around a random pixel, clipped at the border."""

    def forward(self, image: Tensor) -> Tensor:
        row, column = (int(torch.randint(SIZE, ())) for _ in range(2))
        rows, columns = (slice(max(0, centre - HOLE // 2), centre + HOLE // 2) for centre in (row, column))
        image[:, rows, columns] = 0
        return image


@pytest.fixture(scope="module")
def recipe() -> Tensor:
    """The images of an epoch by torchvision's transforms: [N, 3, SIZE, SIZE]."""
    torch.manual_seed(0)
    chain = v2.Compose(
        [
            v2.RandomCrop(SIZE, padding=PADDING),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            Cutout(),
        ]
    )
    image = torch.from_numpy(coordinates().image(0)).permute(2, 0, 1)  # [3, SIZE, SIZE]
    return torch.stack([chain(image) for _ in range(IMAGES)])


def measure(images: Tensor) -> dict[str, np.ndarray]:
    """What was done to each image of `coordinates`: [n] each."""
    row, column, whole = images.mul(255).round().int().numpy().transpose(1, 0, 2, 3)  # [n, SIZE, SIZE] each
    here = np.arange(1, SIZE + 1)
    shown = row > 0
    flip = np.array(
        [
            np.diff(c[s.any(1)][:, s.all(0) | (c.max(0) > 0)].max(0)).mean() < 0
            for c, s in zip(column, shown, strict=True)
        ]
    )
    top = np.array([(r.max(1) - here)[r.max(1) > 0][0] for r in row])
    columns = np.where(flip[:, None], column.max(1)[:, ::-1], column.max(1))  # [n, SIZE]
    left = np.array([(c - here)[c > 0][0] for c in columns])
    # The padding is black, as the hole is: count the hole only where the image must be visible.
    inside = (
        np.array([[0 < y + t <= SIZE for y in here] for t in top])[:, :, None]
        & np.array([[0 < x + c <= SIZE for x in here] for c in left])[:, None, :]
    )  # [n, SIZE, SIZE]
    inside = np.where(flip[:, None, None], inside[:, :, ::-1], inside)
    hole = inside & (whole == 0)
    weights = np.maximum(hole.sum((1, 2)), 1)
    place = np.mgrid[0:SIZE, 0:SIZE]
    return {
        "top": top,
        "left": left,
        "flip": flip,
        "area of the hole": hole.sum((1, 2)),
        "row of the hole": (hole * place[0]).sum((1, 2)) / weights,
        "column of the hole": (hole * place[1]).sum((1, 2)) / weights,
        **{f"mean of channel {c}": images[:, c].double().mean((1, 2)).numpy() for c in range(3)},
        **{f"variance of channel {c}": images[:, c].double().var((1, 2)).numpy() for c in range(3)},
    }


def assert_same_distribution(ours: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Means and variances of two samples agree within five standard errors."""
    for order, name in ((1, "mean"), (2, "variance")):
        a, b = (((sample - expected.mean()) ** order).astype(np.float64) for sample in (ours, expected))
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) <= 5 * error + 1e-12, (
            f"{name} of {what}: {a.mean()} against {b.mean()} ± {error}"
        )


@every_kind
def test_pad_crop_flip_and_cutout_are_distributed_as_in_torchvision(kind: str, recipe: Tensor, seed: int) -> None:
    pipeline = data.pipeline(coordinates(), kind, batch_size=500, seed=seed)
    ours = measure(torch.cat([images for images, _ in pipeline.epoch(0)]))
    expected = measure(recipe)
    for name in expected:
        assert_same_distribution(ours[name], expected[name], name)
    for name in ("top", "left"):
        counts = np.bincount(ours[name] + PADDING, minlength=2 * PADDING + 1)
        share = IMAGES / (2 * PADDING + 1)
        assert len(counts) == 2 * PADDING + 1
        assert np.abs(counts - share).max() < 5 * np.sqrt(share)


def photos(root: Path) -> Path:
    """Smooth colourful JPEGs of several sizes in ImageNet's layout."""
    generator = np.random.default_rng(3)
    for split in ("train", "val"):
        for label in ("n01", "n02"):
            (root / split / label).mkdir(parents=True)
            for number in range(4):
                height, width = generator.integers(40, 90, 2)
                small = generator.integers(40, 216, (6, 7, 3), dtype=np.uint8)
                image = Image.fromarray(small).resize((int(width), int(height)), Image.Resampling.BICUBIC)
                image.save(root / split / label / f"{number}.JPEG", quality=95)
    return root


@pytest.mark.parametrize("kind", [DALI, "torchvision"])
def test_resized_crops_and_colours_are_distributed_as_in_torchvision(kind: str, tmp_path: Path, seed: int) -> None:
    source = data.open(f"imagenet:{photos(tmp_path)}", image_size=16)
    repeated = source.subset(np.tile(np.arange(8), 80))
    pipeline = data.pipeline(repeated, kind, batch_size=160, seed=seed)
    ours = torch.cat([images for images, _ in pipeline.epoch(0)])  # [n, 3, 16, 16]
    torch.manual_seed(seed)
    chain = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(16, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(*source.statistics()),
        ]
    )
    expected = torch.stack([chain(repeated.original(index)) for index in range(len(repeated))])
    for channel in range(3):
        for name, values in (("mean", lambda x: x.mean((1, 2))), ("variance", lambda x: x.var((1, 2)))):
            pair = (values(images[:, channel].double()).numpy() for images in (ours, expected))
            assert_same_distribution(*pair, f"{name} of channel {channel}")
