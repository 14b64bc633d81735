"""PC-DARTS (Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search", ICLR 2020).

The supernet gives candidates 1/K of the channels; the weights β of edges are added here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastnas.nn.supernet import OpWeights
from fastnas.option_types import CountOrZero, NotNegative
from fastnas.spaces import CellSpace
from fastnas.strategies.context import SearchContext
from fastnas.strategies.gradient import GradientStrategy
from fastnas.strategies.registry import register_strategy


def edge_softmax(beta: Tensor, space: CellSpace) -> Tensor:
    """softmax of β over the incoming edges of each node (equation 3): [E] → [E]."""
    nodes = range(space.inputs, space.inputs + space.nodes)
    return torch.cat([torch.softmax(beta[space.incoming(node)], -1) for node in nodes])


@register_strategy
@dataclass
class PCDARTS(GradientStrategy):
    """PC-DARTS: one Adam updates α and β, first order; candidates are ranked by softmax(α)·softmax(β)."""

    name: ClassVar[str] = "pc-darts"
    retraining: ClassVar[str] = "pc-darts"
    published_defaults: ClassVar = {
        "weights": {"epochs": 50, "learning_rate": 0.1, "learning_rate_min": 0.0},
        "data": {"batch_size": 256},
        "network": {"channels": 16, "layers": 8, "partial_channels": 4},
    }

    alpha_learning_rate: NotNegative = 6e-4
    """Learning rate of Adam for α and β."""
    warm_up: CountOrZero = 15
    """Epochs before α and β move for the first time."""

    def extra_parameters(self, search: SearchContext) -> list[nn.Parameter]:
        space = search.network.space
        generator = torch.Generator().manual_seed(search.seed_for(0))
        self.betas = {
            kind: nn.Parameter((1e-3 * torch.randn(len(space.edges), generator=generator)).to(search.device))  # [E]
            for kind in space.kinds
        }
        return list(self.betas.values())

    def load_betas(self, search: SearchContext, betas: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for kind, beta in betas.items():
                self.betas[kind].copy_(beta)

    def edge_weights(self, search: SearchContext) -> dict[str, Tensor]:
        """softmax(β) of each kind of cell, [E]; the incoming edges of a node add up to 1."""
        return {kind: edge_softmax(beta, search.network.space) for kind, beta in self.betas.items()}

    def mean_arch_weights(self, search: SearchContext) -> dict[str, Any]:
        return {"op_weights": search.network.op_weights(), "edge_weights": self.edge_weights(search)}

    def mean_op_weights(self, search: SearchContext) -> OpWeights:
        edges = self.edge_weights(search)
        return {kind: edges[kind][:, None] * table for kind, table in search.network.op_weights().items()}  # [E, O]
