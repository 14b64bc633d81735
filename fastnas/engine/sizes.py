"""How large the networks of a search are: the supernet, and those that its cell makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastnas.counting import count_macs, count_parameters
from fastnas.errors import UserError
from fastnas.evaluators import derived_network
from fastnas.genotype import AnyGenotype
from fastnas.nn import Supernet
from fastnas.nn.primitives import make_primitive
from fastnas.spaces.nb201 import NB201Genotype

TRAINED = {"cifar": (36, 20), "imagenet": (48, 14)}  # channels and cells of the papers' networks, by stem
TRAINED_NB201 = (16, 15)


def supernet_macs(network: Supernet, input_size: Sequence[int]) -> int | None:
    """Multiply-adds of one image (C, H, W) through all candidates; None where they cannot be counted."""
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights must not move the search's generator
            return count_macs(network.rebuilt(backend="reference"), input_size)
    except (RuntimeError, NotImplementedError):  # candidates of a user's own need not run without data
        return None


def operation_parameters(network: Supernet) -> dict[str, list[list[int]]]:
    """What each candidate on each edge costs in the derived network of the supernet's channels and layers: parameters,
    [E][O] for each kind of cell, summed over all cells of the kind. The rest of that network is the same for all cells.
    """
    space = network.space
    counts = {kind: [[0] * len(space.candidates) for _ in space.edges] for kind in space.kinds}
    known: dict[tuple[str, int, int], int] = {}
    with torch.random.fork_rng(devices=[]):  # initial weights must not move the search's generator
        for cell in network.cells:
            kind: Any = cell.kind
            for edge, mixed in enumerate(getattr(cell, "edges", ())):
                channels = mixed.processed * mixed.partial_channels
                for column, name in enumerate(space.candidates):
                    key = name, channels, mixed.stride
                    if key not in known:
                        known[key] = count_parameters(make_primitive(*key, norm=torch.nn.BatchNorm2d))
                    counts[kind][edge][column] += known[key]
    return counts


def derived_sizes(network: Supernet, genotype: AnyGenotype, input_size: Sequence[int]) -> list[dict[str, Any]]:
    """Channels, layers, parameters and macs of the genotype's network, first of the supernet's size, then of the size
    that papers train, each without an auxiliary head. Sizes that cannot be counted are left out.

    Args:
        network: the supernet.
        genotype: from its space.
        input_size: (C, H, W) of an image.
    """
    stem = network.stem_name
    trained = TRAINED_NB201 if isinstance(genotype, NB201Genotype) else TRAINED.get(stem, TRAINED["cifar"])
    sizes = []
    for channels, layers in dict.fromkeys([(network.channels, network.layers), trained]):
        try:
            with torch.random.fork_rng(devices=[]):
                derived = derived_network(
                    genotype,
                    channels=channels,
                    layers=layers,
                    num_classes=network.num_classes,
                    in_channels=input_size[0],
                    stem=stem,
                )
            macs = count_macs(derived, input_size)
        except (UserError, RuntimeError, NotImplementedError):
            continue
        sizes.append({"channels": channels, "layers": layers, "parameters": count_parameters(derived), "macs": macs})
    return sizes
