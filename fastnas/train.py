"""`python -m fastnas.train`: a genotype and images in, trained networks, their test accuracy and a report out."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from fastnas.cli.command import INTERRUPTED, print_document, print_text, run_command
from fastnas.cli.configuration import TrainOptions, parse_train
from fastnas.cli.images import TrainSources, open_pipeline, open_train_sources
from fastnas.cli.networks import build_derived
from fastnas.cli.own_code import import_space
from fastnas.cli.places import with_absolute_places
from fastnas.cli.process import seed_everything
from fastnas.cli.progress import TRAIN_HEADER, shown, train_line
from fastnas.cli.run import describe_images, is_finished, record_start, resume_from, set_up_process, write_config
from fastnas.cli.run_directory import CHECKPOINT, create_directory, locked_directory, run_directory
from fastnas.cli.run_lock import RunLock
from fastnas.cli.summary import print_report, print_train_header, print_train_summary
from fastnas.counting import count_macs, count_parameters
from fastnas.data import Pipeline, Source
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.retrain import Retrain
from fastnas.engine.trained import genotype_of
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn.batch_norm import check_one_image
from fastnas.report import write_report
from fastnas.report.seeds import SUMMARY, summary, write_seeds_report

PROGRAM = "fastnas.train"
GENOTYPE = "genotype.json"
DESCRIPTION = """Trains the network of a genotype from random weights, and tests it once, at the end.

  python -m fastnas.train --preset darts-cifar10 --genotype DARTS_V2 --data cifar10:./data --download

