"""The `tensor` pipeline: all images stay on the device as uint8, and whole batches are gathered at once."""

from __future__ import annotations

from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from fastnas.data.memory import free_memory
from fastnas.data.pipeline import Batch, Pipeline, Plan
from fastnas.data.source import Source
from fastnas.errors import UserError

# Pipelines of one source share one copy: weights, α and validation usually take turns on the same images.
_RESIDENT: WeakKeyDictionary[Source, dict[torch.device, Tensor]] = WeakKeyDictionary()


class TensorPipeline(Pipeline):
    """One indexed read per batch does pad-crop and flip; normalisation and cutout follow in place.

    Takes the arguments of `Pipeline`; `workers` is accepted and not needed. Images are loaded here, so damaged ones
    raise UserError before any batch.
    """

    kind: ClassVar[str] = "tensor"

    def __init__(self, source: Source, *, workers: int = 0, **options: Any) -> None:
        super().__init__(source, **options)
        height, width = source.image_size
        self._images = _resident(source, self.device)  # [N, H, W, C]
        self._labels = torch.from_numpy(source.labels).to(self.device)  # [N]
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self.device).repeat(height * width)
            for values in source.statistics()
        )
        self._mean, self._std = mean, std  # [H·W·C] each, so that a batch is normalised in long rows
        self._on_device: tuple[int, dict[str, Tensor]] | None = None

    def batch(self, epoch: int, step: int) -> Batch:
        positions = self.positions(step)
        plan = {name: values[positions] for name, values in self._plan_on_device(epoch).items()}
        index = plan["order"]  # [B]
        moved = self.augment and (self.augmentation.crop_padding > 0 or self.augmentation.flip)
        if moved:
            pixels = crop_flip(self._images, index, plan["crop"], plan["flip"], self.augmentation.crop_padding)
        else:
            pixels = self._images.index_select(0, index)  # [B, H, W, C]
        images = pixels.to(torch.float32).mul_(1 / 255)  # [B, H, W, C]
        images.view(len(index), -1).sub_(self._mean).div_(self._std)
        if self.augment and self.augmentation.cutout > 0:
            cut_out(images, plan["cutout"], self.augmentation.cutout)
        return images.permute(0, 3, 1, 2), self._labels.index_select(0, index)  # [B, C, H, W], [B]

    def _plan_on_device(self, epoch: int) -> dict[str, Tensor]:
        """The epoch's plan, moved once: batches then need no copy from the host and no synchronisation."""
        if self._on_device is None or self._on_device[0] != epoch:
            arrays = {name: torch.from_numpy(values).to(self.device) for name, values in _arrays(self.plan(epoch))}
            self._on_device = epoch, arrays
        return self._on_device[1]


def fits(source: Source, device: torch.device) -> bool:
    """Whether the uint8 images take at most a quarter of the memory that is free without them, on host and device."""
    host = free_memory(torch.device("cpu")) + (source.nbytes if source.resident else 0)
    if source.nbytes > host // 4:
        return False
    if device.type == "cpu":
        return True
    loaded = device in _RESIDENT.get(source, {})
    return source.nbytes <= (free_memory(device) + (source.nbytes if loaded else 0)) // 4


def crop_flip(images: Tensor, index: Tensor, crop: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pads with black, crops and flips some images in one gather.

    Args:
        images: contiguous uint8 [N, H, W, C].
        index: which images, int64 [B].
        crop: top and left of the crop within the padded image, 0..2·padding, int64 [B, 2].
        flip: whether to mirror left and right after the crop, bool [B].
        padding: pixels on every side.

    Returns:
        uint8 [B, H, W, C].
    """
    _, height, width, channels = images.shape
    row = torch.arange(height, device=images.device) + (crop[:, :1] - padding)  # [B, H]
    column = torch.arange(width, device=images.device).expand(len(index), width)  # [B, W]
    column = torch.where(flip[:, None], width - 1 - column, column) + (crop[:, 1:] - padding)  # [B, W]
    first = (index[:, None] * height + row.clamp(0, height - 1)) * width  # [B, H]
    place = first[:, :, None] + column.clamp(0, width - 1)[:, None, :]  # [B, H, W]
    pixels = images.view(-1, channels).index_select(0, place.flatten())  # [B·H·W, C]
    if padding > 0:
        inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]  # [B, H, W]
        pixels.mul_(inside.view(-1, 1))
    return pixels.view(len(index), height, width, channels)


def cut_out(images: Tensor, centre: Tensor, side: int) -> None:
    """Sets a square of `side` pixels to 0, in place: images [B, H, W, C], centre (row, column) int64 [B, 2]."""
    _, height, width, _ = images.shape
    start = centre - side // 2  # [B, 2]
    row = torch.arange(height, device=images.device) - start[:, :1]  # [B, H]
    column = torch.arange(width, device=images.device) - start[:, 1:]  # [B, W]
    hole = ((row >= 0) & (row < side))[:, :, None] & ((column >= 0) & (column < side))[:, None, :]  # [B, H, W]
    images.masked_fill_(hole[..., None], 0)


def _resident(source: Source, device: torch.device) -> Tensor:
    copies = _RESIDENT.setdefault(source, {})
    if device not in copies:
        if not source.resident and source.nbytes > (free := free_memory(torch.device("cpu"))):
            raise UserError(
                f"{source.spec} takes {source.nbytes / 2**30:.1f} GiB as uint8, but {free / 2**30:.1f} GiB are free; "
                "use the torchvision pipeline"
            )
        copies[device] = torch.from_numpy(source.images()).to(device)  # [N, H, W, C]
    return copies[device]


def _arrays(plan: Plan) -> list[tuple[str, np.ndarray]]:
    return [("order", plan.order), *(vars(plan.draws).items() if plan.draws else ())]
