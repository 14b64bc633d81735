"""The network that a genotype stands for, to be trained from scratch and evaluated.

Source: Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, sections 3.2, 3.3 and appendix A,
whose skeleton PC-DARTS, P-DARTS, SNAS and EG-NAS share. Parameter and operation counts equal those of their code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.nn.primitives import FactorizedReduce, ReLUConvNorm, make_primitive
from fastnas.nn.stem import make_stem

if TYPE_CHECKING:
    from fastnas.genotype import CellKind, Genotype


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Sets each sample of `x` to zero with this probability and divides the others by `1 - probability`.

    Source: Larsson et al., "FractalNet: Ultra-Deep Neural Networks without Residuals", ICLR 2017.

    Args:
        x: `[B, C, H, W]`.
        probability: in [0, 1).
    """
    kept = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - probability)  # [B, 1, 1, 1]
    return x * (kept / (1 - probability))  # [B, C, H, W]


class AuxiliaryHead(nn.Module):
    """A second classifier in the middle of the network, whose loss (weight 0.4) helps the gradient on its way down.

    Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, in the form of the DARTS code: the pool of the
    ImageNet network has stride 2, that of the CIFAR network stride 3; the former has no normalisation after the
    second convolution.
    """

    def __init__(self, channels: int, num_classes: int, stem: str) -> None:
        super().__init__()
        stride = 3 if stem == "cifar" else 2
        # Of these the pool makes 2×2 and the last convolution 1×1, which is what the classifier can take.
        self.map_sizes = range(5 + stride, 5 + 2 * stride)
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=stride, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768) if stem == "cifar" else nn.Identity(),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        height, width = x.shape[-2:]
        side = self.map_sizes[0]
        if height not in self.map_sizes or width not in self.map_sizes:
            raise UserError(
                f"the auxiliary head got feature maps of {height}×{width}, expected {side}×{side} "
                "(images of 32×32 with the CIFAR stem, of 224×224 with the ImageNet stem): build the network with "
                "auxiliary=False, or resize the images."
            )
        return self.classifier(self.features(x).flatten(1))  # [B, num_classes]


class DerivedCell(nn.Module):
    """One cell of a genotype: two states in, `len(genotype.concat(kind)) * channels` channels out.

    Args:
        genotype: what to build.
        kind: `"normal"`, or `"reduce"`, whose operations on the two input states have stride 2; or a kind of a level.
        channels_in: the channels of the two input states.
        channels: the channels of every node.
        reduction_before: the first state is twice as high and wide as the second.
    """

    def __init__(
        self, genotype: Genotype, kind: CellKind, channels_in: tuple[int, int], channels: int, reduction_before: bool
    ) -> None:
        super().__init__()
        norm = nn.BatchNorm2d
        self.preprocess0 = (
            FactorizedReduce(channels_in[0], channels, norm)
            if reduction_before
            else ReLUConvNorm(channels_in[0], channels, kernel=1, stride=1, padding=0, norm=norm)
        )
        self.preprocess1 = ReLUConvNorm(channels_in[1], channels, kernel=1, stride=1, padding=0, norm=norm)
        pairs = [pair for node in genotype.pairs(kind) for pair in node]
        self.sources = [source for _, source in pairs]
        self.primitives = nn.ModuleList(
            make_primitive(name, channels, stride=2 if kind.endswith("reduce") and source < 2 else 1, norm=norm)
            for name, source in pairs
        )
        self.concat = genotype.concat(kind)

    def forward(self, s0: Tensor, s1: Tensor, drop_path_prob: float = 0.0) -> Tensor:  # [B, channels_in[i], H_i, W_i]
        states = [self.preprocess0(s0), self.preprocess1(s1)]  # [B, C, H, W] each
        for edge in range(0, len(self.primitives), 2):
            first = self._edge_output(edge, states, drop_path_prob)  # [B, C, H', W']
            second = self._edge_output(edge + 1, states, drop_path_prob)  # [B, C, H', W']
            states.append(first + second)
        return torch.cat([states[node] for node in self.concat], dim=1)  # [B, len(concat) * C, H', W']

    def _edge_output(self, edge: int, states: list[Tensor], drop_path_prob: float) -> Tensor:
        primitive = self.primitives[edge]
        output = primitive(states[self.sources[edge]])  # [B, C, H', W']
        if self.training and drop_path_prob > 0 and not isinstance(primitive, nn.Identity):
            output = drop_path(output, drop_path_prob)
        return output


