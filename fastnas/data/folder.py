"""`folder:ROOT`: image files in one folder per class."""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from fastnas.data.augmentation import Augmentation
from fastnas.data.class_folders import ImageFiles, classes_of, split_folder
from fastnas.data.image import decode, encoded, resized_side, size_of
from fastnas.data.source import Source, digest_of
from fastnas.data.split import chosen, kept_for_test
from fastnas.errors import UserError
from fastnas.input_file import path_of

CHUNK = 32  # images a thread takes at once: small images decode faster than threads take turns

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False, repr=False, kw_only=True)
class FolderSource(Source):
    """A source whose images are files, decoded to RGB when they are asked for.

    Attributes:
        base: the folder of the class folders.
        files: one for each image.
        sizes: heights and widths of the files, upright, int64 [N, 2].
        shorter_side: pixels that the shorter side is resized to before the centre is cropped to `image_size`; None: the
            files have this size as they are.
    """

    base: Path
    files: tuple[Path, ...]
    sizes: np.ndarray  # [N, 2]
    shorter_side: int | None
    _images: np.ndarray | None = field(init=False, default=None)  # [N, H, W, 3]

    @property
    def resident(self) -> bool:
        return self._images is not None

    def read(self, indices: np.ndarray) -> np.ndarray:
        if self._images is not None:
            return self._images[indices]
        images = np.empty((len(indices), *self.image_size, 3), dtype=np.uint8)  # [n, H, W, 3]
        for place, image in enumerate(_in_threads(self.image, indices.tolist())):
            images[place] = image
        return images

    def images(self) -> np.ndarray:
        if self._images is None:
            self._images = self.read(np.arange(len(self)))
        return self._images

    def image(self, index: int) -> np.ndarray:
        if self._images is not None:
            return self._images[index]
        image = decode(self.files[index], None if self.shorter_side is None else self.image_size[0], self.shorter_side)
        self.check_size(index, image.shape[:2])
        return image  # [H, W, 3]

    def original(self, index: int) -> np.ndarray:
        pixels = decode(self.files[index])  # [H', W', 3]
        if pixels.shape[:2] != tuple(self.sizes[index]):
            raise _changed(self.files[index])
        return pixels

    def digest(self, of_bytes: bool = False) -> str:
        contents = _in_threads(_digest_of_file if of_bytes else _digest_of_end, self.files)
        lines = (
            f"{label} {content} {unicodedata.normalize('NFC', path.relative_to(self.base).as_posix())}\n"
            for label, content, path in zip(self.labels.tolist(), contents, self.files, strict=True)
        )
        return digest_of(line.encode("utf-8", "surrogateescape") for line in lines)

    def original_sizes(self) -> np.ndarray:
        return self.sizes

    def encoded(self, indices: np.ndarray) -> list[np.ndarray]:
        """Some files for decoders other than Pillow, each uint8 [n]; see `fastnas.data.image.encoded`."""
        return [encoded(self.files[index]) for index in indices]

    def check_size(self, index: int, size: tuple[int, ...]) -> None:
        """Raises UserError if an image that was read does not have the size of the others."""
        if size != self.image_size:
            raise _other_size(self.files[index], size, "the others", self.image_size)

    def subset(self, indices: ArrayLike) -> Self:
        rows = chosen(len(self), indices)
        files = tuple(self.files[row] for row in rows)
        part = replace(
            self, labels=self.labels[rows], files=files, sizes=self.sizes[rows], training=self.training or self._whole
        )
        if self._images is not None:
            part._images = self._images[rows]
        return part


