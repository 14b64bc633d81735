"""A trained network of fastnas in plain PyTorch: this file runs without fastnas, and may be copied into any project.

It needs `torch` and `safetensors`, for image files `pillow`, too. `python -m fastnas.export` writes both a copy of it
(`--standalone network.py`) and the network (`--save network.json`, with `network.safetensors` beside it):

    import torch, network
    model = network.load("network.json")
    image = model.read_image("photo.jpg")                       # uint8 [3, H, W]
    with torch.no_grad():
        logits = model(model.normalise(image[None]))            # [1, num_classes]
    print(model.classes[logits.argmax()])

or, in a shell: `python network.py network.json photo.jpg`.
"""

# fastnas builds its own networks of these modules, so this file imports nothing of the package.
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""Builds the normalisation for a number of channels: `nn.BatchNorm2d` to train a derived network,
`functools.partial(nn.BatchNorm2d, affine=False)` to search (an affine scale would blur what α measures)."""

# --- candidates: [B, C, H, W] → [B, C, ⌈H/stride⌉, ⌈W/stride⌉] ---


class Zero(nn.Module):
    """No connection: zeros of the shape that a convolution of this stride would give; no gradient reaches the input."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        # Fresh zeros instead of `x * 0`, which would turn an infinite activation into NaN.
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])  # [B, C, ceil(H/s), ceil(W/s)]

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class ReLUConvNorm(nn.Module):
    """ReLU, convolution, normalisation: `[B, channels_in, H, W]` → `[B, channels_out, H', W']`.

    With `kernel=1` it adapts the channels of a cell's inputs.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, padding: int, norm: Norm) -> None:
        super().__init__()
        # Not in place, here and in every candidate: all edges that leave a state read the same tensor.
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.norm = norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:  # [B, channels_in, H, W]
        return self.norm(self.conv(self.relu(x)))  # [B, channels_out, H', W']


class FactorizedReduce(nn.Module):
    """Halves height and width: `[B, channels_in, H, W]` → `[B, channels_out, ceil(H/2), ceil(W/2)]`, for an even
    `channels_out`.

    Two 1×1 convolutions of stride 2 each give half of the channels: one reads the pixels at even rows and columns, the
    other those at odd rows and columns.
    """

    def __init__(self, channels_in: int, channels_out: int, norm: Norm) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_even = nn.Conv2d(channels_in, channels_out // 2, 1, stride=2, bias=False)
        self.conv_odd = nn.Conv2d(channels_in, channels_out // 2, 1, stride=2, bias=False)
        self.norm = norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:  # [B, channels_in, H, W]
        x = self.relu(x)
        # conv_odd reads x[:, :, 1:, 1:]. For an even size, stride 2 finds H/2 rows in those H - 1. For an odd size it
        # would find one row fewer than conv_even, so one zero row (column) at the end keeps the size at (H + 1) // 2,
        # that of a padded stride-2 convolution. A negative pad crops.
        height, width = x.shape[-2:]
        shifted = F.pad(x, (-1, width % 2, -1, height % 2))  # [B, channels_in, H - 1 + H % 2, W - 1 + W % 2]
        halves = (self.conv_even(x), self.conv_odd(shifted))  # 2 × [B, channels_out/2, ceil(H/2), ceil(W/2)]
        return self.norm(torch.cat(halves, dim=1))  # [B, channels_out, ceil(H/2), ceil(W/2)]


class DepthwiseStage(nn.Module):
    """ReLU, depthwise k×k, pointwise 1×1, normalisation: the stage that all separable candidates are made of.

    `[B, C, H, W]` → `[B, C, ceil(H/stride), ceil(W/stride)]` for an odd `kernel`, by zero padding on every side.
    """

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        return self.norm(self.pointwise(self.depthwise(self.relu(x))))  # [B, C, ceil(H/s), ceil(W/s)]


class SeparableConv(nn.Sequential):
    """`sep_conv_kxk`: two depthwise stages, of which the first has the stride."""

    def __init__(self, channels: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__(
            DepthwiseStage(channels, kernel, stride, dilation=1, norm=norm),
            DepthwiseStage(channels, kernel, stride=1, dilation=1, norm=norm),
        )


class DilatedConv(DepthwiseStage):
    """`dil_conv_kxk`: one depthwise stage with dilation 2, so 3×3 weights see 5×5 pixels and 5×5 see 9×9."""

    def __init__(self, channels: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__(channels, kernel, stride, dilation=2, norm=norm)


class Conv7x1And1x7(nn.Sequential):
    """`conv_7x1_1x7`: ReLU, a full 1×7 convolution that strides the width, a 7×1 that strides the height, norm."""

    def __init__(self, channels: int, stride: int, norm: Norm) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False),
            nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False),
            norm(channels),
        )


def _skip_connect(channels: int, stride: int, norm: Norm) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, norm)


PRIMITIVES: dict[str, Callable[[int, int, Norm], nn.Module]] = {
    "none": lambda channels, stride, norm: Zero(stride),
    "max_pool_3x3": lambda channels, stride, norm: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda channels, stride, norm: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    "skip_connect": _skip_connect,
    "sep_conv_3x3": lambda channels, stride, norm: SeparableConv(channels, 3, stride, norm),
    "sep_conv_5x5": lambda channels, stride, norm: SeparableConv(channels, 5, stride, norm),
    "sep_conv_7x7": lambda channels, stride, norm: SeparableConv(channels, 7, stride, norm),
    "dil_conv_3x3": lambda channels, stride, norm: DilatedConv(channels, 3, stride, norm),
    "dil_conv_5x5": lambda channels, stride, norm: DilatedConv(channels, 5, stride, norm),
    "conv_7x1_1x7": Conv7x1And1x7,
    "nor_conv_1x1": lambda channels, stride, norm: ReLUConvNorm(channels, channels, 1, stride, 0, norm),
    "nor_conv_3x3": lambda channels, stride, norm: ReLUConvNorm(channels, channels, 3, stride, 1, norm),
}
"""Name in a genotype → (channels, stride, norm) → module."""

# --- stems: what turns images into the two input states of the first cell ---


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
    """Three 3×3 convolutions of stride 2: states at a quarter and at an eighth of the image size. `out_channels` is
    even."""

    reduces = True  # the second state has half the size of the first

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
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


# --- what goes before the network ---


class Normalise(nn.Module):
    """Pixels as files hold them → what networks are trained with: uint8 [B, C, H, W] → float32, (x / 255 - mean) / std.

    Args:
        mean, std: of each channel, in units where white is 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).view(1, -1, 1, 1), persistent=False)  # [1, C, 1, 1]

    def forward(self, images: Tensor) -> Tensor:
        return (images.to(torch.float32) * (1 / 255) - self.mean) / self.std


