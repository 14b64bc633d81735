"""NSGA-II (Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm", IEEE TEC 2002) as NSGA-Net uses it
(Lu et al., "NSGA-Net: Neural Architecture Search using Multi-Objective Genetic Algorithm", GECCO 2019): error against
cost. Selection and survival are those of the released program of NSGA-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from fastnas.errors import UserError
from fastnas.option_types import MOST_INDIVIDUALS, NotNegative, Range, Share
from fastnas.spaces.encoding import Code, Encoding
from fastnas.strategies.base import Work
from fastnas.strategies.context import SearchContext
from fastnas.strategies.discrete import DiscreteStrategy, Individual, individuals_state, load_individuals
from fastnas.strategies.genes import cross, unlike
from fastnas.strategies.registry import register_strategy


def ranks_and_crowding(objectives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of the non-dominated front of each point, from 0, and its crowding distance within that front.

    Args:
        objectives: [n, m], minimised.

    Returns:
        [n] int64, and [n] float64; the ends of a front are infinitely far away. Distances are means over the
        objectives.
    """
    # Imported here: it takes a second, and only this strategy needs it.
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    ranks = np.zeros(len(objectives), dtype=np.int64)
    crowding = np.zeros(len(objectives))
    for rank, front in enumerate(NonDominatedSorting().do(objectives)):
        ranks[front] = rank
        crowding[front] = calc_crowding_distance(objectives[front]) if len(front) > 2 else np.inf
    return ranks, crowding


def survivors(objectives: np.ndarray, count: int, random: Random) -> list[int]:
    """The `count` points [n, m] that survive: front by front, in the last one the least crowded first, equals in random
    order."""
    ranks, crowding = ranks_and_crowding(objectives)
    ties = np.array(random.sample(range(len(ranks)), len(ranks)))
    return np.lexsort((ties, -crowding, ranks))[:count].tolist()


def winner(a: int, b: int, objectives: np.ndarray, crowding: np.ndarray, random: Random) -> int:
    """Which of two points of `objectives` [n, m] wins a tournament: whoever dominates the other, else whoever is less
    crowded in its front, whichever front that is; equals at random."""
    for one, other in ((a, b), (b, a)):
        if (objectives[one] <= objectives[other]).all() and (objectives[one] < objectives[other]).any():
            return one
    if crowding[a] == crowding[b]:
        return random.choice((a, b))
    return a if crowding[a] > crowding[b] else b


@register_strategy
@dataclass
class NSGA2(DiscreteStrategy):
    """NSGA-II. The whole first front is logged at the end of every epoch; the genotype is its most accurate member, and
    the cheapest of equally accurate ones."""

    name: ClassVar[str] = "nsga2"
    published_defaults: ClassVar = {
        **DiscreteStrategy.published_defaults,
        "data": {"batch_size": 64, "split": 0.8},
    }
    default_evaluations: ClassVar[int] = 1200  # 30 generations
    default_finalists: ClassVar[int] = 0  # the result is a front

    population: Annotated[int, Range(2, MOST_INDIVIDUALS)] = 40
    """Architectures in a generation."""
    cost: Literal["macs", "parameters", "latency"] = "macs"
    """The second objective, of the derived network: MACs or parameters in millions, or latency in ms for one image."""
    mutation_eta: NotNegative = 3.0
    """η of the polynomial mutation: the larger, the smaller the changes."""
    crossover_probability: Share = 0.9
    """Probability of two-point crossover; otherwise a child is a mutated copy of one parent."""

    def costs(self) -> tuple[str, ...]:
        return (self.cost,)

    def begin(self, encoding: Encoding, seed: int) -> None:
        super().begin(encoding, seed)
        self.parents: list[Individual] = []
        self.seen: set[Code] = set()

    def objectives(self, individuals: Sequence[Individual]) -> np.ndarray:
        """[n, 2]: error in %, cost. UserError where the evaluator does not measure the cost."""
        try:
            return np.array([[100 - 100 * i.accuracy, i.evaluation.costs[self.cost]] for i in individuals])
        except KeyError as error:
            raise UserError(
                f"nsga2 minimises {self.cost}, which the evaluator does not give: choose another --cost or evaluator."
            ) from error

    def merit(self, individual: Individual) -> tuple[float, ...]:
        """Accuracy, then the lower cost: what is chosen so is not dominated."""
        error, cost = self.objectives([individual])[0].tolist()
        return -error, -cost

    @property
    def front(self) -> list[Individual]:
        """The population's non-dominated members, cheapest first."""
        if not self.parents:
            return []
        ranks, _ = ranks_and_crowding(self.objectives(self.parents))
        first = [individual for individual, rank in zip(self.parents, ranks, strict=True) if rank == 0]
        return sorted(first, key=lambda individual: individual.evaluation.costs[self.cost])

    def ask(self) -> list[Code]:
        draw = lambda: self.encoding.sample(self.random)  # noqa: E731
        if self.parents:
            objectives = self.objectives(self.parents)
            _, crowding = ranks_and_crowding(objectives)
            draw = lambda: self._child(objectives, crowding)  # noqa: E731
        children: list[Code] = []
        for _ in range(self.population):
            child = unlike(draw, self.seen, self.encoding)
            self.seen.add(self.encoding.canonical(child))
            children.append(child)
        return children

    def _child(self, objectives: np.ndarray, crowding: np.ndarray) -> Code:
        child = self._parent(objectives, crowding)
        if self.random.random() < self.crossover_probability:
            child = cross(child, self._parent(objectives, crowding), "two_point", self.encoding, self.random)
        return self.encoding.repair(self._polynomial(child), self.random)

    def _parent(self, objectives: np.ndarray, crowding: np.ndarray) -> Code:
        """The winner of a tournament of two, drawn with replacement."""
        a, b = (self.random.randrange(len(self.parents)) for _ in range(2))
        return self.parents[winner(a, b, objectives, crowding, self.random)].code

    def _polynomial(self, code: Code) -> Code:
        return tuple(
            polynomial_mutation(value, size, self.mutation_eta, self.random.random())
            if self.random.random() < 1 / len(code)
            else value
            for value, size in zip(code, self.encoding.sizes, strict=True)
        )

    def tell(self, individuals: Sequence[Individual]) -> None:
        everyone = [*self.parents, *individuals]
        kept = survivors(self.objectives(everyone), self.population, self.random)
        self.parents = [everyone[index] for index in kept]

    def work(self, epoch: int, epochs: int) -> Work | None:
        return super().work(epoch, epochs)  # the front is a matter of milliseconds

    def after_epoch(self, search: SearchContext) -> None:
        super().after_epoch(search)
        if self.parents:
            front = [
                {"accuracy": i.accuracy, self.cost: i.evaluation.costs[self.cost],
                 "genotype": self.encoding.decode(i.code).to_dict()}
                for i in self.front
            ]  # fmt: skip
            search.log.write("front", after_epoch=search.epoch, members=front)

    def own_state(self) -> dict[str, Any]:
        return {"parents": individuals_state(self.parents), "seen": [list(code) for code in sorted(self.seen)]}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.parents = load_individuals(state["parents"])
        self.seen = {tuple(code) for code in state["seen"]}


def polynomial_mutation(value: int, size: int, eta: float, u: float) -> int:
    """A gene of `size` values moved by Deb's polynomial mutation, rounded and clamped; u is uniform in [0, 1)."""
    power = 1 / (eta + 1)
    delta = (2 * u) ** power - 1 if u < 0.5 else 1 - (2 * (1 - u)) ** power
    return min(max(round(value + delta * (size - 1)), 0), size - 1)
