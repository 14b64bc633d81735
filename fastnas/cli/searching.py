"""From the options of a search to one that can run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastnas.cli.configuration import SearchOptions
from fastnas.cli.estimate import Parts
from fastnas.cli.images import open_alpha_source, open_pipeline, open_search_source
from fastnas.cli.networks import build_supernet
from fastnas.cli.places import with_absolute_places
from fastnas.cli.process import seed_everything
from fastnas.cli.run import Arguments, describe_images, fitted_epochs, record_start, resume_from, set_up_process
from fastnas.cli.run_directory import new_directory, refuse_taken
from fastnas.counting import count_parameters
from fastnas.data import Augmentation, Pipeline, Source
from fastnas.data.folder import FolderSource
from fastnas.engine.initial_weights import load_initial_weights
from fastnas.engine.rehearsal import SearchRehearsal
from fastnas.engine.search import Search
from fastnas.engine.sizes import supernet_macs
from fastnas.nn import Supernet
from fastnas.nn.batch_norm import check_one_image
from fastnas.world import ALONE, World

PROGRAM = "fastnas.search"


@dataclass(frozen=True)
class SearchParts(Parts):
    """What a search is made of: its images and its network, which is as the run begins with it."""

    options: SearchOptions
    checkpoint: dict[str, Any] | None
    world: World
    device: torch.device
    augmentation: Augmentation
    network: Supernet
    betas: Mapping[str, Tensor]
    weight_pipeline: Pipeline
    alpha_pipeline: Callable[[int], Pipeline]
    valid_pipeline: Pipeline
    augmented_pipeline: Pipeline | None
    budget: str | None

    @property
    def epochs(self) -> int:
        return self.options.weights.epochs

    @property
    def steps(self) -> int:
        return len(self.weight_pipeline)

    def check_epochs(self, epochs: int) -> None:
        self.options.strategy.check_epochs(epochs)

    def with_epochs(self, epochs: int) -> SearchParts:
        weights = dataclasses.replace(self.options.weights, epochs=epochs)
        run = dataclasses.replace(self.options.run, budget=None)
        return dataclasses.replace(self, options=dataclasses.replace(self.options, weights=weights, run=run))

    def rehearsal(self) -> SearchRehearsal:
        return SearchRehearsal(**self.arguments(Path()))

    def arguments(self, directory: Path) -> dict[str, Any]:
        """Of a `Search` in `directory`."""
        options = self.options
        return {
            "network": self.network,
            "strategy": options.strategy,
            "weights": options.weights,
            "weight_pipeline": self.weight_pipeline,
            "alpha_pipeline": self.alpha_pipeline,
            "valid_pipeline": self.valid_pipeline,
            "augmented_pipeline": self.augmented_pipeline,
            "directory": directory,
            "seed": options.run.seed,
            "options": options.to_dict(),
            "validate_every": options.run.validate_every,
            "evidence": options.run.evidence,
            "stop_after": options.run.stop_after,
            "cuda_graphs": options.run.cuda_graphs,
            "check_images": options.data.check_images,
            "world": self.world,
        }


def search_parts(options: SearchOptions, world: World = ALONE) -> SearchParts:
    """Opens the images and builds the network, and writes nothing. world: the processes of the run.

    Raises:
        UserError: data, options or the run to resume cannot be used.
    """
    resume = options.command.resume
    options = with_absolute_places(options, resume)
    checkpoint = resume_from(resume, options, Search, world) if resume else None
    device = set_up_process(options.run, world)

    source = open_search_source(options.data)
    alpha_source = open_alpha_source(options.data, source)
    if alpha_source is None:
        weight_half, alpha_half = source.search_split(options.data.split)
    else:
        weight_half, alpha_half = np.arange(len(source)), np.arange(len(alpha_source))
    of_alpha = alpha_source or source
    augmentation = options.data.augmentation(source.augmentation)

    def pipeline(
        source: Source, indices: np.ndarray, batch_size: int, train: bool, seed: int, augment: bool | None = None
    ) -> Pipeline:
        # In the order of their source, images of folders come class by class, and so would batches.
        how: dict[str, Any] = {"batch_size": batch_size, "train": train, "seed": seed}
        return open_pipeline(source, options.data, device, augmentation, indices, **how, shuffle=True, augment=augment)

    seed, batch_size = options.run.seed, options.data.batch_size
    weight_pipeline = pipeline(source, weight_half, batch_size, True, 2 * seed)
    valid_size = min(batch_size, len(alpha_half))
    valid_pipeline, augmented = pipeline(of_alpha, alpha_half, valid_size, False, 0), None
    wanted = options.data.validation_augment
    if options.strategy.validates_augmented if wanted is None else wanted:
        augmented = pipeline(of_alpha, alpha_half, valid_size, False, 2 * seed + 1, augment=True)

    seed_everything(seed)
    network = build_supernet(options, source)
    if batch_size == 1:
        check_one_image(network, (source.channels, *source.image_size), "give --batch-size 2 or more, or larger images")
    begin_with = options.network.initial_weights if checkpoint is None else None
    betas = {} if begin_with is None else load_initial_weights(network, begin_with)
    network.to(device).to(memory_format=torch.channels_last)
    return SearchParts(
        options=options,
        checkpoint=checkpoint,
        world=world,
        device=device,
        augmentation=augmentation,
        network=network,
        betas=betas,
        weight_pipeline=weight_pipeline,
        alpha_pipeline=functools.cache(
            lambda batch_size: pipeline(of_alpha, alpha_half, batch_size, True, 2 * seed + 1)
        ),
        valid_pipeline=valid_pipeline,
        augmented_pipeline=augmented,
        budget=options.run.budget,
    )


def begin(parts: SearchParts, arguments: Arguments, directory: Path) -> Search:
    """A search that can run, and what is recorded at its start.

    Args:
        parts: of the search.
        arguments: as they were given, for the record.
        directory: of the run; exists.

    Raises:
        UserError: the strategy cannot search in this way, or the checkpoint does not fit. Nothing of an existing run
            has been changed then.
    """
    options, network, source = parts.options, parts.network, parts.weight_pipeline.source
    of_alpha = parts.valid_pipeline.source
    search = Search(**parts.arguments(directory), checkpoint=parts.checkpoint)
    if parts.betas:
        options.strategy.load_betas(search, parts.betas)
    record_start(
        search,
        options,
        PROGRAM,
        arguments,
        device=parts.device,
        network={
            "parameters": count_parameters(network),
            "macs": supernet_macs(network, (source.channels, *source.image_size)),
            "candidates": list(network.space.candidates),
            "nodes": network.space.nodes,
            "space": network.space.name,
            "backend": network.backend,
        },
        data={
            **describe_images(parts.weight_pipeline),
            "weight_images": len(parts.weight_pipeline.indices),
            "alpha_images": len(parts.valid_pipeline.indices),
            "alpha_folder": _own_folder(parts),
            "left_out": [*source.left_out, *([] if _own_folder(parts) is None else of_alpha.left_out)],
            "test_images": source.kept_for_test,
            "test_share": source.test_share,
            "validation_augment": parts.augmented_pipeline is not None,
            "augmentation": dataclasses.asdict(parts.augmentation),
        },
        origins=fitted_epochs("weights", parts.budget),
    )
    return search


def _own_folder(parts: SearchParts) -> str | None:
    """The name of the folder that holds the images for α; None where they are a part of those of the weights."""
    source = parts.valid_pipeline.source
    return source.base.name if source.split == "val" and isinstance(source, FolderSource) else None


def prepare(options: SearchOptions, arguments: Arguments = (), directory: Path | None = None) -> Search:
    """`begin` with the parts that follow from options.

    Args:
        options: of the search, without a budget.
        arguments: as they were given, for the record.
        directory: of the run, which exists; None for what the options say.

    Raises:
        UserError: data, options or run directory cannot be used. Nothing of an existing run has been changed then.
    """
    parts, resume = search_parts(options), options.command.resume
    if directory is None:
        directory = resume or new_directory(options.run.out, options.strategy.name, options.data.data)[0]
        if not resume:
            refuse_taken(directory)
    return begin(parts, arguments, directory)
