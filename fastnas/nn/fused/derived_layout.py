"""What the fused computation of a derived cell must know about it: which candidates read which state."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fastnas.nn.fused.branch import Branch, Slot
from fastnas.nn.fused.branches import KINDS, match_op
from fastnas.nn.fused.patterns import IdentityPattern, Pattern, PointwisePattern, SeparablePattern, ZeroPattern


@dataclass(frozen=True)
class Read:
    """Candidates of one kind that read the same state."""

    branch: Branch
    edges: tuple[int, ...]  # of each of its slots


@dataclass(frozen=True)
class NodeEdges:
    """The edges that enter a node, without those of zeros."""

    normalised: tuple[int, ...]  # whose candidate ends with a BatchNorm
    bare: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        return self.normalised + self.bare


class DerivedLayout:
    """Which candidates read which state; made once, of the modules of a cell. It holds layers, never parameters.

    Args:
        preprocess: the modules of the two inputs.
        primitives: the candidate of every edge, node after node.
        sources: the state that each edge reads.
        first_edge: of each node; and the number of edges.
        concat: the states that leave the cell.

    Attributes:
        known: whether the operators can compute the cell, and every state reaches what leaves it.
        preprocess: the branches of the two inputs.
        reads: by state.
        skips: by state, the edges that are identities.
        nodes: the edges of each node.
        strides: of the edges that leave each state.
        norms: the last BatchNorm of each edge, None where there is none.
    """

    def __init__(
        self,
        preprocess: Sequence[nn.Module],
        primitives: Sequence[nn.Module],
        sources: Sequence[int],
        first_edge: Sequence[int],
        concat: Sequence[int],
    ) -> None:
        self.concat = tuple(concat)
        of_inputs = [match_op(module) for module in preprocess]
        patterns = [pattern for module in primitives if (pattern := match_op(module)) is not None]
        self.known = all(isinstance(pattern, PointwisePattern) for pattern in of_inputs)
        self.known &= len(patterns) == len(primitives)
        if not self.known:
            return
        live = [edge for edge, pattern in enumerate(patterns) if not isinstance(pattern, ZeroPattern)]
        self.preprocess = [KINDS[PointwisePattern]([Slot(pattern)]) for pattern in of_inputs]
        self.reads: list[list[Read]] = []
        self.skips: list[list[int]] = []
        self.strides: list[int] = []
        for state in range(len(first_edge) + 1):
            reading: dict[type[Pattern], list[int]] = {}
            for edge in live:
                if sources[edge] == state:
                    reading.setdefault(type(patterns[edge]), []).append(edge)
            self.skips.append(reading.pop(IdentityPattern, []))
            # As `SeparableBranch` sorts them: those of two stages first.
            reading.get(SeparablePattern, []).sort(key=lambda edge: -len(patterns[edge].norms))
            self.reads.append([_read(kind, edges, patterns) for kind, edges in reading.items()])
            strides = {read.branch.stride for read in self.reads[-1]} | ({1} if self.skips[-1] else set())
            strides |= {slot.pattern.stride for read in self.reads[-1] for slot in read.branch.slots}
            self.known &= len(strides) <= 1
            self.strides.append(max(strides, default=1))
        self.norms: list[nn.BatchNorm2d | None] = [None] * len(patterns)
        for read in self.all_reads():
            for edge, norm in zip(read.edges, read.branch.last_norms, strict=True):
                self.norms[edge] = norm
        self.nodes: list[NodeEdges] = []
        for first, last in itertools.pairwise(first_edge):
            edges = [edge for edge in live if first <= edge < last]
            self.nodes.append(
                NodeEdges(
                    tuple(edge for edge in edges if self.norms[edge] is not None),
                    tuple(edge for edge in edges if self.norms[edge] is None),
                )
            )
        reached = set(concat)
        for node in reversed(range(len(self.nodes))):
            if node + 2 in reached:
                reached |= {sources[edge] for edge in self.nodes[node].all}
        self.known &= len(reached) == len(self.nodes) + 2 and len(set(concat)) == len(concat)
        self.known &= all(node.all for node in self.nodes)
        branches = [*self.preprocess, *(read.branch for read in self.all_reads())]
        self.all_norms = [norm for branch in branches for norm in branch.norms()]

    def all_reads(self) -> list[Read]:
        return [read for reads in self.reads for read in reads]

    def branches(self) -> list[Branch]:
        """Of the inputs, then those of the states."""
        return [*self.preprocess, *(read.branch for read in self.all_reads())]


def _read(kind: type[Pattern], edges: list[int], patterns: Sequence[Pattern]) -> Read:
    slots = [Slot(patterns[edge], place, place) for place, edge in enumerate(edges)]
    return Read(KINDS[kind](slots, nodes=len(slots)), tuple(edges))
