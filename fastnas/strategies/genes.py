"""Crossover and mutation of codes, for the strategies that keep a population."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal

from fastnas.spaces.encoding import Code, Encoding

Crossover = Literal["uniform_node", "two_point", "cell_swap"]


def cross(first: Code, second: Code, kind: Crossover, encoding: Encoding, random: Random) -> Code:
    """A child of two codes.

    "uniform_node": every node is that of either parent, so the child is always legal. "two_point": the genes between
    two places are the second parent's, then the code is repaired. "cell_swap": every cell is that of either parent.
    """
    if kind == "two_point":
        start, stop = sorted(random.sample(range(len(first) + 1), 2))
        return encoding.repair((*first[:start], *second[start:stop], *first[stop:]), random)
    child: list[int] = []
    for part in encoding.nodes if kind == "uniform_node" else encoding.cells:
        child += random.choice((first, second))[part]
    return tuple(child)


def mutate_genes(code: Code, probability: float, encoding: Encoding, random: Random, *, at_least_one: bool) -> Code:
    """Every gene is drawn anew with this probability, among its other legal values."""
    genes = [gene for gene in range(len(code)) if random.random() < probability]
    if not genes and at_least_one:
        genes = [random.randrange(len(code))]
    for gene in genes:
        if others := encoding.alternatives(code, gene):
            code = (*code[:gene], random.choice(others), *code[gene + 1 :])
    return code


def mutate_node(code: Code, encoding: Encoding, random: Random) -> Code:
    """One random change: a node, then one of its genes that can change, each as likely as the others, then another
    legal value."""
    genes = [
        [gene for gene in range(node.start, node.stop) if encoding.alternatives(code, gene)] for node in encoding.nodes
    ]
    if not (changeable := [node for node in genes if node]):
        return code
    gene = random.choice(random.choice(changeable))
    return (*code[:gene], random.choice(encoding.alternatives(code, gene)), *code[gene + 1 :])


def unlike(draw: Callable[[], Code], seen: set[Code], encoding: Encoding, tries: int = 20) -> Code:
    """What `draw()` gives, drawn again while its architecture is in `seen`; after `tries` draws the last one."""
    code: Code = ()
    for _ in range(tries):
        code = draw()
        if encoding.canonical(code) not in seen:
            break
    return code
