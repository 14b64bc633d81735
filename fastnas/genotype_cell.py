"""One cell of a genotype: its checks, and its conversion to nodes, lists and text."""

from __future__ import annotations

import json
import operator
import reprlib
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple

from fastnas.errors import UserError
from fastnas.primitive_names import check_primitive

Pair = tuple[str, int]  # (primitive, source node)
Cell = tuple[Pair, ...] | tuple[tuple[Pair, ...], ...]  # two pairs for each node, or one tuple of pairs for each node

MOST_PAIRS = 1000
"""Of a cell. Those of the literature have up to 28; a file with a million would take all memory before it fails."""


class CellGenotype(NamedTuple):
    """One cell: `pairs` and `concat` as in `Genotype.normal` and `Genotype.normal_concat`."""

    pairs: Cell
    concat: tuple[int, ...]


def _is_nested(items: tuple[Any, ...]) -> bool:
    """Whether a cell is a list of nodes, each a list of pairs, and not a flat list with two pairs for each node."""
    first = items[0] if items else None
    return isinstance(first, list | tuple) and bool(first) and isinstance(first[0], list | tuple)


def nodes_of(cell: Cell) -> tuple[tuple[Pair, ...], ...]:
    """The pairs of each node."""
    if _is_nested(cell):
        return cell  # type: ignore[return-value]
    return tuple(cell[i : i + 2] for i in range(0, len(cell), 2))  # type: ignore[misc]


def lists_of(cell: Cell) -> list[Any]:
    """The cell as lists, for JSON."""
    nodes = [[list(pair) for pair in node] for node in nodes_of(cell)]
    return nodes if _is_nested(cell) else [pair for node in nodes for pair in node]


def _node_texts(cell: Cell, text: Callable[[Any], str]) -> list[str]:
    """The text of each node, in brackets if the cell is nested."""
    joined = (", ".join(map(text, node)) for node in nodes_of(cell))
    return [f"[{node}]" if _is_nested(cell) else node for node in joined]


def repr_of_nodes(cell: Cell, indent: str) -> list[str]:
    """A line of Python for each node."""
    return [f"{indent}{node}," for node in _node_texts(cell, repr)]


def json_of_nodes(cell: Cell, indent: str) -> str:
    """JSON with one line for each node, after a key that is indented by `indent`."""
    separator = f",\n{indent}  "
    return f"[\n{indent}  {separator.join(_node_texts(cell, json.dumps))}\n{indent}]"


def checked_cell(kind: str, pairs: Any, concat_name: str, concat: Any) -> CellGenotype:
    """The cell as tuples, whatever sequences were given. Raises UserError, naming the cell, if it is invalid."""
    cell = _checked_pairs(kind, pairs)
    return CellGenotype(cell, _checked_concat(concat_name, concat, nodes=len(nodes_of(cell))))


def _checked_pairs(kind: str, value: Any) -> Cell:
    items = sequence(kind, value)
    if not items:
        raise UserError(f"{kind} is empty: a cell needs at least one node, that is two (primitive, source) pairs.")
    _check_count(kind, len(items))
    if _is_nested(items):
        nested = [sequence(f"{kind} node {node}", item) for node, item in enumerate(items, start=2)]
        _check_count(kind, sum(map(len, nested)))
        if empty := [node for node, item in enumerate(nested, start=2) if not item]:
            raise UserError(f"{kind} node {empty[0]} has no (primitive, source) pair: give it at least one.")
        nodes = tuple(
            tuple(_checked_pair(kind, node, pair) for pair in item) for node, item in enumerate(nested, start=2)
        )
        # One spelling for each cell, so that equal cells are equal values.
        return tuple(pair for node in nodes for pair in node) if all(len(node) == 2 for node in nodes) else nodes
    cell = tuple(_checked_pair(kind, position // 2 + 2, item) for position, item in enumerate(items))
    if len(cell) % 2:
        raise UserError(
            f"{kind} has {len(cell)} pairs: every node has two inputs, so give an even number of pairs, "
            "or a list of pairs for each node."
        )
    return cell


def _check_count(kind: str, pairs: int) -> None:
    if pairs > MOST_PAIRS:
        raise UserError(f"{kind} has {pairs:,} (primitive, source) pairs: expected at most {MOST_PAIRS:,}.")


def _checked_pair(kind: str, node: int, item: Any) -> Pair:
    pair = sequence(f"{kind} node {node}: every (primitive, source)", item)
    if len(pair) != 2:
        raise UserError(f"{kind} node {node}: expected a pair (primitive, source), got {brief(item)}.")
    primitive, source = pair
    try:
        check_primitive(primitive)
    except UserError as error:
        raise UserError(f"{kind} node {node}: {error}") from error
    source = _integer(f"{kind} node {node}: the source of {primitive!r}", source)
    if not 0 <= source < node:
        raise UserError(
            f"{kind} node {node}: {primitive!r} reads node {source}, expected an earlier node, 0 to {node - 1}."
        )
    return primitive, source


def _checked_concat(name: str, value: Any, nodes: int) -> tuple[int, ...]:
    concat = tuple(_integer(f"{name}: every item", item) for item in sequence(name, value))
    if not concat:
        raise UserError(f"{name} is empty: list the nodes that form the output of the cell, such as 2 to {nodes + 1}.")
    for node in concat:
        if not 2 <= node < nodes + 2:
            raise UserError(f"{name} lists node {node}, but the intermediate nodes of this cell are 2 to {nodes + 1}.")
    if len(set(concat)) < len(concat):
        raise UserError(f"{name} lists a node twice: {list(concat)}; list every node once.")
    return concat


def sequence(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | Mapping | Set) or not isinstance(value, Iterable):
        raise UserError(f"{name} must be a list, got {brief(value)}.")
    return tuple(value)


def _integer(what: str, value: Any) -> int:
    # operator.index also takes integers of numpy and torch, but neither floats nor digit strings.
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise UserError(f"{what} must be an integer, got {brief(value)}.")


def brief(value: Any) -> str:
    text = reprlib.repr(value) if isinstance(value, list | tuple | dict | int) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
