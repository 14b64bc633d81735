"""`cifar10:ROOT` and `cifar100:ROOT`: Krizhevsky's 32x32 colour images, read by torchvision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torchvision

from fastnas.data.augmentation import Augmentation
from fastnas.data.image import resize, resized_side
from fastnas.data.source import ArraySource, Statistics
from fastnas.data.split import check_portion
from fastnas.errors import UserError
from fastnas.input_file import path_of

CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100: Statistics = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


@dataclass(eq=False, repr=False, kw_only=True)
class CifarSource(ArraySource):
    """CIFAR-10 or CIFAR-100."""

    def search_split(self, portion: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """The split of DARTS and its successors: the first floor(N·portion) images for the weights, the rest for α.

        The files are in random order, so the halves are nearly balanced without sorting by class.

        Raises:
            UserError: `portion` is not in (0, 1), or one part would be empty.
        """
        check_portion(portion)
        first = int(np.floor(len(self) * portion))
        if first == 0:
            raise UserError(
                f"a share of {portion:g} of {len(self)} images leaves none for the weights; raise --split or --limit"
            )
        return np.arange(first), np.arange(first, len(self))


def open_cifar10(
    location: str,
    split: str,
    image_size: int | None = None,
    download: bool = False,
    evaluated_share: float | None = None,
) -> CifarSource:
    """Opens CIFAR-10 in torchvision's layout: `location` holds the folder cifar-10-batches-py."""
    return _open(
        torchvision.datasets.CIFAR10, CIFAR10, "cifar10", location, split, image_size, download, evaluated_share
    )


def open_cifar100(
    location: str,
    split: str,
    image_size: int | None = None,
    download: bool = False,
    evaluated_share: float | None = None,
) -> CifarSource:
    """Opens CIFAR-100 (the 100 fine classes) in torchvision's layout: `location` holds the folder cifar-100-python."""
    return _open(
        torchvision.datasets.CIFAR100, CIFAR100, "cifar100", location, split, image_size, download, evaluated_share
    )


def _open(
    dataset: type[torchvision.datasets.CIFAR10],
    published: Statistics,
    kind: str,
    location: str,
    split: str,
    image_size: int | None,
    download: bool,
    evaluated_share: float | None,
) -> CifarSource:
    root = path_of(location)
    try:
        files = dataset(root, train=split == "train", download=download)
    except (OSError, RuntimeError) as error:
        if download:
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot download {kind} to {root}: {reason}; check the connection, or put {dataset.base_folder} there"
            ) from error
        raise UserError(
            f"{kind} is not in {root}: the folder {dataset.base_folder} is missing or incomplete; give the folder that "
            "holds it, or allow the download with download=True (--download)"
        ) from error
    array, originals = files.data, None  # [N, H, W, 3]
    if image_size is not None:
        originals = array
        array = resize(originals, image_size, resized_side(image_size, evaluated_share))  # [N, S, S, 3]
    size = array.shape[1]
    return CifarSource(
        spec=f"{kind}:{location}",
        name=kind,
        split=split,
        classes=tuple(files.classes),
        labels=np.array(files.targets, dtype=np.int64),
        array=array,
        originals=originals,
        channels=3,
        image_size=(size, size),
        augmentation=Augmentation(crop_padding=size // 8, flip=True),
        published=published,
        evaluated_share=evaluated_share,
    )
