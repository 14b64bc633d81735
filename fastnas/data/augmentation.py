"""Which random changes a training image gets, and the draws behind them.

The draws of a whole epoch come from (seed, epoch) alone, one row per position in the epoch. Pipelines only look rows
up, so a batch never depends on threads, worker processes, the batch size or what was drawn before, and every kind of
pipeline gives the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastnas.errors import UserError

# One stream per decision: switching one of them off leaves the others as they were.
ORDER, CROP, FLIP, CUTOUT = range(4)


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """The random generator of one decision in one epoch: counter-like, nothing is carried over from another epoch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream, epoch))))


@dataclass(frozen=True)
class Draws:
    """The random numbers of `n` augmented images."""

    crop: np.ndarray  # [n, 2] int64: top and left of the crop within the padded image, 0..2·crop_padding
    flip: np.ndarray  # [n] bool: mirror left and right
    cutout: np.ndarray  # [n, 2] int64: row and column of the centre of the hole


@dataclass(frozen=True)
class Augmentation:
    """The random changes of a training image, in the order in which they happen.

    1. Pad-crop: `crop_padding` black pixels on every side, then a crop of the original size at a uniformly drawn place.
    2. Flip: mirrored left-right with probability 1/2, if `flip`.
    3. Normalisation with the source's mean and standard deviation (always, augmented or not).
    4. Cutout (DeVries & Taylor 2017, arXiv 1708.04552): a square hole with sides of `cutout` pixels around a uniformly
       drawn pixel, clipped at the borders. It comes after the normalisation, so the hole is 0, the mean colour.

    Args:
        crop_padding: pixels, 0 switches pad-crop off.
        flip: whether left and right are interchangeable; wrong for digits and letters.
        cutout: pixels, 0 switches cutout off.

    Raises:
        UserError: `crop_padding` or `cutout` is negative.
    """

    crop_padding: int
    flip: bool
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            if (pixels := getattr(self, name)) < 0:
                raise UserError(f"{name} is {pixels}; give a number of pixels from 0 (off) upwards")

    def draw(self, seed: int, epoch: int, count: int, image_size: tuple[int, int]) -> Draws:
        """Draws the changes of `count` images of `image_size` (height, width) for one epoch."""
        coins = generator(seed, epoch, FLIP).integers(0, 2, size=count, dtype=np.int64)
        return Draws(
            crop=generator(seed, epoch, CROP).integers(0, 2 * self.crop_padding + 1, size=(count, 2), dtype=np.int64),
            flip=(coins == 1) & self.flip,
            cutout=generator(seed, epoch, CUTOUT).integers(0, image_size, size=(count, 2), dtype=np.int64),
        )
