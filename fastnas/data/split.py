"""Fixed choices of images by class: no random number, so a repeated or resumed run takes the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fastnas.errors import UserError

TEST_SHARE = 0.2
"""What becomes the test split where the data have none."""


def share_of_test(test: str) -> float | None:
    """The share of `--test`: its own number, `TEST_SHARE` for "same", None for other images or for no test.

    Raises:
        UserError: a number that is no share.
    """
    if test == "same":
        return TEST_SHARE
    try:
        share = float(test)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise UserError(f"test is {test}, expected a share above 0 and below 1, such as {TEST_SHARE}, or none.")
    return share


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many earlier images share each image's label: [N] labels → [N] int64."""
    order = np.argsort(labels, kind="stable")  # [N]
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)  # [K] each
    ranks = np.empty(len(labels), dtype=np.int64)  # [N]
    ranks[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return ranks


def chosen(count: int, indices: ArrayLike) -> np.ndarray:
    """Integers or a mask as indices into `count` images: int64 [n]. Raises IndexError where they do not fit."""
    given = np.asarray(indices)
    return np.arange(count)[given if given.size else given.astype(np.int64)]  # an empty list would count as floats


def balanced(labels: np.ndarray, limit: int) -> np.ndarray:
    """Indices, in source order, of min(limit, N) images that spread over the classes as evenly as possible.

    Every class gives its first image, then every class its second, and so on: class sizes differ by at most one,
    except where a class has no more images.
    """
    by_turn = np.lexsort((labels, rank_in_class(labels)))  # [N]
    return np.sort(by_turn[:limit])


def kept_for_test(keys: Sequence[bytes], share: float, name: str) -> np.ndarray:
    """Which images of a class are kept for the test where the data have no test split: bool [n].

    They depend on the images and on `share` alone: those whose keys have the smallest digests. So every command takes
    the same ones, in whatever order it finds them, and an image that is added later moves at most one other.

    Args:
        keys: what tells the images of the class apart, such as their file names.
        share: of the images, in (0, 1); rounded, but at least one image.
        name: of the class, for the error.

    Raises:
        UserError: none would be left to train on.
    """
    count = max(1, round(len(keys) * share))
    if count >= len(keys):
        number = f"{len(keys)} image{'s' if len(keys) > 1 else ''}"
        raise UserError(
            f"class '{name}' has {number}, of which the test takes {count}, so none is left to train on; add images, "
            "give a test split, or leave out the test (--test none)"
        )
    order = sorted(range(len(keys)), key=lambda place: (hashlib.blake2b(keys[place], digest_size=16).digest(), place))
    mask = np.zeros(len(keys), dtype=bool)  # [n]
    mask[order[:count]] = True
    return mask


def check_portion(portion: float) -> None:
    """Raises UserError unless `portion` lies strictly between 0 and 1."""
    if not 0 < portion < 1:
        raise UserError(f"the share of images for the weights is {portion}; give a number above 0 and below 1")


def stratified(labels: np.ndarray, classes: Sequence[str], portion: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits each class: its first floor(n·portion) images in source order, and the rest.

    Returns:
        Two int64 arrays of indices, each in source order.

    Raises:
        UserError: `portion` is not in (0, 1), or a class is too small to give an image to both parts.
    """
    check_portion(portion)
    counts = np.bincount(labels, minlength=len(classes))  # [K]
    firsts = np.floor(counts * portion).astype(np.int64)  # [K]
    for name, count, first in zip(classes, counts, firsts, strict=True):
        if first == 0:
            raise UserError(
                f"class '{name}' has {count} images, of which a share of {portion:g} is none; each part needs "
                "images of every class: add some, raise --split (of a search), or lower --validation (of a training)"
            )
    in_first = rank_in_class(labels) < firsts[labels]  # [N]
    return np.flatnonzero(in_first), np.flatnonzero(~in_first)


def in_test_split(
    images: Sequence[np.ndarray] | np.ndarray, labels: np.ndarray, classes: Sequence[str], share: float
) -> np.ndarray:
    """Which images in memory are kept for the test: [N, H, W, C] or a list, [N] → bool [N]. Equal ones stay together if
    they can. UserError as `kept_for_test`."""
    mask = np.zeros(len(images), dtype=bool)  # [N]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)  # [n]
        mask[members] = kept_for_test([images[member].tobytes() for member in members.tolist()], share, classes[label])
    return mask
