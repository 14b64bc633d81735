"""Evaluators: how good is this architecture, and what did it cost to know?

`shared` (weights of a supernet), `training[:EPOCHS]` (each from scratch), `python:MODULE:FUNCTION`, `nb201:PATH` (a
table).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fastnas.evaluators.base import Evaluation, Evaluator
from fastnas.evaluators.costs import Costs
from fastnas.evaluators.function import Function
from fastnas.evaluators.nb201 import NB201
from fastnas.evaluators.shared import SharedWeights
from fastnas.evaluators.training import ShortTraining
from fastnas.nn.derived import DerivedNetwork
from fastnas.nn.nb201 import NB201Network
from fastnas.spaces.nb201 import NB201Genotype

__all__ = [
    "NB201", "Costs", "Evaluation", "Evaluator", "Function", "SharedWeights", "ShortTraining", "derived_network",
]  # fmt: skip


def derived_network(genotype: Any, **options: Any) -> nn.Module:
    """The network of a genotype of any space, without an auxiliary head."""
    if isinstance(genotype, NB201Genotype):
        options.pop("stem", None)
        return NB201Network(genotype, **options)
    return DerivedNetwork(genotype, auxiliary=False, **options)
