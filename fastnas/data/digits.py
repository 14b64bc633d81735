"""`digits`: 1,797 scanned handwritten digits that come with scikit-learn. No download, seconds to train on."""

from __future__ import annotations

import numpy as np

from fastnas.data.augmentation import Augmentation
from fastnas.data.image import resize, resized_side
from fastnas.data.source import ArraySource
from fastnas.data.split import rank_in_class
from fastnas.errors import UserError


def open_digits(
    location: str,
    split: str,
    image_size: int | None = None,
    download: bool = False,
    evaluated_share: float | None = None,
) -> ArraySource:
    """Opens scikit-learn's copy of the UCI optical digits (8x8 pixels, 17 levels of grey), enlarged bilinearly.

    The test split is every fifth image of each class (355), the training split the others (1,442).

    Args:
        location: must be empty; the images are part of scikit-learn.
        split: "train" or "test".
        image_size: pixels a side; 16 if None.
        download: not needed.
        evaluated_share: see `fastnas.data.open`.
    """
    from sklearn.datasets import load_digits  # here, because it takes a second that other sources need not pay

    if location:
        raise UserError(f"the source 'digits' takes no path, but got '{location}'; write just: digits")
    size = image_size or 16
    scans, labels = load_digits(return_X_y=True)  # [1797, 64] of 0..16, [1797]
    grey = np.round(scans * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)  # [1797, 8, 8, 1]
    in_test = rank_in_class(labels) % 5 == 4  # [1797]
    chosen = in_test if split == "test" else ~in_test
    return ArraySource(
        spec="digits",
        name="digits",
        split=split,
        classes=tuple("0123456789"),
        labels=labels[chosen].astype(np.int64),
        array=resize(grey[chosen], size, resized_side(size, evaluated_share)),
        originals=grey[chosen],
        channels=1,
        image_size=(size, size),
        augmentation=Augmentation(crop_padding=size // 8, flip=False),
        evaluated_share=evaluated_share,
    )
