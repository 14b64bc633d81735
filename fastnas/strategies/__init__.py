"""Search strategies. A new one is a file here with `@register_strategy`, and one import below."""

# ruff: noqa: F401 (importing a strategy registers it)

from __future__ import annotations

from fastnas.strategies.base import Strategy, Work
from fastnas.strategies.discrete import DiscreteStrategy
from fastnas.strategies.registry import STRATEGIES, create, find, parse, register_strategy

# In the order in which they are listed.
# isort: off
from fastnas.strategies.egnas import EGNAS
from fastnas.strategies.darts import DARTS
from fastnas.strategies.pc_darts import PCDARTS
from fastnas.strategies.p_darts import PDARTS
from fastnas.strategies.snas import SNAS
from fastnas.strategies.gdas import GDAS
from fastnas.strategies.darts_plus import DARTSPlus
from fastnas.strategies.multi_level import MultiLevel
from fastnas.strategies.random_search import RandomSearch
from fastnas.strategies.aging_evolution import AgingEvolution
from fastnas.strategies.genetic import Genetic
from fastnas.strategies.nsga2 import NSGA2
from fastnas.strategies.particle_swarm import ParticleSwarm
from fastnas.strategies.reinforce import Reinforce
from fastnas.strategies.nasnet_ppo import NASNetPPO
from fastnas.strategies.enas import ENAS
# isort: on

__all__ = ["STRATEGIES", "DiscreteStrategy", "Strategy", "Work", "create", "find", "parse", "register_strategy"]
