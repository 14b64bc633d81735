"""What every pipeline promises: batches that follow from (seed, epoch, step) alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastnas.data.augmentation import ORDER, Augmentation, Draws, generator
from fastnas.data.source import Source
from fastnas.data.split import chosen
from fastnas.errors import UserError

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Plan:
    """Everything random about one epoch of `n` images."""

    order: np.ndarray  # [n] int64: which image of the source comes at each position
    draws: Draws | None  # None: no augmentation


class Pipeline(ABC):
    """Serves a source in batches. `fastnas.data.pipeline` makes one; its docstring explains the arguments.

    A pipeline keeps no position: any batch can be had at any time, so an interrupted run continues with
    `epoch(e, start=s)` and nothing of the data needs to be in a checkpoint.

    Attributes:
        kind: the name of the implementation.
        source, batch_size, seed, shuffle, augment, augmentation, drop_last, device: as given or resolved.
        indices: the images of the source that are served, int64 [n].
    """

    kind: ClassVar[str]

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        indices: ArrayLike | None = None,
        train: bool = True,
        shuffle: bool | None = None,
        augment: bool | None = None,
        drop_last: bool | None = None,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; give the number of images in a batch, 1 or more")
        if seed < 0:
            raise UserError(f"seed is {seed}; give a number from 0 upwards")
        self.source = source
        self.batch_size = batch_size
        self.indices = np.arange(len(source)) if indices is None else chosen(len(source), indices)  # [n]
        self.shuffle = train if shuffle is None else shuffle
        self.augment = train if augment is None else augment
        self.drop_last = train if drop_last is None else drop_last
        self.seed = seed
        self.augmentation = source.augmentation if augmentation is None else augmentation
        self.device = torch.device(device)
        if len(self) == 0:
            raise UserError(
                f"{source.spec}: {len(self.indices)} images do not fill a batch of {batch_size}, so an epoch would be "
                "empty; use a smaller batch_size or more images"
            )
        self._plan: tuple[int, Plan] | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.indices), self.batch_size)
        return whole if self.drop_last or rest == 0 else whole + 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch `start` on.

        Args:
            epoch: number of the epoch, from 0; each has its own order and its own draws.
            start: batches to skip, 0..len(self); skipped batches cost nothing.

        Returns:
            An iterator over (images, labels): float32 [B, C, H, W] in channels-last memory format, int64 [B].

        Raises:
            ValueError: `epoch` is negative or `start` out of range.
            UserError: while iterating, if an image cannot be read.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; epochs count from 0")
        if not 0 <= start <= len(self):
            raise ValueError(f"start is {start}; an epoch of {len(self)} batches can start at 0..{len(self)}")
        return self._iterate(epoch, start)

    @abstractmethod
    def batch(self, epoch: int, step: int) -> Batch:
        """Batch `step` (modulo len(self)) of an epoch: bit for bit what `epoch(epoch)` gives at that place."""

    def _iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        for step in range(start, len(self)):
            yield self.batch(epoch, step)

    def plan(self, epoch: int) -> Plan:
        """Order and draws of an epoch."""
        if self._plan is None or self._plan[0] != epoch:
            order = generator(self.seed, epoch, ORDER).permutation(self.indices) if self.shuffle else self.indices
            draws = None
            if self.augment:
                draws = self.augmentation.draw(self.seed, epoch, len(order), self.source.image_size)
            self._plan = epoch, Plan(order, draws)
        return self._plan[1]

    def positions(self, step: int) -> slice:
        """The positions within an epoch that make up batch `step` (modulo len(self))."""
        first = step % len(self) * self.batch_size
        return slice(first, min(first + self.batch_size, len(self.indices)))
