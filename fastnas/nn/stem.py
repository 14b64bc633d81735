"""What turns images into the two input states of the first cell."""

from __future__ import annotations

from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.nn.primitives import Norm, ReLUConvNorm


class CIFARStem(nn.Module):
    """One 3×3 convolution and a normalisation; both inputs of the first cell are its output."""

    reduces = False  # the two states have one size

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [B, in_channels, H, W]
        s = self.norm(self.conv(x))  # [B, out_channels, H, W]
        return s, s


class ImageNetStem(nn.Module):
    """Three 3×3 convolutions of stride 2: states at a quarter and at an eighth of the image size."""

    reduces = True  # the second state has half the size of the first

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        if out_channels % 2:
            raise UserError(
                f"out_channels is {out_channels}, but the ImageNet stem halves it: choose an even number of channels."
            )
        self.out_channels = out_channels
        self.stem0 = nn.Sequential(
            nn.Conv2d(in_channels, out_channels // 2, 3, stride=2, padding=1, bias=False),
            norm(out_channels // 2),
            nn.ReLU(),
            nn.Conv2d(out_channels // 2, out_channels, 3, stride=2, padding=1, bias=False),
            norm(out_channels),
        )
        self.stem1 = ReLUConvNorm(out_channels, out_channels, kernel=3, stride=2, padding=1, norm=norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [B, in_channels, H, W]
        s0 = self.stem0(x)  # [B, out_channels, H/4, W/4]
        return s0, self.stem1(s0)  # [B, out_channels, H/8, W/8]


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
