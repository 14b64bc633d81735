"""The `tensor` pipeline: all images stay on the device as uint8, and one operator makes a batch of them."""

from __future__ import annotations

from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastnas.data.augmentation import Augmentation
from fastnas.data.memory import free_memory
from fastnas.data.pipeline import Batch, Pipeline
from fastnas.data.source import Source
from fastnas.errors import UserError
from fastnas.ops import augment_batch, normalization_table

# Pipelines of one source share one copy: weights, α and validation usually take turns on the same images.
_RESIDENT: WeakKeyDictionary[Source, dict[torch.device, Tensor]] = WeakKeyDictionary()


class TensorPipeline(Pipeline):
    """`fastnas.ops.augment_batch` gathers, crops, flips, normalises and cuts out in one pass over a batch.

    Takes the arguments of `Pipeline`; nothing has to be read or prepared ahead, so `workers` and `prefetch` change
    nothing. Images are loaded here, so damaged ones raise UserError before any batch.

    Raises:
        UserError: an image cannot be read, the set exceeds the memory, or the augmentation needs the original files.
    """

    kind: ClassVar[str] = "tensor"

    def __init__(self, source: Source, **options: Any) -> None:
        super().__init__(source, **options)
        if self.augment and not serves(self.augmentation):
            raise UserError(
                "the tensor pipeline has no random resized crops and no colour jitter; "
                "use --pipeline dali or --pipeline torchvision"
            )
        self._images = _resident(source, self.device)  # [N, H, W, C]
        self._labels = torch.from_numpy(source.labels).to(self.device)  # [N]
        self._table = normalization_table(*source.statistics(), dtype=self.dtype, device=self.device)  # [C, 256]
        self._on_device: tuple[int, Tensor, Tensor | None] | None = None

    def batch(self, epoch: int, step: int) -> Batch:
        positions = self.positions(step)
        order, moves = self._plan_on_device(epoch)
        index = order[positions]  # [B]
        images = augment_batch(
            self._images,
            self._table,
            index,
            None if moves is None else moves[positions],
            padding=self.augmentation.crop_padding,
            cutout=self.augmentation.cutout,
        )  # [B, C, H, W]
        return images, self._labels.index_select(0, index)  # [B, C, H, W], [B]

    def _plan_on_device(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """The epoch's plan, moved once: batches then need no copy from the host and no synchronisation."""
        if self._on_device is None or self._on_device[0] != epoch:
            plan = self.plan(epoch)
            order = torch.from_numpy(plan.order).to(self.device)  # [n]
            moves = None if plan.draws is None else torch.from_numpy(plan.draws.moves).to(self.device)  # [n, 5]
            self._on_device = epoch, order, moves
        return self._on_device[1:]


def serves(augmentation: Augmentation) -> bool:
    """Whether images that were brought to one size beforehand are enough for it."""
    return augmentation.crop_area is None and not augmentation.changes_colours


def fits(source: Source, device: torch.device) -> bool:
    """Whether the uint8 images take at most a quarter of the memory that is free without them, on host and device."""
    host = free_memory(torch.device("cpu")) + (source.nbytes if source.resident else 0)
    if source.nbytes > host // 4:
        return False
    if device.type == "cpu":
        return True
    loaded = device in _RESIDENT.get(source, {})
    return source.nbytes <= (free_memory(device) + (source.nbytes if loaded else 0)) // 4


def _resident(source: Source, device: torch.device) -> Tensor:
    copies = _RESIDENT.setdefault(source, {})
    if device not in copies:
        if not source.resident and source.nbytes > (free := free_memory(torch.device("cpu"))):
            raise UserError(
                f"{source.spec} takes {source.nbytes / 2**30:.1f} GiB as uint8, but {free / 2**30:.1f} GiB are free; "
                "use the dali or the torchvision pipeline"
            )
        copies[device] = torch.from_numpy(source.images()).contiguous().to(device)  # [N, H, W, C]
    return copies[device]
