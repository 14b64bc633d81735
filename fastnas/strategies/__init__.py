"""Search strategies. A new one is one file and one entry here."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import yaml

from fastnas.errors import UserError
from fastnas.strategies.aging_evolution import AgingEvolution
from fastnas.strategies.base import Strategy
from fastnas.strategies.darts import DARTS
from fastnas.strategies.darts_plus import DARTSPlus
from fastnas.strategies.discrete import DiscreteStrategy
from fastnas.strategies.egnas import EGNAS
from fastnas.strategies.enas import ENAS
from fastnas.strategies.gdas import GDAS
from fastnas.strategies.genetic import Genetic
from fastnas.strategies.multi_level import MultiLevel
from fastnas.strategies.nasnet_ppo import NASNetPPO
from fastnas.strategies.nsga2 import NSGA2
from fastnas.strategies.p_darts import PDARTS
from fastnas.strategies.particle_swarm import ParticleSwarm
from fastnas.strategies.pc_darts import PCDARTS
from fastnas.strategies.random_search import RandomSearch
from fastnas.strategies.reinforce import Reinforce
from fastnas.strategies.snas import SNAS

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        EGNAS,
        DARTS,
        PCDARTS,
        PDARTS,
        SNAS,
        GDAS,
        DARTSPlus,
        MultiLevel,
        RandomSearch,
        AgingEvolution,
        Genetic,
        NSGA2,
        ParticleSwarm,
        Reinforce,
        NASNetPPO,
        ENAS,
    )
}

__all__ = ["STRATEGIES", "DiscreteStrategy", "Strategy", "create", "find", "parse"]


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


def parse(text: str) -> Strategy:
    """A strategy as one word: NAME, or NAME:OPTION=VALUE,OPTION=VALUE.

    Raises:
        UserError: an unknown name or option, or something that is no option.
    """
    name, _, rest = text.partition(":")
    known = [field.name for field in dataclasses.fields(find(name)) if field.init]  # type: ignore[arg-type]
    options = {}
    for word in filter(None, rest.split(",")):
        option, equals, value = word.partition("=")
        option = option.strip().replace("-", "_")
        if not equals or option not in known:
            raise UserError(f"{word!r} is no option of {name}: expected OPTION=VALUE with one of {', '.join(known)}.")
        options[option] = yaml.safe_load(value)
    return create(name, **options)
