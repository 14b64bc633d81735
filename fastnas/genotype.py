"""Genotypes: which operations a cell uses, and where they read from. Plain values, stored as JSON."""

from __future__ import annotations

import difflib
import functools
import json
import operator
import os
import tempfile
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from fastnas.errors import UserError

CellKind = str  # "normal" or "reduce", or one of LEVEL_KINDS
Pair = tuple[str, int]  # (primitive, source node)

FORMAT = 1
LEVEL_KINDS = ("low_normal", "low_reduce", "mid_normal", "mid_reduce", "high_normal")
_KINDS: tuple[CellKind, ...] = ("normal", "reduce")
_FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
_PUBLISHED = Path(__file__).with_name("published_genotypes.json")


class AnyGenotype(Protocol):
    """What the engine and the report need of the architectures of any space."""

    inputs: ClassVar[int]
    """Nodes that are given to a cell; the intermediate ones are counted from here."""

    @property
    def kinds(self) -> tuple[CellKind, ...]: ...

    def pairs(self, kind: CellKind) -> tuple[tuple[Pair, ...], ...]: ...

    def concat(self, kind: CellKind) -> tuple[int, ...]: ...

    def skip_count(self, kind: CellKind) -> int: ...

    def to_dict(self) -> dict[str, Any]: ...

    def to_json(self, path: str | os.PathLike[str]) -> None: ...


