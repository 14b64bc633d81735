"""Images that a Python program holds: what is taken, how pixels become uint8, what is refused in one line."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fastnas import data
from fastnas.data.held import hold
from fastnas.errors import UserError

COUNT = 12


class Pictures(Dataset):
    """Pillow images, half of them grey, of one size or of several."""

    classes = ("cat", "dog")

    def __init__(self, modes: tuple[str, ...] = ("RGB", "L"), ragged: bool = False) -> None:
        self.modes, self.ragged = modes, ragged

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Any, int]:
        size = (8 + index if self.ragged else 8, 6)  # width, height
        return Image.new(self.modes[index % len(self.modes)], size, index), index % 2


class Changing(Dataset):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.rand(3, 8, 8), index % 2


class Items(Dataset):
    """The items that it is given."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.fixture
def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (COUNT, 6, 8, 3), dtype=np.uint8)  # [N, H, W, C]


LABELS = np.arange(COUNT) % 3


def test_all_forms_of_the_same_images_are_the_same_source(pixels: np.ndarray) -> None:
    first = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # [N, C, H, W]
    labels = torch.from_numpy(LABELS)
    forms: list[Any] = [
        (pixels, LABELS),
        (first, labels),
        (first.float() / 255, labels),
        (first.double() / 255, LABELS.tolist()),
        (pixels.astype(np.float32) / 255, LABELS.astype(np.int32)),
        TensorDataset(first, labels),
        Items(*((Image.fromarray(image), int(label)) for image, label in zip(pixels, LABELS, strict=True))),
        [(image, label) for image, label in zip(first / 255, labels, strict=True)],
        ConcatDataset([TensorDataset(first[:5], labels[:5]), TensorDataset(first[5:], labels[5:])]),
    ]
    held = [hold(form) for form in forms]
    assert len({each.name for each in held}) == 1
    for each in held:
        source = data.open(each.name)
        np.testing.assert_array_equal(source.images(), pixels)
        np.testing.assert_array_equal(source.labels, LABELS)
        assert source.classes == ("0", "1", "2")
        assert (source.channels, source.image_size, source.augmentation.flip) == (3, (6, 8), True)


def test_the_name_changes_with_images_labels_and_classes(pixels: np.ndarray) -> None:
    other = pixels.copy()
    other[3, 2, 1, 0] ^= 1
    turned = pixels.reshape(COUNT, 8, 6, 3)
    kept = [
        hold((pixels, LABELS)), hold((other, LABELS)), hold((pixels, LABELS[::-1])), hold((turned, LABELS)),
        hold((pixels, LABELS), classes=("a", "b", "c")),
    ]  # fmt: skip
    assert len({held.name for held in kept}) == len(kept)


def test_grey_images_stay_grey_unless_others_have_colours() -> None:
    grey = hold(Pictures(("L",)))
    assert data.open(grey.name).channels == 1
    assert data.open(grey.name).augmentation.flip is False
    mixed = hold(Pictures())
    source = data.open(mixed.name)
    assert source.channels == 3
    np.testing.assert_array_equal(source.images()[5], np.full((6, 8, 3), 5))
    assert source.classes == ("cat", "dog")
    part = hold(Subset(Pictures(), range(4)))
    assert data.open(part.name).classes == ("cat", "dog")  # those of the whole
    flat = hold((torch.zeros(4, 5, 5), [0, 1, 0, 1]))
    assert data.open(flat.name).images().shape == (4, 5, 5, 1)


def test_images_of_several_sizes_are_resized() -> None:
    held = hold(Pictures(ragged=True))
    with pytest.raises(UserError, match=r"differ in size, from 6×8 to 6×19: pass image_size"):
        data.open(held.name)
    source = data.open(held.name, image_size=16)
    assert source.images().shape == (COUNT, 16, 16, 3)
    assert source.original_sizes().tolist() == [[6, 8 + index] for index in range(COUNT)]
    assert source.original(3).shape == (6, 11, 3)
    part = source.subset([3, 5])
    assert part.original(1).shape == (6, 13, 3)
    assert source.digest() != part.digest()
    again = hold(Pictures(ragged=True))
    assert data.open(again.name, image_size=16).digest() == source.digest()


def test_an_open_source_is_taken_as_it_is(tmp_path: Path, pixels: np.ndarray) -> None:
    for index, image in enumerate(pixels):
        folder = tmp_path / str(LABELS[index])
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    source = data.open(f"folder:{tmp_path}", image_size=6)
    held = hold(source)
    assert data.open(held.name) is source
    assert data.open(held.name, image_size=6) is source
    with pytest.raises(UserError, match="is open already, with images of 6×6"):
        data.open(held.name, image_size=5)
    assert hold(source.subset(np.arange(6))).name != held.name


