"""Particle swarm optimisation (Kennedy, Eberhart, ICNN 1995; constants of Clerc, Kennedy, IEEE TEC 2002), as EPCNAS
searches with it (Huang et al., "Particle Swarm Optimization for Compact Neural Architecture Search", IEEE TEVC 2023),
adapted to cells: a particle is a table of logits for every kind of cell, from which its architecture is derived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from fastnas.option_types import NotNegative, Population
from fastnas.spaces.encoding import Code, Encoding
from fastnas.strategies.discrete import DiscreteStrategy, Individual
from fastnas.strategies.registry import register_strategy

LIMIT = 3.0  # of a logit


@register_strategy
@dataclass
class ParticleSwarm(DiscreteStrategy):
    """v ← w·v + c1·r1·(own best - x) + c2·r2·(swarm's best - x); x ← x + v."""

    name: ClassVar[str] = "particle-swarm"
    published_defaults: ClassVar = {
        **DiscreteStrategy.published_defaults,
        "data": {"batch_size": 64, "split": 0.9},
    }
    default_evaluations: ClassVar[int] = 400  # 20 iterations

    particles: Population = 20
    """Size of the swarm."""
    inertia: NotNegative = 0.7298
    """w, share of its velocity that a particle keeps."""
    cognitive: NotNegative = 1.49618
    """c1, pull towards the best position of the particle itself."""
    social: NotNegative = 1.49618
    """c2, pull towards the best position of all particles."""
    discrete: bool = False
    """Positions are the genes of the code, rounded and repaired, instead of logits."""

    def begin(self, encoding: Encoding, seed: int) -> None:
        super().begin(encoding, seed)
        space = encoding.space
        if self.discrete:
            self.high = np.array(encoding.sizes, dtype=float) - 1  # [n]
            self.low = np.zeros_like(self.high)
        else:
            self.high = np.full(len(space.kinds) * len(space.edges) * len(space.candidates), LIMIT)
            self.low = -self.high
        draws = self._uniform(self.particles)
        self.x = self.low + draws * (self.high - self.low)  # [p, n]
        self.v = np.zeros_like(self.x)
        self.own_best = self.x.copy()
        self.own_accuracy = np.full(self.particles, -1.0)
        self.moved = True  # whether positions wait for their evaluation

    def _uniform(self, rows: int) -> np.ndarray:  # [rows, n]
        return np.random.default_rng(self.random.getrandbits(63)).random((rows, len(self.high)))

    def ask(self) -> list[Code]:
        if not self.moved:
            self._move()
        return [self._decode(position) for position in self.x]

    def _move(self) -> None:
        leader = self.own_best[self.own_accuracy.argmax()]  # [n]
        pull = self.cognitive * self._uniform(self.particles) * (self.own_best - self.x)
        pull += self.social * self._uniform(self.particles) * (leader - self.x)
        self.v = self.inertia * self.v + pull
        x = self.x + self.v
        self.x = x.clip(self.low, self.high)
        self.v[x != self.x] = 0  # a particle that reaches the limit stops there
        self.moved = True

    def _decode(self, position: np.ndarray) -> Code:
        if self.discrete:
            return self.encoding.repair([round(value) for value in position.tolist()], self.random)
        space = self.encoding.space
        shape = (len(space.kinds), len(space.edges), len(space.candidates))
        weights = torch.softmax(torch.from_numpy(position).view(shape), -1)  # [kinds, E, O]
        return self.encoding.encode(space.derive(dict(zip(space.kinds, weights, strict=True))))

    def tell(self, individuals: Sequence[Individual]) -> None:
        accuracy = np.array([individual.accuracy for individual in individuals])
        better = accuracy > self.own_accuracy
        self.own_best[better] = self.x[better]
        self.own_accuracy[better] = accuracy[better]
        self.moved = False

    def own_state(self) -> dict[str, Any]:
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in self._arrays}
        return {**arrays, "moved": self.moved}

    def load_own_state(self, state: dict[str, Any]) -> None:
        for name in self._arrays:
            setattr(self, name, state[name].numpy().copy())
        self.moved = state["moved"]

    _arrays: ClassVar[tuple[str, ...]] = ("x", "v", "own_best", "own_accuracy")
