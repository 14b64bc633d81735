"""Scoring architectures within a search: the evaluator that a strategy's options ask for, on the search's images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from fastnas.data import Pipeline
from fastnas.errors import UserError
from fastnas.evaluators import (
    NB201,
    Costs,
    Evaluator,
    Function,
    SharedWeights,
    ShortTraining,
    derived_network,
    function,
)
from fastnas.evaluators.shared import RECALIBRATION_BATCHES
from fastnas.nn.batch_norm import check_one_image
from fastnas.spaces.encoding import encoding_of
from fastnas.strategies.context import SearchContext


class FitnessBatches(Protocol):
    """A strategy's options that say how many images architectures are scored on."""

    @property
    def fitness_batch_size(self) -> int: ...

    @property
    def fitness_batches(self) -> int: ...


@dataclass
class FitnessSize:
    """How many images architectures are scored on."""

    fitness_batch_size: int
    fitness_batches: int


class ScoringOptions(Protocol):
    """A strategy's options that say how architectures are scored. `DiscreteStrategy` documents them."""

    evaluator: str
    bn_mode: Literal["batch", "running", "recalibrate"]
    fitness_batch_size: int | None
    fitness_batches: int | None
    default_fitness_batch_size: ClassVar[int]
    default_fitness_batches: ClassVar[int]


def fitness_size(search: SearchContext, options: ScoringOptions) -> FitnessSize:
    """What a strategy asks for; where it leaves that open, its defaults, or as many images as there are."""
    images = len(search.valid_pipeline.indices)
    size = options.fitness_batch_size or min(options.default_fitness_batch_size, images)
    return FitnessSize(size, options.fitness_batches or max(1, min(options.default_fitness_batches, images // size)))


def for_search(
    search: SearchContext,
    options: ScoringOptions,
    costs: Sequence[str] = (),
    draw: Callable[[], int] | None = None,
) -> Evaluator:
    """The evaluator that a strategy asks for.

    Args:
        options: of the strategy.
        costs: what to measure of an architecture besides its accuracy, see `evaluators.Costs`.
        draw: how many calls of the evaluator came before, where each scores on new images by shared weights: batch
            after batch through the α half, shuffled anew each time. None for the same images in all of an epoch.

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
    kind, _, detail = options.evaluator.partition(":")
    if kind == "shared" and not detail:
        return _shared(search, options, measured, draw)
    if kind == "training":
        if detail and not detail.isdecimal():
            raise UserError(f"evaluator {options.evaluator!r}: expected training, or training:EPOCHS.")
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
        f"unknown evaluator {options.evaluator!r}: expected shared, training[:EPOCHS], python:MODULE:FUNCTION or "
        "nb201:PATH."
    )


def scored_on(search: SearchContext, options: Any) -> str:
    """Who judges architectures within a search and on what, in words."""
    kind, _, detail = options.evaluator.partition(":")
    if kind == "shared":
        size = fitness_size(search, options)
        count = min(size.fitness_batch_size * size.fitness_batches, len(search.valid_pipeline.indices))
        each = {"same": "", "generation": " for each generation", "architecture": " for each architecture"}
        return f"shared weights, {count:,} images of the validation half{each[options.fitness_images]}"
    if kind == "training":
        epochs = int(detail or 1)
        return f"{epochs} epoch{'' if epochs == 1 else 's'} of training each, validation half"
    return "the table of NAS-Bench-201" if kind == "nb201" else options.evaluator


def fitness_pipeline(search: SearchContext, options: FitnessBatches, bn_mode: str) -> Pipeline:
    """The images of the α half that architectures are scored on.

    Args:
        bn_mode: how they are normalised; by the statistics of their batch, unless it is "running" or "recalibrate".

    Raises:
        UserError: too few images for the batches.
    """
    wanted = options.fitness_batch_size
    try:
        pipeline = search.alpha_pipeline(wanted)
    except UserError as error:
        raise UserError(f"fitness_batch_size is {wanted}, but {error}: lower --fitness-batch-size.") from error
    if options.fitness_batches > len(pipeline):
        raise UserError(
            f"fitness_batches is {options.fitness_batches}, but the α images fill {len(pipeline)} batches of {wanted}: "
            "lower --fitness-batches or --fitness-batch-size."
        )
    if wanted == 1 and bn_mode not in ("running", "recalibrate"):
        source = search.weight_pipeline.source
        check_one_image(search.network, (source.channels, *source.image_size), "give --fitness-batch-size 2 or more")
    return pipeline


def on_all_images(search: SearchContext, options: ScoringOptions) -> SharedWeights:
    """The evaluator by shared weights on the whole validation half, without augmentation. It may be stopped between two
    batches."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(search.valid_pipeline.epoch(0)):
            search.check_stop()
            yield batch
            search.show("finalists", step + 1, len(search.valid_pipeline))

    return SharedWeights(search.network, batches, options.bn_mode, _training_batches(search))


def _shared(
    search: SearchContext, options: ScoringOptions, costs: Costs | None, draw: Callable[[], int] | None
) -> SharedWeights:
    size = fitness_size(search, options)
    pipeline = fitness_pipeline(search, size, options.bn_mode)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        if draw is None:
            return (pipeline.batch(search.epoch, index) for index in range(size.fitness_batches))
        first = draw() * size.fitness_batches
        places = (divmod(first + index, len(pipeline)) for index in range(size.fitness_batches))
        return (pipeline.batch(times, index) for times, index in places)

    return SharedWeights(search.network, batches, options.bn_mode, _training_batches(search), costs)


def _training_batches(search: SearchContext) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """What "recalibrate" takes statistics from."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        count = min(RECALIBRATION_BATCHES, len(search.weight_pipeline))
        return (search.weight_pipeline.batch(search.epoch, index) for index in range(count))

    return batches
