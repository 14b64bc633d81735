"""Search strategies. A new one is one file and one entry here."""

from __future__ import annotations

import difflib
from typing import Any

from fastnas.errors import UserError
from fastnas.strategies.aging_evolution import AgingEvolution
from fastnas.strategies.base import Strategy
from fastnas.strategies.discrete import DiscreteStrategy
from fastnas.strategies.egnas import EGNAS
from fastnas.strategies.enas import ENAS
from fastnas.strategies.genetic import Genetic
from fastnas.strategies.nasnet_ppo import NASNetPPO
from fastnas.strategies.nsga2 import NSGA2
from fastnas.strategies.particle_swarm import ParticleSwarm
from fastnas.strategies.random_search import RandomSearch
from fastnas.strategies.reinforce import Reinforce

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        EGNAS, RandomSearch, AgingEvolution, Genetic, NSGA2, ParticleSwarm, Reinforce, NASNetPPO, ENAS,
    )
}

__all__ = ["STRATEGIES", "DiscreteStrategy", "Strategy", "create", "find"]


def find(name: str) -> type[Strategy]:
    """The class of a strategy. UserError for an unknown name."""
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(STRATEGIES)}."
        raise UserError(f"unknown strategy {name!r}: {advice}")
    return STRATEGIES[name]


def create(name: str, **options: Any) -> Strategy:
    """A strategy by name, with its hyper-parameters as keywords. UserError for an unknown name."""
    return find(name)(**options)
