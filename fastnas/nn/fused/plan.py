"""What the fused computation of a cell must know about it: which candidates read which state, where their weights are.

Edges are seen from both ends. A state is read once for the candidates of all edges that leave it; a node sums
the candidates of all edges that enter it. Each candidate that contributes has a row: in the tables of statistics and of
gradient coefficients, and among the weights of its node. The rows of a node follow each other.

A layout is made once, of the pattern of a cell (see `patterns`); it holds layers, never parameters or buffers, which
other code may replace.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from fastnas.nn.batch_norm import BatchNorm
from fastnas.nn.fused.branch import CONVOLUTION, Branch, EdgeTerm, IndexTensors, Slot
from fastnas.nn.fused.branches import KINDS, matrices_of
from fastnas.nn.fused.patterns import CellPattern, Pattern, PointwisePattern, ZeroPattern
from fastnas.nn.fused.separable import SeparableBranch

# Limits of one call of the operators.
MOST_STAGES = 64
MOST_CANDIDATES = 128
MOST_EDGES = 16
MOST_CONVOLUTIONS = 8


class CellWeights(NamedTuple):
    """The weights of a cell, or their gradients, as the operators take them."""

    preprocess: list[list[Tensor]]  # [C, channels of the input] for each input; two halves of C where it reduces
    branches: list[list[list[Tensor]]]  # by state, by branch, see `Branch.weights`


@dataclass(frozen=True)
class SumPlan:
    """How `edge_sum` sums the edges that leave a state; it needs the same kinds of candidates on all of them."""

    branch: int | None  # of the state, to which the convolutions belong
    depths: list[int]  # [J], stages of each convolutional candidate
    dilations: list[int]  # [S]
    stages: list[tuple[int, int]]  # [E·S]: taps and matrix among the weights of the branch
    edges: int  # E
    rows: int  # index [E·M] of each term; the number of all rows where an edge has no such candidate

    def weights(self, branches: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        """The depthwise and pointwise weights, edge after edge, candidate after candidate."""
        weights = [] if self.branch is None else branches[self.branch]
        return [weights[taps] for taps, _ in self.stages], [weights[matrix] for _, matrix in self.stages]


@dataclass(frozen=True)
class StatePlan:
    """The candidates of all edges that leave one state. Indices are places in the `IndexTensors` of the cell."""

    stride: int
    nodes: tuple[int, ...]  # that the edges lead to
    edges: int  # index: their numbers
    branches: tuple[Branch, ...]
    stat_rows: list[int]  # of the candidates that are normalised
    stat_places: list[int]  # where their statistics are among those that the branches give
    sum_plan: SumPlan | None  # None where `edge_sum` cannot compute it


class CellLayout(nn.Module):
    """The layout of a cell, see the module docstring.

    Attributes:
        states: one plan for each state that an edge leaves.
        first_row: of each node; and the number of rows K.
        first_row_of_edge: of each edge; and the number of rows.
        active: [E, O] booleans, the candidates that take part; None for all.
        row_norms: of each row; None where a candidate is not normalised.
        norms: all of them: of the preprocessings, between stages state by state, of the rows.
        known: whether the operators can compute the cell.
        indices: of the tables:
            columns: [K], where the weight of each row is in the flattened table [E·O].
            normalised_rows: that have a normalisation.
            sum_rows: of each node, the rows of what `edge_sum` and others give it, state by state; K for an edge's sum.
    """

    def __init__(self, pattern: CellPattern, active: Tensor | None = None) -> None:
        super().__init__()
        self.active = active
        self.parts = pattern.parts
        self.preprocess = pattern.preprocess
        self.indices = IndexTensors()
        self.row_norms: list[nn.BatchNorm2d | None] = []
        self.first_row = [0]
        self.first_row_of_edge = [0]
        self.states: list[StatePlan] = []
        candidates = len(pattern.edges[0])
        columns: list[int] = []
        of_states: list[_Sorted] = [_Sorted(pattern.stride), _Sorted(pattern.stride)]  # each node but the last adds one
        known = all(len(edge) == candidates for edge in pattern.edges)  # nn.Module is slow to set attributes
        known &= all(isinstance(each, PointwisePattern) for each in pattern.preprocess)
        taking_part = None if active is None else active.tolist()
        edge = 0
        while edge < len(pattern.edges):
            if edge > 0:
                of_states.append(_Sorted(1))
            for state in of_states:
                state.nodes.append(len(self.first_row) + 1)
                state.edges.append(edge)
                for column, candidate in enumerate(pattern.edges[edge]):
                    if not isinstance(candidate, ZeroPattern) and (taking_part is None or taking_part[edge][column]):
                        known &= state.enter(candidate, len(columns))
                        columns.append(edge * candidates + column)
                edge += 1
                self.first_row_of_edge.append(len(columns))
            self.first_row.append(len(columns))
        self.known = known
        if not known:
            return
        self.row_norms += [None] * len(columns)
        self.states += [self._state_plan(state) for state in of_states]
        self.sums = all(state.sum_plan is not None for state in self.states)
        self.norms = [preprocess.norm for preprocess in self.preprocess]
        self.norms += [norm for branch in self._branches() for norm in branch.inner_norms]
        self.norms += [norm for norm in self.row_norms if norm is not None]
        self.columns = self.indices.add(columns)
        self.normalised_rows = self.indices.add(row for row, norm in enumerate(self.row_norms) if norm is not None)
        self.sum_rows = [self.indices.add(self._sum_rows(node)) for node in range(2, len(self.states) + 1)]
        self.known = self._fits()
        self.indices.pack(self.preprocess[0].convolutions[0].weight.device)

    @property
    def device(self) -> torch.device:
        """The device of the indices."""
        return cast(Tensor, self.indices.packed).device

    def _branches(self) -> Iterator[Branch]:
        return (branch for state in self.states for branch in state.branches)

    def _state_plan(self, found: _Sorted) -> StatePlan:
        branches = tuple(
            kind(slots, self.indices, len(found.nodes)) for kind in KINDS.values() if (slots := found.slots.get(kind))
        )
        # Statistics come branch by branch, one after the other.
        entries: list[tuple[int, int]] = []  # (row, place)
        first = 0
        for branch in branches:
            number, places = branch.stat_places()
            for i, (slot, norm) in enumerate(zip(branch.slots, branch.last_norms, strict=True)):
                self.row_norms[slot.row] = norm
                if norm is not None:
                    entries.append((slot.row, first + places[i]))
            first += number
        return StatePlan(
            stride=found.stride,
            nodes=tuple(found.nodes),
            edges=self.indices.add(found.edges),
            branches=branches,
            stat_rows=[row for row, _ in entries],
            stat_places=[place for _, place in entries],
            sum_plan=self._sum_plan(found, branches),
        )

    def _sum_plan(self, found: _Sorted, branches: Sequence[Branch]) -> SumPlan | None:
        """None where edges differ in their candidates, or have more than `edge_sum` takes."""
        kinds, stages, table = [], [], []
        for node in range(len(found.nodes)):
            terms = [term for branch in branches for term in branch.edge_terms(node)]
            convolutions = [term for term in terms if term.kind == CONVOLUTION]
            others: list[list[EdgeTerm]] = [[] for _ in range(3 if found.stride == 1 else 2)]
            for term in terms:
                if term.kind != CONVOLUTION:
                    others[term.kind].append(term)
            kinds.append([[stage[2:] for stage in term.stages] for term in convolutions])
            if any(len(same) > 1 for same in others) or kinds[-1] != kinds[0]:
                return None
            stages += [stage[:2] for term in convolutions for stage in term.stages]
            table += [term.row for term in convolutions]
            table += [same[0].row if same else len(self.row_norms) for same in others]
        if len(kinds[0]) > MOST_CONVOLUTIONS or len(kinds) > MOST_EDGES:
            return None
        return SumPlan(
            branch=next((i for i, branch in enumerate(branches) if isinstance(branch, SeparableBranch)), None),
            depths=[len(kind) for kind in kinds[0]],
            dilations=[dilation for kind in kinds[0] for _, dilation in kind],
            stages=stages,
            edges=len(kinds),
            rows=self.indices.add(table),
        )

    def _sum_rows(self, node: int) -> list[int]:
        rows: list[int] = []
        for state in self.states:
            if node in state.nodes:
                rows.append(len(self.row_norms))
                apart = [branch for branch in state.branches if not branch.in_edge_sum]
                rows += [slot.row for branch in apart for slot in branch.slots if state.nodes[slot.node] == node]
        return rows

    def _fits(self) -> bool:
        plain = all(
            type(norm) in (BatchNorm, nn.BatchNorm2d) and norm.weight is None and norm.running_mean is not None
            for norm in self.norms
        )
        rows = [last - first for first, last in itertools.pairwise(self.first_row)]
        separable = [branch for branch in self._branches() if isinstance(branch, SeparableBranch)]
        return (
            plain
            and all(1 <= count <= MOST_CANDIDATES for count in rows)
            and all(len(branch.slots) <= MOST_STAGES for branch in separable)
        )

    def normalised(self, batch: bool) -> list[int]:
        """Of each row: 1 where statistics of the batch normalise it."""
        return [int(batch and norm is not None) for norm in self.row_norms]

    def weights(self) -> CellWeights:
        """The parameters as they are now."""
        return CellWeights(
            preprocess=[matrices_of(pattern) for pattern in self.preprocess],
            # Only parameters of a BatchNorm can be None, and those of cells have none.
            branches=[[cast(list[Tensor], branch.weights()) for branch in state.branches] for state in self.states],
        )


class _Sorted:
    """The candidates of a state by kind, while a layout is made."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.nodes: list[int] = []
        self.edges: list[int] = []
        self.slots: dict[type[Branch], list[Slot]] = {}

    def enter(self, pattern: Pattern | None, row: int) -> bool:
        """Adds a candidate of the edge to the last node; returns whether the operators know it."""
        if pattern is None or pattern.stride != self.stride:
            return False
        self.slots.setdefault(KINDS[type(pattern)], []).append(Slot(pattern, len(self.nodes) - 1, row))
        return True
