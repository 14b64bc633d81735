"""Evaluators: how good is this architecture, and what did it cost to know?

`shared` (weights of a supernet), `training[:EPOCHS]` (each from scratch), `python:MODULE:FUNCTION`, `nb201:PATH` (a
table).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.evaluators import function
from fastnas.evaluators.base import Evaluation, Evaluator
from fastnas.evaluators.costs import Costs
from fastnas.evaluators.function import Function
from fastnas.evaluators.nb201 import NB201
from fastnas.evaluators.shared import RECALIBRATION_BATCHES, SharedWeights
from fastnas.evaluators.training import ShortTraining
from fastnas.nn.derived import DerivedNetwork
from fastnas.nn.nb201 import NB201Network
from fastnas.spaces.encoding import encoding_of
from fastnas.spaces.nb201 import NB201Genotype

if TYPE_CHECKING:
    from fastnas.engine.search import Search
    from fastnas.strategies.discrete import DiscreteStrategy

__all__ = [
    "NB201", "Costs", "Evaluation", "Evaluator", "Function", "SharedWeights", "ShortTraining", "derived_network",
    "for_search",
]  # fmt: skip


def derived_network(genotype: Any, **options: Any) -> nn.Module:
    """The network of a genotype of any space, without an auxiliary head."""
    if isinstance(genotype, NB201Genotype):
        options.pop("stem", None)
        return NB201Network(genotype, **options)
    return DerivedNetwork(genotype, auxiliary=False, **options)


def for_search(search: Search, strategy: DiscreteStrategy, costs: Sequence[str] = ()) -> Evaluator:
    """The evaluator that a strategy asks for inside a search.

    Raises:
        UserError: an unknown evaluator, or too few images for the batches.
    """
    network, source = search.network, search.weight_pipeline.source

    def build(genotype: Any) -> nn.Module:
        return derived_network(
            genotype,
            channels=network.channels,
            layers=network.layers,
            num_classes=network.num_classes,
            in_channels=source.channels,
            **({"stem": network.stem_name} if network.stem_name != "cifar" else {}),
        )

    encoding = encoding_of(network.space)
    size = (source.channels, *source.image_size)
    measured = Costs(costs, encoding, build, size, search.device) if costs else None
    kind, _, detail = strategy.evaluator.partition(":")
    if kind == "shared" and not detail:
        return _shared(search, strategy, measured)
    if kind == "training":
        if detail and not detail.isdecimal():
            raise UserError(f"evaluator {strategy.evaluator!r}: expected training, or training:EPOCHS.")
        epochs, seed = int(detail or 1), search.seed
        return ShortTraining(
            encoding, build, search.weight_pipeline, search.valid_pipeline, epochs, seed=seed, costs=measured
        )
    if kind == "python":
        return Function(function.load(detail), encoding)
    if kind == "nb201":
        table = NB201(detail)
        if network.space.name != "nb201":
            raise UserError(
                f"the table holds cells of the space nb201, not of {network.space.name}: give --space nb201."
            )
        return table
    raise UserError(
        f"unknown evaluator {strategy.evaluator!r}: expected shared, training[:EPOCHS], python:MODULE:FUNCTION or "
        "nb201:PATH."
    )


def _shared(search: Search, strategy: DiscreteStrategy, costs: Costs | None) -> SharedWeights:
    pipeline = search.alpha_pipeline(strategy.fitness_batch_size)
    if strategy.fitness_batches > len(pipeline):
        raise UserError(
            f"fitness_batches is {strategy.fitness_batches}, but the α images fill {len(pipeline)} batches of "
            f"{strategy.fitness_batch_size}: lower fitness_batches or fitness_batch_size."
        )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return (pipeline.batch(search.epoch, index) for index in range(strategy.fitness_batches))

    def training_batches() -> Iterator[tuple[Tensor, Tensor]]:
        count = min(RECALIBRATION_BATCHES, len(search.weight_pipeline))
        return (search.weight_pipeline.batch(search.epoch, index) for index in range(count))

    return SharedWeights(search.network, batches, strategy.bn_mode, training_batches, costs)
