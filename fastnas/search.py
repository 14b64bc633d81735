"""`python -m fastnas.search`: images in, a genotype and a report out."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from fastnas import data
from fastnas.compat.load_supernet import load_betas, load_supernet
from fastnas.configuration import SearchOptions, differences, parse
from fastnas.counting import count_parameters
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.progress import shown
from fastnas.engine.search import Outcome, Search
from fastnas.env import environment
from fastnas.errors import UserError
from fastnas.nn import Supernet
from fastnas.process import create_directory, given, make_deterministic, name_directory, resolve_device, seed_everything
from fastnas.report import print_genotype, write_report

LISTED = 10  # files that were left out

DESCRIPTION = """Searches a network architecture for your images.

Without arguments: a demonstration on scanned digits, about two minutes on two CPU cores.
Options come from the defaults, then --preset, then --config, then the flags below."""


def prepare(options: SearchOptions, arguments: Sequence[str] = ()) -> Search:
    """Everything between parsed options and a search that can run: data, network, run directory, checkpoint.

    Raises:
        UserError: data, options or run directory cannot be used. Nothing of an existing run has been changed then.
    """
    resume = options.command.resume
    checkpoint = load_checkpoint(resume / "checkpoint.pt") if resume else None
    plain = options.to_dict()
    if checkpoint is not None and (changed := differences(checkpoint["options"], plain)):
        raise UserError(
            f"the run in {resume} cannot go on with other options: {'; '.join(changed)}. Leave these flags out, "
            "or start a new run."
        )
    device = resolve_device(options.run.device)
    if options.run.threads:
        torch.set_num_threads(options.run.threads)
    make_deterministic(options.run.deterministic)

    if options.data.data is None:
        raise UserError("no images: give --data, for example --data folder:./images, or --preset demo.")
    source = data.open(
        options.data.data,
        image_size=options.data.image_size,
        download=options.data.download,
        limit=options.data.limit,
        skip_unreadable=options.data.skip_unreadable,
    )
    weight_half, alpha_half = source.search_split(options.data.split)
    augmentation = replace(
        source.augmentation,
        crop_padding=given(options.data.crop_padding, source.augmentation.crop_padding),
        flip=given(options.data.flip, source.augmentation.flip),
        cutout=options.data.cutout,
    )

    def pipeline(indices: np.ndarray, batch_size: int, train: bool, seed: int) -> data.Pipeline:
        return data.pipeline(
            source,
            options.data.pipeline,
            batch_size=batch_size,
            indices=indices,
            train=train,
            seed=seed,
            augmentation=augmentation,
            device=device,
            workers=options.data.workers,
            prefetch=options.data.prefetch,
        )

    seed, batch_size = options.run.seed, options.data.batch_size
    weight_pipeline = pipeline(weight_half, batch_size, True, 2 * seed)
    valid_pipeline = pipeline(alpha_half, min(batch_size, len(alpha_half)), False, 0)

    seed_everything(seed)
    network = Supernet(
        options.network.space or options.strategy.default_space,
        channels=options.network.channels,
        layers=options.network.layers,
        num_classes=len(source.classes),
        in_channels=source.channels,
        partial_channels=options.network.partial_channels,
        backend=options.network.backend,
        stem=options.network.stem,
    )
    begin_with = options.network.initial_weights if checkpoint is None else None
    betas = {} if begin_with is None else load_initial_weights(network, begin_with)
    network.to(device).to(memory_format=torch.channels_last)

    directory = resume or create_directory(name_directory(options.run.out, options.strategy.name, options.data.data))
    search = Search(
        network=network,
        strategy=options.strategy,
        weights=options.weights,
        weight_pipeline=weight_pipeline,
        alpha_pipeline=lambda batch_size: pipeline(alpha_half, batch_size, True, 2 * seed + 1),
        valid_pipeline=valid_pipeline,
        directory=directory,
        seed=seed,
        options=plain,
        checkpoint=checkpoint,
        validate_every=options.run.validate_every,
        stop_after=options.run.stop_after,
        cuda_graphs=options.run.cuda_graphs,
    )
    if betas:
        options.strategy.load_betas(search, betas)
    if checkpoint is None:
        (directory / "config.yaml").write_text(options.to_yaml(), encoding="utf-8")
    search.log.write(
        "run",
        argv=["python", "-m", "fastnas.search", *arguments],
        resumed=checkpoint is not None,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment=environment(device),
        network={
            "parameters": count_parameters(network),
            "candidates": list(network.space.candidates),
            "nodes": network.space.nodes,
            "space": network.space.name,
            "backend": network.backend,
        },
        data={
            "spec": source.spec,
            "pipeline": weight_pipeline.kind,
            "images": len(source),
            "classes": list(source.classes),
            "image_size": list(source.image_size),
            "channels": source.channels,
            "weight_images": len(weight_half),
            "alpha_images": len(alpha_half),
            "left_out": list(source.left_out),
        },
    )
    return search


def load_initial_weights(network: Supernet, path: Path) -> dict[str, Tensor]:
    """Gives a supernet the weights and α of a foreign one, from a file. Returns β, {} if there is none.

    Raises:
        UserError: the file cannot be read, holds no such state dict, or that of a supernet of another size.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no file {path}: give a state dict that torch.save has written.") from error
    except Exception as error:  # damaged bytes make the reader fail in any way
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        raise UserError(f"{path} holds no state dict that can be read ({reason}).") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, expected a state dict.")
    foreign = load_supernet(state, network.space, backend=network.backend)
    names = ("channels", "layers", "num_classes", "in_channels", "partial_channels", "stem_name")
    differing = [
        f"{name.removesuffix('_name')} {getattr(foreign, name)} instead of {getattr(network, name)}"
        for name in names
        if getattr(foreign, name) != getattr(network, name)
    ]
    if differing:
        raise UserError(
            f"{path} holds a supernet of {', '.join(differing)}: set --channels, --layers, --partial-channels and "
            "--stem as they were, and give images of that kind."
        )
    network.load_state_dict(foreign.state_dict())
    return load_betas(state, network.space)


