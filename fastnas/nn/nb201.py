"""The network of NAS-Bench-201 (Dong, Yang, ICLR 2020, figure 1): three stages of equal cells, residual blocks
between."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.limits import check_operations, check_sizes
from fastnas.nn.batch_norm import BatchNorm
from fastnas.nn.mixed_op import MixedOp
from fastnas.nn.primitives import Norm, ReLUConvNorm, make_primitive
from fastnas.nn.stem import CIFARStem
from fastnas.spaces import CellSpace
from fastnas.spaces.nb201 import SPACE, NB201Genotype


class NB201Cell(nn.Module):
    """One state in, one of the same shape out: node 0 is the input, the last node the output.

    `before`, the state before, is ignored: cells of all spaces have the same signature.
    """

    kind = "normal"

    def __init__(self, space: CellSpace, channels: int, partial_channels: int, norm: Norm, backend: str) -> None:
        super().__init__()
        self.space = space
        self.edges = nn.ModuleList(
            MixedOp(
                space.candidates,
                channels,
                stride=1,
                partial_channels=partial_channels,
                norm=norm,
                pool_norm=space.pool_norm,
                backend=backend,
            )
            for _ in space.edges
        )

    def forward(
        self,
        before: Tensor,
        x: Tensor,
        weights: Tensor,
        edge_weights: Tensor | None = None,
        active: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, H, W], weights [E, O], edge_weights [E], active [E, O], masks [E, B] → [B, C, H, W]; a population
        with a leading P."""
        states = [x]
        for node in range(1, self.space.nodes + 1):
            outputs = []
            for source, edge in enumerate(self.space.incoming(node)):
                chosen = None if active is None else active[edge]
                output = self.edges[edge](states[source], weights[..., edge, :], chosen)  # [..., B, C, H, W]
                if edge_weights is not None:
                    output = output * edge_weights[..., edge, None, None, None, None]
                if masks is not None:
                    output = output * masks[edge].to(output.dtype)[:, None, None, None]
                outputs.append(output)
            states.append(functools.reduce(torch.add, outputs))
        return states[-1]


class ResidualReduction(nn.Module):
    """The benchmark's residual block of stride 2: [B, C, H, W] → [B, 2·C, ⌈H/2⌉, ⌈W/2⌉]. Nothing in it is searched."""

    kind = "normal"

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.first = ReLUConvNorm(channels, 2 * channels, kernel=3, stride=2, padding=1, norm=norm)
        self.second = ReLUConvNorm(2 * channels, 2 * channels, kernel=3, stride=1, padding=1, norm=norm)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
        )

    def forward(self, before: Tensor, x: Tensor, *tables: Tensor | None) -> Tensor:
        flat = x.flatten(0, -4)  # [P·B, C, H, W]
        return (self.second(self.first(flat)) + self.shortcut(flat)).unflatten(0, x.shape[:-3])


def nb201_body(
    space: CellSpace, channels: int, layers: int, partial_channels: int, norm: Norm, backend: str
) -> tuple[nn.ModuleList, nn.Module, int]:
    """Three stages of `layers // 3` cells with C, 2·C and 4·C channels.

    The benchmark has C = 16 and 15 cells.

    Returns:
        Cells and residual blocks, the normalisation and ReLU after them, and the channels of their output.

    Raises:
        UserError: `layers` cannot be divided by 3, or a number is below 1 or beyond any network.
    """
    return _stages(lambda width: NB201Cell(space, width, partial_channels, norm, backend), channels, layers)


def _stages(build: Callable[[int], nn.Module], channels: int, layers: int) -> tuple[nn.ModuleList, nn.Module, int]:
    """`nb201_body`, with cells made by `build(channels)`."""
    if layers % 3:
        raise UserError(
            f"layers is {layers}, but the network of NAS-Bench-201 has three equal stages: give a multiple of 3, "
            "such as 15."
        )
    body = nn.ModuleList()
    for stage in range(3):
        body.extend(build(channels) for _ in range(layers // 3))
        if stage < 2:
            body.append(ResidualReduction(channels, BatchNorm))
            channels *= 2
    return body, nn.Sequential(BatchNorm(channels), nn.ReLU()), channels


class NB201Network(nn.Module):
    """The network of one cell of NAS-Bench-201, to be trained from scratch.

    Args:
        genotype: the cell.
        channels: C of the first stage; the benchmark has 16.
        layers: cells, a multiple of 3; the benchmark has 15.
        num_classes: length of the logits.
        in_channels: channels of the images.

    Raises:
        UserError: `layers` cannot be divided by 3, or a number is below 1 or beyond any network.
    """

    def __init__(
        self,
        genotype: NB201Genotype,
        channels: int = 16,
        layers: int = 15,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "layers": layers, "num_classes": num_classes, "in_channels": in_channels}
        check_sizes(sizes)
        check_operations(layers, layers * len(genotype.operations))
        self.stem = CIFARStem(in_channels, channels)
        build = functools.partial(DerivedNB201Cell, genotype)
        self.cells, self.last, width = _stages(build, channels, layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] → logits [B, num_classes]."""
        state, _ = self.stem(x)  # [B, C, H, W]
        for cell in self.cells:
            state = cell(state, state)
        return self.classifier(self.pool(self.last(state)).flatten(1))


class DerivedNB201Cell(nn.Module):
    """One cell: [B, C, H, W] → [B, C, H, W]."""

    def __init__(self, genotype: NB201Genotype, channels: int) -> None:
        super().__init__()
        self.primitives = nn.ModuleList(
            make_primitive(name, channels, stride=1, norm=nn.BatchNorm2d) for name in genotype.operations
        )

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        states = [x]
        for node in range(1, SPACE.nodes + 1):
            outputs = [self.primitives[edge](states[i]) for i, edge in enumerate(SPACE.incoming(node))]
            states.append(functools.reduce(torch.add, outputs))  # [B, C, H, W]
        return states[-1]
