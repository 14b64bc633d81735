"""What all cell spaces of the DARTS family share: a topology, candidate names, and how a genotype is read off α."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fastnas.errors import UserError
from fastnas.genotype import LEVELS, AnyGenotype, CellKind, Genotype, Pair
from fastnas.genotype_cell import Cell
from fastnas.spaces.topology import dag_edges, incoming_edges

CELL_KINDS: tuple[CellKind, ...] = ("normal", "reduce")
Derivation = Literal["top2", "pairs", "edges"]
"""How a cell is read off operation weights; see `CellSpace.derive`."""


@dataclass(frozen=True)
class CellSpace:
    """A cell with two inputs (nodes 0 and 1), `nodes` intermediate nodes, and a mixed operation on every edge.

    Each intermediate node has an edge from every earlier node, so there are 2 + 3 + … edges, 14 for 4 nodes. They are
    numbered by node, then by source; row e of α belongs to edge e, column o to ``candidates[o]``.

    Args:
        name: as users write it.
        candidates: primitive names, in the order of α's columns.
        pool_norm: whether a normalisation follows the pools while searching.
        nodes: number of intermediate nodes.
        kinds: the kinds of cells; all cells of one kind share α. Either normal and reduction cells, or `LEVELS`, the
            kinds of multi-level cells.

    Raises:
        UserError: no node, or no candidate that a genotype could choose.
    """

    name: str
    candidates: tuple[str, ...]
    pool_norm: bool
    nodes: int = 4
    kinds: tuple[CellKind, ...] = CELL_KINDS
    inputs: ClassVar[int] = 2
    """Number of input nodes of the cell; the intermediate nodes are numbered from here."""

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise UserError(f"space {self.name!r} has {self.nodes} intermediate nodes, expected at least 1.")
        if not set(self.candidates) - {"none"}:
            raise UserError(
                f"space {self.name!r} has the candidates {self.candidates}, but a genotype never chooses 'none': "
                "add another."
            )

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(source, node) of every edge."""
        return dag_edges(self.nodes, self.inputs)

    def incoming(self, node: int) -> range:
        """The numbers of the edges that enter a node, in the order of their sources."""
        return incoming_edges(node, self.inputs)

    def kind_of(self, level: int, reduction: bool) -> CellKind:
        """The kind of a cell that `level` reductions precede."""
        if self.kinds == CELL_KINDS:
            return "reduce" if reduction else "normal"
        return LEVELS[2 * level + reduction]

    def derive(self, op_weights: Mapping[str, Tensor], rule: Derivation = "top2") -> AnyGenotype:
        """The genotype. Ties go to the lower source, then to the earlier candidate; the pairs of a node are listed
        strongest first.

        Args:
            op_weights: {"normal": [E, O], "reduce": [E, O]}, for instance softmax(α).
            rule: what a node keeps. "top2", of DARTS (Liu et al. 2019, section 2.4): the two incoming edges whose best
                candidate weighs most, each with that candidate. "pairs", of GDAS' program: the two heaviest (edge,
                candidate) pairs, which may lie on one edge. In both "none" takes part in the softmax but is never
                chosen. "edges", of SNAS (Xie et al. 2019): every incoming edge with its heaviest candidate; edges whose
                heaviest is "none" are left out, and one of them stays where a node has no other.
        """
        return self.assemble(tuple(self._cell(op_weights[kind].detach().cpu().double(), rule) for kind in self.kinds))

    def assemble(self, cells: tuple[Cell, ...]) -> Genotype:
        """The genotype with these pairs for each of `kinds`; all nodes of a cell form its output."""
        concat = tuple(range(2, self.nodes + 2))
        if self.kinds == LEVELS:
            return Genotype.multi_level((pairs, concat) for pairs in cells)
        return Genotype(normal=cells[0], normal_concat=concat, reduce=cells[1], reduce_concat=concat)

    def _cell(self, weights: Tensor, rule: Derivation) -> Cell:  # [E, O]
        table = [dict(zip(self.candidates, row, strict=True)) for row in weights.tolist()]
        nodes = range(self.inputs, self.inputs + self.nodes)
        return tuple(self._node([table[edge] for edge in self.incoming(node)], rule) for node in nodes)

    def _node(self, edges: list[dict[str, float]], rule: Derivation) -> tuple[Pair, ...]:
        """The pairs of a node, from the weight of each candidate on each of its incoming edges."""
        every = [
            (name, source) for source, row in enumerate(edges) for name in row if rule == "edges" or name != "none"
        ]
        ranked = sorted(every, key=lambda pair: -edges[pair[1]][pair[0]])  # stable
        if rule == "pairs":
            return tuple(ranked[:2])
        best: dict[int, Pair] = {}  # of each edge, strongest first
        for name, source in ranked:
            best.setdefault(source, (name, source))
        pairs = tuple(best.values())
        if rule == "top2":
            return pairs[:2]
        return tuple(pair for pair in pairs if pair[0] != "none") or pairs[:1]

    def uniform_alphas(self, scale: float = 1e-3, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Initial α: `scale`·N(0, 1), {"normal": [E, O], "reduce": [E, O]}."""
        shape = (len(self.edges), len(self.candidates))
        return {kind: scale * torch.randn(shape, generator=generator) for kind in self.kinds}
