"""The network of a run, made from its options: with random weights, on the CPU."""

from __future__ import annotations

from fastnas.cli.configuration import SearchOptions, TrainOptions
from fastnas.data import Source
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn import DerivedNetwork, Supernet
from fastnas.nn.derived import AUXILIARY_SIDES


def build_supernet(options: SearchOptions, source: Source) -> Supernet:
    """The supernet of a search. UserError if space and sizes do not fit together."""
    wanted = options.network
    return Supernet(
        wanted.space or options.strategy.default_space,
        channels=wanted.channels,
        layers=wanted.layers,
        num_classes=len(source.classes),
        in_channels=source.channels,
        partial_channels=wanted.partial_channels,
        backend=wanted.backend,
        stem=wanted.stem,
    )


def build_derived(options: TrainOptions, genotype: Genotype, source: Source) -> DerivedNetwork:
    """The network of a genotype. UserError if the images do not fit its auxiliary head."""
    wanted, sides = options.network, AUXILIARY_SIDES[options.network.stem]
    fits = all(side in sides for side in source.image_size)
    network = DerivedNetwork(
        genotype,
        channels=wanted.channels,
        layers=wanted.layers,
        num_classes=len(source.classes),
        in_channels=source.channels,
        auxiliary=fits if wanted.auxiliary is None else wanted.auxiliary,
        stem=wanted.stem,
        drop_path_by_depth=options.recipe.drop_path_schedule == "scheduled",
        backend="reference" if options.recipe.compile else wanted.backend,
    )
    if network.auxiliary_head is not None and not fits:
        raise UserError(
            f"--auxiliary needs images of {sides[0]} to {sides[-1]} pixels a side with the {wanted.stem} stem, got "
            f"{source.image_size[0]}×{source.image_size[1]}: use --auxiliary False, or give --image-size."
        )
    return network
