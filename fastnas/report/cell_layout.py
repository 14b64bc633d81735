"""Places the parts of a cell in columns, so that no edge meets a node or a label on its way.

Columns are the depths of the nodes. Operations are labels right before the node that they feed; a node and its labels
are one block. An edge that passes a column gets a lane of its own there, so edges cross only between columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

from fastnas.genotype import AnyGenotype, CellKind

LABEL_HEIGHT = 28.0
LABEL_GAP = 6.0  # between the labels of one node
BLOCK_GAP = 18.0
LANE_GAP = 14.0
PORT = 62.0, 34.0  # boxes of the inputs and the output: width, height


@dataclass(eq=False)
class Edge:
    """One operation, or with ``primitive=None`` the line from a node to the output."""

    source: Item
    target: Item
    primitive: str | None
    lanes: list[Item] = field(default_factory=list)

    @property
    def stops(self) -> list[Item]:
        return [self.source, *self.lanes, self.target]


@dataclass(eq=False)
class Item:
    """What takes up height in a column: an input, a node with its labels, the output, or the lane of an edge."""

    name: str
    column: int
    height: float
    incoming: list[Edge] = field(default_factory=list)
    y: float = 0.0

    @property
    def is_lane(self) -> bool:
        return not self.name


def node_name(number: int, inputs: int = 2) -> str:
    """What people call node ``number`` of a genotype: c_{k-2}, c_{k-1}, then 0, 1, ...; with one input c_{k-1}, 1, 2,
    ..."""
    if inputs == 1:
        return str(number) if number else "c_{k-1}"
    return ("c_{k-2}", "c_{k-1}")[number] if number < 2 else str(number - 2)


def layout(genotype: AnyGenotype, kind: CellKind) -> tuple[list[list[Item]], list[Edge]]:
    """The items of every column from top to bottom, each with its ``y``, and all edges."""
    columns, edges = _graph(genotype, kind)
    _order(columns, edges)
    _place(columns, edges)
    return columns, edges


def _graph(genotype: AnyGenotype, kind: CellKind) -> tuple[list[list[Item]], list[Edge]]:
    """Items by column and edges by the number of their target; the lanes of long edges included."""
    inputs = genotype.inputs
    items = [Item(node_name(i, inputs), 0, PORT[1]) for i in range(inputs)]
    edges = []
    for pairs in genotype.pairs(kind):
        height = len(pairs) * (LABEL_HEIGHT + LABEL_GAP) - LABEL_GAP
        node = Item(node_name(len(items), inputs), 1 + max(items[source].column for _, source in pairs), height)
        items.append(node)
        node.incoming = [Edge(items[source], node, primitive) for primitive, source in pairs]
        edges += node.incoming
    concat = genotype.concat(kind)
    output = Item("c_k", 1 + max(item.column for item in items), max(PORT[1], 12.0 * len(concat)))
    output.incoming = [Edge(items[number], output, None) for number in concat]
    edges += output.incoming

    columns: list[list[Item]] = [[] for _ in range(output.column + 1)]
    for item in [*items, output]:
        columns[item.column].append(item)
    for edge in edges:
        edge.lanes = [Item("", column, 0.0) for column in range(edge.source.column + 1, edge.target.column)]
        for lane in edge.lanes:
            columns[lane.column].append(lane)
    return columns, edges


def segments(edges: Sequence[Edge]) -> Iterator[tuple[Item, Item]]:
    """The parts of all edges between neighbouring columns."""
    for edge in edges:
        yield from pairwise(edge.stops)


def _order(columns: list[list[Item]], edges: Sequence[Edge]) -> None:
    """Sorts every column so that few edges cross: barycentre sweeps, then swaps of neighbours. Inputs stay in order."""
    rank = {item: float(i) for column in columns for i, item in enumerate(column)}
    before: dict[Item, list[Item]] = {item: [] for item in rank}
    after: dict[Item, list[Item]] = {item: [] for item in rank}
    for left, right in segments(edges):
        before[right].append(left)
        after[left].append(right)

    def crossings(column: int) -> int:
        """Crossings in the two gaps beside ``column``."""
        count = 0
        for gap in (column - 1, column):
            if 0 <= gap < len(columns) - 1:
                ends = [(rank[left], rank[right]) for left in columns[gap] for right in after[left]]
                count += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(ends, 2))
        return count

    def sort(column: list[Item], neighbours: dict[Item, list[Item]]) -> None:
        # A stable sort: an item without neighbours on that side keeps its place.
        column.sort(
            key=lambda i: sum(rank[n] for n in neighbours[i]) / len(neighbours[i]) if neighbours[i] else rank[i]
        )
        rank.update((item, float(i)) for i, item in enumerate(column))

    def total() -> int:
        return sum(crossings(column) for column in range(0, len(columns), 2))

    best = (total(), [list(column) for column in columns])
    for sweep in range(8):
        forward = sweep % 2 == 0
        for column in columns[1:] if forward else columns[-2:0:-1]:
            sort(column, before if forward else after)
        improved = True
        while improved:
            improved = False
            for index, column in enumerate(columns[1:], start=1):
                for i in range(len(column) - 1):
                    count = crossings(index)
                    _swap(column, rank, i)
                    if crossings(index) < count:
                        improved = True
                    else:
                        _swap(column, rank, i)
        best = min(best, (total(), [list(column) for column in columns]), key=lambda result: result[0])
    for column, items in zip(columns, best[1], strict=True):
        column[:] = items


def _swap(column: list[Item], rank: dict[Item, float], i: int) -> None:
    column[i], column[i + 1] = column[i + 1], column[i]
    rank[column[i]], rank[column[i + 1]] = float(i), float(i + 1)


def _place(columns: list[list[Item]], edges: Sequence[Edge]) -> None:
    """Sets ``y`` (the middle) of every item: long edges straight, items near their neighbours, order kept."""
    pulls: dict[Item, list[tuple[Item, float]]] = {item: [] for column in columns for item in column}
    for left, right in segments(edges):
        weight = 1.0 + 3.0 * left.is_lane + 3.0 * right.is_lane
        pulls[left].append((right, weight))
        pulls[right].append((left, weight))
    for column in columns:
        _separate(column, [0.0] * len(column), [1.0] * len(column))
    for sweep in range(60):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            weights = [sum(w for _, w in pulls[item]) or 1e-3 for item in column]
            wanted = [
                sum(n.y * w for n, w in pulls[item]) / weight if pulls[item] else item.y
                for item, weight in zip(column, weights, strict=True)
            ]
            _separate(column, wanted, weights)


def _separate(column: list[Item], wanted: list[float], weights: list[float]) -> None:
    """Moves the items as near to ``wanted`` as their heights, gaps and order allow (weighted least squares).

    With the gaps subtracted, this is isotonic regression: pool adjacent violators.
    """
    offsets = [0.0]
    for upper, lower in pairwise(column):
        gap = LANE_GAP if upper.is_lane and lower.is_lane else BLOCK_GAP
        offsets.append(offsets[-1] + (upper.height + lower.height) / 2 + gap)
    pools: list[tuple[float, float, int]] = []  # mean, weight, number of items
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        mean, count = want - offset, 1
        while pools and pools[-1][0] > mean:
            m, w, n = pools.pop()
            mean, weight, count = (mean * weight + m * w) / (weight + w), weight + w, count + n
        pools.append((mean, weight, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    for item, mean, offset in zip(column, means, offsets, strict=True):
        item.y = mean + offset
