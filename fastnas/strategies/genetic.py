"""A genetic algorithm: selection, crossover, mutation, survival (Eiben, Smith, "Introduction to Evolutionary
Computing", 2015, chapters 3 to 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from fastnas.errors import UserError
from fastnas.option_types import MOST_INDIVIDUALS, CountOrZero, Population, Range, Share
from fastnas.spaces.encoding import Code, Encoding
from fastnas.strategies.discrete import DiscreteStrategy, Individual, individuals_state, load_individuals
from fastnas.strategies.genes import Crossover, cross, mutate_genes, unlike
from fastnas.strategies.registry import register_strategy


@register_strategy
@dataclass
class Genetic(DiscreteStrategy):
    """Tournaments choose parents; children are crossed and mutated; architectures that were evaluated are avoided."""

    name: ClassVar[str] = "genetic"
    default_evaluations: ClassVar[int] = 400  # 20 generations

    population: Annotated[int, Range(2, MOST_INDIVIDUALS)] = 20
    """Architectures in a generation."""
    tournament: Population = 3
    """k, competitors for each parent."""
    elitism: CountOrZero = 1
    """Best architectures that generational survival keeps."""
    crossover: Crossover = "uniform_node"
    """uniform_node: whole nodes of either parent; two_point: with repair; cell_swap: whole cells of either parent."""
    crossover_probability: Share = 0.9
    """Probability that two parents are crossed; otherwise a child is a copy of one, with at least one mutated gene."""
    mutation_probability: Share | None = None
    """Probability that a gene mutates; None for 1 / number of genes."""
    survival: Literal["plus", "generational"] = "plus"
    """plus: the best of parents and children; generational: the children and the elite."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elitism >= self.population:
            raise UserError(f"elitism is {self.elitism}, expected less than the population of {self.population}.")

    def begin(self, encoding: Encoding, seed: int) -> None:
        super().begin(encoding, seed)
        self.parents: list[Individual] = []
        self.seen: set[Code] = set()

    def ask(self) -> list[Code]:
        children: list[Code] = []
        draw = self._child if self.parents else lambda: self.encoding.sample(self.random)
        for _ in range(self.population):
            child = unlike(draw, self.seen, self.encoding)
            self.seen.add(self.encoding.canonical(child))
            children.append(child)
        return children

    def _child(self) -> Code:
        crossed = self.random.random() < self.crossover_probability
        child = self._winner()
        if crossed:
            child = cross(child, self._winner(), self.crossover, self.encoding, self.random)
        probability = 1 / len(child) if self.mutation_probability is None else self.mutation_probability
        return mutate_genes(child, probability, self.encoding, self.random, at_least_one=not crossed)

    def _winner(self) -> Code:
        rivals = [self.random.choice(self.parents) for _ in range(self.tournament)]
        return max(rivals, key=lambda individual: individual.accuracy).code

    def tell(self, individuals: Sequence[Individual]) -> None:
        ranked = sorted(self.parents, key=lambda individual: -individual.accuracy)
        candidates = [*(ranked if self.survival == "plus" else ranked[: self.elitism]), *individuals]
        candidates.sort(key=lambda individual: -individual.accuracy)  # stable: among equals the older ones first
        self.parents = candidates[: self.population]

    def own_state(self) -> dict[str, Any]:
        return {"parents": individuals_state(self.parents), "seen": [list(code) for code in sorted(self.seen)]}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.parents = load_individuals(state["parents"])
        self.seen = {tuple(code) for code in state["seen"]}
