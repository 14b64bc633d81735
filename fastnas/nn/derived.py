"""The network that a genotype stands for, to be trained from scratch and evaluated.

Source: Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, sections 3.2, 3.3 and appendix A,
whose skeleton PC-DARTS, P-DARTS, SNAS and EG-NAS share. Parameter and operation counts equal those of their code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.input_file import path_of
from fastnas.limits import check_operations, check_sizes
from fastnas.nn.derived_cell import DerivedCell
from fastnas.nn.derived_file import check_weights, load_network, save_network
from fastnas.nn.fused.node import States, can_fuse
from fastnas.nn.mixed_op import resolve_backend
from fastnas.nn.stem import make_channels_last, make_stem

# By stem: sides of images whose feature maps have a size that the auxiliary head can take.
AUXILIARY_SIDES = {"cifar": range(29, 41), "imagenet": range(193, 257)}


class AuxiliaryHead(nn.Module):
    """A second classifier in the middle of the network, whose loss (weight 0.4) helps to train the cells below.

    Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, in the form of the DARTS code: the pool of the
    ImageNet network has stride 2, that of the CIFAR network stride 3; the former has no normalisation after the
    second convolution, which P-DARTS adds (`normalised`).
    """

    def __init__(self, channels: int, num_classes: int, stem: str, normalised: bool | None = None) -> None:
        super().__init__()
        stride = 3 if stem == "cifar" else 2
        if normalised is None:
            normalised = stem == "cifar"
        # From maps of these sizes the pool makes 2×2 and the last convolution 1×1, which the classifier needs.
        self.map_sizes = range(5 + stride, 5 + 2 * stride)
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=stride, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768) if normalised else nn.Identity(),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: States) -> Tensor:  # [B, C, H, W], or its parts
        parts = x if isinstance(x, tuple) else (x,)
        height, width = parts[0].shape[-2:]
        side = self.map_sizes[0]
        if height not in self.map_sizes or width not in self.map_sizes:
            raise UserError(
                f"the auxiliary head got feature maps of {height}×{width}, expected {side}×{side} "
                "(images of 32×32 with the CIFAR stem, of 224×224 with the ImageNet stem): build the network with "
                "auxiliary=False, or resize the images."
            )
        # Channel by channel, before the parts are put together: what is copied then is small.
        pooled = torch.cat([self.features[:2](part) for part in parts], 1)  # [B, C, 2, 2]
        return self.classifier(self.features[2:](pooled).flatten(1))  # [B, num_classes]


class DerivedNetwork(nn.Module):
    """Stem, `layers` cells, global average pooling, linear classifier.

    Cells `layers // 3` and `2 * layers // 3` are reduction cells: they halve the maps and double the channels.

    Args:
        genotype: the cells; any number of nodes, any concatenation. A multi-level genotype has different cells
            before the first reduction, between the two and after the second.
        channels: channels of a node in the first cell; papers use 36 for CIFAR and 48 for ImageNet.
        layers: number of cells; papers use 20 for CIFAR and 14 for ImageNet.
        num_classes: length of the logits.
        in_channels: channels of the images.
        auxiliary: add an auxiliary head after cell `2 * layers // 3`, used in training only. It needs maps of 8×8
            there (images of 32×32) with the CIFAR stem and of 7×7 (images of 224×224) with the ImageNet stem.
        stem: `"cifar"` keeps the size of the images, `"imagenet"` divides it by 8.
        drop_path: initial value of `drop_path_prob`.
        drop_path_by_depth: cell i of L drops with `(i + 1) / L` of that probability (Zoph et al., "Learning
            Transferable Architectures", CVPR 2018: ScheduledDropPath).
        backend: "fused" computes every node in one pass of our operators, on a CPU and, where they were built for it,
            on a GPU (under `torch.compile` it is plain torch; forward hooks of the modules within a cell do not run,
            and those of a cell see its nodes as a tuple); "reference" is plain torch; "auto" is "fused".
        auxiliary_norm: a BatchNorm after the second convolution of the auxiliary head; None: as in the code of DARTS,
            with the CIFAR stem only. P-DARTS has it with both.

    Attributes:
        drop_path_prob: probability in [0, 1) that the output of an operation is dropped for a sample in training;
            skip connections of stride 1 are never dropped. Papers raise it linearly: set it at every epoch to
            `maximum * epoch / epochs`.
        genotype, options: what the network was built from.

    Raises:
        UserError: a number that is not positive or beyond any network (1,000,000; 20,000 operations in all cells), an
            odd `channels` with the ImageNet stem, an unknown `stem` or `backend`, or a `drop_path` outside [0, 1).
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
        drop_path_by_depth: bool = False,
        backend: str = "auto",
        auxiliary_norm: bool | None = None,
    ) -> None:
        super().__init__()
        self._drop_path: Tensor
        numbers = {"channels": channels, "layers": layers, "num_classes": num_classes, "in_channels": in_channels}
        check_sizes(numbers)
        layout = genotype.layout(layers)
        sizes = {kind: sum(map(len, genotype.pairs(kind))) for kind in genotype.kinds}
        check_operations(layers, sum(sizes[kind] for kind in layout))
        # A tensor, because torch.compile would compile again for every new number.
        self.register_buffer("_drop_path", torch.zeros(()), persistent=False)
        self.drop_path_prob = drop_path
        self.drop_path_by_depth = drop_path_by_depth
        self.genotype = genotype
        self.about: dict[str, Any] = {}
        self.options: dict[str, Any] = {**numbers, "auxiliary": auxiliary, "stem": stem}
        backend = resolve_backend(backend)

        self.stem = make_stem(stem, in_channels, 3 * channels if stem == "cifar" else channels)
        if backend == "fused":  # the operators' layout from the first convolution on, whatever the images have
            make_channels_last(self.stem)
        self.auxiliary_after = 2 * layers // 3
        self.auxiliary_head: AuxiliaryHead | None = None
        self.cells = nn.ModuleList()
        channels_in = (self.stem.out_channels, self.stem.out_channels)
        reduction_before = self.stem.reduces
        for index, kind in enumerate(layout):
            reduction = kind.endswith("reduce")
            channels = 2 * channels if reduction else channels
            self.cells.append(DerivedCell(genotype, kind, channels_in, channels, reduction_before, backend))
            channels_in = (channels_in[1], len(genotype.concat(kind)) * channels)
            reduction_before = reduction
            if auxiliary and index == self.auxiliary_after:
                self.auxiliary_head = AuxiliaryHead(channels_in[1], num_classes, stem, auxiliary_norm)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels_in[1], num_classes)

    @property
    def backend(self) -> str:
        """ "fused" or "reference"; setting it only changes how cells are computed."""
        return next((cell.backend for cell in self._cells()), "reference")

    @backend.setter
    def backend(self, value: str) -> None:
        for cell in self._cells():
            cell.backend = resolve_backend(value)

    def _cells(self) -> Iterator[DerivedCell]:
        return (cell for cell in self.cells if isinstance(cell, DerivedCell))

    @property
    def drop_path_prob(self) -> float:
        return self._drop_path_prob

    @drop_path_prob.setter
    def drop_path_prob(self, value: float) -> None:
        if not 0 <= value < 1:
            raise UserError(f"drop path probability is {value}, expected at least 0 and less than 1.")
        self._drop_path_prob = value
        self._drop_path.fill_(value)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # [B, in_channels, H, W]
        """Logits `[B, num_classes]`; in training with an auxiliary head `(logits, auxiliary logits)`.

        Raises:
            UserError: the images do not give the auxiliary head maps of the size that it needs; in training only.
        """
        s0: States
        s1: States
        s0, s1 = self.stem(x)
        join = self.backend == "reference" or not can_fuse(x)
        drop_path = self._drop_path if torch.compiler.is_compiling() else self._drop_path_prob
        auxiliary_logits = None
        for index, cell in enumerate(self.cells):
            depth = (index + 1) / len(self.cells) if self.drop_path_by_depth else 1.0
            s0, s1 = (
                s1,
                cell(s0, s1, drop_path * depth, join),
            )  # [B, concat * C, H', W'], or its nodes
            if index == self.auxiliary_after and self.training and self.auxiliary_head is not None:
                auxiliary_logits = self.auxiliary_head(s1)  # [B, num_classes]
        logits = self.classifier(self._pooled(s1))  # [B, num_classes]
        return logits if auxiliary_logits is None else (logits, auxiliary_logits)

    def _pooled(self, states: States) -> Tensor:
        """The mean of every channel [B, concat * C]."""
        if not isinstance(states, tuple):
            return self.pool(states).flatten(1)
        # Divided after the sum, the gradient stays one value for each channel until an operator reads it.
        height, width = states[0].shape[-2:]
        return torch.cat([part.sum((2, 3)) / (height * width) for part in states], 1)

    def save(self, path: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> Path:
        """Writes `path`, a JSON description, and the weights beside it under the same name with the ending
        `.safetensors`; returns the path of the description. The files do not depend on fastnas' compiled extension.

        Args:
            path: of the description; `.json` is added where it has no such ending.
            about: plain values to keep with it, such as class names. `load` gives them as the attribute `about`.

        Raises:
            UserError: the files cannot be written.
        """
        return save_network(self, path_of(path), dict(self.about if about is None else about))

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: str = "auto") -> Self:
        """The network that `save` wrote, in evaluation mode, on the CPU.

        Args:
            path: of the description, of the weights beside it, or of a folder that holds `network.json`.
            backend: as above.

        Raises:
            UserError: a file is missing, damaged or not that of a derived network; the message names it.
        """
        path = path_of(path)
        genotype, options, about, weights = load_network(path)
        network = cls.of_weights(weights, path, genotype, **options, backend=backend)
        network.about = about
        return network

    @classmethod
    def of_weights(cls, weights: dict[str, Tensor], path: Path, *arguments: Any, **options: Any) -> Self:
        """A network with these weights, in evaluation mode.

        Args:
            weights: its state dict.
            path: where they are from, for the message.
            arguments, options: of the network.

        Raises:
            UserError: the weights are of another network. It is not built then, however large it would be.
        """
        # The files do not say whether the head is normalised: its weights do.
        options.setdefault("auxiliary_norm", "auxiliary_head.features.6.weight" in weights)
        with torch.device("meta"):
            check_weights(cls(*arguments, **options), weights, path)
        network = cls(*arguments, **options)
        network.load_state_dict(weights)
        return network.eval()
