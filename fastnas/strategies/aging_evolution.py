"""Regularised ("aging") evolution (Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI
2019).

The population is a queue: whatever is oldest leaves, however good it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastnas.option_types import Population, ShareBelowOne
from fastnas.spaces.encoding import Code, Encoding
from fastnas.strategies.discrete import DiscreteStrategy, Individual, individuals_state, load_individuals
from fastnas.strategies.registry import register_strategy


@register_strategy
@dataclass
class AgingEvolution(DiscreteStrategy):
    """AmoebaNet's evolution. P and S suit small budgets; the paper has P = 100 and S = 25 for 20,000 models."""

    name: ClassVar[str] = "aging-evolution"

    population: Population = 10
    """P, architectures in the queue."""
    sample_size: Population = 3
    """S, drawn from the queue with replacement; the best of them is the parent."""
    identity: ShareBelowOne = 0.05
    """Probability that a child is its parent unchanged, which is then evaluated again."""

    def begin(self, encoding: Encoding, seed: int) -> None:
        super().begin(encoding, seed)
        self.queue: deque[Individual] = deque()

    def ask(self) -> list[Code]:
        if len(self.queue) < self.population:
            return [self.encoding.sample(self.random)]
        drawn = [self.queue[self.random.randrange(len(self.queue))] for _ in range(self.sample_size)]
        parent = max(drawn, key=lambda individual: individual.accuracy).code
        return [parent if self.random.random() < self.identity else self.encoding.mutate(parent, self.random)]

    def tell(self, individuals: Sequence[Individual]) -> None:
        for individual in individuals:
            self.queue.append(individual)
            if len(self.queue) > self.population:
                self.queue.popleft()

    def own_state(self) -> dict[str, Any]:
        return {"queue": individuals_state(list(self.queue))}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.queue = deque(load_individuals(state["queue"]))
