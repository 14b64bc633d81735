"""`python -m fastnas.train`: a genotype and images in, trained networks, their test accuracy and a report out."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from fastnas import data
from fastnas.configuration import differences
from fastnas.counting import count_macs, count_parameters
from fastnas.data.split import stratified
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.progress import TRAIN_HEADER, print_left_out, shown, train_line
from fastnas.engine.retrain import Retrain, TrainOutcome
from fastnas.env import environment
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn import DerivedNetwork
from fastnas.nn.derived import AUXILIARY_SIDES
from fastnas.process import create_directory, given, make_deterministic, name_directory, resolve_device, seed_everything
from fastnas.report import write_report
from fastnas.report.seeds import SUMMARY, summary, write_seeds_report
from fastnas.train_configuration import TRAIN_GROUPS, TrainOptions, parse_train

DESCRIPTION = """Trains the network of a genotype from random weights, and tests it once, at the end.

  python -m fastnas.train --preset darts-cifar10 --genotype DARTS_V2 --data cifar10:./data --download

Options come from the defaults, then --preset, then --config, then the flags below."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """The images of a run."""

    train: data.Source
    test: data.Source | None
    train_indices: np.ndarray
    valid_indices: np.ndarray


def open_sources(options: TrainOptions) -> Sources:
    """Opens what is trained on and what is tested. UserError where that cannot work."""
    wanted = options.data
    if wanted.data is None:
        raise UserError("no images: give --data, for example --data folder:./images or --data digits.")
    if options.run.select == "best_valid" and wanted.validation == 0:
        raise UserError("--select best_valid needs held-out images: give --validation, for example 0.1.")
    if options.run.select == "best_test" and wanted.test == "none":
        raise UserError("--select best_test needs test images: leave out --test none.")
    names = ("image_size", "download", "evaluated_share", "skip_unreadable")
    how: dict[str, Any] = {name: getattr(wanted, name) for name in names}
    source = data.open(wanted.data, limit=wanted.limit, **how)
    test = None
    if wanted.test != "none":
        try:
            test = data.open(wanted.data if wanted.test == "same" else wanted.test, "test", **how)
        except UserError as error:
            raise UserError(f"{error}. Or train without a test: --test none, perhaps with --validation 0.1.") from error
        data.check_same_classes(source, test)
        if test.image_size != source.image_size:
            raise UserError(
                f"the test images are {test.image_size}, the training images {source.image_size} (height, width): "
                "give --image-size to bring both to one size."
            )
    everything = np.arange(len(source))  # [N]
    train, valid = everything, everything[:0]
    if wanted.validation > 0:
        train, valid = stratified(source.labels, source.classes, 1 - wanted.validation)
    return Sources(source, test, train, valid)


def prepare(
    options: TrainOptions, sources: Sources, directory: Path, seed: int, arguments: Sequence[str] = ()
) -> Retrain:
    """Everything between parsed options and a training that can run in `directory`, where it continues if there is a
    checkpoint.

    Raises:
        UserError: genotype, data, options or checkpoint cannot be used. Nothing has been changed then.
    """
    plain = options.to_dict()
    checkpoint = load_checkpoint(directory / "checkpoint.pt") if (directory / "checkpoint.pt").exists() else None
    if checkpoint is not None and (changed := differences(checkpoint["options"], plain, TRAIN_GROUPS)):
        raise UserError(
            f"the run in {directory} cannot go on with other options: {'; '.join(changed)}. Leave these flags out, "
            "or start a new run."
        )
    device = resolve_device(options.run.device)
    if options.run.threads:
        torch.set_num_threads(options.run.threads)
    make_deterministic(options.run.deterministic)
    source, batch_size = sources.train, options.data.batch_size
    augmentation = options.data.augmentation(source.augmentation)

    def pipeline(images: data.Source, indices: np.ndarray | None, train: bool) -> data.Pipeline:
        count = len(images) if indices is None else len(indices)
        return data.pipeline(
            images,
            options.data.pipeline,
            batch_size=min(batch_size, count),
            indices=indices,
            train=train,
            seed=seed,
            augmentation=augmentation,
            device=device,
            workers=options.data.workers,
            prefetch=options.data.prefetch,
        )

    if options.network.genotype is None:
        raise UserError("no genotype: give --genotype, the name of a published one or the path of a JSON file.")
    genotype = Genotype.load(options.network.genotype)
    train_pipeline = pipeline(source, sources.train_indices, True)
    valid_pipeline = pipeline(source, sources.valid_indices, False) if len(sources.valid_indices) else None
    test_pipeline = None if sources.test is None else pipeline(sources.test, None, False)

    seed_everything(seed)
    fits = all(side in AUXILIARY_SIDES[options.network.stem] for side in source.image_size)
    network = DerivedNetwork(
        genotype,
        channels=options.network.channels,
        layers=options.network.layers,
        num_classes=len(source.classes),
        in_channels=source.channels,
        auxiliary=given(options.network.auxiliary, fits),
        stem=options.network.stem,
        drop_path_by_depth=options.recipe.drop_path_schedule == "scheduled",
        backend="reference" if options.recipe.compile else options.network.backend,
    )
    if network.auxiliary_head is not None and not fits:
        sides = AUXILIARY_SIDES[options.network.stem]
        raise UserError(
            f"--auxiliary needs images of {sides[0]} to {sides[-1]} pixels a side with the {options.network.stem} "
            f"stem, got {source.image_size[0]}×{source.image_size[1]}: use --auxiliary False, or give --image-size."
        )
    network.to(device)
    if options.recipe.channels_last:
        network.to(memory_format=torch.channels_last)
    size = (source.channels, *source.image_size)

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
        options=plain,
        checkpoint=checkpoint,
        validate_every=options.run.validate_every,
        stop_after=options.run.stop_after,
    )
    if checkpoint is None:
        (directory / "config.yaml").write_text(options.to_yaml(), encoding="utf-8")
        genotype.to_json(directory / "genotype.json")
    retrain.log.write(
        "run",
        command="train",
        argv=["python", "-m", "fastnas.train", *arguments],
        resumed=checkpoint is not None,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment=environment(device),
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
            "spec": source.spec,
            "pipeline": train_pipeline.kind,
            "images": len(source),
            "classes": list(source.classes),
            "image_size": list(source.image_size),
            "channels": source.channels,
            "left_out": list(source.left_out),
            "augmentation": dataclasses.asdict(augmentation),
            "train_images": len(sources.train_indices),
            "valid_images": len(sources.valid_indices),
            "test": None if sources.test is None else sources.test.spec,
            "test_images": 0 if sources.test is None else len(sources.test),
        },
    )
    return retrain


def introduce(retrain: Retrain, seed: int, console: Console) -> None:
    source, network = retrain.train_pipeline.source, retrain.network
    height, width = source.image_size
    held_out = 0 if retrain.valid_pipeline is None else len(retrain.valid_pipeline.indices)
    parameters = count_parameters(network)
    macs = count_macs(network, (source.channels, height, width))
    lines = [
        f"[bold]seed {seed}[/bold] on {source.spec}: {len(retrain.train_pipeline.indices):,} images "
        f"({height}×{width}×{source.channels}, {len(source.classes)} classes) to train, {held_out:,} held out",
        f"{parameters:,} parameters, {macs / 1e6:.1f} M multiply-adds, {network.backend} on {retrain.device}; run "
        f"directory {retrain.directory}",
    ]
    if retrain.resumed:
        lines.append(f"resumed after {retrain.epoch} epochs and {retrain.step} steps")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    print_left_out(source.left_out, console)


def conclude(retrain: Retrain, outcome: TrainOutcome, run: Path, report: Path, console: Console) -> None:
    if outcome.status != "finished":
        command = shlex.join(["python", "-m", "fastnas.train", "--resume", str(run)])
        console.print(
            f"{outcome.status} after {outcome.epoch} epochs; go on with: {command}", highlight=False, soft_wrap=True
        )
    elif outcome.test is not None:
        assert outcome.selected_epoch is not None
        console.print(
            f"\ntest accuracy {outcome.test.top1:.2%} (top-5 {outcome.test.top5:.2%}) on {outcome.test.images:,} "
            f"images, weights of epoch {outcome.selected_epoch + 1}",
            highlight=False,
        )
    console.print(f"report    {report}", highlight=False, soft_wrap=True)


def finished(directory: Path) -> bool:
    """Whether the training in `directory` has been tested already, so that the test images need not be read again."""
    try:
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return bool(lines) and json.loads(lines[-1]).get("event") == "end"
    except (OSError, ValueError):
        return False


def run(options: TrainOptions, arguments: Sequence[str], console: Console) -> int:
    """Trains a network for every seed; the exit status."""
    seeds = options.run.seed_list()
    sources = open_sources(options)
    label = Path(options.network.genotype or "").stem
    directory = options.command.resume or name_directory(options.run.out, f"train-{label}", options.data.data)
    folders = {seed: directory / f"seed-{seed}" if len(seeds) > 1 else directory for seed in seeds}
    for seed, folder in folders.items():
        if finished(folder):
            console.print(f"seed {seed} is done: {folder}", highlight=False, soft_wrap=True)
            continue
        retrain = prepare(_with_seed(options, seed), sources, folder, seed, arguments)
        if not (directory / "config.yaml").exists():
            (directory / "config.yaml").write_text(options.to_yaml(), encoding="utf-8")
        introduce(retrain, seed, console)
        with shown(retrain, console, TRAIN_HEADER, train_line):
            outcome = retrain.run()
        conclude(retrain, outcome, directory, write_report(folder), console)
        if outcome.status != "finished":
            return 130 if outcome.status == "interrupted" else 0
    if len(seeds) > 1:
        report = write_seeds_report(directory, folders)
        console.print(f"\n{summary(json.loads((directory / SUMMARY).read_text()))}", highlight=False, soft_wrap=True)
        console.print(f"report    {report}", highlight=False, soft_wrap=True)
    return 0


def _with_seed(options: TrainOptions, seed: int) -> TrainOptions:
    return dataclasses.replace(options, run=dataclasses.replace(options.run, seeds=str(seed)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, or 130 after Ctrl-C and SIGTERM; errors of the user end with 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    try:
        options = parse_train(arguments, "python -m fastnas.train", DESCRIPTION)
        if options.command.print_config:
            print(options.to_yaml(), end="")
            return 0
        return run(options, arguments, console)
    except UserError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {error}", highlight=False, soft_wrap=True, markup=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
