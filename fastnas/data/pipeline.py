"""The interface of pipelines: batches that depend on (seed, epoch, step) alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastnas.data.augmentation import LARGEST_SEED, Augmentation, Draws, order_generator
from fastnas.data.source import Source
from fastnas.data.split import chosen
from fastnas.errors import UserError

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class EpochPlan:
    """The order of the `n` images of an epoch, and the random draws for each."""

    order: np.ndarray  # [n] int64: which image of the source comes at each position
    draws: Draws | None  # None: no augmentation


class Pipeline(ABC):
    """Serves a source in batches. `fastnas.data.pipeline` makes one; its docstring explains the arguments.

    A pipeline keeps no position: any batch can be had at any time, so an interrupted run continues with
    `epoch(e, start=s)`, and epoch and step are all that a checkpoint needs.

    Attributes:
        kind: the name of the implementation.
        source, batch_size, seed, shuffle, augment, augmentation, drop_last, device, dtype, workers, prefetch, shard,
        shards: as given or resolved.
        indices: the images of the source that all shards together serve, int64 [N].
        count: images of an epoch of this shard, before an incomplete batch is left out.
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
        dtype: torch.dtype = torch.float32,
        workers: int | None = None,
        prefetch: int = 2,
        shard: int = 0,
        shards: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; give the number of images in a batch, 1 or more")
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"seed is {seed}; give a number from 0 to {LARGEST_SEED}")
        if workers is not None and workers < 0:
            raise UserError(f"workers is {workers}; give a number from 0 upwards, or None for what suits the pipeline")
        if prefetch < 1:
            raise UserError(f"prefetch is {prefetch}; give the number of batches to prepare ahead, 1 or more")
        if not 0 <= shard < shards:
            raise UserError(f"shard is {shard} of {shards}; give a number from 0 to shards - 1")
        self.source = source
        self.batch_size = batch_size
        self.indices = np.arange(len(source)) if indices is None else chosen(len(source), indices)  # [N]
        self.shuffle = train if shuffle is None else shuffle
        self.augment = train if augment is None else augment
        self.drop_last = train if drop_last is None else drop_last
        self.seed = seed
        self.augmentation = source.augmentation if augmentation is None else augmentation
        self.device = torch.device(device)
        self.dtype = dtype
        self.workers = workers
        self.prefetch = prefetch
        self.shard = shard
        self.shards = shards
        # With drop_last all shards have as many batches, so that no process waits for another at the end.
        served = len(self.indices) - (len(self.indices) % shards if self.drop_last else 0)
        self.count = len(range(shard, served, shards))
        if self.augment and self.augmentation.changes_colours and source.channels != 3:
            raise UserError(
                f"color_jitter needs colour images, but {source.spec} has {source.channels} channels; set brightness, "
                "contrast, saturation and hue to 0"
            )
        if len(self) == 0:
            raise UserError(
                f"{source.spec}: {self.count} images do not fill a batch of {batch_size}, so an epoch would be "
                "empty; give more images or smaller batches"
            )
        self._plan: tuple[int, EpochPlan] | None = None  # of the epoch that was asked for last

    def part(self, shard: int, shards: int) -> Self:
        """The pipeline of one of several processes that share out each batch of this one.

        With `drop_last` all of them have as many batches, of equal size, as this one; without, every image is in one of
        them, and their numbers of batches may differ by one.

        Raises:
            UserError: a batch cannot be shared equally (drop_last), or there are fewer images than processes.
        """
        if shards == 1:
            return self
        if self.drop_last and self.batch_size % shards:
            fitting = max(shards, self.batch_size - self.batch_size % shards)
            raise UserError(
                f"{self.source.spec}: {shards} processes cannot share a batch of {self.batch_size} images equally; "
                f"give a batch size that is a multiple of {shards}, such as {fitting}"
            )
        if len(self.indices) < shards:
            raise UserError(
                f"{self.source.spec}: {len(self.indices)} images are too few for {shards} processes; start fewer"
            )
        return type(self)(
            self.source,
            batch_size=-(-self.batch_size // shards),
            indices=self.indices,
            shuffle=self.shuffle,
            augment=self.augment,
            drop_last=self.drop_last,
            seed=self.seed,
            augmentation=self.augmentation,
            device=self.device,
            dtype=self.dtype,
            workers=self.workers,
            prefetch=self.prefetch,
            shard=shard,
            shards=shards,
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(self.count, self.batch_size)
        return whole if self.drop_last or rest == 0 else whole + 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch `start` on.

        Args:
            epoch: number of the epoch, from 0; each has its own order and its own draws.
            start: batches to skip, 0..len(self); skipped batches cost nothing.

        Returns:
            An iterator over (images, labels): `dtype` [B, C, H, W] in channels-last memory format, int64 [B].

        Raises:
            ValueError: `epoch` is negative or `start` out of range.
            UserError: while iterating, if an image cannot be read; it names the file, and all batches before the one
                with this image have been served.
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

    def plan(self, epoch: int) -> EpochPlan:
        """Order and draws of an epoch of this shard.

        Shard s gets the positions s, s + shards, … of the order that all shards share: they are disjoint, and step t of
        all shards together holds the images, with the draws, of step t without shards and with the batch size of all.
        """
        if self._plan is None or self._plan[0] != epoch:
            order = order_generator(self.seed, epoch).permutation(self.indices) if self.shuffle else self.indices
            positions = np.arange(self.count) * self.shards + self.shard  # [n]
            order = order[positions]  # [n]
            draws = None
            if self.augment:
                originals = None if self.augmentation.crop_area is None else self.source.original_sizes()[order]
                draws = self.augmentation.draw(self.seed, epoch, positions, self.source.image_size, originals)
            self._plan = epoch, EpochPlan(order, draws)
        return self._plan[1]

    def positions(self, step: int) -> slice:
        """The positions within an epoch of this shard that make up batch `step` (modulo len(self))."""
        first = step % len(self) * self.batch_size
        return slice(first, min(first + self.batch_size, self.count))
