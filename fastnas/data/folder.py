"""`folder:ROOT`: image files in one folder per class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from fastnas.data.augmentation import Augmentation
from fastnas.data.image import EXTENSIONS, decode, size_of
from fastnas.data.source import Source
from fastnas.data.split import chosen
from fastnas.errors import UserError

TRAIN_FOLDER = "train"
TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first that exists
CHUNK = 32  # images a thread takes at once: small images decode faster than threads take turns

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False, repr=False, kw_only=True)
class FolderSource(Source):
    """A source whose images are files, decoded to RGB when they are asked for."""

    files: tuple[Path, ...]
    resize_to: int | None
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
        path = self.files[index]
        image = decode(path, self.resize_to)  # [H, W, 3]
        if image.shape[:2] != self.image_size:
            raise _other_size(path, image.shape[:2], "the others", self.image_size)
        return image

    def subset(self, indices: ArrayLike) -> Self:
        rows = chosen(len(self), indices)
        files = tuple(self.files[row] for row in rows)
        part = replace(self, labels=self.labels[rows], files=files, training=self.training or self._whole)
        if self._images is not None:
            part._images = self._images[rows]
        return part


def open_folder(location: str, split: str, image_size: int | None = None, download: bool = False) -> FolderSource:
    """Opens ROOT/<class>/**/*.jpg (or another image format), or ROOT/train/<class>/… and ROOT/test/<class>/….

    Classes and files are sorted by name. Everything becomes 8-bit RGB. What can be told without decoding (folders,
    file headers, sizes) is checked here; a damaged image shows when it is decoded, at the latest by `images()`.

    Args:
        location: ROOT. With a subfolder train, and test (or val), each split is read from its own.
        split: "train" or "test".
        image_size: if given, images are resized (shorter side) and cropped (centre) to this many pixels a side;
            otherwise they must all have one size.
        download: not needed.

    Raises:
        UserError: a folder is missing, unreadable or empty, a file is no image, or sizes differ.
    """
    root = Path(location).expanduser()
    base = _split_folder(root, split)
    class_folders = _subfolders(base)
    if not class_folders:
        raise UserError(f"{base} has no class folders; put the images of each class in a subfolder named after it")
    found = [_image_files(folder) for folder in class_folders]
    files = tuple(path for paths in found for path in paths)
    labels = np.repeat(np.arange(len(found), dtype=np.int64), [len(paths) for paths in found])  # [N]
    size = _common_size(files, image_size)
    return FolderSource(
        spec=f"folder:{location}",
        name=root.resolve().name,
        split=split,
        classes=tuple(folder.name for folder in class_folders),
        labels=labels,
        files=files,
        resize_to=image_size,
        channels=3,
        image_size=size,
        augmentation=Augmentation(crop_padding=min(size) // 8, flip=True),
    )


def _split_folder(root: Path, split: str) -> Path:
    names = {folder.name for folder in _subfolders(root)}
    tests = [name for name in TEST_FOLDERS if name in names]
    # A class may be called "train", so that name alone does not make a split, unless there is nothing else.
    divided = (TRAIN_FOLDER in names and tests) or (names and names <= {TRAIN_FOLDER, *TEST_FOLDERS})
    if not divided:
        if split == "test":
            raise UserError(f"{root} has no test images; put them in {root / 'test'}, the others in {root / 'train'}")
        return root
    wanted = [TRAIN_FOLDER] if split == "train" else tests
    if not names.intersection(wanted):
        expected = "train" if split == "train" else "test (or val)"
        raise UserError(f"{root} has only {', '.join(sorted(names))}; the {split} split needs the subfolder {expected}")
    return root / wanted[0]


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    except OSError as error:
        _unreadable_folder(folder, error)


def _image_files(folder: Path) -> list[Path]:
    def stop(error: OSError) -> NoReturn:
        _unreadable_folder(Path(error.filename), error)

    files = [
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=stop, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")
    ]
    if not files:
        extensions = ", ".join(sorted(EXTENSIONS))
        raise UserError(f"the class folder {folder} holds no image ({extensions}); add images or remove the folder")
    return sorted(files)


def _unreadable_folder(folder: Path, error: OSError) -> NoReturn:
    raise UserError(f"cannot read the folder {folder}: {error.strerror}; give a readable folder of images") from error


def _common_size(files: tuple[Path, ...], image_size: int | None) -> tuple[int, int]:
    sizes = list(_in_threads(size_of, files))
    if image_size is not None:
        return image_size, image_size
    for path, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise _other_size(path, size, str(files[0]), sizes[0])
    return sizes[0]


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
