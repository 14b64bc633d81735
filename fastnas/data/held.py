"""Images that a program holds in memory: arrays, tensors, datasets and opened sources, each named by a digest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from fastnas.data.augmentation import Augmentation
from fastnas.data.image import pixels_of, resize, resized_side
from fastnas.data.memory import free_memory
from fastnas.data.source import ArraySource, Source, digest_of
from fastnas.data.split import in_test_split
from fastnas.errors import UserError

HeldData: TypeAlias = Source | Dataset | Sequence[Any]
"""An opened source, a data set of (image, label), or the pair (images, labels)."""

KIND = "memory"
READ_TWICE = 8  # items, to see whether they are the same again
MOST_CHANNELS = 4  # of what is surely a picture; more only where the other dimensions leave no doubt
PIXELS = "uint8 in 0..255, or floating-point numbers in 0..1 as before a normalisation (fastnas normalises itself)"


@dataclass(eq=False, repr=False, kw_only=True)
class Held:
    """Images in memory, which `fastnas.data.open(held.name, held.split)` opens for as long as this object is kept."""

    name: str
    """`memory:<digest>`, which changes with images, labels and classes."""
    split: str
    images: Source | np.ndarray | list[np.ndarray]
    """An opened source, uint8 [N, H, W, C], or images of several sizes, each uint8 [H, W, C]."""
    labels: np.ndarray  # [N]
    classes: tuple[str, ...]
    test_share: float | None = None
    kept_for_test: int = 0

    def part(self, split: str, share: float) -> Held | None:
        """The test split that a share of each class makes, or the rest; an opened source has a split of its own."""
        if isinstance(self.images, Source):
            return self if split == "train" else None
        in_test = in_test_split(self.images, self.labels, self.classes, share)  # [N]
        rows = np.flatnonzero(in_test == (split == "test"))
        images = self.images[rows] if isinstance(self.images, np.ndarray) else [self.images[row] for row in rows]
        kept = int(in_test.sum()) if split == "train" else 0
        return replace(self, split=split, images=images, labels=self.labels[rows], test_share=share, kept_for_test=kept)

    def open(self, image_size: int | None, evaluated_share: float | None) -> Source:
        """The source, of another size where one is asked for. UserError if that cannot be."""
        if isinstance(self.images, Source):
            size, share = self.images.image_size, self.images.evaluated_share
            if (image_size, image_size) not in ((None, None), size) or evaluated_share not in (None, share):
                raise UserError(
                    f"{self.images.spec} is open already, with images of {_size(size)}: leave out "
                    "image_size and evaluated_share, or give them to fastnas.data.open"
                )
            return self.images
        if image_size is None and isinstance(self.images, list):
            sizes = sorted({image.shape[:2] for image in self.images})
            raise UserError(
                f"images differ in size, from {_size(sizes[0])} to {_size(sizes[-1])}: pass image_size (pixels a side)"
            )
        originals, images = None, self.images
        if image_size is not None:
            originals, images = images, _resized(images, image_size, resized_side(image_size, evaluated_share))
        assert isinstance(images, np.ndarray)  # [N, H, W, C]
        _, height, width, channels = images.shape
        return HeldSource(
            spec=self.name,
            name=KIND,
            split=self.split,
            classes=self.classes,
            labels=self.labels,
            array=images,
            originals=_array_of(originals) if isinstance(originals, list) else originals,
            channels=channels,
            image_size=(height, width),
            augmentation=Augmentation(crop_padding=min(height, width) // 8, flip=channels == 3),
            evaluated_share=evaluated_share,
            test_share=self.test_share,
            kept_for_test=self.kept_for_test,
        )


class HeldSource(ArraySource):
    """An array whose originals may have several sizes: then they are an array of arrays, [N] of uint8 [H', W', C]."""

    def original_sizes(self) -> np.ndarray:
        if self.originals is None or self.originals.dtype != object:
            return super().original_sizes()
        return np.array([image.shape[:2] for image in self.originals])

    def digest(self, of_bytes: bool = False) -> str:
        if self.originals is None or self.originals.dtype != object:
            return super().digest(of_bytes)
        return digest_of([*_bytes_of(self.originals), self.labels.astype("<i8").data])


_HELD: WeakValueDictionary[tuple[str, str], Held] = WeakValueDictionary()


def hold(data: HeldData, split: str = "train", *, classes: Sequence[str] = ()) -> Held:
    """Makes images of a Python program known to `fastnas.data.open`.

    Args:
        data: one of
            * a source that `fastnas.data.open` gave, as it is;
            * a `torch.utils.data.Dataset` with a length, of (image, label); every item is read once. An image is a
              Pillow image (grey stays grey, anything else becomes RGB), a tensor [C, H, W] or [H, W], or a NumPy array
              [H, W, C] or [H, W]. Images are augmented later, so items must not be random;
            * the pair (images, labels): a tensor [N, C, H, W] or [N, H, W], or a NumPy array [N, H, W, C] or [N, H, W],
              and integers [N].

            Pixels are uint8 in 0..255, or floating-point numbers in 0..1, as torchvision's ToTensor makes them: these
            are rounded to the nearest of the 256 levels. Normalised images are refused, for fastnas normalises.
        split: "train" or "test".
        classes: names, one for each label; by default those of `data.classes`, or "0", "1", ….

    Raises:
        UserError: `data` is none of these.
    """
    if isinstance(data, Source):
        held = Held(name="", split=split, images=data, labels=data.labels, classes=data.classes)
    else:
        images, labels = _gathered(data)
        names = tuple(classes) or _class_names(data, labels)
        if labels.max() >= len(names):
            raise UserError(
                f"a label is {labels.max()}, but there are {len(names)} classes: expected 0..{len(names) - 1}."
            )
        held = Held(name="", split=split, images=images, labels=labels, classes=names)
    held.name = f"{KIND}:{_digest(held)}"
    _HELD[held.name, split] = held
    return held


def open_held(
    spec: str, split: str, image_size: int | None, evaluated_share: float | None, test_share: float | None
) -> Source:
    """The images of this name.

    Raises:
        UserError: this process does not hold them, or not this split, or they cannot have this size.
    """
    held, training = _HELD.get((spec, split)), _HELD.get((spec, "train"))
    if training is not None and test_share is not None and held in (None, training):
        held = training.part(split, test_share)
    if held is not None:
        return held.open(image_size, evaluated_share)
    if training is not None:
        raise UserError(f"the images {spec} have no test split: pass test=, images like these")
    raise UserError(
        f"the images {spec} were in the memory of a Python program: go on from Python, with the same data, as in "
        "fastnas.api.search(data, resume=…)"
    )


def _gathered(data: Any) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
    """uint8 [N, H, W, C], or a list of [H, W, C] where sizes differ; int64 [N]."""
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = data.tensors
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor | np.ndarray):
        images, labels = _pixels(data[0], batched=True), _labels(data[1])
        if len(images) != len(labels) or not len(images):
            raise UserError(
                f"there are {len(images)} images and {len(labels)} labels: expected one label for each image."
            )
        return images, labels
    if isinstance(data, str) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise UserError(
            f"the data is a {type(data).__name__}: expected a source such as folder:ROOT, a fastnas.data.Source, a "
            "Dataset with a length of (image, label), or the pair (images, labels)."
        )
    return _read_items(data)


def _read_items(data: Any) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
    if not len(data):
        raise UserError(f"the data set {type(data).__name__} is empty: expected items (image, label).")
    images, labels = [], []
    for index in range(len(data)):
        image, label = _item(data, index)
        if index < READ_TWICE and not np.array_equal(image, _item(data, index)[0]):
            raise UserError(
                f"item {index} of {type(data).__name__} is another image each time: leave random transforms out, for "
                "fastnas augments the images itself."
            )
        if index == 0 and image.nbytes * len(data) > free_memory(torch.device("cpu")):
            raise UserError(
                f"{len(data):,} images like the first take {image.nbytes * len(data) / 2**30:.0f} GiB, more than is "
                "free: give a source that stays on disk, such as folder:ROOT, or fewer images."
            )
        images.append(image)
        labels.append(label)
    if {image.shape[2] for image in images} == {1, 3}:
        images = [image if image.shape[2] == 3 else image.repeat(3, axis=2) for image in images]
    if len({image.shape[2] for image in images}) > 1:
        raise UserError(f"images of {type(data).__name__} differ in channels: expected the same for all.")
    same = len({image.shape for image in images}) == 1
    return np.stack(images) if same else images, _labels(np.array(labels))


def _item(data: Any, index: int) -> tuple[np.ndarray, Any]:
    """uint8 [H, W, C], label."""
    item = data[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UserError(f"item {index} of {type(data).__name__} is a {type(item).__name__}: expected (image, label).")
    image, label = item
    try:
        pixels = pixels_of(image) if isinstance(image, Image.Image) else _pixels(image, batched=False)
        return pixels, label.item() if isinstance(label, Tensor | np.ndarray) else label
    except (ValueError, RuntimeError) as error:  # of Pillow, or of a label with many elements
        raise UserError(f"item {index} of {type(data).__name__} cannot be used: {error}") from error


def _pixels(images: Any, batched: bool) -> np.ndarray:
    """uint8 [N, H, W, C] of a batch, else [H, W, C]. UserError for other shapes and values."""
    what, lead = ("images", "N, ") if batched else ("an image", "")
    if not isinstance(images, Tensor | np.ndarray):
        raise UserError(f"{what} came as {type(images).__name__}: expected a tensor, a NumPy array or a Pillow image.")
    first = isinstance(images, Tensor)  # as PyTorch has the channels; NumPy has them last
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    shape = array.shape
    if array.ndim not in (2 + batched, 3 + batched) or 0 in shape:
        form = f"[{lead}C, H, W] or [{lead}H, W]" if first else f"[{lead}H, W, C] or [{lead}H, W]"
        raise UserError(f"{what} have the shape {tuple(shape)}: expected {form}.")
    if array.ndim == 2 + batched:
        array = array[..., None]
    else:
        channels, other = (shape[-3], shape[-1]) if first else (shape[-1], shape[-3])
        if channels > MOST_CHANNELS >= other:
            form = f"a tensor [{lead}C, H, W]" if first else f"an array [{lead}H, W, C]"
            raise UserError(f"{what} of shape {tuple(shape)} seem to have their channels elsewhere: expected {form}.")
        array = np.moveaxis(array, -3, -1) if first else array
    return np.ascontiguousarray(array if array.dtype == np.uint8 else _levels(array, what))


def _levels(array: np.ndarray, what: str) -> np.ndarray:
    """Numbers in 0..1 → uint8. UserError for others."""
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{what} came as {array.dtype}: expected {PIXELS}.")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise UserError(f"{what} have values from {low:.3g} to {high:.3g}: expected {PIXELS}.")
    return np.round(array * np.float32(255)).astype(np.uint8)


def _labels(labels: Any) -> np.ndarray:
    """int64 [N]. UserError for anything but class numbers."""
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"labels are {array.dtype} {array.shape}: expected class numbers, integers [N].")
    if len(array) and array.min() < 0:
        raise UserError(f"a label is {array.min()}: expected class numbers from 0 upwards.")
    return array.astype(np.int64)


def _class_names(data: Any, labels: np.ndarray) -> tuple[str, ...]:
    """Of the data set, or of the one that it is a part of; else the numbers."""
    while data is not None:
        names = getattr(data, "classes", None)
        if (
            isinstance(names, list | tuple)
            and all(isinstance(name, str) for name in names)
            and len(set(names)) == len(names)
        ):
            return tuple(names)
        data = getattr(data, "dataset", None) or next(iter(getattr(data, "datasets", ())), None)
    missing = np.setdiff1d(np.arange(labels.max()), labels)
    if len(missing):
        raise UserError(
            f"labels go up to {labels.max()}, but no image has the label {missing[0]}: number the classes without gaps."
        )
    return tuple(str(label) for label in range(labels.max() + 1))


def _digest(held: Held) -> str:
    if isinstance(held.images, Source):
        source = held.images
        about = repr((source.split, source.image_size, source.evaluated_share, source.digest()))
        parts: list[bytes | memoryview] = [about.encode()]
    else:
        parts = _bytes_of(held.images if isinstance(held.images, list) else [held.images])
    return digest_of([repr(held.classes).encode(), held.labels.astype("<i8").tobytes(), *parts])[:16]


def _bytes_of(images: Iterable[np.ndarray]) -> list[bytes | memoryview]:
    return [part for image in images for part in (str(image.shape).encode(), np.ascontiguousarray(image).data)]


def _resized(images: np.ndarray | list[np.ndarray], image_size: int, shorter_side: int) -> np.ndarray:
    if isinstance(images, np.ndarray):
        return resize(images, image_size, shorter_side)
    return np.concatenate([resize(image[None], image_size, shorter_side) for image in images])


def _array_of(images: list[np.ndarray]) -> np.ndarray:
    array = np.empty(len(images), dtype=object)
    array[:] = images
    return array


def _size(size: tuple[int, ...]) -> str:
    return f"{size[0]}×{size[1]}"
