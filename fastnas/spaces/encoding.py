"""Architectures as tuples of whole numbers ("genes"), for strategies that choose candidates instead of weighting
them."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch import Tensor

from fastnas.errors import UserError
from fastnas.genotype import AnyGenotype, Genotype, Pair
from fastnas.spaces.cell_space import CellSpace

Code = tuple[int, ...]


@functools.cache
def encoding_of(space: CellSpace) -> Encoding:
    """The encoding of a space."""
    return EdgeEncoding(space) if space.inputs == 1 else CellEncoding(space)


def zero_weights(space: CellSpace) -> dict[str, Tensor]:
    """Zeros [E, O] for each kind of cell."""
    return {kind: torch.zeros(len(space.edges), len(space.candidates)) for kind in space.kinds}


def op_weights_of(space: CellSpace, genotype: AnyGenotype) -> dict[str, Tensor]:
    """Operation weights [E, O] of each kind of cell under which the supernet computes the cells of a genotype: 1 for
    each operation, whatever their number, 0 elsewhere.

    Raises:
        UserError: the genotype has other cells, nodes or candidates than the space.
    """
    weights = zero_weights(space)
    edges = {edge: index for index, edge in enumerate(space.edges)}
    for kind in genotype.kinds:
        for node, pairs in enumerate(genotype.pairs(kind), start=space.inputs):
            for name, source in pairs:
                if kind not in weights or (source, node) not in edges or name not in space.candidates:
                    raise UserError(f"{name!r} from node {source} to {node} of a {kind} cell is not in {space.name!r}.")
                weights[kind][edges[source, node], space.candidates.index(name)] += 1
    return weights


class Encoding(ABC):
    """The codes of one space.

    Attributes:
        space: the space that is encoded.
        sizes: the number of values of each gene, which count from 0.
        nodes: the genes of each node, which crossover copies as a whole.
        cells: the genes of each kind of cell.
    """

    space: CellSpace
    sizes: tuple[int, ...]
    nodes: tuple[slice, ...]
    cells: tuple[slice, ...]

    @abstractmethod
    def legal(self, prefix: Sequence[int]) -> Sequence[int]:
        """The values that gene `len(prefix)` may have after these genes."""

    @abstractmethod
    def alternatives(self, code: Code, gene: int) -> Sequence[int]:
        """The other values that one gene can take while the rest of the code stays as it is and legal."""

    @abstractmethod
    def mutate(self, code: Code, rng: Random) -> Code:
        """One random change: another candidate, or another source (Real et al. 2019, section "Methods")."""

    @abstractmethod
    def canonical(self, code: Code) -> Code:
        """One and the same code for all codes of an architecture."""

    @abstractmethod
    def decode(self, code: Code) -> AnyGenotype:
        """The genotype of a legal code."""

    @abstractmethod
    def encode(self, genotype: AnyGenotype) -> Code:
        """A code of a genotype."""

    @abstractmethod
    def operations(self, code: Code) -> Iterator[tuple[str, int, int]]:
        """(kind of cell, edge, column of the candidate) of every operation of a code."""

    def op_weights(self, code: Code) -> dict[str, Tensor]:
        """One-hot operation weights [E, O] of each kind of cell; zeros on edges that the architecture lacks."""
        weights = zero_weights(self.space)
        for kind, edge, column in self.operations(code):
            weights[kind][edge, column] = 1
        return weights

    def sample(self, rng: Random) -> Code:
        """A random architecture, every gene uniform among its legal values."""
        code: list[int] = []
        for _ in self.sizes:
            code.append(rng.choice(self.legal(code)))
        return tuple(code)

    def repair(self, code: Sequence[int], rng: Random) -> Code:
        """The code with each illegal gene drawn anew, from the first to the last."""
        repaired: list[int] = []
        for value in code:
            legal = self.legal(repaired)
            repaired.append(value if value in legal else rng.choice(legal))
        return tuple(repaired)


class CellEncoding(Encoding):
    """Two distinct sources and two candidates for every node: (source, source, candidate, candidate).

    "none" cannot be chosen. A space of two kinds of cells with 4 nodes has 32 genes.
    """

    def __init__(self, space: CellSpace) -> None:
        self.space = space
        self.candidates = tuple(name for name in space.candidates if name != "none")
        self._columns = [space.candidates.index(name) for name in self.candidates]
        nodes = range(2, space.nodes + 2)
        self._sources = [node for _ in space.kinds for node in nodes]  # number of sources of each node
        self.sizes = tuple(
            size for count in self._sources for size in (count, count, len(self.candidates), len(self.candidates))
        )
        self.nodes = tuple(slice(4 * i, 4 * i + 4) for i in range(len(self._sources)))
        width = 4 * space.nodes
        self.cells = tuple(slice(width * i, width * (i + 1)) for i in range(len(space.kinds)))

    def legal(self, prefix: Sequence[int]) -> Sequence[int]:
        gene = len(prefix)
        values = range(self.sizes[gene])
        return [value for value in values if value != prefix[-1]] if gene % 4 == 1 else values

    def alternatives(self, code: Code, gene: int) -> Sequence[int]:
        taken = {code[gene]}
        if gene % 4 < 2:
            taken.add(code[gene + 1 if gene % 4 == 0 else gene - 1])
        return [value for value in range(self.sizes[gene]) if value not in taken]

    def mutate(self, code: Code, rng: Random) -> Code:
        cell = rng.choice(self.cells)
        first = rng.choice((0, 2))  # sources or candidates
        genes = [gene for gene in range(cell.start, cell.stop) if gene % 4 in (first, first + 1)]
        genes = [gene for gene in genes if self.alternatives(code, gene)] or list(range(cell.start + 2, cell.start + 4))
        gene = rng.choice(genes)
        others = self.alternatives(code, gene)
        return (*code[:gene], rng.choice(others), *code[gene + 1 :]) if others else code

    def canonical(self, code: Code) -> Code:
        ordered: list[int] = []
        for node in self.nodes:
            (s0, s1, o0, o1) = code[node]
            ordered += (s0, s1, o0, o1) if s0 < s1 else (s1, s0, o1, o0)
        return tuple(ordered)

    def decode(self, code: Code) -> Genotype:
        return self.space.assemble(tuple(self._pairs(code[cell]) for cell in self.cells))

    def _pairs(self, genes: Sequence[int]) -> tuple[Pair, ...]:
        pairs: list[Pair] = []
        for first in range(0, len(genes), 4):
            s0, s1, o0, o1 = genes[first : first + 4]
            pairs += [(self.candidates[o0], s0), (self.candidates[o1], s1)]
        return tuple(pairs)

    def encode(self, genotype: AnyGenotype) -> Code:
        code: list[int] = []
        for kind in self.space.kinds:
            for (op0, s0), (op1, s1) in genotype.pairs(kind):
                code += [s0, s1, self.candidates.index(op0), self.candidates.index(op1)]
        return tuple(code)

    def operations(self, code: Code) -> Iterator[tuple[str, int, int]]:
        for kind, cell in zip(self.space.kinds, self.cells, strict=True):
            genes = code[cell]
            for node in range(self.space.nodes):
                first = self.space.incoming(node + 2).start
                s0, s1, o0, o1 = genes[4 * node : 4 * node + 4]
                yield kind, first + s0, self._columns[o0]
                yield kind, first + s1, self._columns[o1]


class EdgeEncoding(Encoding):
    """One candidate for every edge of one kind of cell, "none" included."""

    def __init__(self, space: CellSpace) -> None:
        self.space = space
        self.sizes = (len(space.candidates),) * len(space.edges)
        incoming = [space.incoming(node) for node in range(space.inputs, space.inputs + space.nodes)]
        self.nodes = tuple(slice(edges.start, edges.stop) for edges in incoming)
        self.cells = (slice(0, len(space.edges)),)
        self._others = [[o for o in range(self.sizes[0]) if o != own] for own in range(self.sizes[0])]

    def legal(self, prefix: Sequence[int]) -> Sequence[int]:
        return range(self.sizes[len(prefix)])

    def alternatives(self, code: Code, gene: int) -> Sequence[int]:
        return self._others[code[gene]]

    def mutate(self, code: Code, rng: Random) -> Code:
        gene = rng.randrange(len(code))
        return (*code[:gene], rng.choice(self.alternatives(code, gene)), *code[gene + 1 :])

    def canonical(self, code: Code) -> Code:
        return code

    def decode(self, code: Code) -> AnyGenotype:
        return self.space.derive(self.op_weights(code))

    def encode(self, genotype: AnyGenotype) -> Code:
        operations = [name for node in genotype.pairs(self.space.kinds[0]) for name, _ in node]
        return tuple(self.space.candidates.index(name) for name in operations)

    def operations(self, code: Code) -> Iterator[tuple[str, int, int]]:
        for edge, column in enumerate(code):
            yield self.space.kinds[0], edge, column