def test_images_are_known_for_as_long_as_they_are_held(pixels: np.ndarray) -> None:
    held = hold((pixels, LABELS))
    name = held.name
    with pytest.raises(UserError, match="have no test split: pass test="):
        data.open(name, "test")
    test = hold((pixels[:6], LABELS[:6]), "test", classes=held.classes)
    assert data.open(test.name, "test").split == "test"
    del held
    gc.collect()
    with pytest.raises(UserError, match="were in the memory of a Python program: go on from Python"):
        data.open(name)


IMAGES = torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((IMAGES - 1, [0, 1, 0, 1]), r"have values from -1 to -1: expected uint8 in 0..255, or float"),
        ((IMAGES + 128, [0, 1, 0, 1]), r"have values from 128 to 128"),
        ((IMAGES / 0, [0, 1, 0, 1]), r"have values from nan to nan"),
        ((IMAGES.long(), [0, 1, 0, 1]), "images came as int64: expected uint8"),
        ((IMAGES.permute(0, 2, 3, 1), [0, 1, 0, 1]), r"seem to have their channels elsewhere: .* \[N, C, H, W\]"),
        ((IMAGES.numpy(), [0, 1, 0, 1]), r"seem to have their channels elsewhere: .* \[N, H, W, C\]"),
        ((IMAGES[0, 0], [0, 1, 0, 1]), r"have the shape \(8, 8\)"),
        ((IMAGES, [0, 1, 0]), "there are 4 images and 3 labels"),
        ((IMAGES, torch.zeros(4)), r"labels are float32 \(4,\): expected class numbers"),
        ((IMAGES, torch.zeros(4, 2).long()), r"labels are int64 \(4, 2\)"),
        ((IMAGES, [0, 1, 0, -1]), "a label is -1"),
        ((IMAGES, [0, 1, 0, 3]), "no image has the label 2: number the classes without gaps"),
        (TensorDataset(IMAGES), r"item 0 of TensorDataset is a tuple: expected \(image, label\)"),
        (TensorDataset(IMAGES[:0], torch.zeros(0).long()), r"have the shape \(0, 3, 8, 8\)"),
        (Items(), "the data set Items is empty"),
        (Items({"image": 1, "label": 2}), r"item 0 of Items is a dict: expected \(image, label\)"),
        (Items((3, 1)), "an image came as int: expected a tensor, a NumPy array or a Pillow image"),
        (Items((IMAGES[0], 0), (IMAGES[0, :2], 1)), "differ in channels"),
        (Items((IMAGES[0], torch.zeros(3))), "item 0 of Items cannot be used"),
        (Items((Image.new("F", (8, 8)), 0)), "its pixels are floating-point numbers"),
        (Changing(), "is another image each time: leave random transforms out"),
        (iter([]), "the data is a list_iterator: expected a source such as folder:ROOT"),
        (None, "the data is a NoneType"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(given: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        hold(given)
    assert "\n" not in str(error.value)


def test_a_share_of_each_class_becomes_the_test_split(pixels: np.ndarray) -> None:
    held = hold((pixels, LABELS))
    train, test = (data.open(held.name, split, test_share=0.25) for split in ("train", "test"))
    assert (len(train), train.kept_for_test, len(test), test.test_share) == (9, 3, 3, 0.25)
    assert sorted(test.labels) == [0, 1, 2]
    together = {image.tobytes() for source in (train, test) for image in source.images()}
    assert together == {image.tobytes() for image in pixels}
    order = np.random.permutation(COUNT)
    turned = hold((pixels[order], LABELS[order]))
    again = data.open(turned.name, "test", test_share=0.25)
    assert {image.tobytes() for image in again.images()} == {image.tobytes() for image in test.images()}
    given = hold((pixels[:6], LABELS[:6]), "test")
    assert len(data.open(given.name, "test", test_share=0.25)) == 6  # a test split as it is given
    ragged = hold(Pictures(ragged=True))
    assert len(data.open(ragged.name, "test", image_size=8, test_share=0.5)) == 6


def test_labels_beyond_the_classes_are_named(pixels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"a label is 2, but there are 2 classes: expected 0..1"):
        hold((pixels, LABELS), classes=("a", "b"))


def test_more_than_the_memory_is_refused_at_the_first_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastnas.data.held.free_memory", lambda device: 1000)
    with pytest.raises(UserError, match="more than is free: give a source that stays on disk"):
        hold(Pictures(("RGB",)))