@dataclass(frozen=True, repr=False)
class Genotype:
    """A normal cell and a reduction cell.

    In a cell, node 0 is the output of the cell before the last, node 1 that of the last cell. Nodes 2, 3, ... are
    intermediate: each is the sum of two operations, listed as two consecutive `(primitive, source)` pairs, where the
    source is any earlier node. The output of the cell is the channel-wise concatenation of the nodes in `*_concat`.

    Args:
        normal: the pairs of the normal cell, two per intermediate node, in node order; lists are turned into tuples.
        normal_concat: the intermediate nodes that form its output, counted from 2.
        reduce: the pairs of the reduction cell, in which operations that read node 0 or 1 have stride 2.
        reduce_concat: the intermediate nodes that form its output.
        levels: the pairs of five cells, in the order of `LEVEL_KINDS`, where normal and reduction cells differ from
            level to level; the first two are `normal` and `reduce`, and all have their concatenation. Empty where they
            do not.

    The two cells may differ in their number of nodes. Values are immutable, hashable and equal by value; the order of
    the pairs counts.

    Raises:
        UserError: an unknown primitive, a source that is not an earlier node, an odd number of pairs, no pair at all,
            or a concatenated node that does not exist or is listed twice.

    Source: the notation of Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019.
    """

    normal: tuple[Pair, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Pair, ...]
    reduce_concat: tuple[int, ...]
    levels: tuple[tuple[Pair, ...], ...] = ()
    inputs: ClassVar[int] = 2

    def __post_init__(self) -> None:
        for kind in _KINDS:
            pairs = _checked_pairs(kind, getattr(self, kind))
            concat = _checked_concat(f"{kind}_concat", getattr(self, f"{kind}_concat"), nodes=len(pairs) // 2)
            object.__setattr__(self, kind, pairs)
            object.__setattr__(self, f"{kind}_concat", concat)
        given = _sequence("levels", self.levels)
        if given and len(given) != len(LEVEL_KINDS):
            raise UserError(f"levels has {len(given)} cells, expected {', '.join(LEVEL_KINDS)}, or none.")
        levels = tuple(_checked_pairs(kind, pairs) for kind, pairs in zip(LEVEL_KINDS, given, strict=False))
        if levels and (levels[:2] != (self.normal, self.reduce) or len({len(pairs) for pairs in levels}) > 1):
            raise UserError("levels must begin with the cells normal and reduce, and all have as many nodes.")
        object.__setattr__(self, "levels", levels)

    @property
    def kinds(self) -> tuple[CellKind, ...]:
        """The kinds of cells: normal and reduce, or `LEVEL_KINDS`."""
        return LEVEL_KINDS if self.levels else _KINDS

    def kind_of(self, level: int, reduction: bool) -> CellKind:
        """The kind of a cell after so many reductions."""
        return LEVEL_KINDS[2 * level + reduction] if self.levels else _KINDS[reduction]

    def pairs(self, kind: CellKind) -> tuple[tuple[Pair, ...], ...]:
        """The two pairs of each intermediate node: `pairs("normal")[i]` makes node `i + 2`."""
        pairs = self._cell(kind)
        return tuple(pairs[i : i + 2] for i in range(0, len(pairs), 2))

    def concat(self, kind: CellKind) -> tuple[int, ...]:
        """The nodes that form the output of the cell, in the order of their channels."""
        self._cell(kind)
        return self.reduce_concat if kind.endswith("reduce") else self.normal_concat

    def skip_count(self, kind: CellKind) -> int:
        """How many operations of the cell are `skip_connect` (many are the sign of a collapsed search)."""
        return sum(primitive == "skip_connect" for primitive, _ in self._cell(kind))

    def _cell(self, kind: CellKind) -> tuple[Pair, ...]:
        if kind not in (*_KINDS, *self.kinds):
            raise UserError(f"cell kind {kind!r} does not exist: use {' or '.join(map(repr, self.kinds))}.")
        return (self.normal if kind == "normal" else self.reduce) if kind in _KINDS else self._level(kind)

    def _level(self, kind: CellKind) -> tuple[Pair, ...]:
        return self.levels[LEVEL_KINDS.index(kind)]

    def __repr__(self) -> str:
        lines = ["Genotype("]
        for kind in _KINDS:
            lines.append(f"    {kind}=[")
            lines += [f"        {', '.join(map(repr, node))}," for node in self.pairs(kind)]
            lines += ["    ],", f"    {kind}_concat={list(self.concat(kind))},"]
        if self.levels:
            lines += ["    levels=[", *(f"        {list(pairs)}," for pairs in self.levels), "    ],"]
        return "\n".join([*lines, ")"])

    def to_dict(self) -> dict[str, Any]:
        """The fields as lists that JSON can hold, and `"format"`, the version of this layout; `"levels"` where there
        are any."""
        levels = {"levels": [[list(pair) for pair in pairs] for pairs in self.levels]} if self.levels else {}
        return {
            "format": FORMAT,
            "normal": [list(pair) for pair in self.normal],
            "normal_concat": list(self.normal_concat),
            "reduce": [list(pair) for pair in self.reduce],
            "reduce_concat": list(self.reduce_concat),
            **levels,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. `"format"` may be absent.

        Raises:
            UserError: not a mapping, a key that is missing or unknown, a newer format, or an invalid genotype.
        """
        if not isinstance(data, Mapping):
            raise UserError(f"a genotype must be a mapping with the keys {', '.join(_FIELDS)}, got {_brief(data)}.")
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

        The file holds one object: `"format"` (1), `"normal"` and `"reduce"` (lists of `[primitive, source]`, one line
        per intermediate node), `"normal_concat"` and `"reduce_concat"` (lists of node numbers),
        and `"levels"` (the pairs of five cells) where there are any.

        Raises:
            UserError: `path` cannot be written.
        """
        lines = [f'  "format": {FORMAT}']
        for kind in _KINDS:
            nodes = [", ".join(json.dumps(pair) for pair in node) for node in self.pairs(kind)]
            lines.append(f'  "{kind}": [\n    ' + ",\n    ".join(nodes) + "\n  ]")
            lines.append(f'  "{kind}_concat": {json.dumps(self.concat(kind))}')
        if self.levels:
            lines.append('  "levels": [\n    ' + ",\n    ".join(json.dumps(pairs) for pairs in self.levels) + "\n  ]")
        write_atomically(Path(path), "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `to_json` wrote, or any JSON object with the four fields.

        Raises:
            UserError: the file is missing, unreadable, not JSON or not a valid genotype; the message names the file.
        """
        path = Path(path)
        if path.is_dir():
            raise UserError(
                f"genotype {str(path)!r} is a folder: give a file, such as {str(path / 'genotype.json')!r}."
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot read genotype {str(path)!r}: {reason}; give the path of its JSON file.") from error
        except ValueError as error:  # malformed JSON and malformed UTF-8
            raise UserError(f"genotype {str(path)!r} is not JSON ({error}): write it with Genotype.to_json.") from error
        except RecursionError as error:
            raise UserError(f"genotype {str(path)!r} is nested too deeply: expected an object of lists.") from error
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
        """What a command line was given: the name of a published genotype, else the path of a JSON file.

        A file that has the name of a published genotype is reached as `./NAME`.

        Raises:
            UserError: neither a published name nor a readable file.
        """
        if text in _published():
            return cls.published(text)
        if not Path(text).exists() and Path(text).suffix != ".json" and Path(text).name == text:
            raise UserError(
                f"{text!r} is neither a published genotype nor an existing file: {_did_you_mean(text, _published())}"
            )
        return cls.from_json(text)


def _checked_pairs(kind: CellKind, value: Any) -> tuple[Pair, ...]:
    # Imported late: networks need Genotype, so `fastnas.nn` must be able to import this module first.
    from fastnas.nn.primitives import check_primitive

    pairs: list[Pair] = []
    for position, item in enumerate(_sequence(kind, value)):
        node = position // 2 + 2
        pair = _sequence(f"{kind} node {node}: every (primitive, source)", item)
        if len(pair) != 2:
            raise UserError(f"{kind} node {node}: expected a pair (primitive, source), got {_brief(item)}.")
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
        pairs.append((primitive, source))
    if not pairs:
        raise UserError(f"{kind} is empty: a cell needs at least one node, that is two (primitive, source) pairs.")
    if len(pairs) % 2:
        raise UserError(f"{kind} has {len(pairs)} pairs: every node has two inputs, so give an even number of pairs.")
    return tuple(pairs)


def _checked_concat(name: str, value: Any, nodes: int) -> tuple[int, ...]:
    concat = tuple(_integer(f"{name}: every item", item) for item in _sequence(name, value))
    if not concat:
        raise UserError(f"{name} is empty: list the nodes that form the output of the cell, such as 2 to {nodes + 1}.")
    for node in concat:
        if not 2 <= node < nodes + 2:
            raise UserError(f"{name} lists node {node}, but the intermediate nodes of this cell are 2 to {nodes + 1}.")
    if len(set(concat)) < len(concat):
        raise UserError(f"{name} lists a node twice: {list(concat)}; list every node once.")
    return concat


def _sequence(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | Mapping | Set) or not isinstance(value, Iterable):
        raise UserError(f"{name} must be a list, got {_brief(value)}.")
    return tuple(value)


def _integer(what: str, value: Any) -> int:
    # operator.index takes the integers of numpy and torch, too, but no float and no digit string.
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise UserError(f"{what} must be an integer, got {_brief(value)}.")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    by_folded = {candidate.casefold(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name.casefold(), by_folded, n=2)
    if nearest:
        return f"did you mean {' or '.join(by_folded[match] for match in nearest)}?"
    return f"known are {', '.join(by_folded.values())}."


@functools.cache
def _published() -> dict[str, dict[str, Any]]:
    return json.loads(_PUBLISHED.read_text(encoding="utf-8"))


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by a complete new file, so that neither a crash nor a reader ever meets half of one."""
    try:
        # The temporary file is a neighbour: a rename is atomic only within one file system.
        with tempfile.TemporaryDirectory(prefix=".genotype-", dir=path.parent) as folder:
            temporary = Path(folder, path.name)
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write genotype {str(path)!r}: {reason}; give a file in a writable folder.") from error
