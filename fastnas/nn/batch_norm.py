"""BatchNorm for networks that are evaluated under many architectures at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.errors import UserError


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
    running statistics are neither read nor changed. Contexts may be nested."""
    layers = [module for module in network.modules() if isinstance(module, BatchNorm)]
    before = [layer.images for layer in layers]
    try:
        for layer in layers:
            layer.images = images
        yield
    finally:
        for layer, outer in zip(layers, before, strict=True):
            layer.images = outer


def check_one_image(network: nn.Module, shape: tuple[int, int, int], advice: str) -> None:
    """Makes sure that batches of one image can be normalised: not where a layer gets a single value of each channel.

    Args:
        network: stays as it is, like the global random state.
        shape: (C, H, W) of an image.
        advice: what to do, the end of the message.

    Raises:
        UserError: they cannot.
    """
    device = next(network.parameters()).device
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            copy.deepcopy(network).train()(torch.zeros(1, *shape, device=device))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            size = "×".join(map(str, shape[1:]))
            raise UserError(
                f"a batch of one image of {size} pixels cannot be normalised here, for it shrinks to a single one: "
                f"{advice}."
            ) from error
