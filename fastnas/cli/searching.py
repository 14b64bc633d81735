"""From the options of a search to one that can run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastnas.cli.configuration import SearchOptions
from fastnas.cli.images import open_pipeline, open_search_source
from fastnas.cli.networks import build_supernet
from fastnas.cli.places import with_absolute_places
from fastnas.cli.process import seed_everything
from fastnas.cli.run import Arguments, describe_images, record_start, resume_from, set_up_process
from fastnas.cli.run_directory import new_directory, refuse_taken
from fastnas.counting import count_parameters
from fastnas.data import Pipeline
from fastnas.engine.initial_weights import load_initial_weights
from fastnas.engine.search import Search
from fastnas.engine.sizes import supernet_macs
from fastnas.nn.batch_norm import check_one_image

PROGRAM = "fastnas.search"


def prepare(options: SearchOptions, arguments: Arguments = (), directory: Path | None = None) -> Search:
    """Everything between parsed options and a search that can run: data, network, run directory, checkpoint.

    Args:
        options: of the search.
        arguments: as they were given, for the record.
        directory: of the run, which exists; None for what the options say.

    Raises:
        UserError: data, options or run directory cannot be used. Nothing of an existing run has been changed then.
    """
    resume = options.command.resume
    options = with_absolute_places(options, resume)
    checkpoint = resume_from(resume, options) if resume else None
    device = set_up_process(options.run)

    source = open_search_source(options.data)
    weight_half, alpha_half = source.search_split(options.data.split)
    augmentation = options.data.augmentation(source.augmentation)

    def pipeline(indices: np.ndarray, batch_size: int, train: bool, seed: int, augment: bool | None = None) -> Pipeline:
        # In the order of their source, images of folders come class by class, and so would batches.
        how: dict[str, Any] = {"batch_size": batch_size, "train": train, "seed": seed}
        return open_pipeline(source, options.data, device, augmentation, indices, **how, shuffle=True, augment=augment)

    seed, batch_size = options.run.seed, options.data.batch_size
    weight_pipeline = pipeline(weight_half, batch_size, True, 2 * seed)
    valid_size = min(batch_size, len(alpha_half))
    valid_pipeline, augmented = pipeline(alpha_half, valid_size, False, 0), None
    wanted = options.data.validation_augment
    if options.strategy.validates_augmented if wanted is None else wanted:
        augmented = pipeline(alpha_half, valid_size, False, 2 * seed + 1, augment=True)

    seed_everything(seed)
    network = build_supernet(options, source)
    if batch_size == 1:
        check_one_image(network, (source.channels, *source.image_size), "give --batch-size 2 or more, or larger images")
    begin_with = options.network.initial_weights if checkpoint is None else None
    betas = {} if begin_with is None else load_initial_weights(network, begin_with)
    network.to(device).to(memory_format=torch.channels_last)

    if directory is None:
        directory = resume or new_directory(options.run.out, options.strategy.name, options.data.data)[0]
        if not resume:
            refuse_taken(directory)
    search = Search(
        network=network,
        strategy=options.strategy,
        weights=options.weights,
        weight_pipeline=weight_pipeline,
        alpha_pipeline=lambda batch_size: pipeline(alpha_half, batch_size, True, 2 * seed + 1),
        valid_pipeline=valid_pipeline,
        augmented_pipeline=augmented,
        directory=directory,
        seed=seed,
        options=options.to_dict(),
        checkpoint=checkpoint,
        validate_every=options.run.validate_every,
        evidence=options.run.evidence,
        stop_after=options.run.stop_after,
        cuda_graphs=options.run.cuda_graphs,
        check_images=options.data.check_images,
    )
    if betas:
        options.strategy.load_betas(search, betas)
    record_start(
        search,
        options,
        PROGRAM,
        arguments,
        device=device,
        network={
            "parameters": count_parameters(network),
            "macs": supernet_macs(network, (source.channels, *source.image_size)),
            "candidates": list(network.space.candidates),
            "nodes": network.space.nodes,
            "space": network.space.name,
            "backend": network.backend,
        },
        data={
            **describe_images(weight_pipeline),
            "weight_images": len(weight_half),
            "alpha_images": len(alpha_half),
            "left_out": list(source.left_out),
            "test_images": source.kept_for_test,
            "test_share": source.test_share,
            "validation_augment": augmented is not None,
            "augmentation": dataclasses.asdict(augmentation),
        },
    )
    return search