# --- the network ---


class Cell(nn.Module):
    """One cell: two states in, `len(concat) * channels` channels out; `nodes` are lists of (primitive, source)."""

    def __init__(
        self,
        nodes: Sequence[Sequence[tuple[str, int]]],
        concat: Sequence[int],
        channels_in: tuple[int, int],
        channels: int,
        reduction: bool,
        reduction_before: bool,
    ) -> None:
        super().__init__()
        norm = nn.BatchNorm2d
        self.preprocess0 = (
            FactorizedReduce(channels_in[0], channels, norm)
            if reduction_before
            else ReLUConvNorm(channels_in[0], channels, 1, 1, 0, norm)
        )
        self.preprocess1 = ReLUConvNorm(channels_in[1], channels, 1, 1, 0, norm)
        self.sources = [[source for _, source in node] for node in nodes]
        self.primitives = nn.ModuleList(
            PRIMITIVES[name](channels, 2 if reduction and source < 2 else 1, norm)
            for node in nodes
            for name, source in node
        )
        self.concat = concat

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:  # [B, channels_in[i], H_i, W_i] each
        states = [self.preprocess0(s0), self.preprocess1(s1)]  # [B, C, H, W] each
        primitives = iter(self.primitives)
        for sources in self.sources:
            states.append(sum(next(primitives)(states[source]) for source in sources))  # [B, C, H', W']
        return torch.cat([states[node] for node in self.concat], dim=1)


