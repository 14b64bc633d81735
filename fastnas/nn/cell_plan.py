"""What the fused computation of a cell must know of it: which candidate comes from which state, and where its weights are.

The edges are looked at from both ends. A state is read once for the candidates of all edges that leave it; a node sums
the candidates of all edges that enter it. Each candidate that contributes has a row: in the tables of statistics and of
gradient coefficients, and among the weights of its node. The rows of a node follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fastnas.nn.batch_norm import BatchNorm
from fastnas.nn.primitives import DepthwiseStage, FactorizedReduce, ReLUConvNorm, SeparableConv, Zero

if TYPE_CHECKING:
    from fastnas.nn.cell import SearchCell

# What the operators take in one call.
MOST_STAGES = 64
MOST_CANDIDATES = 128


@dataclass
class StatePlan:
    """The candidates of all edges that leave one state. `node` counts among the nodes that the state leads to."""

    stride: int
    nodes: list[int] = field(default_factory=list)  # that the edges lead to
    pools: list[tuple[int, int, int]] = field(default_factory=list)  # (0 average or 1 maximum, node, row)
    skips: list[tuple[int, int]] = field(default_factory=list)  # (node, row): identities
    reduces: list[tuple[int, int, FactorizedReduce]] = field(default_factory=list)  # (node, row, candidate)
    stages: list[DepthwiseStage] = field(default_factory=list)  # that read the state
    targets: list[tuple[int, int, int]] = field(
        default_factory=list
    )  # (stage, node, row) of those that end a candidate
    seconds: list[tuple[int, int, int, DepthwiseStage]] = field(default_factory=list)  # (first stage, node, row, stage)

    def target_nodes(self) -> list[int]:
        """The node in `nodes` that each stage leads to; -1 where a second stage follows."""
        nodes = [-1] * len(self.stages)
        for stage, node, _ in self.targets:
            nodes[stage] = node
        return nodes


@dataclass
class CellWeights:
    """The weights of a cell, or their gradients, as the operators take them."""

    preprocess: list[list[Tensor]]  # [C, channels of the input] each; two halves of C where it reduces
    depthwise: list[list[Tensor]]  # of the stages that read each state, [C, 1, k, k]
    pointwise: list[list[Tensor]]  # [C, C, 1, 1]
    second_depthwise: list[list[Tensor]]
    second_pointwise: list[list[Tensor]]
    reduce: list[list[Tensor]]  # [C/2, C]: even and odd of each factorized reduction that reads a state

    def groups(self) -> Iterator[list[Tensor]]:
        for table in vars(self).values():
            yield from table

    def flat(self) -> list[Tensor]:
        return [weight for group in self.groups() for weight in group]

    def like(self, flat: Sequence[Tensor]) -> CellWeights:
        """The same structure, filled from what `flat` gives, which may be of other shapes."""
        rest = iter(flat)
        return CellWeights(
            **{name: [[next(rest) for _ in group] for group in table] for name, table in vars(self).items()}
        )


@dataclass
class CellPlan:
    """See the module."""

    modules: list[nn.Module]  # that this is a plan of: all of the cell's
    states: list[StatePlan]
    first_row: list[int]  # of each node; and the number of rows K
    columns: list[int]  # [K]: where the weight of each row is in the flattened table [E·O]
    norms: list[BatchNorm | None]  # of each row; None where a candidate is not normalised
    preprocess: list[ReLUConvNorm | FactorizedReduce]

    def weights(self) -> CellWeights:
        """The parameters as they are now."""
        seconds = [[stage for *_, stage in state.seconds] for state in self.states]
        return CellWeights(
            preprocess=[matrices(module) for module in self.preprocess],
            depthwise=[[stage.depthwise.weight for stage in state.stages] for state in self.states],
            pointwise=[[stage.pointwise.weight for stage in state.stages] for state in self.states],
            second_depthwise=[[stage.depthwise.weight for stage in stages] for stages in seconds],
            second_pointwise=[[stage.pointwise.weight for stage in stages] for stages in seconds],
            reduce=[[w for *_, module in state.reduces for w in matrices(module)] for state in self.states],
        )

    def first_norms(self) -> list[list[BatchNorm]]:
        """Of each state: the normalisations between the two stages of separable convolutions."""
        return [[state.stages[first].norm for first, *_ in state.seconds] for state in self.states]

    def normalised(self, batch: bool) -> list[int]:
        """Of each row: 1 where statistics of the batch normalise it."""
        return [int(batch and norm is not None) for norm in self.norms]

    def all_norms(self) -> list[BatchNorm]:
        firsts = [norm for norms in self.first_norms() for norm in norms]
        return [module.norm for module in self.preprocess] + firsts + [norm for norm in self.norms if norm is not None]


def matrices(module: ReLUConvNorm | FactorizedReduce) -> list[Tensor]:
    """[C_out, C_in] of each 1×1 convolution."""
    if isinstance(module, FactorizedReduce):
        return [module.conv_even.weight.flatten(1), module.conv_odd.weight.flatten(1)]
    return [module.conv.weight.flatten(1)]


def plan_cell(cell: SearchCell) -> CellPlan | None:
    """Sorts the candidates of a cell; None where there is one that the operators do not know."""
    space = cell.space
    states = [StatePlan(2 if cell.kind == "reduce" and source < 2 else 1) for source in range(space.nodes + 1)]
    columns: list[int] = []
    plan = CellPlan(modules_of(cell), states, [0], columns, [], [cell.preprocess0, cell.preprocess1])
    for node in range(2, space.nodes + 2):
        for source, edge in enumerate(space.incoming(node)):
            state = states[source]
            state.nodes.append(node)
            for column, candidate in enumerate(cell.edges[edge].candidates):
                if isinstance(candidate, Zero):
                    continue
                if not _sort(plan, state, candidate, len(columns)):
                    return None
                columns.append(edge * len(space.candidates) + column)
        plan.first_row.append(len(columns))
        if not 0 < plan.first_row[-1] - plan.first_row[-2] <= MOST_CANDIDATES:
            return None
    norms = plan.all_norms()
    plain = all(type(norm) is BatchNorm and norm.weight is None and norm.running_mean is not None for norm in norms)
    convolutions = [module.conv for module in plan.preprocess if isinstance(module, ReLUConvNorm)]
    pointwise = all(convolution.kernel_size == (1, 1) for convolution in convolutions)
    fits = all(len(state.stages) <= MOST_STAGES for state in states)
    return plan if plain and pointwise and fits else None


def modules_of(cell: SearchCell) -> list[nn.Module]:
    """All modules in a cell, level by level: what `modules()` gives in a fifth of the time, since every step asks."""
    modules: list[nn.Module] = []
    level = [child for child in cell._modules.values() if child is not None]
    while level:
        modules += level
        level = [child for module in level for child in module._modules.values() if child is not None]
    return modules


def _sort(plan: CellPlan, state: StatePlan, candidate: nn.Module, row: int) -> bool:
    """Enters a candidate of the edge to the last of the state's nodes; whether it is known."""
    node, norm = len(state.nodes) - 1, None
    if isinstance(candidate, SeparableConv):
        first, second = candidate
        state.seconds.append((len(state.stages), node, row, second))
        state.stages.append(first)
        norm = second.norm
    elif isinstance(candidate, DepthwiseStage):
        state.targets.append((len(state.stages), node, row))
        state.stages.append(candidate)
        norm = candidate.norm
    elif isinstance(candidate, FactorizedReduce):
        state.reduces.append((node, row, candidate))
        norm = candidate.norm
    elif isinstance(candidate, nn.Identity):
        state.skips.append((node, row))
    else:
        pool = candidate
        if isinstance(candidate, nn.Sequential) and len(candidate) == 2:
            pool, norm = candidate
        if not isinstance(pool, nn.AvgPool2d | nn.MaxPool2d) or not isinstance(norm, BatchNorm | None):
            return False
        state.pools.append((int(isinstance(pool, nn.MaxPool2d)), node, row))
    plan.norms.append(norm)
    return True
