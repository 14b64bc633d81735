"""The space of NAS-Bench-201 (Dong, Yang, "NAS-Bench-201", ICLR 2020): 4 nodes, 6 edges, 5 candidates, 15,625 cells.

Node 0 is the input of the cell, node 3 its output; every node is the sum of one candidate from each earlier node.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from fastnas.atomic_file import replace_file
from fastnas.errors import UserError
from fastnas.genotype import AnyGenotype, CellKind, Genotype, Pair
from fastnas.input_file import path_of, read_json
from fastnas.spaces.cell_space import CellSpace, Derivation

CANDIDATES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


@dataclass(frozen=True)
class NB201Genotype:
    """A cell of NAS-Bench-201.

    Args:
        operations: the candidate on each of the edges 0→1, 0→2, 1→2, 0→3, 1→3, 2→3.

    Raises:
        UserError: not six candidates of the space.
    """

    operations: tuple[str, ...]
    inputs: ClassVar[int] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        if len(self.operations) != 6 or not set(self.operations) <= set(CANDIDATES):
            raise UserError(
                f"{list(self.operations)} is not a cell of NAS-Bench-201: expected six of {', '.join(CANDIDATES)}."
            )

    def __str__(self) -> str:
        """As in the benchmark: |op~0|+|op~0|op~1|+|op~0|op~1|op~2|."""
        a, b, c, d, e, f = self.operations
        return f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"

    @classmethod
    def from_string(cls, text: str) -> Self:
        """The inverse of `str`. Raises UserError for any other text."""
        operations = re.findall(r"([^|+~]+)~\d", text)
        genotype = cls(tuple(operations))
        if str(genotype) != text.strip():
            raise UserError(f"{text!r} is not a cell of NAS-Bench-201: expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2|.")
        return genotype

    @property
    def kinds(self) -> tuple[CellKind, ...]:
        return ("normal",)

    def pairs(self, kind: CellKind = "normal") -> tuple[tuple[Pair, ...], ...]:
        """The (candidate, source) pairs that each node after the input sums."""
        a, b, c, d, e, f = self.operations
        return ((a, 0),), ((b, 0), (c, 1)), ((d, 0), (e, 1), (f, 2))

    def concat(self, kind: CellKind = "normal") -> tuple[int, ...]:
        """The output is the last node."""
        return (3,)

    def skip_count(self, kind: CellKind = "normal") -> int:
        """How many edges are `skip_connect`."""
        return self.operations.count("skip_connect")

    def to_dict(self) -> dict[str, Any]:
        return {"format": 1, "nb201": str(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises UserError for any other mapping."""
        if "nb201" not in data:
            raise UserError("the key 'nb201' is missing: expected a cell of NAS-Bench-201.")
        return cls.from_string(str(data["nb201"]))

    def to_text(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes the cell to `path`, completely or not at all. Raises UserError if it cannot be written."""
        replace_file(path_of(path), self.to_text() + "\n", "genotype")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `to_json` wrote. Raises UserError if the file cannot be read or holds something else."""
        data = read_json(path_of(path), f"the cell {str(path)!r}", "give the path of its JSON file")
        return cls.from_dict(data if isinstance(data, dict) else {})


def any_genotype(data: Mapping[str, Any]) -> AnyGenotype:
    """The genotype, of whatever space, whose `to_dict` gave `data`. Raises UserError where it is none."""
    return NB201Genotype.from_dict(data) if "nb201" in data else Genotype.from_dict(data)


@dataclass(frozen=True)
class NB201Space(CellSpace):
    """The space as a `CellSpace` of one kind of cell with one input; see the module docstring."""

    name: str = "nb201"
    candidates: tuple[str, ...] = CANDIDATES
    pool_norm: bool = False
    nodes: int = 3
    kinds: tuple[CellKind, ...] = ("normal",)
    inputs: ClassVar[int] = 1

    def kind_of(self, level: int, reduction: bool) -> CellKind:
        return "normal"

    def derive(self, op_weights: Mapping[str, Tensor], rule: Derivation = "edges") -> NB201Genotype:
        """The heaviest candidate of every edge, "none" included; ties go to the earlier one.

        Args:
            op_weights: {"normal": [6, 5]}.
            rule: makes no difference: a cell of this space has a candidate on every edge.
        """
        best = op_weights["normal"].detach().cpu().argmax(-1).tolist()  # [6]
        return NB201Genotype(tuple(self.candidates[index] for index in best))


SPACE = NB201Space()
