"""`python -m fastnas.search`: images in, a genotype and a report out."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from fastnas.cli.command import INTERRUPTED, print_document, print_text, run_command
from fastnas.cli.configuration import SearchOptions, parse_search
from fastnas.cli.images import open_pipeline, open_search_source
from fastnas.cli.networks import build_supernet
from fastnas.cli.places import with_absolute_places
from fastnas.cli.process import seed_everything
from fastnas.cli.progress import shown
from fastnas.cli.run import describe_images, record_start, resume_from, set_up_process
from fastnas.cli.run_directory import new_directory, refuse_taken, run_directory
from fastnas.cli.summary import print_search_header, print_search_summary
from fastnas.counting import count_parameters
from fastnas.data import Pipeline
from fastnas.engine.initial_weights import load_initial_weights
from fastnas.engine.search import Search
from fastnas.engine.sizes import supernet_macs
from fastnas.nn.batch_norm import check_one_image
from fastnas.report import write_report

PROGRAM = "fastnas.search"
DESCRIPTION = """Searches a network architecture for your images.

Without arguments: a demonstration on scanned digits, about two minutes on two CPU cores.
Options come from the defaults, then --preset, then --config, then the flags below."""


def prepare(options: SearchOptions, arguments: Sequence[str] = (), directory: Path | None = None) -> Search:
    """Everything between parsed options and a search that can run: data, network, run directory, checkpoint.

    Args:
        options: of the search.
        arguments: as they were given, for the record.
        directory: of the run, which exists; None for what the options say.

    Raises:
        UserError: data, options or run directory cannot be used. Nothing of an existing run has been changed then.
    """
    resume = options.command.resume and options.command.resume.expanduser()
    options = with_absolute_places(options, resume)
    checkpoint = resume_from(resume, options) if resume else None
    device = set_up_process(options.run)

    source = open_search_source(options.data)
    weight_half, alpha_half = source.search_split(options.data.split)
    augmentation = options.data.augmentation(source.augmentation)

    def pipeline(indices: np.ndarray, batch_size: int, train: bool, seed: int) -> Pipeline:
        return open_pipeline(
            source, options.data, device, augmentation, indices, batch_size=batch_size, train=train, seed=seed
        )

    seed, batch_size = options.run.seed, options.data.batch_size
    weight_pipeline = pipeline(weight_half, batch_size, True, 2 * seed)
    valid_pipeline = pipeline(alpha_half, min(batch_size, len(alpha_half)), False, 0)

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
        directory=directory,
        seed=seed,
        options=options.to_dict(),
        checkpoint=checkpoint,
        validate_every=options.run.validate_every,
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
            "augmentation": dataclasses.asdict(augmentation),
        },
    )
    return search


@run_command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, 130 after Ctrl-C or SIGTERM, or 2 after an error of the user."""
    if not arguments:
        print_text(console, "No arguments: running the demo preset. See --help for your own images.")
        arguments = ["--preset", "demo"]
    options = parse_search(arguments, f"python -m {PROGRAM}", DESCRIPTION)
    if options.command.print_config:
        print_document(options.to_yaml())
        return 0
    with run_directory(options.command.resume, options.run.out, options.strategy.name, options.data.data) as lock:
        search = prepare(options, arguments, lock.directory)
        search.check_owned = lock.check
        print_search_header(search, console)
        with shown(search, console):
            outcome = search.run()
        print_search_summary(search, outcome, write_report(search.directory), console)
    return INTERRUPTED if outcome.status == "interrupted" else 0


if __name__ == "__main__":
    sys.exit(main())