class Network(nn.Module):
    """Stem, cells, global average pooling, linear classifier: images [B, in_channels, H, W] → logits [B, num_classes].

    Args:
        description: what `network.json` holds.

    Attributes:
        classes: names, in the order of the logits; empty where the description has none.
        image_size: (H, W) of the images that the network was trained with, or None.
        evaluated_share: side of the centre crop as share of the shorter side, or None for all of it.
        normalise: uint8 images [B, in_channels, H, W] → what the network takes; None where mean and std are unknown.

    Raises:
        ValueError: the genotype names a candidate that this file does not have.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        super().__init__()
        genotype, options = description["genotype"], description["options"]
        images = description["about"].get("images", {})
        self.in_channels: int = options["in_channels"]
        self.classes: list[str] = images.get("classes") or []
        self.image_size: tuple[int, int] | None = tuple(images["image_size"]) if images.get("image_size") else None
        self.evaluated_share: float | None = images.get("evaluated_share")
        self.normalise = Normalise(images["mean"], images["std"]) if "mean" in images else None

        channels = options["channels"]
        stem: CIFARStem | ImageNetStem
        stem = (
            CIFARStem(self.in_channels, 3 * channels)
            if options["stem"] == "cifar"
            else ImageNetStem(self.in_channels, channels)
        )
        self.stem = stem
        self.cells = nn.ModuleList()
        channels_in = (stem.out_channels, stem.out_channels)
        reduction_before = stem.reduces
        for nodes, concat, reduction in _layout(genotype, options["layers"]):
            channels = 2 * channels if reduction else channels
            self.cells.append(Cell(nodes, concat, channels_in, channels, reduction, reduction_before))
            channels_in = (channels_in[1], len(concat) * channels)
            reduction_before = reduction
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels_in[1], options["num_classes"])

    def forward(self, images: Tensor) -> Tensor:
        s0, s1 = self.stem(images)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)  # [B, concat * C, H', W']
        return self.classifier(self.pool(s1).flatten(1))

    def read_image(self, path: str | Path) -> Tensor:
        """An image file as the network was tested with, uint8 [3, H, W]: upright, transparent parts white, resized
        (shorter side) and cropped (centre). Needs Pillow, and a network of square RGB images; ValueError for others.
        """
        import numpy as np
        from PIL import Image, ImageOps

        side = self.image_size[0] if self.image_size else None
        if side is None or self.image_size != (side, side) or self.in_channels != 3:
            raise ValueError(
                f"the network takes {self.in_channels} channels of {self.image_size}, not square RGB files"
            )
        shorter = side if self.evaluated_share is None else round(side / self.evaluated_share)
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        width, height = (int(shorter * length / min(image.size)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (round((length - side) / 2) for length in image.size)
        pixels = np.array(image.crop((left, top, left + side, top + side)))  # [H, W, 3]
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def load(path: str | Path) -> Network:
    """The network of a description that fastnas wrote, with the weights beside it: in evaluation mode, on the CPU.

    Raises:
        ValueError: no description of a network, or one of another format.
    """
    from safetensors.torch import load_file

    path = Path(path)
    description = json.loads(path.read_text(encoding="utf-8-sig"))
    if description.get("kind") != "fastnas.nn.DerivedNetwork" or description.get("format") != 1:
        raise ValueError(f"{path} is not a network of format 1: write it with python -m fastnas.export --save")
    network = Network(description)
    weights = load_file(path.with_name(description["weights"]))
    # The auxiliary head serves training only.
    network.load_state_dict({name: x for name, x in weights.items() if not name.startswith("auxiliary_head.")})
    return network.eval()


def _layout(genotype: Mapping[str, Any], layers: int) -> list[tuple[list[list[tuple[str, int]]], list[int], bool]]:
    """Of each cell: the pairs of its nodes, the nodes that form its output, and whether it is a reduction."""
    thirds = (layers // 3, 2 * layers // 3)
    cells = []
    for index in range(layers):
        reduction = index in thirds
        if levels := genotype.get("levels"):
            cell = levels[2 * sum(third < index for third in set(thirds)) + reduction]
            pairs, concat = cell["pairs"], cell["concat"]
        else:
            kind = "reduce" if reduction else "normal"
            pairs, concat = genotype[kind], genotype[f"{kind}_concat"]
        nested = not isinstance(pairs[0][0], str)
        nodes = pairs if nested else [pairs[place : place + 2] for place in range(0, len(pairs), 2)]
        if unknown := [name for node in nodes for name, _ in node if name not in PRIMITIVES]:
            raise ValueError(f"this file knows no candidate {unknown[0]!r}: export the network as ONNX or program")
        cells.append((nodes, concat, reduction))
    return cells


def main() -> None:
    """Prints the three likeliest classes of each image file."""
    if len(sys.argv) < 3:
        sys.exit(f"usage: python {sys.argv[0]} network.json IMAGE ...")
    try:
        network = load(sys.argv[1])
        if network.normalise is None:
            raise ValueError(f"{sys.argv[1]} does not say with which mean and std images are normalised")
        for path in sys.argv[2:]:
            with torch.no_grad():
                shares = network(network.normalise(network.read_image(path)[None])).softmax(-1)[0]  # [num_classes]
            order = shares.argsort(descending=True)[:3].tolist()
            named = (f"{network.classes[k] if network.classes else k} {shares[k]:.1%}" for k in order)
            print(f"{path}: {', '.join(named)}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
