"""Multi-level cells with architecture entropy (Li, Chen, Sun, "Multi-level differentiable architecture search with
heuristic entropy", 2021(08), DOI 10.11918/202011092): DARTS of first order with five tables of α (normal and reduction
cells of a low and a middle level, normal cells of a high one), whose loss also contains the entropy of α.

The paper prints neither a setting of an optimizer, so those are DARTS', nor whether the entropy of the edges is added
up or averaged, which decides what γ = 1 means: for uniform α the sum is 70·ln 8 = 145.56 nats and the mean ln 8 = 2.08,
beside a cross-entropy that begins at ln 10 = 2.30.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.option_types import NotNegative
from fastnas.strategies.context import SearchContext
from fastnas.strategies.gradient import GradientStrategy
from fastnas.strategies.registry import register_strategy


def architecture_entropy(alphas: Mapping[str, Tensor], reduction: Literal["sum", "mean_edge"]) -> Tensor:
    """-Σ p ln p over all candidates of all edges, p = softmax(α), in nats; "mean_edge" divides by the number of edges.

    alphas: tables [E, O] of each kind of cell.
    """
    logs = torch.log_softmax(torch.cat(list(alphas.values())), -1)  # [edges of all kinds, O]
    total = -(logs.exp() * logs).sum()
    return total / len(logs) if reduction == "mean_edge" else total


@torch.no_grad()
def begin_equal(alphas: Mapping[str, Tensor]) -> None:
    """Copies the first table [E, O] of normal cells, and that of reduction cells, to those of the other levels."""
    first: dict[str, Tensor] = {}
    for kind, table in alphas.items():
        table.copy_(first.setdefault(kind.rpartition("_")[2], table))


@register_strategy
@dataclass
class MultiLevel(GradientStrategy):
    """α minimises L_val + γ·L_ent, the weights L_train."""

    name: ClassVar[str] = "multi-level"
    default_space: ClassVar[str] = "multi-level"

    gamma: NotNegative = 1.0
    """γ, weight of the architecture entropy."""
    reduction: Literal["sum", "mean_edge"] = "sum"
    """The entropy of all edges together, or their mean, a 70th of it; the paper does not say which."""
    equal_start: bool = False
    """Begin with the same α at all levels, so that levels differ by the search alone: with the seed of a search in the
    space darts, whose levels share α, with the same weights and α as that one."""

    def start(self, search: SearchContext) -> None:
        if self.equal_start:
            alphas = search.network.alphas  # which sorts its kinds by name
            begin_equal({kind: alphas[kind] for kind in search.network.space.kinds})
        super().start(search)

    def alpha_loss(self, search: SearchContext, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        entropy = architecture_entropy(dict(search.network.alphas), self.reduction)
        return {"L_val": F.cross_entropy(logits, labels), "γ·L_ent": self.gamma * entropy}
