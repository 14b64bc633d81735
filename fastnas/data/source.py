"""Sources: labelled images, with their classes, channels and size."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from fastnas.data.augmentation import Augmentation
from fastnas.data.split import chosen, stratified
from fastnas.errors import UserError

Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]

MEASURED_IMAGES = 50_000


@dataclass(eq=False, repr=False, kw_only=True)
class Source(ABC):
    """A labelled set of images of one size. `fastnas.data.open` makes them.

    Attributes:
        spec: what was opened, for example "folder:./flowers".
        name: a short name for reports, for example "flowers".
        split: "train" or "test".
        classes: class names; a label is an index into them.
        labels: int64 [N].
        channels: 1 for grey, 3 for RGB; `npz` may have any number.
        image_size: height and width in pixels.
        augmentation: what suits these images while training.
        published: the customary mean and standard deviation of this data set; measured where None.
        training: opens the whole training split, whose statistics normalise this source; None if it is this source.
        evaluated_share: side of the centre crop that is evaluated, as share of the resized shorter side; None: images
            are not resized, or evaluated up to their borders.
        left_out: files that could not be read and were to be skipped, each with the reason.
        test_share: share of the images of each class that the test split is, or was, cut from the training images,
            where the data have no test split of their own; None where they have, or none was wanted.
        kept_for_test: so many images were kept from this training split.
    """

    spec: str
    name: str
    split: str
    classes: tuple[str, ...]
    labels: np.ndarray  # [N]
    channels: int
    image_size: tuple[int, int]
    augmentation: Augmentation
    published: Statistics | None = None
    training: Callable[[], Source] | None = None
    evaluated_share: float | None = None
    left_out: tuple[str, ...] = ()
    test_share: float | None = None
    kept_for_test: int = 0
    _measured: Statistics | None = field(init=False, default=None)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"<{type(self).__name__} {self.spec} {self.split}: {len(self):,} images of {len(self.classes)} classes, "
            f"{height}x{width}x{self.channels}>"
        )

    @property
    def nbytes(self) -> int:
        """Bytes that all images take as uint8."""
        height, width = self.image_size
        return len(self) * height * width * self.channels

    @property
    @abstractmethod
    def resident(self) -> bool:
        """Whether the images are in memory already."""

    @abstractmethod
    def read(self, indices: np.ndarray) -> np.ndarray:
        """Some images: indices [n] → uint8 [n, H, W, C]. Raises UserError where an image cannot be read."""

    @abstractmethod
    def images(self) -> np.ndarray:
        """All images, uint8 [N, H, W, C]; loaded once and kept. Raises UserError where an image cannot be read."""

    @abstractmethod
    def subset(self, indices: ArrayLike) -> Self:
        """The source reduced to `indices` (integers or a mask), in that order; classes and statistics stay."""

    def image(self, index: int) -> np.ndarray:
        """One image, uint8 [H, W, C]. Raises UserError where it cannot be read."""
        return self.read(np.array([index]))[0]

    @abstractmethod
    def original(self, index: int) -> np.ndarray:
        """One image before it was brought to the common size, uint8 [H', W', C]. UserError where it cannot be read."""

    @abstractmethod
    def original_sizes(self) -> np.ndarray:
        """Heights and widths of the originals, int64 [N, 2]."""

    @abstractmethod
    def digest(self, of_bytes: bool = False) -> str:
        """A short text that changes with the images, for a run that goes on to find the ones that it began with.

        It covers the labels and, of images in memory, every pixel; of files their names below the source's folder,
        their sizes and their last kilobytes, wherever that folder lies.

        Args:
            of_bytes: all bytes of the files.

        Raises:
            UserError: a file cannot be read.
        """

    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel, where white is 1. No standard deviation is 0.

        These are the published constants where there are any. Otherwise they are measured on the whole training split,
        whichever split or subset this source is (on 50,000 evenly spaced images of it, if it has more), so training
        and test images are normalised alike.
        """
        if self.published is not None:
            return self.published
        if self._measured is None:
            self._measured = _measure(self) if self.training is None else self.training().statistics()
        return self._measured

    def search_split(self, portion: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """Divides the images between network weights and architecture parameters.

        Within each class the first floor(n·portion) images, in source order, are for the weights and the rest for α.
        The split is fixed: no seed changes it.

        Args:
            portion: share of the images for the weights, in (0, 1).

        Returns:
            Two int64 arrays of indices, (weights, α).

        Raises:
            UserError: `portion` is out of range, or a class is too small to give both parts an image.
        """
        return stratified(self.labels, self.classes, portion)

    def _whole(self) -> Source:
        return self


@dataclass(eq=False, repr=False, kw_only=True)
class ArraySource(Source):
    """A source whose images are an array in memory: uint8 [N, H, W, C].

    Attributes:
        originals: the images before they were resized, if they were, uint8 [N, H', W', C].
    """

    array: np.ndarray  # [N, H, W, C]
    originals: np.ndarray | None = None  # [N, H', W', C]

    @property
    def resident(self) -> bool:
        return True

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self.array[indices]

    def images(self) -> np.ndarray:
        return self.array

    def subset(self, indices: ArrayLike) -> Self:
        rows = chosen(len(self), indices)
        return replace(
            self,
            labels=self.labels[rows],
            array=self.array[rows],
            originals=None if self.originals is None else self.originals[rows],
            training=self.training or self._whole,
        )

    def original(self, index: int) -> np.ndarray:
        return (self.array if self.originals is None else self.originals)[index]

    def digest(self, of_bytes: bool = False) -> str:
        images = self.array if self.originals is None else self.originals
        parts = (str(images.shape).encode(), np.ascontiguousarray(images).data, self.labels.astype("<i8").data)
        return digest_of(parts)

    def original_sizes(self) -> np.ndarray:
        size = (self.array if self.originals is None else self.originals).shape[1:3]
        return np.broadcast_to(np.array(size), (len(self), 2))


def digest_of(parts: Iterable[bytes | memoryview]) -> str:
    """32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def check_same_classes(train: Source, test: Source) -> None:
    """Checks that the labels of two splits mean the same.

    Raises:
        UserError: the class names differ, or their order.
    """
    if train.classes == test.classes:
        return
    missing = [name for name in train.classes if name not in test.classes]
    extra = [name for name in test.classes if name not in train.classes]
    differences = [f"{what} {_listed(names)}" for what, names in (("lacks", missing), ("adds", extra)) if names]
    raise UserError(
        f"the {test.split} split of {test.spec} and the training split of {train.spec} have different classes: the "
        f"{test.split} split {' and '.join(differences) or 'has them in another order'}; give both the same classes"
    )


def _listed(names: list[str]) -> str:
    quoted = ", ".join(f"'{name}'" for name in names[:5])
    return f"{quoted} and {len(names) - 5} more" if len(names) > 5 else quoted


def _measure(source: Source) -> Statistics:
    """Mean and standard deviation from counts of the 256 levels: exact integers, whatever the order of the images."""
    count = min(len(source), MEASURED_IMAGES)
    picks = np.arange(count) * len(source) // count  # [n]
    levels = np.zeros((source.channels, 256), dtype=np.int64)  # [C, 256]
    for start in range(0, count, 1024):
        block = source.read(picks[start : start + 1024])  # [b, H, W, C]
        for channel in range(source.channels):
            levels[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    value = np.arange(256) / 255  # [256]
    share = levels / levels.sum(axis=1, keepdims=True)  # [C, 256]
    mean = share @ value  # [C]
    std = np.sqrt((share * (value - mean[:, None]) ** 2).sum(axis=1))  # [C]
    std[std == 0] = 1  # a constant channel becomes all zeros
    return tuple(mean.tolist()), tuple(std.tolist())