def introduce(search: Search, console: Console) -> None:
    source, network = search.weight_pipeline.source, search.network
    height, width = source.image_size
    half = len(search.weight_pipeline.indices)
    console.print(
        f"[bold]{search.strategy.name}[/bold] on {source.spec}: {len(source):,} images "
        f"({height}×{width}×{source.channels}, {len(source.classes)} classes), {half:,} for the weights, "
        f"{len(source) - half:,} for α",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"supernet {network.space.name}, {count_parameters(network):,} parameters, {network.backend} on "
        f"{search.device}; run directory {search.directory}",
        highlight=False,
        soft_wrap=True,
    )
    if source.left_out:
        left_out = len(source.left_out)
        console.print(f"{left_out:,} unreadable {'file' if left_out == 1 else 'files'} left out:", highlight=False)
        for problem in source.left_out[:LISTED]:
            console.print(f"  {problem}", highlight=False, markup=False, soft_wrap=True)
        if left_out > LISTED:
            console.print(f"  and {left_out - LISTED:,} more, all in metrics.jsonl and the report", highlight=False)
    if search.resumed:
        console.print(f"resumed after {search.epoch} epochs and {search.step} steps", highlight=False)


def conclude(search: Search, outcome: Outcome, report: Path, console: Console) -> None:
    if outcome.status == "finished":
        console.print()
        print_genotype(outcome.genotype, console)
        accuracy = outcome.valid_accuracy
        if accuracy is not None:
            images = len(search.valid_pipeline.indices)
            console.print(f"\nvalidation accuracy {accuracy:.2%} on {images:,} images", highlight=False)
        console.print(f"genotype  {search.directory / 'genotype.json'}", highlight=False, soft_wrap=True)
    else:
        command = shlex.join(["python", "-m", "fastnas.search", "--resume", str(search.directory)])
        console.print(
            f"{outcome.status} after {outcome.epoch} epochs; go on with: {command}", highlight=False, soft_wrap=True
        )
    console.print(f"report    {report}", highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, or 130 after Ctrl-C and SIGTERM; errors of the user end with 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    try:
        if not arguments:
            console.print("No arguments: running the demo preset. See --help for your own images.", highlight=False)
            arguments = ["--preset", "demo"]
        options = parse(arguments, "python -m fastnas.search", DESCRIPTION)
        if options.command.print_config:
            print(options.to_yaml(), end="")
            return 0
        search = prepare(options, arguments)
        introduce(search, console)
        with shown(search, console):
            outcome = search.run()
        conclude(search, outcome, write_report(search.directory), console)
        return 130 if outcome.status == "interrupted" else 0
    except UserError as error:
        text = f"[bold red]error:[/bold red] {escape(str(error))}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
