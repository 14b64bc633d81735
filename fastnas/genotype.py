"""Genotypes: which operations a cell uses, and where they read from. Plain values, stored as JSON."""

from __future__ import annotations

import difflib
import functools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from fastnas.atomic_file import replace_file
from fastnas.errors import UserError
from fastnas.genotype_cell import (
    Cell,
    CellGenotype,
    Pair,
    brief,
    checked_cell,
    json_of_nodes,
    lists_of,
    nodes_of,
    repr_of_nodes,
    sequence,
)
from fastnas.input_file import path_of, read_json

CellKind = str  # "normal" or "reduce", or one of LEVELS
FORMAT = 1
LEVELS: tuple[CellKind, ...] = ("low_normal", "low_reduce", "mid_normal", "mid_reduce", "high_normal")
_KINDS: tuple[CellKind, ...] = ("normal", "reduce")
_FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
_PUBLISHED = Path(__file__).with_name("published_genotypes.json")


class AnyGenotype(Protocol):
    """What the engine and the report need from the genotypes of every space."""

    inputs: ClassVar[int]
    """Number of input nodes of a cell; the intermediate nodes are numbered from here."""

    @property
    def kinds(self) -> tuple[CellKind, ...]: ...

    def pairs(self, kind: CellKind) -> tuple[tuple[Pair, ...], ...]: ...

    def concat(self, kind: CellKind) -> tuple[int, ...]: ...

    def skip_count(self, kind: CellKind) -> int: ...

    def to_dict(self) -> dict[str, Any]: ...

    def to_text(self) -> str: ...

    def to_json(self, path: str | os.PathLike[str]) -> None: ...


