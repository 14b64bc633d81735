"""From the options of a training to one that can run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fastnas.cli.configuration import TrainOptions
from fastnas.cli.images import TrainSources, open_pipeline
from fastnas.cli.networks import build_derived
from fastnas.cli.own_code import import_space
from fastnas.cli.places import with_absolute_places
from fastnas.cli.process import seed_everything
from fastnas.cli.run import Arguments, describe_images, record_start, resume_from, set_up_process
from fastnas.cli.run_directory import CHECKPOINT, create_directory
from fastnas.counting import count_macs, count_parameters
from fastnas.data import Pipeline, Source
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.retrain import Retrain
from fastnas.engine.trained import genotype_of
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn.batch_norm import check_one_image

PROGRAM = "fastnas.train"
GENOTYPE = "genotype.json"


def prepare(
    options: TrainOptions,
    sources: TrainSources,
    directory: Path,
    seed: int,
    arguments: Arguments = (),
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
            "test_share": None if sources.test is None else sources.test.test_share,
        },
    )
    genotype.to_json(directory / GENOTYPE)
    return retrain


def load_genotype(options: TrainOptions) -> Genotype:
    """What --genotype names. UserError if there is none, or none that can be read."""
    if options.network.genotype is None:
        raise UserError(
            "no genotype: give --from and the directory of a search, or --genotype and the name of a published one or "
            "the path of a JSON file."
        )
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
