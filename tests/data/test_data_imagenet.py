from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_sources import DALI, needs_dali, write_folder
from torch import Tensor
from torchvision.transforms import v2

from fastnas import data
from fastnas.data.imagenet import IMAGENET
from fastnas.errors import UserError

SIZES = [(40, 30), (30, 44), (21, 21), (64, 20), (33, 50), (16, 16)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photographs in several sizes, JPEG, train and val."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("n01440764", "n01443537"):
            (tmp_path / split / label).mkdir(parents=True)
            for number, (height, width) in enumerate(SIZES):
                small = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
                image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
                image.save(tmp_path / split / label / f"{number}.JPEG", quality=92)
    return tmp_path


def levels(images: Tensor) -> Tensor:
    """Normalised images in steps of the 256 levels of files."""
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in IMAGENET)
    return (images * std + mean) * 255


def served(source: data.Source, kind: str, **options) -> Tensor:
    return torch.cat([images for images, _ in data.pipeline(source, kind, batch_size=5, **options).epoch(0)])


def test_layout_and_defaults(root: Path) -> None:
    train, test = data.open(f"imagenet:{root}"), data.open(f"imagenet:{root}", "test")
    assert train.classes == test.classes == ("n01440764", "n01443537")
    assert (train.image_size, train.shorter_side, len(train), len(test)) == ((224, 224), 256, 12, 12)
    assert train.statistics() == test.statistics() == IMAGENET
    assert train.spec == f"imagenet:{root}"
    assert train.sizes.tolist() == [list(size) for size in SIZES] * 2
    small = data.open(f"imagenet:{root}", image_size=28)
    assert (small.image_size, small.shorter_side) == ((28, 28), 32)
    part = small.subset([3, 1])
    assert part.sizes.tolist() == [[64, 20], [30, 44]]
    assert part.augmentation == small.augmentation == train.augmentation
    assert part.original(0).shape == (64, 20, 3)


@pytest.mark.parametrize("kind", [DALI, "torchvision", "tensor"])
def test_evaluation_is_that_of_torchvision(root: Path, kind: str) -> None:
    source = data.open(f"imagenet:{root}", "test", image_size=28)
    chain = v2.Compose([v2.Resize(32), v2.CenterCrop(28), v2.PILToTensor()])
    expected = torch.stack([chain(Image.open(path)) for path in source.files]).float()
    ours = levels(served(source, kind, train=False))
    # Pillow rounds between its two passes, DALI does not.
    assert (ours - expected).abs().max() < (1.01 if kind == "dali" else 1e-3)


@pytest.mark.parametrize("kind", [DALI, "torchvision", "tensor"])
def test_the_evaluated_share_is_a_choice_for_any_folder(root: Path, kind: str) -> None:
    source = data.open(f"folder:{root}", "test", image_size=28, evaluated_share=0.7)
    chain = v2.Compose([v2.Resize(40), v2.CenterCrop(28), v2.PILToTensor()])
    expected = torch.stack([chain(Image.open(path)) for path in source.files]).float()
    source.published = IMAGENET
    assert (levels(served(source, kind, train=False)) - expected).abs().max() < (1.01 if kind == "dali" else 1e-3)
    assert data.open(f"imagenet:{root}", image_size=28, evaluated_share=0.7).shorter_side == 40
    assert data.open(f"folder:{root}", image_size=28).shorter_side == 28


@needs_dali
def test_dali_crops_and_resizes_as_torchvision_does(root: Path, seed: int) -> None:
    source = data.open(f"imagenet:{root}", image_size=28)
    augmentation = replace(source.augmentation, color_jitter=(0.0, 0.0, 0.0, 0.0), cutout=8)
    options = {"augmentation": augmentation, "seed": seed, "drop_last": False}
    ours, expected = (levels(served(source, kind, **options)) for kind in ("dali", "torchvision"))
    assert (ours - expected).abs().max() < 2.01
    assert (ours - expected).abs().mean() < 0.5


@needs_dali
def test_dali_changes_colours_as_torchvision_does(root: Path, seed: int) -> None:
    source = data.open(f"imagenet:{root}", image_size=28)
    ours, expected = (levels(served(source, kind, seed=seed, drop_last=False)) for kind in ("dali", "torchvision"))
    assert (ours - expected).abs().mean() < 1


@pytest.mark.parametrize("kind", [DALI, "torchvision"])
def test_resumed_in_mid_epoch_and_sharded(root: Path, kind: str) -> None:
    source = data.open(f"imagenet:{root}", image_size=12)
    pipeline = data.pipeline(source, kind, batch_size=2, seed=4)
    whole = list(pipeline.epoch(1))
    again = data.pipeline(source, kind, batch_size=2, seed=4)
    for (images, labels), (other_images, other_labels) in zip(again.epoch(1, 3), whole[3:], strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
    assert torch.equal(again.batch(1, 5)[0], whole[5][0])
    parts = [data.pipeline(source, kind, batch_size=1, seed=4, shard=shard, shards=2) for shard in (0, 1)]
    dealt = [images for pair in zip(*(part.epoch(1) for part in parts), strict=True) for images, _ in pair]
    assert torch.equal(torch.cat(dealt), torch.cat([images for images, _ in whole]))


def test_auto_does_not_take_tensor_for_resized_crops(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = data.open(f"imagenet:{root}", image_size=12)
    assert data.pipeline(source, batch_size=2, train=False).kind == "tensor"
    monkeypatch.setattr(data, "is_installed", lambda: False)
    assert data.pipeline(source, batch_size=2).kind == "torchvision"
    with pytest.raises(UserError, match="the tensor pipeline has no random resized crops and no colour jitter"):
        data.pipeline(source, "tensor", batch_size=2)


@pytest.mark.parametrize("kind", [DALI, "torchvision"])
def test_a_file_that_was_replaced_by_one_of_another_size(root: Path, kind: str) -> None:
    source = data.open(f"imagenet:{root}", image_size=12)
    pipeline = data.pipeline(source, kind, batch_size=12)
    path = source.files[4]
    Image.new("RGB", (7, 9)).save(path)
    with pytest.raises(UserError, match=f"the image {path} has changed its size since the folder was opened"):
        list(pipeline.epoch(0))


def test_grey_images_have_no_colours_to_jitter() -> None:
    with pytest.raises(UserError, match="color_jitter needs colour images, but digits has 1 channels"):
        data.pipeline(
            data.open("digits"), batch_size=4, augmentation=data.Augmentation(0, False, 0, None, (0.1, 0.1, 0.1, 0.1))
        )


def test_val_is_needed_for_the_test_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 2})
    with pytest.raises(UserError, match=r"the test split needs the subfolder test \(or val\)"):
        data.open(f"imagenet:{tmp_path}", "test")