@dataclass(frozen=True, repr=False)
class Genotype:
    """A normal cell and a reduction cell, or the five cells of a multi-level genotype.

    In a cell, node 0 is the output of the cell before the last, node 1 that of the last cell. Nodes 2, 3, ... are
    intermediate: each is the sum of two operations, listed as two consecutive `(primitive, source)` pairs, where the
    source is any earlier node. The output of the cell is the channel-wise concatenation of the nodes in `*_concat`.

    Args:
        normal: the pairs of the normal cell, two per intermediate node, in node order; lists are turned into tuples.
            Where a node is the sum of one operation or of more than two, every node is a list of its own pairs:
            `[[("skip_connect", 0)], [("sep_conv_3x3", 0), ("none", 1), ("sep_conv_3x3", 2)]]`.
        normal_concat: the intermediate nodes that form its output, counted from 2.
        reduce: the pairs of the reduction cell, in which operations that read node 0 or 1 have stride 2.
        reduce_concat: the intermediate nodes that form its output.
        levels: empty, or the five `CellGenotype` of a network whose cells differ between its levels: normal and
            reduction cell of the low and of the middle level, normal cell of the high one (`LEVELS`). The first two
            must equal the four fields above, as `multi_level` ensures.

    Cells may differ in their number of nodes. Values are immutable, hashable and equal by value; the order of the pairs
    counts.

    Raises:
        UserError: an unknown primitive, a source that is not an earlier node, an odd number of pairs, no pair at all,
            a concatenated node that does not exist or is listed twice, or levels that are not five.

    Source: the notation of Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019.
    """

    normal: Cell
    normal_concat: tuple[int, ...]
    reduce: Cell
    reduce_concat: tuple[int, ...]
    levels: tuple[CellGenotype, ...] = ()
    inputs: ClassVar[int] = 2

    def __post_init__(self) -> None:
        for kind in _KINDS:
            cell = checked_cell(kind, getattr(self, kind), f"{kind}_concat", getattr(self, f"{kind}_concat"))
            object.__setattr__(self, kind, cell.pairs)
            object.__setattr__(self, f"{kind}_concat", cell.concat)
        object.__setattr__(self, "levels", _checked_levels(self.levels))
        low = ((self.normal, self.normal_concat), (self.reduce, self.reduce_concat))
        if self.levels and self.levels[:2] != low:
            raise UserError(
                "levels does not begin with the normal and the reduction cell: build it with Genotype.multi_level."
            )

    @classmethod
    def multi_level(cls, cells: Iterable[Any]) -> Self:
        """A genotype of five cells, each (pairs, concat), in the order of `LEVELS`.

        Source: Li, Chen, Sun, "Multi-level differentiable architecture search with heuristic entropy", 2021(08), DOI
        10.11918/202011092: cells of one level share their genotype, and a reduction cell ends the low and the middle
        level.
        """
        levels = _checked_levels(cells)
        if not levels:
            raise UserError(f"a multi-level genotype needs {len(LEVELS)} cells: {', '.join(LEVELS)}; got none.")
        normal, reduce = levels[:2]
        return cls(normal.pairs, normal.concat, reduce.pairs, reduce.concat, levels)

    @property
    def kinds(self) -> tuple[CellKind, ...]:
        """The kinds of cells: "normal" and "reduce", or `LEVELS`."""
        return LEVELS if self.levels else _KINDS

    def layout(self, layers: int) -> tuple[CellKind, ...]:
        """The kind of each of `layers` cells, with reductions at one third and at two thirds of the depth."""
        thirds = (layers // 3, 2 * layers // 3)
        if not self.levels:
            return tuple("reduce" if index in thirds else "normal" for index in range(layers))
        return tuple(
            LEVELS[2 * sum(third < index for third in dict.fromkeys(thirds)) + (index in thirds)]
            for index in range(layers)
        )

    def pairs(self, kind: CellKind) -> tuple[tuple[Pair, ...], ...]:
        """The pairs of each intermediate node: `pairs("normal")[i]` makes node `i + 2`."""
        return nodes_of(self._cell(kind).pairs)

    def concat(self, kind: CellKind) -> tuple[int, ...]:
        """The nodes that form the output of the cell, in the order of their channels."""
        return self._cell(kind).concat

    def skip_count(self, kind: CellKind) -> int:
        """How many operations of the cell are `skip_connect` (many indicate a collapsed search)."""
        return sum(primitive == "skip_connect" for node in self.pairs(kind) for primitive, _ in node)

    def _cell(self, kind: CellKind) -> CellGenotype:
        if kind == "normal":
            return CellGenotype(self.normal, self.normal_concat)
        if kind == "reduce":
            return CellGenotype(self.reduce, self.reduce_concat)
        if kind not in self.kinds:
            raise UserError(f"cell kind {kind!r} does not exist: use {' or '.join(map(repr, self.kinds))}.")
        return self.levels[LEVELS.index(kind)]

    def __repr__(self) -> str:
        lines = ["Genotype("]
        for kind in _KINDS:
            lines += [f"    {kind}=[", *repr_of_nodes(self._cell(kind).pairs, " " * 8), "    ],"]
            lines.append(f"    {kind}_concat={list(self.concat(kind))},")
        if self.levels:
            lines.append("    levels=[")
            for cell in self.levels:
                lines += ["        ([", *repr_of_nodes(cell.pairs, " " * 12), f"        ], {list(cell.concat)}),"]
            lines.append("    ],")
        return "\n".join([*lines, ")"])

    def to_dict(self) -> dict[str, Any]:
        """The fields as lists that JSON can hold, and `"format"`, the version of this layout; `"levels"`, a list of
        `{"pairs": …, "concat": …}`, only where there are levels."""
        result: dict[str, Any] = {"format": FORMAT}
        for kind in _KINDS:
            result |= {kind: lists_of(self._cell(kind).pairs), f"{kind}_concat": list(self.concat(kind))}
        if self.levels:
            result["levels"] = [{"pairs": lists_of(cell.pairs), "concat": list(cell.concat)} for cell in self.levels]
        return result

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. `"format"` may be absent.

        Raises:
            UserError: not a mapping, a key that is missing or unknown, a newer format, or an invalid genotype.
        """
        if not isinstance(data, Mapping):
            raise UserError(f"a genotype must be a mapping with the keys {', '.join(_FIELDS)}, got {brief(data)}.")
        if "nb201" in data:
            raise UserError(
                "it is a cell of NAS-Bench-201, whose network fastnas.train does not build: train "
                "fastnas.nn.NB201Network(NB201Genotype.from_json(PATH)) in a loop of your own, as the report of the "
                "search shows, or search in --space darts or egnas."
            )
        if data.get("format", FORMAT) != FORMAT:
            raise UserError(
                f"genotype format {data['format']!r} is not readable, this version reads format {FORMAT}: "
                "upgrade fastnas, or write the genotype again."
            )
        if missing := [name for name in _FIELDS if name not in data]:
            raise UserError(f"the key {missing[0]!r} is missing: a genotype needs {', '.join(_FIELDS)}.")
        if unknown := sorted(map(repr, set(data) - {"format", "levels", *_FIELDS})):
            raise UserError(f"the key {unknown[0]} is unknown: a genotype has {', '.join(_FIELDS)}.")
        return cls(**{name: data[name] for name in _FIELDS}, levels=data.get("levels", ()))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes the genotype to `path`, completely or not at all; an existing file is replaced.

        The file holds what `to_dict` gives, one line per intermediate node.

        Raises:
            UserError: `path` cannot be written.
        """
        replace_file(path_of(path), self.to_text() + "\n", "genotype")

    def to_text(self) -> str:
        """`to_dict` as JSON with one line per intermediate node."""
        lines = [f'  "format": {FORMAT}']
        for kind in _KINDS:
            lines.append(f'  "{kind}": {json_of_nodes(self._cell(kind).pairs, "  ")}')
            lines.append(f'  "{kind}_concat": {json.dumps(self.concat(kind))}')
        if self.levels:
            cells = [
                f'    {{"pairs": {json_of_nodes(cell.pairs, "    ")}, "concat": {json.dumps(cell.concat)}}}'
                for cell in self.levels
            ]
            lines.append('  "levels": [\n' + ",\n".join(cells) + "\n  ]")
        return "{\n" + ",\n".join(lines) + "\n}"

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `to_json` wrote, or any JSON object with the four fields.

        Raises:
            UserError: the file is missing, unreadable, not JSON or not a valid genotype; the message names the file.
        """
        path = path_of(path)
        if os.path.isdir(path):
            raise UserError(
                f"genotype {str(path)!r} is a folder: give a file, such as {str(path / 'genotype.json')!r}."
            )
        data = read_json(
            path, f"genotype {str(path)!r}", "give the path of its JSON file, as Genotype.to_json writes it"
        )
        try:
            return cls.from_dict(data)
        except UserError as error:
            raise UserError(f"genotype {str(path)!r}: {error}") from error

    @staticmethod
    def published_names() -> tuple[str, ...]:
        """The names of the genotypes that come with the package, such as `"DARTS_V2"`."""
        return tuple(_published())

    @classmethod
    def published(cls, name: str) -> Self:
        """A genotype of the literature by name, see `published_names`.

        Raises:
            UserError: no such name.
        """
        entries = _published()
        if name not in entries:
            raise UserError(f"no published genotype is called {name!r}: {_did_you_mean(name, entries)}")
        return cls.from_dict({field: entries[name][field] for field in _FIELDS})

    @classmethod
    def load(cls, text: str) -> Self:
        """The genotype that a command line names: a published one, else the path of a JSON file.

        A file that has the name of a published genotype is reached as `./NAME`.

        Raises:
            UserError: neither a published name nor a readable file.
        """
        if text in _published():
            return cls.published(text)
        path = path_of(text)
        if not os.path.exists(path) and path.suffix != ".json" and path.name == text:
            near = _did_you_mean(text, _published())
            raise UserError(f"{brief(text)} is neither a published genotype nor an existing file: {near}")
        return cls.from_json(path)


def _checked_levels(value: Any) -> tuple[CellGenotype, ...]:
    cells = sequence("levels", value)
    if cells and len(cells) != len(LEVELS):
        raise UserError(f"levels has {len(cells)} cells, expected {len(LEVELS)}: {', '.join(LEVELS)}.")
    checked = []
    for kind, cell in zip(LEVELS, cells, strict=False):
        if isinstance(cell, Mapping) and set(cell) == {"pairs", "concat"}:
            cell = (cell["pairs"], cell["concat"])
        if not isinstance(cell, list | tuple) or len(cell) != 2:
            raise UserError(f"{kind}: expected a cell (pairs, concat), got {brief(cell)}.")
        checked.append(checked_cell(kind, cell[0], f"the concat of {kind}", cell[1]))
    return tuple(checked)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    by_folded = {candidate.casefold(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name.casefold(), by_folded, n=2)
    if nearest:
        return f"did you mean {' or '.join(by_folded[match] for match in nearest)}?"
    return f"known are {', '.join(by_folded.values())}."


@functools.cache
def _published() -> dict[str, dict[str, Any]]:
    return json.loads(_PUBLISHED.read_text(encoding="utf-8"))
