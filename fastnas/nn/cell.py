"""A cell of the supernet: all edges, all candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastnas.nn.fused.cell import fused_cell
from fastnas.nn.fused.patterns import CellPattern, PointwisePattern, match_op
from fastnas.nn.fused.plan import CellLayout
from fastnas.nn.mixed_op import MixedOp
from fastnas.nn.primitives import FactorizedReduce, Norm, ReLUConvNorm
from fastnas.spaces import CellSpace


class SearchCell(nn.Module):
    """Two input states → the concatenation of the intermediate nodes, `space.nodes * channels` channels.

    Args:
        space: edges and candidates.
        channels_in: the channels of the two input states.
        channels: C, of every node.
        reduction: halve height and width, by stride 2 on the edges that leave the inputs.
        reduction_before: the first state is twice as high and wide as the second.
        partial_channels: share 1/k of the channels that the candidates see.
        norm: builds the normalisations, without affine parameters.
        backend: "fused" or "reference".
        kind: whose operation weights the cell takes; by default "reduce" or "normal".
    """

    def __init__(
        self,
        space: CellSpace,
        channels_in: tuple[int, int],
        channels: int,
        *,
        reduction: bool,
        reduction_before: bool,
        partial_channels: int,
        norm: Norm,
        backend: str,
        kind: str | None = None,
    ) -> None:
        super().__init__()
        self.space = space
        self.reduction = reduction
        self.kind = kind or ("reduce" if reduction else "normal")
        self.backend = backend
        self.partial_channels = partial_channels
        self.preprocess0 = (
            FactorizedReduce(channels_in[0], channels, norm)
            if reduction_before
            else ReLUConvNorm(channels_in[0], channels, kernel=1, stride=1, padding=0, norm=norm)
        )
        self.preprocess1 = ReLUConvNorm(channels_in[1], channels, kernel=1, stride=1, padding=0, norm=norm)
        self.edges = nn.ModuleList(
            MixedOp(
                space.candidates,
                channels,
                stride=2 if reduction and source < 2 else 1,
                partial_channels=partial_channels,
                norm=norm,
                pool_norm=space.pool_norm,
                backend=backend,
            )
            for source, _ in space.edges
        )
        self._plan = self._planned()

    def forward(
        self,
        s0: Tensor,
        s1: Tensor,
        weights: Tensor,
        edge_weights: Tensor | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """States [B, C_i, H_i, W_i] and weights [E, O] → [B, nodes·C, H', W'].

        For a population states are [P or 1, B, C_i, H_i, W_i], weights [P, E, O] and the result
        [P, B, nodes·C, H', W'].

        Args:
            edge_weights: [E] or [P, E], factors of whole edges, passing channels included; ones by default.
            active: [E, O] booleans on the CPU; the other candidates are not computed. All by default.
        """
        if self.backend == "fused" and (fused := self._fused(s0, s1, weights, edge_weights, active)) is not None:
            return fused
        states = [
            self.preprocess0(s0.flatten(0, -4)).unflatten(0, s0.shape[:-3]),  # [..., B, C, H, W]
            self.preprocess1(s1.flatten(0, -4)).unflatten(0, s1.shape[:-3]),  # [..., B, C, H, W]
        ]
        for node in range(2, self.space.nodes + 2):
            total = None
            for source, edge in enumerate(self.space.incoming(node)):
                chosen = None if active is None else active[edge]
                output = self.edges[edge](states[source], weights[..., edge, :], chosen)  # [..., B, C, H', W']
                if edge_weights is not None:
                    output = output * edge_weights[..., edge, None, None, None, None]
                total = output if total is None else total + output
            states.append(total)
        return torch.cat(states[2:], dim=-3)

    def _fused(
        self, s0: Tensor, s1: Tensor, weights: Tensor, edge_weights: Tensor | None, active: Tensor | None
    ) -> Tensor | None:
        # torch.compile traces with the modules that there are, and guards them itself.
        if not torch.compiler.is_compiling():
            if not self._plan.is_of(self, active):
                self._plan = self._planned(active)
            self._plan.to(s0.device)
        return fused_cell(self._plan, s0, s1, weights, edge_weights) if self._plan.known else None

    def _planned(self, active: Tensor | None = None) -> CellLayout:
        preprocess = tuple(match_op(module) for module in (self.preprocess0, self.preprocess1))
        edges = tuple(tuple(map(match_op, cast(MixedOp, edge).candidates)) for edge in self.edges)
        pattern = CellPattern(
            cast(tuple[PointwisePattern, PointwisePattern], preprocess),
            edges,
            1 + self.reduction,
            self.partial_channels,
        )
        return CellLayout(self, pattern, active)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SearchCell:
        """What `to(device)` calls: the plan moves along."""
        super()._apply(fn, recurse)
        self._plan.to(next(self.parameters()).device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = self._planned()  # of the copy's own modules
