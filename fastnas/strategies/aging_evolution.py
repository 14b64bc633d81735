"""Regularised ("aging") evolution (Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI
2019).

The population is a queue: whatever is oldest leaves, however good it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fastnas.option_types import Population, ShareBelowOne
from fastnas.spaces.encoding import Code, Encoding
from fastnas.strategies.discrete import DiscreteStrategy, Individual, individuals_state, load_individuals
from fastnas.strategies.genes import mutate_node
from fastnas.strategies.registry import register_strategy


@register_strategy
@dataclass
class AgingEvolution(DiscreteStrategy):
    """AmoebaNet's evolution. P and S suit small budgets, as in NAS-Bench-201 (Dong, Yang, ICLR 2020); the paper has
    P = 100 and S = 25 for 20,000 models."""

    name: ClassVar[str] = "aging-evolution"
    published_defaults: ClassVar = {
        **DiscreteStrategy.published_defaults,
        "data": {"batch_size": 64, "split": 0.9},
    }

    population: Population = 10
    """P, architectures in the queue."""
    sample_size: Population = 3
    """S, drawn from the queue with replacement; the best of them is the parent."""
    mutation: Literal["amoebanet", "nas-bench-201"] | None = None
    """amoebanet: a cell, then another candidate or another source in it; nas-bench-201: a node, then one of its edges;
    None for nas-bench-201 in spaces whose edges are fixed, such as nb201, and amoebanet in others."""
    identity: ShareBelowOne | None = None
    """Probability that a child is its parent unchanged, which is then evaluated again; None for 0.05 (amoebanet) or 0
    (nas-bench-201)."""

    def begin(self, encoding: Encoding, seed: int) -> None:
        super().begin(encoding, seed)
        self.queue: deque[Individual] = deque()
        kind = self.mutation or ("nas-bench-201" if encoding.space.inputs == 1 else "amoebanet")
        self._by_node = kind == "nas-bench-201"
        self._identity = (0.0 if self._by_node else 0.05) if self.identity is None else self.identity

    def ask(self) -> list[Code]:
        if len(self.queue) < self.population:
            return [self.encoding.sample(self.random)]
        drawn = [self.queue[self.random.randrange(len(self.queue))] for _ in range(self.sample_size)]
        parent = max(drawn, key=lambda individual: individual.accuracy).code
        if self._identity and self.random.random() < self._identity:
            return [parent]
        if self._by_node:
            return [mutate_node(parent, self.encoding, self.random)]
        return [self.encoding.mutate(parent, self.random)]

    def tell(self, individuals: Sequence[Individual]) -> None:
        for individual in individuals:
            self.queue.append(individual)
            if len(self.queue) > self.population:
                self.queue.popleft()

    def own_state(self) -> dict[str, Any]:
        return {"queue": individuals_state(list(self.queue))}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.queue = deque(load_individuals(state["queue"]))