def open_folder(
    location: str,
    split: str,
    image_size: int | None = None,
    download: bool = False,
    evaluated_share: float | None = None,
    skip_unreadable: bool = False,
    test_share: float | None = None,
) -> FolderSource:
    """Opens ROOT/<class>/**/*.jpg (or another image format), or ROOT/train/<class>/… and ROOT/test/<class>/….

    Classes and files are sorted by name; hidden folders are skipped, links to folders are followed where no image
    counts twice. Everything becomes 8-bit RGB. What can be told without decoding (folders,
    file headers, sizes, missing ends) is checked here; other damage shows when an image is decoded, at the latest by
    `images()`.

    Args:
        location: ROOT. With a subfolder train (or training), and test (testing, val, valid, validation, eval or dev),
            each split is read from its own.
        split: "train", "test" or "val".
        image_size: if given, images are resized (shorter side) and cropped (centre) to this many pixels a side;
            otherwise they must all have one size.
        download: not needed.
        evaluated_share: see `fastnas.data.open`.
        skip_unreadable: decode every file here, and leave out those that cannot be decoded (`left_out` names them).
        test_share: see `fastnas.data.open`.

    Raises:
        UserError: a folder is missing, unreadable or empty, a file is not an image, or sizes differ.
    """
    root = path_of(location)
    base, undivided = split_folder(root, split, test_share is not None)
    share = test_share if undivided else None
    classes = classes_of(base)
    left_out: list[str] = []
    files: list[Path] = []
    sizes: list[tuple[int, int]] = []
    labels: list[int] = []
    others: list[Path] = []  # of the split that is not opened
    kept = 0
    image_files = ImageFiles(base, left_out if skip_unreadable else None)
    shorter_side = None if image_size is None else resized_side(image_size, evaluated_share)
    size_of_file = functools.partial(_size_or_error if skip_unreadable else size_of, shorter_side=shorter_side)
    for label, (name, folder) in enumerate(classes.items()):
        found = image_files.of(folder)
        if share is not None:  # before files are left out, so that those are the same with and without broken ones
            in_test = kept_for_test([_key(path, folder) for path in found], share, name)  # [n]
            kept += int(in_test.sum())
            wanted = in_test == (split == "test")  # [n]
            others += [path for path, mine in zip(found, wanted, strict=True) if not mine]
            found = [path for path, mine in zip(found, wanted, strict=True) if mine]
        for path, size in zip(found, _in_threads(size_of_file, found), strict=True):
            if isinstance(size, UserError):
                left_out.append(str(size))
                continue
            files.append(path)
            sizes.append(size)
            labels.append(label)
        if label not in labels[-1:]:
            raise UserError(f"no image of the class folder {folder} can be read; the last error: {left_out[-1]}")
    if image_size is None:
        _check_common_size(files, sizes)
        # A size that only the other part has would be found out after hours.
        for path, other in zip(others, _in_threads(_size_or_none, others), strict=True):
            if other is not None and other != sizes[0]:
                raise _other_size(path, other, str(files[0]), sizes[0])
    common = sizes[0] if image_size is None else (image_size, image_size)
    return FolderSource(
        spec=f"folder:{location}",
        name=root.resolve().name,
        split=split,
        classes=tuple(classes),
        labels=np.array(labels, dtype=np.int64),
        base=base,
        files=tuple(files),
        sizes=np.array(sizes),
        shorter_side=shorter_side,
        channels=3,
        image_size=common,
        augmentation=Augmentation(crop_padding=min(common) // 8, flip=True),
        evaluated_share=evaluated_share,
        left_out=tuple(left_out),
        test_share=share,
        kept_for_test=kept if split == "train" else 0,
    )


def _key(path: Path, folder: Path) -> bytes:
    """The name below the class folder, the same on every system."""
    return unicodedata.normalize("NFC", path.relative_to(folder).as_posix()).encode("utf-8", "surrogateescape")


def _size_or_error(path: Path, shorter_side: int | None) -> tuple[int, int] | UserError:
    """Height and width of an image, or why it cannot be decoded, which is tried, or resized."""
    try:
        decode(path)
        return size_of(path, shorter_side)
    except UserError as error:
        return error


def _digest_of_end(path: Path) -> str:
    """Of the size and the last kilobyte, where compressed images of one size differ."""
    return _digest_of_file(path, 1024)


def _digest_of_file(path: Path, end: int | None = None) -> str:
    """Of all bytes, or of the size and so many bytes at the end."""
    try:
        with path.open("rb") as file:
            if end is None:
                return digest_of([file.read()])
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - end))
            return digest_of([f"{size} ".encode(), file.read()])
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read the image {path}: {error.strerror}; restore it, or leave it out")


def _size_or_none(path: Path) -> tuple[int, int] | None:
    try:
        return size_of(path)
    except UserError:  # named when its own split is opened
        return None


def _changed(path: Path) -> UserError:
    """What to raise if a file has changed since the source was opened."""
    return UserError(f"the image {path} has changed its size since the folder was opened; restore it and resume")


def _check_common_size(files: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> None:
    for path, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise _other_size(path, size, str(files[0]), sizes[0])


def _other_size(path: Path, size: tuple[int, ...], other: str, other_size: tuple[int, int]) -> UserError:
    return UserError(
        f"images differ in size: {path} is {size[0]}x{size[1]} (height x width), {other} {other_size[0]}x"
        f"{other_size[1]}; pass image_size (--image-size) to bring all to one size"
    )


def _in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """An ordered `map` in threads; the first error ends it without doing the rest."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        for results in pool.map(lambda chunk: [function(item) for item in chunk], chunks):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)
