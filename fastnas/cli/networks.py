"""The network of a run, made from its options: with random weights, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fastnas.cli.configuration import SearchOptions, TrainOptions
from fastnas.data import Source
from fastnas.data.memory import free_memory
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn import DerivedNetwork, Supernet
from fastnas.nn.derived import AUXILIARY_SIDES


def build_supernet(options: SearchOptions, source: Source) -> Supernet:
    """The supernet of a search. UserError if space and sizes do not fit together, or exceed the memory."""
    wanted = options.network
    build = partial(
        Supernet,
        wanted.space or options.strategy.default_space,
        channels=wanted.channels,
        layers=wanted.layers,
        num_classes=len(source.classes),
        in_channels=source.channels,
        partial_channels=wanted.partial_channels,
        backend=wanted.backend,
        stem=wanted.stem,
        precision=options.weights.precision,
    )
    _check_memory(build)
    return build()


def build_derived(options: TrainOptions, genotype: Genotype, source: Source) -> DerivedNetwork:
    """The network of a genotype. UserError if images do not fit its auxiliary head, or it exceeds the memory."""
    wanted, sides = options.network, AUXILIARY_SIDES[options.network.stem]
    fits = all(side in sides for side in source.image_size)
    build = partial(
        DerivedNetwork,
        genotype,
        channels=wanted.channels,
        layers=wanted.layers,
        num_classes=len(source.classes),
        in_channels=source.channels,
        auxiliary=fits if wanted.auxiliary is None else wanted.auxiliary,
        auxiliary_norm=wanted.auxiliary_norm,
        stem=wanted.stem,
        drop_path_by_depth=options.recipe.drop_path_schedule == "scheduled",
        backend="reference" if options.recipe.compile else wanted.backend,
    )
    _check_memory(build)
    network = build()
    if network.auxiliary_head is not None and not fits:
        raise UserError(
            f"--auxiliary needs images of {sides[0]} to {sides[-1]} pixels a side with the {wanted.stem} stem, got "
            f"{source.image_size[0]}×{source.image_size[1]}: use --auxiliary False, or give --image-size."
        )
    return network


def _check_memory(build: Callable[[], nn.Module]) -> None:
    """UserError for weights that do not fit: a system that runs out of memory ends programs without a word."""
    with torch.device("meta"):
        count = sum(each.numel() for each in build().parameters())
    taken, free = 4 * count, free_memory(torch.device("cpu"))
    if taken > free:
        raise UserError(
            f"the network has {count:,} parameters, which take {taken / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are "
            "free: give fewer channels (--channels) or layers (--layers)."
        )
