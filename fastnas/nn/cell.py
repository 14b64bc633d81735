"""A cell of the supernet: all edges, all candidates."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fastnas.nn.fused.branches import match_op
from fastnas.nn.fused.cell import fused_cell
from fastnas.nn.fused.patterns import CellPattern, PointwisePattern
from fastnas.nn.fused.plan import CellLayout
from fastnas.nn.mixed_op import MixedOp
from fastnas.nn.primitives import FactorizedReduce, Norm, ReLUConvNorm
from fastnas.spaces import CellSpace

PARTS = ("preprocess0", "preprocess1", "edges")


class SearchCell(nn.Module):
    """Two input states → the concatenation of the intermediate nodes, `space.nodes * channels` channels.

    Args:
        space: edges and candidates.
        channels_in: the channels of the two input states.
        channels: C, of every node.
        reduction: halve height and width, by stride 2 on the edges that leave the inputs.
        reduction_before: the first state is twice as high and wide as the second.
        partial_channels: k; the candidates see the first C/k channels.
        norm: builds the normalisations, without affine parameters.
        backend: "fused" or "reference".
        kind: which operation weights the cell takes; by default "reduce" or "normal".
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
        self.layout: CellLayout
        self._plan()

    def forward(
        self,
        s0: Tensor,
        s1: Tensor,
        weights: Tensor,
        edge_weights: Tensor | None = None,
        active: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """States [B, C_i, H_i, W_i] and weights [E, O] → [B, nodes·C, H', W'].

        For a population states are [P or 1, B, C_i, H_i, W_i], weights [P, E, O] and the result
        [P, B, nodes·C, H', W'].

        Args:
            edge_weights: [E] or [P, E], factors of whole edges, bypassing channels too; ones by default.
            active: [E, O] booleans on the CPU; the other candidates are not computed. All by default.
            masks: [E, B], factors of whole edges for each image (drop path); ones by default. Not for a population.
        """
        if self.backend == "fused":
            fused = self._fused(s0, s1, weights, edge_weights, active, masks)
            if fused is not None:
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
                if masks is not None:
                    output = output * masks[edge].to(output.dtype)[:, None, None, None]
                total = output if total is None else total + output
            states.append(total)
        return torch.cat(states[2:], dim=-3)

    def _fused(
        self,
        s0: Tensor,
        s1: Tensor,
        weights: Tensor,
        edge_weights: Tensor | None,
        active: Tensor | None,
        masks: Tensor | None,
    ) -> Tensor | None:
        # torch.compile traces the current modules, and guards them itself.
        if not torch.compiler.is_compiling():
            if not self._is_planned():
                self._plan(active)
            elif not _is_same(self.layout.active, active):  # another path through the same modules
                self.layout = CellLayout(self._pattern, active)
        layout = self._modules.get("layout")
        if not isinstance(layout, CellLayout) or not layout.known:
            return None
        return fused_cell(layout, s0, s1, weights, edge_weights, masks)

    def _plan(self, active: Tensor | None = None) -> None:
        preprocess = tuple(match_op(module) for module in (self.preprocess0, self.preprocess1))
        edges = tuple(tuple(map(match_op, cast(MixedOp, edge).candidates)) for edge in self.edges)
        self._pattern = CellPattern(
            cast(tuple[PointwisePattern, PointwisePattern], preprocess),
            edges,
            1 + self.reduction,
            self.partial_channels,
        )
        self.layout = CellLayout(self._pattern, active)
        parts = [cast(nn.Module, self._modules[name]) for name in PARTS]
        inner = [(m._modules, list(m._modules.values())) for part in parts for m in part.modules() if m._modules]
        self._planned_for = parts, inner

    def _is_planned(self) -> bool:
        """Whether the pattern is that of the current modules: other code may replace modules, as `nn.DataParallel` does
        in its replicas."""
        if not {"_pattern", "_planned_for"} <= self.__dict__.keys():
            return False  # the cell was pickled by an older version
        parts, inner = self._planned_for
        return all(self._modules[name] is part for name, part in zip(PARTS, parts, strict=True)) and all(
            list(modules.values()) == known for modules, known in inner
        )


def _is_same(planned: Tensor | None, active: Tensor | None) -> bool:
    """Whether two masks of candidates are equal; None for all candidates."""
    return planned is active or (planned is not None and active is not None and planned.equal(active))
