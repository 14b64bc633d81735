"""BatchNorm for networks that are evaluated under many architectures at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that can also normalise each individual of a population by its own batch.

    Same parameters, buffers and behaviour, except within `individual_statistics`.
    """

    images: int | None = None  # of each individual, within `individual_statistics`

    def forward(self, x: Tensor) -> Tensor:  # [P · images, C, H, W]
        if self.images is None:
            return super().forward(x)
        parts = [
            F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps)  # [images, C, H, W]
            for part in x.split(self.images)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@contextmanager
def individual_statistics(network: nn.Module, images: int) -> Iterator[None]:
    """Within the context every `BatchNorm` normalises each run of `images` samples by that run's own mean and variance;
    running statistics are neither read nor changed."""
    layers = [module for module in network.modules() if isinstance(module, BatchNorm)]
    try:
        for layer in layers:
            layer.images = images
        yield
    finally:
        for layer in layers:
            layer.images = None
