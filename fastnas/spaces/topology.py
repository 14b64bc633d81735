"""The topology that all cell spaces share: every node sums an edge from each earlier node.

Nodes count from 0, the inputs of the cell first. Edges are numbered by the node that they enter, then by their source;
row e of α belongs to edge e.
"""

from __future__ import annotations


def dag_edges(nodes: int, inputs: int = 2) -> tuple[tuple[int, int], ...]:
    """(source, node) of every edge of a cell with `nodes` intermediate nodes: 14 edges for 4 nodes."""
    return tuple((source, node) for node in range(inputs, inputs + nodes) for source in range(node))


def incoming_edges(node: int, inputs: int = 2) -> range:
    """The numbers of the edges that enter a node, in the order of their sources."""
    first = sum(range(inputs, node))
    return range(first, first + node)


def nodes_of_dag(edges: int, inputs: int = 2) -> int | None:
    """The number of intermediate nodes of a cell with `edges` edges; None if no cell has that many."""
    nodes = 0
    while edges > 0:
        edges -= inputs + nodes
        nodes += 1
    return nodes if edges == 0 and nodes else None
