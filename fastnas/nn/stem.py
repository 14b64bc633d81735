"""What turns images into the two input states of the first cell."""

from __future__ import annotations

import torch
from torch import nn

from fastnas import standalone
from fastnas.errors import UserError
from fastnas.standalone import CIFARStem, Norm

__all__ = ["STEMS", "CIFARStem", "ImageNetStem", "make_channels_last", "make_stem"]


class ImageNetStem(standalone.ImageNetStem):
    """States at a quarter and at an eighth of the image size. UserError for odd `out_channels`."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = nn.BatchNorm2d) -> None:
        if out_channels % 2:
            raise UserError(
                f"out_channels is {out_channels}, but the ImageNet stem halves it: choose an even number of channels."
            )
        super().__init__(in_channels, out_channels, norm)


STEMS: dict[str, type[CIFARStem] | type[ImageNetStem]] = {"cifar": CIFARStem, "imagenet": ImageNetStem}


def make_stem(name: str, in_channels: int, out_channels: int, norm: Norm = nn.BatchNorm2d) -> CIFARStem | ImageNetStem:
    """The stem `name`: "cifar" keeps the size of the images, "imagenet" divides it by 8.

    Args:
        name: "cifar" or "imagenet".
        in_channels: channels of the images.
        out_channels: channels of both states; even for "imagenet".
        norm: builds the normalisations, with affine parameters.

    Raises:
        UserError: an unknown name, or odd `out_channels` for "imagenet".
    """
    if name not in STEMS:
        raise UserError(f"unknown stem {name!r}: use 'cifar' (images of 32×32) or 'imagenet' (224×224).")
    return STEMS[name](in_channels, out_channels, norm)


def make_channels_last(stem: nn.Module) -> None:
    """Gives a new stem the layout of the operators: torch's convolutions follow that of their weights, whatever that of
    the images is. Parameters are new ones, as tensors without data cannot change their layout."""
    for module in stem.modules():
        if isinstance(module, nn.Conv2d):
            module.weight = nn.Parameter(module.weight.detach().contiguous(memory_format=torch.channels_last))
