"""Images to search and train on: sources say what, pipelines say how.

Example:
    train = fastnas.data.open("folder:./flowers", image_size=32)
    batches = fastnas.data.pipeline(train, batch_size=96)
    for images, labels in batches.epoch(0): ...
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import torch
from numpy.typing import ArrayLike

from fastnas.data.augmentation import Augmentation
from fastnas.data.cifar import CIFAR10, CIFAR100, open_cifar10, open_cifar100
from fastnas.data.dali import DaliPipeline, is_installed
from fastnas.data.digits import open_digits
from fastnas.data.folder import open_folder
from fastnas.data.held import KIND, Held, HeldData, hold, open_held
from fastnas.data.image import MOST_PIXELS
from fastnas.data.imagenet import IMAGENET, open_imagenet
from fastnas.data.npz import open_npz
from fastnas.data.pipeline import Pipeline
from fastnas.data.source import Source, Statistics, check_same_classes
from fastnas.data.split import balanced
from fastnas.data.tensor import TensorPipeline, fits, serves
from fastnas.data.torchvision import TorchvisionPipeline
from fastnas.errors import UserError

__all__ = ["Augmentation", "Held", "HeldData", "Pipeline", "Source", "check_same_classes", "hold", "open", "pipeline"]

# kind: (what follows the colon, how it is opened)
SOURCES: dict[str, tuple[str, Callable[..., Source]]] = {
    "digits": ("", open_digits),
    "cifar10": ("ROOT", open_cifar10),
    "cifar100": ("ROOT", open_cifar100),
    "folder": ("ROOT", open_folder),
    "npz": ("FILE", open_npz),
    "imagenet": ("ROOT", open_imagenet),
}
MOST_SIDE = math.isqrt(MOST_PIXELS)
FILES = ("folder", "imagenet")  # in folders for train, test and val
DIVISIBLE = ("folder", "imagenet", "npz")  # may have no test split of their own
SIZED = ("digits", "imagenet")  # have an image size of their own
STATISTICS: dict[str, Statistics] = {"cifar10": CIFAR10, "cifar100": CIFAR100, "imagenet": IMAGENET}
PIPELINES: dict[str, Callable[..., Pipeline]] = {
    "dali": DaliPipeline,
    "tensor": TensorPipeline,
    "torchvision": TorchvisionPipeline,
}

# Training splits in use, so that a test split finds their statistics instead of measuring them again.
_How: TypeAlias = tuple[str, int | None, float | None, bool, float | None, str]
_TRAINING: WeakValueDictionary[_How, Source] = WeakValueDictionary()


def open(
    spec: str,
    split: str = "train",
    *,
    image_size: int | None = None,
    download: bool = False,
    evaluated_share: float | None = None,
    limit: int | None = None,
    skip_unreadable: bool = False,
    test_share: float | None = None,
    normalise: str = "own",
) -> Source:
    """Opens a set of images.

    Args:
        spec: `digits`, `cifar10:ROOT`, `cifar100:ROOT`, `folder:ROOT`, `imagenet:ROOT`, `npz:FILE`, or the name of
            images that `hold` has made known.
        split: "train" or "test"; of `folder` and `imagenet` also "val": the folder val, even if it is the test split.
        image_size: pixels a side. Images are resized (shorter side) and cropped (centre) to it; None keeps their size.
        evaluated_share: side of the centre crop, as share of the resized shorter side, in (0, 1]: 0.875 resizes to 256
            pixels for an `image_size` of 224. Random resized crops are cut from the images before that. None: 0.875 for
            `imagenet`, otherwise 1.
        download: whether missing files of cifar10 and cifar100 may be downloaded; the others need no download.
        limit: at most this many images, spread evenly over the classes, the same ones every time; None for all.
        skip_unreadable: leave out image files that cannot be read instead of raising; `source.left_out` names them. To
            find them, every file is decoded once. Arrays are not affected.
        test_share: where the data have no test split (a folder without train and test, an npz file without test
            arrays), this share of each class, in (0, 1), becomes one, and `split="train"` is the rest. Which images
            these are depends on the images and on the share alone: the same ones in every search, training and
            evaluation. None: no split is made. `source.test_share` says whether it was.
        normalise: whose mean and standard deviation normalise the images: "own", or the published ones of "cifar10",
            "cifar100" or "imagenet".

    Raises:
        UserError: the spec, an option or the data cannot be used; the message names the file or folder.
    """
    if "\0" in spec:
        raise UserError(f"the data source {spec!r} has a zero byte, which no path has; give its path")
    kind, _, location = spec.partition(":")
    if kind not in (*SOURCES, KIND):
        meant = f"; did you mean folder:{spec}?" if os.path.isdir(spec) else _meant(kind, SOURCES)
        known = ", ".join(_form(name) for name in SOURCES)
        raise UserError(f"unknown data source '{spec}'{meant}; known are {known}")
    placeholder, open_source = SOURCES.get(kind, ("", None))
    if placeholder and not location:
        raise UserError(f"the data source '{spec}' lacks its path; write {_form(kind)}")
    if split not in ("train", "test", "val"):
        raise UserError(f"unknown split '{split}'; give train, test or val")
    if split == "val" and kind not in FILES:
        raise UserError(f"{spec} has no folder val; only {' and '.join(map(_form, FILES))} may have one")
    if image_size is not None and not 1 <= image_size <= MOST_SIDE:
        raise UserError(f"image_size is {image_size}; give a number of pixels, 1 to {MOST_SIDE:,}")
    if evaluated_share is not None:
        if not 0 < evaluated_share <= 1:
            raise UserError(f"evaluated_share is {evaluated_share}; give a share of the shorter side, above 0 up to 1")
        if image_size is None and kind not in SIZED:
            raise UserError(
                f"evaluated_share is {evaluated_share}, but {spec} keeps its size; give image_size (--image-size), too"
            )
    if test_share is not None and not 0 < test_share < 1:
        raise UserError(f"test_share is {test_share}; give a share of the images, above 0 and below 1")
    if normalise not in ("own", *STATISTICS):
        raise UserError(f"normalise is {normalise!r}; give own, {', '.join(STATISTICS)}")
    how = (spec, image_size, evaluated_share, skip_unreadable, test_share, normalise)
    if open_source is None:
        source = open_held(spec, split, image_size, evaluated_share, test_share)
    else:
        more: dict[str, Any] = {"skip_unreadable": skip_unreadable} if kind in FILES else {}
        if kind in DIVISIBLE:
            more["test_share"] = test_share
        source = open_source(location, split, image_size, download, evaluated_share, **more)
    if normalise != "own":
        if source.channels != 3:
            raise UserError(f"normalise is {normalise!r}, whose images have 3 channels; {spec} has {source.channels}")
        source.published = STATISTICS[normalise]
    if split == "train":
        _TRAINING[how] = source
    elif open_source is not None:
        source.training = partial(_training, how)
    if limit is not None and limit < len(source.classes):
        raise UserError(
            f"limit is {limit}, but {spec} has {len(source.classes)} classes; give at least one image for each class"
        )
    return source if limit is None or limit >= len(source) else source.subset(balanced(source.labels, limit))


def pipeline(
    source: Source,
    kind: str = "auto",
    *,
    batch_size: int,
    indices: ArrayLike | None = None,
    train: bool = True,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    drop_last: bool | None = None,
    workers: int | None = None,
    prefetch: int = 2,
    shuffle: bool | None = None,
    augment: bool | None = None,
    shard: int = 0,
    shards: int = 1,
) -> Pipeline:
    """Serves a source in batches of normalised images.

    All kinds give the same batches; they differ in speed and memory. (Where files are resized or colours jittered, DALI
    and our operators round differently from Pillow and torchvision.)

    Args:
        source: what `open` gave.
        kind: "tensor" keeps all images on the device as uint8; "dali" reads and decodes files as they are needed, in
            threads and, on a GPU, there, with NVIDIA DALI; "torchvision" reads them one by one through a DataLoader.
            "auto" takes tensor if that needs at most a quarter of the free memory and the augmentation allows it, else
            dali if it is installed, else torchvision.
        batch_size: images in a batch.
        indices: which images of the source (integers or a mask), for example a part of `source.search_split()`; None
            for all.
        train: shuffle and augment, and leave out the last incomplete batch; otherwise keep the order, only normalise,
            and serve every image. The next three arguments override it one by one.
        shuffle: a new order each epoch, drawn from (seed, epoch).
        augment: apply `augmentation`.
        drop_last: leave out the last batch if it is incomplete.
        seed: number from 0 upwards. Pipelines that should draw differently need different seeds.
        augmentation: None for the source's own.
        device: of the batches.
        dtype: of the images: float32, bfloat16 or float16.
        workers: what reads and decodes besides the caller: threads of the dali pipeline (None: one for each core, at
            most 8), processes of the torchvision pipeline (None: none). The tensor pipeline needs none.
        prefetch: batches that the dali pipeline, and each process of the torchvision pipeline, prepares ahead.
        shard, shards: serve part `shard` (from 0) of `shards` equal ones, for distributed training. Each epoch is dealt
            out anew; the parts are disjoint and together hold all images (with drop_last: all but those left out).

    Raises:
        UserError: an option cannot be used, an epoch would have no batch, or (tensor) an image cannot be read.
    """
    if kind != "auto" and kind not in PIPELINES:
        choices = ["auto", *PIPELINES]
        raise UserError(f"unknown pipeline '{kind}'{_meant(kind, choices)}; known are {', '.join(choices)}")
    if kind == "auto":
        augments = train if augment is None else augment
        kind = _fastest(source, torch.device(device), (augmentation or source.augmentation) if augments else None)
    return PIPELINES[kind](
        source,
        batch_size=batch_size,
        indices=indices,
        train=train,
        shuffle=shuffle,
        augment=augment,
        drop_last=drop_last,
        seed=seed,
        augmentation=augmentation,
        device=device,
        dtype=dtype,
        workers=workers,
        prefetch=prefetch,
        shard=shard,
        shards=shards,
    )


def _fastest(source: Source, device: torch.device, augmentation: Augmentation | None) -> str:
    if (augmentation is None or serves(augmentation)) and fits(source, device):
        return "tensor"
    return "dali" if is_installed() else "torchvision"


def _training(how: _How) -> Source:
    if (source := _TRAINING.get(how)) is not None:
        return source
    spec, image_size, evaluated_share, skip_unreadable, test_share, normalise = how
    return open(
        spec,
        image_size=image_size,
        evaluated_share=evaluated_share,
        skip_unreadable=skip_unreadable,
        test_share=test_share,
        normalise=normalise,
    )


def _form(kind: str) -> str:
    placeholder, _ = SOURCES[kind]
    return f"{kind}:{placeholder}" if placeholder else kind


def _meant(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
