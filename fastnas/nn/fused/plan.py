"""What the fused computation of a cell must know of it: which candidate comes from which state, where its weights are.

The edges are looked at from both ends. A state is read once for the candidates of all edges that leave it; a node sums
the candidates of all edges that enter it. Each candidate that contributes has a row: in the tables of statistics and of
gradient coefficients, and among the weights of its node. The rows of a node follow each other.

A plan is made once, of the form of a cell (see `patterns`); it holds layers, never parameters or buffers, which other
code may replace. Its index tensors lie where the weights do, so that no step copies anything to a GPU or waits for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastnas.nn.batch_norm import BatchNorm
from fastnas.nn.fused.patterns import (
    CellPattern,
    IdentityPattern,
    Pattern,
    PointwisePattern,
    PoolPattern,
    SeparablePattern,
    Stage,
    ZeroPattern,
)

# What the operators take in one call.
MOST_STAGES = 64
MOST_CANDIDATES = 128
MOST_EDGES = 16
MOST_CONVOLUTIONS = 8


@dataclass
class CellWeights:
    """The weights of a cell, or their gradients, as the operators take them."""

    preprocess: list[list[Tensor]]  # [C, channels of the input] for each input; two halves of C where it reduces
    depthwise: list[list[Tensor]]  # of the stages that read each state, [C, 1, k, k]
    pointwise: list[list[Tensor]]  # [C, C, 1, 1]
    second_depthwise: list[list[Tensor]]
    second_pointwise: list[list[Tensor]]
    reduce: list[list[Tensor]]  # [C/2, C]: even and odd of each factorized reduction that reads a state

    def flat(self) -> list[Tensor]:
        return [weight for table in vars(self).values() for group in table for weight in group]


def _index(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64, device="cpu")


def _is_index(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64


@dataclass
class SumPlan:
    """How the edges that leave a state are summed by `edge_sum`, which wants the same kinds of candidates on all."""

    depths: list[int]  # [J], stages of each convolutional candidate
    dilations: list[int]  # [S]
    stages: list[tuple[bool, int]]  # [E·S]: whether among the second ones, and which
    rows: Tensor  # [E, M], of each term; the number of all rows where an edge has no such candidate

    def arrange(self, weights: CellWeights, source: int) -> tuple[list[Tensor], list[Tensor]]:
        """The depthwise and pointwise weights, edge after edge, candidate after candidate."""
        depthwise = (weights.depthwise[source], weights.second_depthwise[source])
        pointwise = (weights.pointwise[source], weights.second_pointwise[source])
        return [depthwise[second][i] for second, i in self.stages], [pointwise[second][i] for second, i in self.stages]


@dataclass
class StatePlan:
    """The candidates of all edges that leave one state.

    `node` counts among the nodes that the state leads to, `row` among those of the cell.
    """

    stride: int
    nodes: list[int] = field(default_factory=list)  # that the edges lead to
    edges: list[int] = field(default_factory=list)  # their numbers
    pools: list[tuple[int, int, int]] = field(default_factory=list)  # (0 average or 1 maximum, node, row)
    skips: list[tuple[int, int]] = field(default_factory=list)  # (node, row): identities
    reduces: list[tuple[int, int, PointwisePattern]] = field(default_factory=list)  # (node, row, candidate)
    stages: list[Stage] = field(default_factory=list)  # that read the state
    targets: list[tuple[int, int, int]] = field(default_factory=list)  # (stage, node, row): candidates of one stage
    seconds: list[tuple[int, int, int, Stage]] = field(default_factory=list)  # (first stage, node, row, stage)

    def finish(self, norms: Sequence[nn.BatchNorm2d | None]) -> None:
        """Works out what every pass over the cell needs. norms: of all rows."""
        self.edge_index = _index(self.edges)
        self.firsts = [first for first, *_ in self.seconds]
        self.first_index = _index(self.firsts)
        self.first_norms = [self.stages[first].norm for first in self.firsts]
        self.dilations = [stage.depthwise.dilation[0] for stage in self.stages]
        self.second_dilations = [stage.depthwise.dilation[0] for *_, stage in self.seconds]
        # Rows of the coefficients that the gradient of each stage has; a first stage gets numbers of its own.
        rows = {stage: row for stage, _, row in self.targets}
        self.stage_rows = _index(rows.get(stage, 0) for stage in range(len(self.stages)))
        self.second_rows = _index(row for _, _, row, _ in self.seconds)
        self.reduce_rows = _index(row for _, row, _ in self.reduces)
        self.pool_rows = _index(row for *_, row in self.pools)
        self.pool_slots = _index(kind * len(self.nodes) + node for kind, node, _ in self.pools)
        self.skip_rows = _index(row for _, row in self.skips)
        self.skip_nodes = _index(node for node, _ in self.skips)
        normalised = [(kind, row) for kind, _, row in self.pools if norms[row] is not None]
        self.pools_normalised = bool(normalised)
        self.normalised_pool_kinds = _index(kind for kind, _ in normalised)
        self.normalised_pool_rows = _index(row for _, row in normalised)
        # Statistics come as pools (if normalised), stages, second stages, reductions, one after the other.
        entries = [(row, kind) for kind, row in normalised]
        place = 2 if normalised else 0
        entries += [(row, place + stage) for stage, _, row in self.targets]
        place += len(self.stages)
        entries += [(row, place + index) for index, (_, _, row, _) in enumerate(self.seconds)]
        place += len(self.seconds)
        entries += [(row, place + index) for index, (_, row, _) in enumerate(self.reduces)]
        self.sums = self._sum_plan(len(norms))
        self.entry_rows = _index(row for row, _ in entries)
        self.entry_places = _index(place for _, place in entries)

    def _sum_plan(self, rows: int) -> SumPlan | None:
        """None where edges differ in their candidates, or have more than `edge_sum` takes."""
        convolutions: list[list[tuple[int, int]]] = [[] for _ in self.nodes]  # of each edge: (first stage, row)
        for stage, node, row in self.targets:
            convolutions[node].append((stage, row))
        for stage, node, row, _ in self.seconds:
            convolutions[node].append((stage, row))
        seconds = {first: index for index, first in enumerate(self.firsts)}
        kinds, stages, table = [], [], []
        for node, found in enumerate(convolutions):
            found.sort()
            kind, places = [], []
            for first, _ in found:
                places.append((False, first))
                kind.append([_geometry(self.stages[first])])
                if first in seconds:
                    places.append((True, seconds[first]))
                    kind[-1].append(_geometry(self.seconds[seconds[first]][3]))
            others = [[row for of, at, row in self.pools if (of, at) == (pool, node)] for pool in (0, 1)]
            others += [[row for at, row in self.skips if at == node]] * (self.stride == 1)
            if any(len(found) > 1 for found in others):
                return None
            kinds.append(kind)
            stages += places
            table.append([row for _, row in found] + [found[0] if found else rows for found in others])
        if any(kind != kinds[0] for kind in kinds) or len(kinds[0]) > MOST_CONVOLUTIONS or len(kinds) > MOST_EDGES:
            return None
        depths = [len(kind) for kind in kinds[0]]
        dilations = [dilation for kind in kinds[0] for _, dilation in kind]
        return SumPlan(depths, dilations, stages, _index(row for rows in table for row in rows).view(len(table), -1))


def _geometry(stage: Stage) -> tuple[int, int]:
    return stage.depthwise.kernel_size[0], stage.depthwise.dilation[0]


class CellLayout:
    """See the module.

    Attributes:
        states: one plan for each state that an edge leaves.
        first_row: of each node; and the number of rows K.
        device: of the index tensors.
        columns: [K], where the weight of each row is in the flattened table [E·O].
        active: [E, O] booleans, the candidates that take part; None for all.
        row_norms: of each row; None where a candidate is not normalised.
        has_norm: [K, 1], 1 where it is.
        sum_rows: of each node, the rows of what `edge_sum` and reductions give it, state by state; K for an edge's sum.
        norms: all of them: of the preprocessings, of first stages state by state, of the rows.
    """

    def __init__(self, cell: nn.Module, pattern: CellPattern, active: Tensor | None = None) -> None:
        self.active = active
        self.parts = pattern.parts
        self.preprocess = pattern.preprocess
        self.device = torch.device("cpu")
        self._indices: list[tuple[Any, Any, Tensor]] = []
        taking_part = None if active is None else active.tolist()
        candidates = len(pattern.edges[0])
        self.row_norms: list[nn.BatchNorm2d | None] = []
        self.first_row = [0]
        self.known = all(len(edge) == candidates for edge in pattern.edges)
        # Of the inputs; each node but the last adds one.
        self.states = [StatePlan(pattern.stride), StatePlan(pattern.stride)]
        columns: list[int] = []
        edge = 0
        while edge < len(pattern.edges):
            node = len(self.first_row) + 1
            if node > 2:
                self.states.append(StatePlan(1))
            for state in self.states:
                state.nodes.append(node)
                state.edges.append(edge)
                for column, candidate in enumerate(pattern.edges[edge]):
                    if not isinstance(candidate, ZeroPattern) and (taking_part is None or taking_part[edge][column]):
                        self.known &= self._sort(state, candidate)
                        columns.append(edge * candidates + column)
                edge += 1
            self.first_row.append(len(columns))
        self.columns = _index(columns)
        # A shallow copy takes a plan along that is not its own; and other code may replace modules.
        self._cell = weakref.ref(cell)
        self._children = [(m._modules, list(m._modules.values())) for m in cell.modules() if m._modules]
        if not self.known:
            return
        for state in self.states:
            state.finish(self.row_norms)
        self.sums = all(state.sums is not None for state in self.states)
        self.norms = [preprocess.norm for preprocess in self.preprocess]
        self.norms += [norm for state in self.states for norm in state.first_norms]
        self.norms += [norm for norm in self.row_norms if norm is not None]
        self.normalised_rows = _index(row for row, norm in enumerate(self.row_norms) if norm is not None)
        self.has_norm = _index(int(norm is not None) for norm in self.row_norms)[:, None]
        self.sum_rows = [_index(self._sum_rows(node)) for node in range(2, len(self.states) + 1)]
        self.known = self._fits()
        # Where each index tensor is held, and itself, on the CPU.
        owners = [self, *self.states, *(state.sums for state in self.states if state.sums)]
        entries: list[Any] = [(vars(owner), key, value) for owner in owners for key, value in vars(owner).items()]
        self._indices = [entry for entry in entries if _is_index(entry[-1])]
        self._indices += [(self.sum_rows, node, rows) for node, rows in enumerate(self.sum_rows)]
        self.to(self.preprocess[0].convolutions[0].weight.device)

    def to(self, device: torch.device) -> None:
        """Brings the index tensors to where the weights are, all in one copy."""
        if device == self.device or not self._indices:
            return
        tensors = [tensor for *_, tensor in self._indices]
        moved = torch.cat([tensor.flatten() for tensor in tensors]).to(device)
        parts = moved.split([tensor.numel() for tensor in tensors])
        for (holder, key, tensor), part in zip(self._indices, parts, strict=True):
            holder[key] = part.view(tensor.shape)
        self.device = device

    def is_of(self, cell: nn.Module, active: Tensor | None = None) -> bool:
        """Whether these candidates take part, and the cell still consists of the modules that were sorted."""
        if self.active is not active and (self.active is None or active is None or not self.active.equal(active)):
            return False
        return self._cell() is cell and all(list(modules.values()) == known for modules, known in self._children)

    def _sum_rows(self, node: int) -> list[int]:
        rows: list[int] = []
        for state in self.states:
            if node in state.nodes:
                rows.append(len(self.row_norms))
                rows += [row for place, row, _ in state.reduces if state.nodes[place] == node]
        return rows

    def normalised(self, batch: bool) -> list[int]:
        """Of each row: 1 where statistics of the batch normalise it."""
        return [int(batch and norm is not None) for norm in self.row_norms]

    def weights(self) -> CellWeights:
        """The parameters as they are now."""
        return CellWeights(
            preprocess=[_matrices(pattern) for pattern in self.preprocess],
            depthwise=[[_weight(stage.depthwise) for stage in state.stages] for state in self.states],
            pointwise=[[_weight(stage.pointwise) for stage in state.stages] for state in self.states],
            second_depthwise=[[_weight(stage.depthwise) for *_, stage in state.seconds] for state in self.states],
            second_pointwise=[[_weight(stage.pointwise) for *_, stage in state.seconds] for state in self.states],
            reduce=[[w for *_, pattern in state.reduces for w in _matrices(pattern)] for state in self.states],
        )

    def arrange(self, flat: Iterable[Tensor]) -> CellWeights:
        """The structure of `weights`, from what its `flat` gives."""
        rest = iter(flat)

        def take(counts: Iterable[int]) -> list[list[Tensor]]:
            return [[next(rest) for _ in range(count)] for count in counts]

        stages = [len(state.stages) for state in self.states]
        seconds = [len(state.seconds) for state in self.states]
        return CellWeights(
            preprocess=take(len(pattern.convolutions) for pattern in self.preprocess),
            depthwise=take(stages),
            pointwise=take(stages),
            second_depthwise=take(seconds),
            second_pointwise=take(seconds),
            reduce=take(2 * len(state.reduces) for state in self.states),
        )

    def _sort(self, state: StatePlan, pattern: Pattern | None) -> bool:
        """Enters a candidate of the edge to the last of the state's nodes; whether the operators know it."""
        node, row = len(state.nodes) - 1, len(self.row_norms)
        norm: nn.BatchNorm2d | None = None
        match pattern:
            case SeparablePattern((first, second)):
                state.seconds.append((len(state.stages), node, row, second))
                state.stages.append(first)
                norm = second.norm
            case SeparablePattern((stage,)):
                state.targets.append((len(state.stages), node, row))
                state.stages.append(stage)
                norm = stage.norm
            case PointwisePattern((_, _), norm):
                state.reduces.append((node, row, pattern))
            case IdentityPattern():
                state.skips.append((node, row))
            case PoolPattern():
                state.pools.append((int(pattern.maximum), node, row))
                norm = pattern.norm
            case _:
                return False
        self.row_norms.append(norm)
        return True

    def _fits(self) -> bool:
        plain = all(
            type(norm) in (BatchNorm, nn.BatchNorm2d) and norm.weight is None and norm.running_mean is not None
            for norm in self.norms
        )
        rows = [last - first for first, last in zip(self.first_row, self.first_row[1:], strict=False)]
        return (
            plain
            and all(1 <= count <= MOST_CANDIDATES for count in rows)
            and all(len(state.stages) <= MOST_STAGES for state in self.states)
        )


def _weight(convolution: nn.Conv2d) -> Tensor:
    """Its weight, which modules find slowly among everything that they hold; parametrised, it is no parameter."""
    weight = convolution._parameters.get("weight")
    return convolution.weight if weight is None else weight


def _matrices(pattern: PointwisePattern) -> list[Tensor]:
    """[C_out, C_in] of each 1×1 convolution."""
    return [convolution.weight.flatten(1) for convolution in pattern.convolutions]
