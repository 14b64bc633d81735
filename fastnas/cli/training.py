"""From the options of a training to one that can run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastnas.cli.configuration import TrainOptions
from fastnas.cli.estimate import Parts
from fastnas.cli.images import TrainSources, open_pipeline
from fastnas.cli.networks import build_derived
from fastnas.cli.own_code import import_space
from fastnas.cli.places import with_absolute_places
from fastnas.cli.process import seed_everything
from fastnas.cli.run import Arguments, describe_images, fitted_epochs, record_start, resume_from, set_up_process
from fastnas.cli.run_directory import CHECKPOINT, create_directory
from fastnas.counting import count_macs, count_parameters
from fastnas.data import Augmentation, Pipeline, Source
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.rehearsal import TrainingRehearsal
from fastnas.engine.retrain import Retrain
from fastnas.engine.trained import genotype_of
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn import DerivedNetwork
from fastnas.nn.batch_norm import check_one_image
from fastnas.world import ALONE, World

PROGRAM = "fastnas.train"
GENOTYPE = "genotype.json"


@dataclass(frozen=True)
class TrainParts(Parts):
    """What a training is made of: its images and its network, which is as the run begins with it."""

    options: TrainOptions
    checkpoint: dict[str, Any] | None
    world: World
    device: torch.device
    seed: int
    sources: TrainSources
    augmentation: Augmentation
    genotype: Genotype
    network: DerivedNetwork
    train_pipeline: Pipeline
    valid_pipeline: Pipeline | None
    test_pipeline: Pipeline | None
    budget: str | None

    @property
    def epochs(self) -> int:
        return self.options.recipe.epochs

    @property
    def steps(self) -> int:
        return len(self.train_pipeline)

    def check_epochs(self, epochs: int) -> None:
        """A training may have any number of them."""

    def with_epochs(self, epochs: int) -> TrainParts:
        return dataclasses.replace(self, options=with_epochs(self.options, epochs))

    def rehearsal(self) -> TrainingRehearsal:
        return TrainingRehearsal(**self.arguments(Path()))

    def arguments(self, directory: Path) -> dict[str, Any]:
        """Of a `Retrain` in `directory`."""
        options = self.options
        return {
            "network": self.network,
            "recipe": options.recipe,
            "train_pipeline": self.train_pipeline,
            "valid_pipeline": self.valid_pipeline,
            "test_pipeline": self.test_pipeline,
            "select": options.run.select,
            "directory": directory,
            "seed": self.seed,
            "options": options.to_dict(),
            "validate_every": options.run.validate_every,
            "stop_after": options.run.stop_after,
            "check_images": options.data.check_images,
            "world": self.world,
        }


def with_epochs(options: TrainOptions, epochs: int) -> TrainOptions:
    """The options with epochs that were fitted to their budget."""
    recipe = dataclasses.replace(options.recipe, epochs=epochs)
    return dataclasses.replace(options, recipe=recipe, run=dataclasses.replace(options.run, budget=None))


def training_parts(
    options: TrainOptions,
    sources: TrainSources,
    directory: Path,
    seed: int,
    genotype: Genotype | None = None,
    world: World = ALONE,
) -> TrainParts:
    """Builds pipelines and network, and writes nothing.

    Args:
        options: of the training.
        sources: its images.
        directory: of the run, which need not be there; if it holds a checkpoint, the training continues from that.
        seed: of everything that it draws.
        genotype: of the network; None for that of the checkpoint, or else what the options name.
        world: the processes of the run.

    Raises:
        UserError: genotype, data, options or checkpoint cannot be used.
    """
    options = with_absolute_places(options)
    checkpoint = resume_from(directory, options, Retrain, world) if (directory / CHECKPOINT).exists() else None
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
    device = set_up_process(options.run, world)
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
    if train_pipeline.batch_size == 1:
        size = (source.channels, *source.image_size)
        check_one_image(network, size, "give --batch-size 2 or more, larger images, or --auxiliary False")
    network.to(device)
    if options.recipe.channels_last:
        network.to(memory_format=torch.channels_last)
    return TrainParts(
        options=options,
        checkpoint=checkpoint,
        world=world,
        device=device,
        seed=seed,
        sources=sources,
        augmentation=augmentation,
        genotype=genotype,
        network=network,
        train_pipeline=train_pipeline,
        valid_pipeline=valid_pipeline,
        test_pipeline=test_pipeline,
        budget=options.run.budget,
    )


def begin(parts: TrainParts, arguments: Arguments, directory: Path, budget: str | None = None) -> Retrain:
    """A training that can run in `directory`, which is made if need be, and what is recorded at its start.

    Args:
        parts: of the training.
        arguments: as they were given, for the record.
        directory: of the run.
        budget: to which its epochs were fitted, for the record.

    Raises:
        UserError: the checkpoint does not fit. Nothing has been changed then.
    """
    options, network, sources, source = parts.options, parts.network, parts.sources, parts.sources.train
    size = (source.channels, *source.image_size)
    if parts.world.leads:
        create_directory(directory)
    retrain = Retrain(**parts.arguments(directory), checkpoint=parts.checkpoint)
    record_start(
        retrain,
        options,
        PROGRAM,
        arguments,
        device=parts.device,
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
            **describe_images(parts.train_pipeline),
            "left_out": list(source.left_out),
            "augmentation": dataclasses.asdict(parts.augmentation),
            "train_images": len(sources.train_indices),
            "valid_images": len(sources.valid_indices),
            "test": None if sources.test is None else sources.test.spec,
            "test_images": 0 if sources.test is None else len(sources.test),
            "test_share": None if sources.test is None else sources.test.test_share,
        },
        origins=fitted_epochs("recipe", budget),
    )
    if parts.world.leads:
        parts.genotype.to_json(directory / GENOTYPE)
    return retrain


def prepare(
    options: TrainOptions,
    sources: TrainSources,
    directory: Path,
    seed: int,
    arguments: Arguments = (),
    genotype: Genotype | None = None,
) -> Retrain:
    """`begin` with the parts that follow from options without a budget; see `training_parts`."""
    return begin(training_parts(options, sources, directory, seed, genotype), arguments, directory)


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
