"""A cell of a derived network: the operations that a genotype names, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fastnas.nn.fused.derived import fused_derived_cell
from fastnas.nn.fused.derived_layout import DerivedLayout
from fastnas.nn.fused.node import States, fused_sum, joined
from fastnas.nn.primitives import FactorizedReduce, ReLUConvNorm, make_primitive

if TYPE_CHECKING:
    from fastnas.genotype import CellKind, Genotype


def drop_path_mask(x: Tensor, probability: float | Tensor) -> Tensor:
    """[B]: 0 with this probability, else `1 / (1 - probability)`, for the images of x [B, C, H, W]."""
    if isinstance(probability, Tensor):
        probability = probability.to(x.dtype)  # []
        kept = torch.bernoulli((1 - probability).expand(x.shape[0], 1, 1, 1))
    else:
        kept = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - probability)
    return kept.view(-1) / (1 - probability)


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Sets each sample of `x` to zero with this probability and divides the others by `1 - probability`.

    Source: Larsson et al., "FractalNet: Ultra-Deep Neural Networks without Residuals", ICLR 2017.

    Args:
        x: `[B, C, H, W]`.
        probability: in [0, 1).
    """
    return x * drop_path_mask(x, probability).view(-1, 1, 1, 1)  # [B, C, H, W]


class DerivedCell(nn.Module):
    """One cell of a genotype: two states in, `len(genotype.concat(kind)) * channels` channels out.

    Args:
        genotype: what to build.
        kind: one of `genotype.kinds`; in reduction cells the operations on the two input states have stride 2.
        channels_in: the channels of the two input states.
        channels: the channels of every node.
        reduction_before: the first state is twice as high and wide as the second.
        backend: "fused" or "reference", see `DerivedNetwork`.
    """

    def __init__(
        self,
        genotype: Genotype,
        kind: CellKind,
        channels_in: tuple[int, int],
        channels: int,
        reduction_before: bool,
        backend: str = "reference",
    ) -> None:
        super().__init__()
        norm = nn.BatchNorm2d
        self.backend = backend
        self.preprocess0 = (
            FactorizedReduce(channels_in[0], channels, norm)
            if reduction_before
            else ReLUConvNorm(channels_in[0], channels, kernel=1, stride=1, padding=0, norm=norm)
        )
        self.preprocess1 = ReLUConvNorm(channels_in[1], channels, kernel=1, stride=1, padding=0, norm=norm)
        nodes = genotype.pairs(kind)
        pairs = [pair for node in nodes for pair in node]
        self.sources = [source for _, source in pairs]
        self.first_edge = [sum(map(len, nodes[:node])) for node in range(len(nodes) + 1)]
        self.primitives = nn.ModuleList(
            make_primitive(name, channels, stride=2 if kind.endswith("reduce") and source < 2 else 1, norm=norm)
            for name, source in pairs
        )
        self.concat = genotype.concat(kind)

    def forward(self, s0: States, s1: States, drop_path_prob: float | Tensor = 0.0, join: bool = True) -> States:
        """States [B, channels_in[i], H_i, W_i] → [B, len(concat) * C, H', W'], or its nodes without `join`."""
        masks = self._masks(s1, drop_path_prob)
        nodes = None
        if self.backend == "fused" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            nodes = fused_derived_cell(self._layout(), s0, s1, masks)
        if nodes is None:
            nodes = self._sums(s0, s1, masks)
        return torch.cat(nodes, dim=1) if join else nodes

    def _layout(self) -> DerivedLayout:
        """Made again where other code has replaced modules, as `nn.DataParallel` does in its replicas."""
        planned = self.__dict__.get("_planned")
        if planned is not None:
            layout, inner = planned
            if inner[0][0] is self._modules and all(list(modules.values()) == known for modules, known in inner):
                return cast(DerivedLayout, layout)
        preprocess = (self.preprocess0, self.preprocess1)
        layout = DerivedLayout(preprocess, list(self.primitives), self.sources, self.first_edge, self.concat)
        # The cell itself comes first.
        inner = [(module._modules, list(module._modules.values())) for module in self.modules() if module._modules]
        self._planned = layout, inner
        return layout

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files hold modules alone, and not what was made of them."""
        return {name: value for name, value in self.__dict__.items() if name != "_planned"}

    def _masks(self, states: States, drop_path_prob: float | Tensor) -> list[Tensor | None]:
        """The images [B] that drop path keeps, for each operation; None for all."""
        x = states[0] if isinstance(states, tuple) else states
        dropping = self.training and (isinstance(drop_path_prob, Tensor) or drop_path_prob > 0)
        return [
            drop_path_mask(x, drop_path_prob) if dropping and not isinstance(primitive, nn.Identity) else None
            for primitive in self.primitives
        ]

    def _sums(self, s0: States, s1: States, masks: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """The nodes, one after the other."""
        states = [self._sum([self.preprocess0], [s0], [None]), self._sum([self.preprocess1], [s1], [None])]
        for first, last in zip(self.first_edge, self.first_edge[1:], strict=False):
            inputs: list[States] = [states[source] for source in self.sources[first:last]]
            states.append(self._sum(list(self.primitives[first:last]), inputs, masks[first:last]))  # [B, C, H', W']
        return tuple(states[node] for node in self.concat)

    def _sum(self, modules: Sequence[nn.Module], inputs: Sequence[States], masks: Sequence[Tensor | None]) -> Tensor:
        """Σ of the modules' outputs, each of its own input, without the images that drop path drops."""
        if self.backend == "fused" and (total := fused_sum(modules, inputs, masks)) is not None:
            return total
        outputs = [
            module(joined(x)) if mask is None else module(joined(x)) * mask.view(-1, 1, 1, 1)
            for module, x, mask in zip(modules, inputs, masks, strict=True)
        ]  # [B, C, H', W'] each
        return sum(outputs[1:], start=outputs[0])