Options come from the defaults, then --preset, then --config, then the flags below."""


def prepare(
    options: TrainOptions,
    sources: TrainSources,
    directory: Path,
    seed: int,
    arguments: Sequence[str] = (),
    genotype: Genotype | None = None,
) -> Retrain:
    """Everything between parsed options and a training that can run in `directory`; it continues from a checkpoint that
    is there.

    Args:
        options: of the training.
        sources: its images.
        directory: of the run; made if need be.
        seed: of everything that it draws.
        arguments: as they were given, for the record.
        genotype: of the network; None for that of the checkpoint, or else what the options name.

    Raises:
        UserError: genotype, data, options or checkpoint cannot be used. Nothing has been changed then.
    """
    options = with_absolute_places(options)
    checkpoint = resume_from(directory, options) if (directory / CHECKPOINT).exists() else None
    import_space(options.network.space)
    if checkpoint is not None:
        own = genotype_of(checkpoint, directory)
        if genotype is not None and genotype != own:
            raise UserError(
                f"the run in {directory} began with another genotype than the runs beside it: restore genotype.json, "
                "or start a new run."
            )
        genotype = own
    genotype = genotype or load_genotype(options)
    device = set_up_process(options.run)
    source = sources.train
    augmentation = options.data.augmentation(source.augmentation)

    def pipeline(images: Source, indices: np.ndarray | None, train: bool) -> Pipeline:
        batch_size = min(options.data.batch_size, len(images) if indices is None else len(indices))
        return open_pipeline(
            images, options.data, device, augmentation, indices, batch_size=batch_size, train=train, seed=seed
        )

    train_pipeline = pipeline(source, sources.train_indices, True)
    valid_pipeline = pipeline(source, sources.valid_indices, False) if len(sources.valid_indices) else None
    test_pipeline = None if sources.test is None else pipeline(sources.test, None, False)

    seed_everything(seed)
    network = build_derived(options, genotype, source)
    size = (source.channels, *source.image_size)
    if train_pipeline.batch_size == 1:
        check_one_image(network, size, "give --batch-size 2 or more, larger images, or --auxiliary False")
    network.to(device)
    if options.recipe.channels_last:
        network.to(memory_format=torch.channels_last)

    create_directory(directory)
    retrain = Retrain(
        network=network,
        recipe=options.recipe,
        train_pipeline=train_pipeline,
        valid_pipeline=valid_pipeline,
        test_pipeline=test_pipeline,
        select=options.run.select,
        directory=directory,
        seed=seed,
        options=options.to_dict(),
        checkpoint=checkpoint,
        validate_every=options.run.validate_every,
        stop_after=options.run.stop_after,
        check_images=options.data.check_images,
    )
    record_start(
        retrain,
        options,
        PROGRAM,
        arguments,
        device=device,
        command="train",
        network={
            "genotype": options.network.genotype,
            "parameters": count_parameters(network),
            "macs": count_macs(network, size),
            "flops_counter": count_macs(network, size, "flops_counter"),
            "channels": options.network.channels,
            "layers": options.network.layers,
            "stem": options.network.stem,
            "auxiliary": network.auxiliary_head is not None,
            "backend": network.backend,
        },
        data={
            **describe_images(train_pipeline),
            "left_out": list(source.left_out),
            "augmentation": dataclasses.asdict(augmentation),
            "train_images": len(sources.train_indices),
            "valid_images": len(sources.valid_indices),
            "test": None if sources.test is None else sources.test.spec,
            "test_images": 0 if sources.test is None else len(sources.test),
        },
    )
    genotype.to_json(directory / GENOTYPE)
    return retrain


def load_genotype(options: TrainOptions) -> Genotype:
    """What --genotype names. UserError if there is none, or none that can be read."""
    if options.network.genotype is None:
        raise UserError("no genotype: give --genotype, the name of a published one or the path of a JSON file.")
    return Genotype.load(options.network.genotype)


def genotype_of_run(options: TrainOptions, folders: Sequence[Path]) -> Genotype:
    """The genotype of all seeds: that which the run keeps, for the file that --genotype names may be another by now."""
    import_space(options.network.space)
    for path in [folder / GENOTYPE for folder in folders] if options.command.resume else []:
        if path.exists():
            return Genotype.from_json(path)
    for folder in folders if options.command.resume else []:
        if (folder / CHECKPOINT).exists():
            return genotype_of(load_checkpoint(folder / CHECKPOINT), folder)
    return load_genotype(options)


def run(options: TrainOptions, arguments: Sequence[str], console: Console) -> int:
    """Trains a network for every seed; returns the exit status."""
    label = Path(options.network.genotype or "").stem
    with run_directory(options.command.resume, options.run.out, f"train-{label}", options.data.data) as lock:
        return _run_in(lock, options, arguments, console)


def _run_in(lock: RunLock, options: TrainOptions, arguments: Sequence[str], console: Console) -> int:
    directory, seeds = lock.directory, options.run.seed_list()
    options = with_absolute_places(options, directory if options.command.resume else None)
    folders = {seed: directory / f"seed-{seed}" if len(seeds) > 1 else directory for seed in seeds}
    genotype = genotype_of_run(options, [directory, *folders.values()])
    sources = open_train_sources(options)
    for seed, folder in folders.items():
        if is_finished(folder):  # its test images were read once, and are not read again
            print_text(console, f"seed {seed} is done: {folder}")
            continue
        own = dataclasses.replace(options, run=dataclasses.replace(options.run, seeds=str(seed)))
        with nullcontext(lock) if folder == directory else locked_directory(folder) as inner:
            retrain = prepare(own, sources, folder, seed, arguments, genotype)
            retrain.check_owned = inner.check
            if folder != directory:
                genotype.to_json(directory / GENOTYPE)
                write_config(directory, options)
            print_train_header(retrain, seed, console)
            with shown(retrain, console, TRAIN_HEADER, train_line):
                outcome = retrain.run()
            print_train_summary(outcome, directory, write_report(folder), console)
        if outcome.status != "finished":
            return INTERRUPTED if outcome.status == "interrupted" else 0
    if len(seeds) > 1:
        report = write_seeds_report(directory, folders)
        print_text(console, f"\n{summary(json.loads((directory / SUMMARY).read_text()))}")
        print_report(report, console)
    return 0


@run_command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, 130 after Ctrl-C or SIGTERM, or 2 after an error of the user."""
    options = parse_train(arguments, f"python -m {PROGRAM}", DESCRIPTION)
    if options.command.print_config:
        print_document(options.to_yaml())
        return 0
    return run(options, arguments, console)


if __name__ == "__main__":
    sys.exit(main())
