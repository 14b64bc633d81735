"""Which random changes a training image gets, and the draws behind them.

Draws depend on (seed, epoch, position in the epoch) alone, by a counter-based generator (`fastnas.ops.philox`).
Pipelines only look rows up, so a batch never depends on threads, worker processes, the batch size or what was drawn
before, and every kind of pipeline gives the same batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fastnas.errors import UserError
from fastnas.ops import philox

# Streams of the generator, one per decision: switching one of them off leaves the others as they were.
MOVE, CUTOUT, COLOUR, AREA = range(4)  # AREA and the streams after it: one for each attempt at a crop
STREAMS = 16  # of an epoch
ATTEMPTS = 10
LARGEST_SEED = 2**63 - 1

RATIOS = (3 / 4, 4 / 3)  # of a random resized crop, width to height


def order_generator(seed: int, epoch: int) -> np.random.Generator:
    """Draws the order of an epoch; nothing is carried over from another epoch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,))))


def words(seed: int, epoch: int, stream: int, positions: np.ndarray) -> np.ndarray:
    """Four uniform integers below 2³² for each position: [n] int64 → [n, 4] int64."""
    return philox(torch.from_numpy(positions), seed, epoch * STREAMS + stream).numpy()


def below(drawn: np.ndarray, limit: np.ndarray | int) -> np.ndarray:
    """Words as integers in 0..limit-1, limit at most 2³¹."""
    return drawn * limit >> 32


def between(drawn: np.ndarray, low: float, high: float) -> np.ndarray:
    """Words as numbers in [low, high)."""
    return low + (high - low) * (drawn / 2**32)


@dataclass(frozen=True)
class Draws:
    """The random numbers of `n` augmented images."""

    moves: np.ndarray  # [n, 5] int32, as `fastnas.ops.augment_batch` takes them
    boxes: np.ndarray | None = None  # [n, 4] int64: top, left, height, width of a random resized crop
    colours: np.ndarray | None = None  # [n, 4] float32: factors of brightness, contrast, saturation; hue in full turns

    @property
    def crop(self) -> np.ndarray:
        """[n, 2]: top and left of the crop within the padded image, 0..2·crop_padding."""
        return self.moves[:, :2]

    @property
    def flip(self) -> np.ndarray:
        """[n] bool: mirror left and right."""
        return self.moves[:, 2] != 0

    @property
    def cutout(self) -> np.ndarray:
        """[n, 2]: row and column of the centre of the hole."""
        return self.moves[:, 3:]


