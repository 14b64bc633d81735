"""The `torchvision` pipeline: the usual DataLoader and transforms, image by image, for sets too large for memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as transforms

from fastnas.data.augmentation import Augmentation, Draws
from fastnas.data.pipeline import Batch, EpochPlan, Pipeline
from fastnas.data.source import Source, Statistics
from fastnas.errors import UserError


class TorchvisionPipeline(Pipeline):
    """Reads, augments and normalises one image at a time, in worker processes if `workers` is not 0 (the default).

    Takes the arguments of `Pipeline`. The transforms get their random numbers from the epoch's plan, so batches equal
    those of the other pipelines, however many workers there are, and no global generator is touched.
    """

    kind: ClassVar[str] = "torchvision"

    def __init__(self, source: Source, **options: Any) -> None:
        super().__init__(source, **options)
        self._statistics = source.statistics()

    def batch(self, epoch: int, step: int) -> Batch:
        return self._deliver(self._images(epoch)[self.positions(step)])

    def _iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        loader = DataLoader(
            self._images(epoch),
            batch_size=None,  # an item of the data set is a batch already
            sampler=[self.positions(step) for step in range(start, len(self))],
            num_workers=self.workers or 0,
            prefetch_factor=self.prefetch if self.workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_keep_what_was_inherited,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # otherwise the loader takes a number from the global one
        )
        for item in loader:
            yield self._deliver(item)

    def _images(self, epoch: int) -> _Images:
        return _Images(self.source, self.plan(epoch), self.augmentation, self._statistics, self.dtype)

    def _deliver(self, item: Batch | UserError) -> Batch:
        if isinstance(item, UserError):
            raise item
        images, labels = item
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class _Images(Dataset[Batch | UserError]):
    """The images of one epoch; indexed by a range of positions. This is what travels to worker processes."""

    source: Source
    plan: EpochPlan
    augmentation: Augmentation
    statistics: Statistics
    dtype: torch.dtype

    def __getitem__(self, positions: slice) -> Batch | UserError:
        order = self.plan.order[positions]  # [B]
        size = (len(order), self.source.channels, *self.source.image_size)
        images = torch.empty(size, dtype=self.dtype, memory_format=torch.channels_last)  # [B, C, H, W]
        for place, (position, index) in enumerate(zip(range(positions.start, positions.stop), order, strict=True)):
            try:
                images[place] = self._image(position, index)
            except UserError as error:  # returned, because the loader would wrap a worker's traceback around it
                return error
        return images, torch.from_numpy(self.source.labels[order])  # [B, C, H, W], [B]

    def _image(self, position: int, index: int) -> Tensor:
        """float32 [C, H, W]."""
        draws, side = self.plan.draws, self.augmentation.cutout
        if draws is not None and draws.boxes is not None:
            image = transforms.to_image(self.source.original(index))  # [C, H', W']
        else:
            image = transforms.to_image(self.source.image(index))  # [C, H, W]
        if draws is not None:
            image = self._move(image, draws, position)
        image = transforms.normalize(transforms.to_dtype(image, torch.float32, scale=True), *self.statistics)
        if draws is not None:
            rows, columns = (slice(max(0, start), start + side) for start in draws.cutout[position] - side // 2)
            image[:, rows, columns] = 0
        return image

    def _move(self, image: Tensor, draws: Draws, position: int) -> Tensor:
        """Crop, colours and flip: uint8 [C, H', W'] → uint8 [C, H, W]."""
        size = self.source.image_size
        if draws.boxes is not None:
            image = transforms.resized_crop(image, *draws.boxes[position].tolist(), list(size), antialias=True)
        if draws.colours is not None:
            brightness, contrast, saturation, hue = draws.colours[position].tolist()
            image = transforms.adjust_contrast(transforms.adjust_brightness(image, brightness), contrast)
            image = transforms.adjust_hue(transforms.adjust_saturation(image, saturation), hue)
        if draws.boxes is None:
            top, left = draws.crop[position].tolist()
            image = transforms.crop(transforms.pad(image, [self.augmentation.crop_padding]), top, left, *size)
        return transforms.horizontal_flip(image) if draws.flip[position] else image


def _keep_what_was_inherited(_: int) -> None:
    """A worker must not collect what its parent left to be collected: DALI's threads, for one, do not exist here."""
    gc.freeze()


def _as_it_is(item: Any) -> Any:
    return item