class DerivedNetwork(nn.Module):
    """Stem, `layers` cells, global average pooling, linear classifier.

    Cells `layers // 3` and `2 * layers // 3` are reduction cells: they halve the maps and double the channels.

    Args:
        genotype: the cells; any number of nodes, any concatenation.
        channels: channels of a node in the first cell; papers use 36 for CIFAR and 48 for ImageNet.
        layers: number of cells; papers use 20 for CIFAR and 14 for ImageNet.
        num_classes: length of the logits.
        in_channels: channels of the images.
        auxiliary: add an auxiliary head after cell `2 * layers // 3`, used in training only. It needs maps of 8×8
            there (images of 32×32) with the CIFAR stem and of 7×7 (images of 224×224) with the ImageNet stem.
        stem: `"cifar"` keeps the size of the images, `"imagenet"` divides it by 8.
        drop_path: initial value of `drop_path_prob`.

    Attributes:
        drop_path_prob: probability in [0, 1) that the output of an operation is dropped for a sample in training;
            skip connections of stride 1 are never dropped. Papers raise it linearly: set it at every epoch to
            `maximum * epoch / epochs`.

    Raises:
        UserError: a number that is not positive, an odd `channels` with the ImageNet stem, an unknown `stem` or a
            `drop_path` outside [0, 1).
    """

    def __init__(
        self,
        genotype: Genotype,
        channels: int = 36,
        layers: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        auxiliary: bool = True,
        stem: str = "cifar",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        numbers = {"channels": channels, "layers": layers, "num_classes": num_classes, "in_channels": in_channels}
        for name, value in numbers.items():
            if value < 1:
                raise UserError(f"{name} is {value}, expected at least 1.")
        self.drop_path_prob = drop_path

        self.stem = make_stem(stem, in_channels, 3 * channels if stem == "cifar" else channels)
        self.auxiliary_after = 2 * layers // 3
        self.auxiliary_head: AuxiliaryHead | None = None
        self.cells = nn.ModuleList()
        channels_in = (self.stem.out_channels, self.stem.out_channels)
        reduction_before, level = self.stem.reduces, 0
        for index in range(layers):
            reduction = index in (layers // 3, 2 * layers // 3)
            channels = 2 * channels if reduction else channels
            kind = genotype.kind_of(level, reduction)
            self.cells.append(DerivedCell(genotype, kind, channels_in, channels, reduction_before))
            channels_in = (channels_in[1], len(genotype.concat(kind)) * channels)
            reduction_before = reduction
            level += reduction
            if auxiliary and index == self.auxiliary_after:
                self.auxiliary_head = AuxiliaryHead(channels_in[1], num_classes, stem)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels_in[1], num_classes)

    @property
    def drop_path_prob(self) -> float:
        return self._drop_path_prob

    @drop_path_prob.setter
    def drop_path_prob(self, value: float) -> None:
        if not 0 <= value < 1:
            raise UserError(f"drop path probability is {value}, expected at least 0 and less than 1.")
        self._drop_path_prob = value

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # [B, in_channels, H, W]
        """Logits `[B, num_classes]`; in training with an auxiliary head `(logits, auxiliary logits)`.

        Raises:
            UserError: the images do not give the auxiliary head maps of the size that it needs; in training only.
        """
        s0, s1 = self.stem(x)
        auxiliary_logits = None
        for index, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)  # [B, concat * C, H', W']
            if index == self.auxiliary_after and self.training and self.auxiliary_head is not None:
                auxiliary_logits = self.auxiliary_head(s1)  # [B, num_classes]
        logits = self.classifier(self.pool(s1).flatten(1))  # [B, num_classes]
        return logits if auxiliary_logits is None else (logits, auxiliary_logits)