@dataclass(frozen=True)
class Augmentation:
    """The random changes of a training image, in the order in which they happen.

    1. Random resized crop (Szegedy et al. 2015, arXiv 1409.4842, as in torchvision): a box that covers a share of the
       image drawn from `crop_area`, with a side ratio of 3/4 to 4/3, resized to the source's image size.
    2. Colour jitter: brightness, contrast (towards the mean grey), saturation and hue, in this order. The first three
       are factors drawn from [1 - strength, 1 + strength], hue is shifted by -strength..strength of a full turn.
    3. Pad-crop: `crop_padding` black pixels on every side, then a crop of the same size at a uniformly drawn place.
    4. Flip: mirrored left-right with probability 1/2, if `flip`.
    5. Normalisation with the source's mean and standard deviation (always, augmented or not).
    6. Cutout (DeVries & Taylor 2017, arXiv 1708.04552): a square hole with sides of `cutout` pixels around a uniformly
       drawn pixel, clipped at the borders. It comes after the normalisation, so the hole is 0, the mean colour.

    Args:
        crop_padding: pixels, 0 switches pad-crop off.
        flip: whether left and right are interchangeable; wrong for digits and letters.
        cutout: pixels, 0 switches cutout off.
        crop_area: smallest and largest share of a random resized crop, within (0, 1]; None switches it off.
        color_jitter: strength for brightness, contrast, saturation (0..1) and hue (0..0.5). Needs three channels.

    Raises:
        UserError: a value is out of its range, or two kinds of crops are asked for.
    """

    crop_padding: int
    flip: bool
    cutout: int = 0
    crop_area: tuple[float, float] | None = None
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            if (pixels := getattr(self, name)) < 0:
                raise UserError(f"{name} is {pixels}; give a number of pixels from 0 (off) upwards")
        if self.crop_area is not None:
            smallest, largest = self.crop_area
            if not 0 < smallest <= largest <= 1:
                raise UserError(
                    f"crop_area is {self.crop_area}; give two shares of the image, 0 < smallest ≤ largest ≤ 1"
                )
            if self.crop_padding:
                raise UserError(
                    f"crop_padding is {self.crop_padding}, but these images get random resized crops; give "
                    "crop_padding 0 (--crop-padding 0), or no crop_area (--crop-scale 0)"
                )
        if not all(0 <= strength <= limit for strength, limit in zip(self.color_jitter, (1, 1, 1, 0.5), strict=True)):
            raise UserError(
                f"color_jitter is {self.color_jitter}; give strengths of brightness, contrast and saturation from 0 to "
                "1 and of hue from 0 to 0.5"
            )

    @property
    def changes_colours(self) -> bool:
        return any(self.color_jitter)

    def draw(
        self,
        seed: int,
        epoch: int,
        positions: np.ndarray,
        image_size: tuple[int, int],
        originals: np.ndarray | None = None,
    ) -> Draws:
        """Draws the changes of the images at some positions of an epoch.

        Args:
            seed: 0..2⁶³-1.
            epoch: from 0.
            positions: int64 [n], from 0.
            image_size: height and width of what comes out.
            originals: heights and widths of the files, int64 [n, 2]; needed for `crop_area` only.
        """
        move, hole = words(seed, epoch, MOVE, positions), words(seed, epoch, CUTOUT, positions)  # [n, 4] each
        moves = np.empty((len(positions), 5), dtype=np.int32)  # [n, 5]
        moves[:, :2] = below(move[:, :2], 2 * self.crop_padding + 1)
        moves[:, 2] = below(move[:, 2], 2) if self.flip else 0
        moves[:, 3:] = below(hole[:, :2], np.array(image_size))
        boxes = None
        if self.crop_area is not None:
            assert originals is not None, "crop_area needs the sizes of the originals"
            boxes = self._boxes(seed, epoch, positions, originals)
        colours = None
        if self.changes_colours:
            drawn = between(words(seed, epoch, COLOUR, positions), -1, 1) * self.color_jitter  # [n, 4]
            colours = (drawn + np.array([1, 1, 1, 0])).astype(np.float32)
        return Draws(moves, boxes, colours)

    def _boxes(self, seed: int, epoch: int, positions: np.ndarray, originals: np.ndarray) -> np.ndarray:
        """torchvision's rule: ten attempts to fit a box into the image, then the largest in its middle."""
        assert self.crop_area is not None
        boxes = _middle_boxes(originals)  # [n, 4]
        left_over = np.arange(len(positions))  # [m]
        for attempt in range(ATTEMPTS):
            drawn = words(seed, epoch, AREA + attempt, positions[left_over])  # [m, 4]
            size = originals[left_over]  # [m, 2]
            area = size.prod(axis=1) * between(drawn[:, 0], *self.crop_area)  # [m]
            ratio = np.exp(between(drawn[:, 1], math.log(RATIOS[0]), math.log(RATIOS[1])))  # [m]
            box = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=1).round().astype(np.int64)  # [m, 2]
            fits = ((box > 0) & (box <= size)).all(axis=1)  # [m]
            size, box, drawn = size[fits], box[fits], drawn[fits]
            boxes[left_over[fits]] = np.concatenate([below(drawn[:, 2:], size - box + 1), box], axis=1)
            left_over = left_over[~fits]
        return boxes


def _middle_boxes(originals: np.ndarray) -> np.ndarray:
    """Heights and widths [n, 2] → top, left, height, width [n, 4]."""
    height, width = originals.T  # [n] each
    ratio = width / height  # [n]
    box = np.stack(
        [
            np.where(ratio < RATIOS[0], (width / RATIOS[0]).round(), height),
            np.where(ratio > RATIOS[1], (height * RATIOS[1]).round(), width),
        ],
        axis=1,
    ).astype(np.int64)  # [n, 2]
    box = np.clip(box, 1, originals)
    return np.concatenate([(originals - box) // 2, box], axis=1)
