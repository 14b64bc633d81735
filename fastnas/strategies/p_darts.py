"""P-DARTS (Chen et al., "Progressive Differentiable Architecture Search: Bridging the Depth Gap between Search and
Evaluation", ICCV 2019).

Three stages with fresh weights and fresh α each: the network grows, the candidates of every edge become fewer, and the
outputs of skip connections are dropped out. At the end a normal cell keeps a limited number of skip connections.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.genotype import Genotype, Pair
from fastnas.nn import Supernet
from fastnas.nn.cell import SearchCell
from fastnas.nn.mixed_op import MixedOp
from fastnas.option_types import CountOrZero, NotNegative, Positive, Range, ShareBelowOne
from fastnas.spaces import CellSpace
from fastnas.strategies.base import Work
from fastnas.strategies.context import SearchContext
from fastnas.strategies.gradient import GradientStrategy
from fastnas.strategies.registry import register_strategy

STAGES = 3


def skip_dropout(initial: float, epoch: int, epochs: int, warm_up: int) -> float:
    """Probability that a value of a skip connection is dropped in an epoch of a stage: it falls linearly while α
    is fixed, then exponentially from its initial value."""
    if epoch < warm_up:
        return initial * (epochs - epoch - 1) / epochs
    return initial * math.exp(-0.2 * (epoch - warm_up))


def prune(probabilities: Tensor, active: Tensor, count: int) -> Tensor:
    """`active` [E, O] without the `count` least probable candidates of every edge; "none" competes like the others."""
    order = probabilities.masked_fill(~active, math.inf).sort(dim=-1, stable=True).indices  # [E, O]
    return active.scatter(-1, order[:, :count], False)


def strongest_pairs(probabilities: Tensor, space: CellSpace) -> tuple[Pair, ...]:
    """A cell by P-DARTS' rule: each edge's best candidate but "none"; of every node the two edges whose best is most
    probable, in the order of their sources. Ties of edges go to the higher one.

    Args:
        probabilities: [E, O], 0 where a candidate was removed.
    """
    allowed = [column for column, name in enumerate(space.candidates) if name != "none"]
    best, winners = probabilities[:, allowed].max(-1)  # [E] each; the first of equals
    pairs: list[Pair] = []
    for node in range(2, space.nodes + 2):
        edges = list(space.incoming(node))
        kept = sorted(sorted(edges, key=lambda edge: (best[edge].item(), edge))[-2:])
        pairs += [(space.candidates[allowed[int(winners[edge])]], space.edges[edge][0]) for edge in kept]
    return tuple(pairs)


def limit_skips(probabilities: Tensor, space: CellSpace, most: int) -> tuple[Pair, ...]:
    """`strongest_pairs` with at most `most` skip connections: the least probable one of those that are kept is ruled
    out and the cell derived anew, until they are few enough.

    An edge without any other candidate then has probability 0: all other edges are preferred to it.
    """
    probabilities = probabilities.clone()
    skip = space.candidates.index("skip_connect")
    while True:
        pairs = strongest_pairs(probabilities, space)
        kept = [
            space.incoming(place // 2 + 2).start + source
            for place, (name, source) in enumerate(pairs)
            if name == "skip_connect"
        ]
        if len(kept) <= most:
            return pairs
        probabilities[min(kept, key=lambda edge: (probabilities[edge, skip].item(), edge)), skip] = -1.0


@register_strategy
@dataclass
class PDARTS(GradientStrategy):
    """P-DARTS. The epochs are those of all three stages together, the layers those of the first."""

    name: ClassVar[str] = "p-darts"
    retraining: ClassVar[str] = "p-darts"
    published_defaults: ClassVar = {
        "weights": {"epochs": 75, "learning_rate": 0.025, "learning_rate_min": 0.0},
        "data": {"batch_size": 96},
        "network": {"channels": 16, "layers": 5, "partial_channels": 1},
    }

    alpha_learning_rate: NotNegative = 6e-4
    """Learning rate of Adam for α."""
    warm_up: CountOrZero = 10
    """Epochs of each stage before α moves."""
    alpha_clip: Positive = 5.0
    """Largest gradient norm of α."""
    add_layers_2: Annotated[int, Range(0, 1000)] = 6
    """Cells that the second stage has in addition to those of the first."""
    add_layers_3: Annotated[int, Range(0, 1000)] = 12
    """Cells that the third stage has in addition to those of the first."""
    drop_1: CountOrZero = 3
    """Candidates that every edge drops after the first stage."""
    drop_2: CountOrZero = 2
    """Candidates that every edge drops after the second stage."""
    dropout_1: ShareBelowOne = 0.0
    """Initial dropout of skip connections in the first stage."""
    dropout_2: ShareBelowOne = 0.4
    """Initial dropout of skip connections in the second stage; the paper has 0.2 for CIFAR-100."""
    dropout_3: ShareBelowOne = 0.7
    """Initial dropout of skip connections in the third stage; the paper has 0.3 for CIFAR-100."""
    skip_limit: CountOrZero = 2
    """M, largest number of skip connections in a normal cell."""

    def check_epochs(self, epochs: int) -> None:
        if epochs % STAGES or epochs < STAGES:
            raise UserError(f"epochs is {epochs}, but p-darts has {STAGES} equal stages: give a multiple of them.")
        if self.warm_up >= epochs // STAGES:
            raise UserError(
                f"warm_up is {self.warm_up} epochs, but a stage has {epochs // STAGES}: α would never move. Lower the "
                "warm-up or raise the epochs."
            )

    def work(self, epoch: int, epochs: int) -> Work:
        """The network grows from stage to stage, and α moves after the warm-up of each."""
        stage, place = divmod(epoch, epochs // STAGES)
        return Work(steps=(stage, place >= self.warm_up))

    def start(self, search: SearchContext) -> None:
        space = search.network.space
        if self.derive != "top2":
            raise UserError(
                f"derive is {self.derive!r}, but p-darts has a rule of its own, two edges for each node and at most "
                "--skip-limit skip connections: leave --derive out."
            )
        self.length = search.epochs // STAGES
        if space.inputs != 2 or "skip_connect" not in space.candidates:
            raise UserError(
                f"p-darts needs cells with two inputs and skip connections, which the space {space.name} does not "
                "have: choose another --space."
            )
        if len(space.candidates) - self.drop_1 - self.drop_2 < 3:
            raise UserError(
                f"after dropping {self.drop_1} and {self.drop_2} of {len(space.candidates)} candidates fewer than 3 "
                "are left for the last stage: lower --drop-1 or --drop-2."
            )
        self._first_layers = search.network.layers
        self.stage = 0
        shape = next(iter(search.network.alphas.values())).shape
        self.active = {kind: torch.ones(shape, dtype=torch.bool) for kind in space.kinds}  # [E, O]
        super().start(search)
        self._install_dropout(search)

    # --- stages ---

    def stage_epoch(self, search: SearchContext) -> int:
        return search.epoch % self.length

    def schedule(self, search: SearchContext) -> tuple[int, int]:
        return self.stage_epoch(search), self.length

    def alpha_moves(self, search: SearchContext) -> bool:
        return self.stage_epoch(search) >= self.warm_up

    def before_epoch(self, search: SearchContext) -> None:
        while self.stage < search.epoch // self.length:
            count = (self.drop_1, self.drop_2)[self.stage]
            with torch.no_grad():
                tables = {kind: table.cpu() for kind, table in self.mean_op_weights(search).items()}
            self.active = {kind: prune(table, self.active[kind], count) for kind, table in tables.items()}
            self._enter(search, self.stage + 1)
        probability = skip_dropout(self._initial_dropout, self.stage_epoch(search), self.length, self.warm_up)
        for module in self._dropouts:
            module.p = probability

    def _enter(self, search: SearchContext, stage: int) -> None:
        self.stage = stage
        search.rebuild(layers=self._first_layers + (0, self.add_layers_2, self.add_layers_3)[stage])
        self._optimize(search)
        self._install_dropout(search)

    @property
    def _initial_dropout(self) -> float:
        return (self.dropout_1, self.dropout_2, self.dropout_3)[self.stage]

    def _install_dropout(self, search: SearchContext) -> None:
        """Replaces the identities of skip connections by dropout, where there is any."""
        self._dropouts: list[nn.Dropout] = []
        if self._initial_dropout > 0:
            for cell in search.network.cells:
                assert isinstance(cell, SearchCell)
                for edge in cast(Iterable[MixedOp], cell.edges):
                    for column, candidate in enumerate(edge.candidates):
                        if isinstance(candidate, nn.Identity):
                            dropout = nn.Dropout(self._initial_dropout)
                            edge.candidates[column] = dropout
                            self._dropouts.append(dropout)

    # --- what the network computes ---

    def mean_arch_weights(self, search: SearchContext) -> dict[str, Any]:
        return {"op_weights": self._surviving(search.network), "active": self.active}

    def _surviving(self, network: Supernet) -> dict[str, Tensor]:
        """softmax of α over the candidates that are left, [E, O]; 0 for the others."""
        masks = {kind: mask.to(network.alphas[kind].device) for kind, mask in self.active.items()}
        return {kind: torch.softmax(a.masked_fill(~masks[kind], -torch.inf), -1) for kind, a in network.alphas.items()}

    def clipped(self, found: list[Tensor]) -> list[Tensor]:
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in found]))
        factor = (self.alpha_clip / (norm + 1e-6)).clamp(max=1.0)
        return [factor * gradient for gradient in found]

    # --- what comes out ---

    def genotype(self, search: SearchContext) -> Genotype:
        """What the search would derive if the stage were the last one."""
        return self._derive(self._surviving(search.network), search.network.space)

    def _derive(self, tables: Mapping[str, Tensor], space: CellSpace) -> Genotype:
        cells = []
        for kind in space.kinds:
            table = tables[kind].detach().cpu().double()  # [E, O]
            cells.append(
                limit_skips(table, space, self.skip_limit) if kind.endswith("normal") else strongest_pairs(table, space)
            )
        return space.assemble(tuple(cells))

    # --- what a checkpoint holds ---

    def state_dict(self) -> dict[str, Any]:
        dropout = self._dropouts[0].p if self._dropouts else 0.0
        return {**super().state_dict(), "stage": self.stage, "active": dict(self.active), "dropout": dropout}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.active = dict(state["active"])
        if state["stage"] > 0:
            self._enter(self._search, state["stage"])
        super().load_state_dict(state)
        for module in self._dropouts:
            module.p = state["dropout"]
