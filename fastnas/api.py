"""Search, train, evaluate and export from Python: what the commands do, with their options as keywords.

Example:
    result = fastnas.api.search("folder:./flowers", image_size=32, strategy="egnas", epochs=50)
    trained = fastnas.api.train(result.genotype, "folder:./flowers", image_size=32, epochs=100)
    fastnas.api.export(trained, onnx="flowers.onnx")

Keywords are the flags of the commands with _ for -, checked in the same way; `python -m fastnas.search --help` explains
them. Whatever cannot work raises `fastnas.errors.UserError`.

Data are one of
    * a source, such as "folder:./flowers" (see `fastnas.data.open`);
    * a source that is open already;
    * a `torch.utils.data.Dataset` of (image, label): a TensorDataset, a data set of torchvision, …;
    * the pair (images, labels) of tensors or NumPy arrays.
`fastnas.data.hold` says how shapes and pixels are taken: uint8, or floats in 0..1. Except for the first kind, the
configuration of the run names the images by a digest, and the run goes on from Python only, with the same data.

Ctrl-C ends a run after the step in progress: the result has the status "interrupted", a line says how to go on, and
`resume=` does so, as if nothing had happened. A second Ctrl-C raises KeyboardInterrupt at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

from fastnas.cli.command import print_text
from fastnas.cli.configuration import SearchOptions, TrainOptions, parse_search, parse_train
from fastnas.cli.evaluating import EvaluateOptions, measure, write_page
from fastnas.cli.exporting import ExportOptions, write_files
from fastnas.cli.images import open_train_sources
from fastnas.cli.keywords import (
    call_text,
    check_same_images,
    flags,
    named_data,
    options_of,
    own_strategy,
    space_name,
    trainable,
    without_none,
)
from fastnas.cli.own_code import import_space
from fastnas.cli.places import with_absolute_places
from fastnas.cli.progress import TRAIN_HEADER, OnEpoch, OnStep, call_back, shown, train_line
from fastnas.cli.results import SearchResult, TrainedNetwork, TrainResult, recorded_test
from fastnas.cli.run import Arguments, is_finished, write_config
from fastnas.cli.run_directory import locked_directory, run_directory
from fastnas.cli.run_lock import RunLock
from fastnas.cli.search_run import read_search
from fastnas.cli.searching import prepare as prepare_search
from fastnas.cli.summary import (
    print_report,
    print_search_header,
    print_search_run,
    print_search_summary,
    print_train_header,
    print_train_summary,
)
from fastnas.cli.training import GENOTYPE, genotype_of_run
from fastnas.cli.training import prepare as prepare_training
from fastnas.data import HeldData
from fastnas.engine.trained import load_trained
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn import DerivedNetwork
from fastnas.report import write_report
from fastnas.report.seeds import SUMMARY, summary, write_seeds_report
from fastnas.spaces import CellSpace
from fastnas.strategies import Strategy

__all__ = ["SearchResult", "TrainResult", "TrainedNetwork", "evaluate", "export", "search", "train"]

AnyData: TypeAlias = str | HeldData
AnyNetwork: TypeAlias = str | os.PathLike[str] | TrainResult | TrainedNetwork | DerivedNetwork


def search(
    data: AnyData | None = None,
    *,
    strategy: str | Strategy | type[Strategy] | None = None,
    space: str | CellSpace | None = None,
    preset: str | None = None,
    config: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | SearchResult | None = None,
    progress: bool = True,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> SearchResult:
    """Searches a network architecture for images.

    Args:
        data: the images, see above; None where preset, config or resume name them.
        strategy: a name such as "egnas" (the default), `"python:MODULE:CLASS"`, or a class or an object of a strategy
            of your own, which need not be registered. An object keeps its options.
        space: a name, `"python:MODULE:OBJECT"`, or a `CellSpace` of your own; None for the strategy's.
        preset, config: options that fit together by name, or from a YAML file; keywords override them.
        resume: a run to continue, exactly where its checkpoint stands. Options come from the run.
        progress: print the run as the command does, with a bar on a terminal and in a notebook; False: print nothing
            but how an interrupted run goes on, on stderr.
        on_epoch: is called after each epoch with its record in metrics.jsonl and the seed: a dict with "epoch", which
            counts from 0, "train_loss", "valid_accuracy", "op_weights", …
        on_step: is called after each step of a phase ("weights", "evolution", "validation", …) with a dict of "seed",
            "epoch", "phase", "step" (from 0) and "steps". If a callback raises, the run can be resumed from its last
            checkpoint, that of the epoch before.
        options: all other flags of `python -m fastnas.search`: epochs, image_size, batch_size, channels, out, seed,
            device, threads, stop_after, …, and those of the strategy.

    Raises:
        UserError: data, options or run directory cannot be used, or the loss becomes infinite.
    """
    call = call_text(
        "search", data=data, strategy=strategy, space=space, preset=preset, config=config, resume=resume, **options
    )
    own, insisted = own_strategy(strategy)
    given = flags(preset=preset, config=config, resume=resume, strategy=None if own else strategy)
    with named_data(data, {**insisted, **options, **without_none(space=space_name(space))}) as keywords:
        check_same_images(resume, keywords)
        parsed = parse_search(given, "fastnas.api.search", "", keywords, own)
        return run_search(parsed, call, _console(progress), on_epoch, on_step)


def train(
    genotype: str | os.PathLike[str] | Genotype | SearchResult | None = None,
    data: AnyData | None = None,
    *,
    test: AnyData | None = None,
    space: str | CellSpace | None = None,
    preset: str | None = None,
    config: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | TrainResult | None = None,
    progress: bool = True,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> TrainResult:
    """Trains the network of a genotype from random weights, and tests it once, at the end.

    Args:
        genotype: what to train: a `Genotype`, the name of a published one such as "DARTS_V2", the path of its file, or
            the result or run directory of a search that has finished, which also gives images, recipe and what is left
            for the test, as --from does. Not needed with resume.
        data: images to train on, see above; None where preset, config or resume name them.
        test: images to test on; "same" (the default) for the test split of `data`, a share such as 0.2 of images
            without one, "none" for no test.
        space: "python:MODULE:OBJECT" or a `CellSpace`: a space of your own whose candidates the genotype names.
        preset: the recipe of a paper, such as "egnas-cifar10".
        config, resume, progress, on_epoch, on_step: as of `search`; a callback is also told which seed is trained.
        options: all other flags of `python -m fastnas.train`: seeds, epochs, channels, layers, image_size, …

    Raises:
        UserError: genotype, data, options or run directory cannot be used, or the loss becomes infinite.
    """
    call = call_text(
        "train", genotype=genotype, data=data, test=test, space=space, preset=preset, config=config, resume=resume,
        **options,
    )  # fmt: skip
    if isinstance(genotype, SearchResult) and genotype.status != "finished":
        raise UserError(
            f"the search in {genotype.directory} is not finished ({genotype.status}): go on with fastnas.api.search("
            "resume=result), or pass result.genotype to train what it has found so far."
        )
    found = None
    search_run = None
    if isinstance(genotype, str | os.PathLike):  # a result is the path of its run
        search_run = genotype if resume is None and Path(genotype).is_dir() else None
        if search_run is None and resume is None:
            options["genotype"] = os.fspath(genotype)
    elif genotype is not None:
        found = trainable(genotype)
    given = flags(preset=preset, config=config, resume=resume, **{"from": search_run})
    space = None if isinstance(space, CellSpace) else space  # whose candidates are known
    with named_data(data, options | without_none(test=test, space=space)) as keywords:
        check_same_images(resume, keywords)
        parsed = parse_train(given, "fastnas.api.train", "", keywords)
        return run_train(parsed, call, _console(progress), on_epoch, on_step, found)


def evaluate(
    network: AnyNetwork, data: AnyData | None = None, *, space: str | None = None, progress: bool = True, **options: Any
) -> dict[str, Any]:
    """Accuracy, size, speed and memory of a trained network.

    Args:
        network: what `train` gave, its run directory, a saved network (.json), or a `DerivedNetwork`.
        data: images to test on, see above; None for no accuracy.
        space: "python:MODULE:OBJECT": a space of your own whose candidates the genotype names.
        progress: print the results as the command does.
        options: all other flags of `python -m fastnas.evaluate`: split, image_size, batch_size, runs (0: no latency),
            report, …

    Returns:
        What `--json` writes: "parameters", "macs", "latency", "peak_memory_mb", … and, with data, "evaluation": the
        fields of `fastnas.engine.evaluation.Evaluation`, such as "top1" in 0..1 and "confusion".

    Raises:
        UserError: network, data or options cannot be used.
    """
    path, given = _path_or_network(network)
    call = call_text("evaluate", network=network, data=data, space=space, **options)
    import_space(space)
    given = given or load_trained(path, options.get("backend", "auto"))
    about = given.about.get("images", {})
    with named_data(data, options, options.get("split", "test"), about) as keywords:
        parsed = options_of("evaluate", EvaluateOptions, {**keywords, "network": path, "space": space})
        return run_evaluate(parsed, call, _console(progress), given)


def export(network: AnyNetwork, *, space: str | None = None, progress: bool = True, **options: Any) -> list[Path]:
    """Writes a trained network for other programs, and returns the paths of the files.

    Args:
        network, space: as of `evaluate`.
        progress: print what is written.
        options: the flags of `python -m fastnas.export`: onnx, program, save, standalone (paths), image_size,
            with_preprocessing.

    Raises:
        UserError: the network cannot be read or exported, or a file cannot be written.
    """
    path, given = _path_or_network(network)
    parsed = options_of("export", ExportOptions, {**options, "network": path, "space": space})
    return run_export(parsed, _console(progress), given)


# --- what the commands call, with parsed options ---


def run_search(
    options: SearchOptions,
    arguments: Arguments,
    console: Console,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
) -> SearchResult:
    """Searches, and shows it on `console`. arguments: how it was asked for, for the records of the run."""
    with run_directory(options.command.resume, options.run.out, options.strategy.name, options.data.data) as lock:
        run = prepare_search(options, arguments, lock.directory)
        run.check_owned = lock.check
        print_search_header(run, console)
        with shown(run, console):
            call_back(run, on_epoch, on_step)
            outcome = run.run()
        report = write_report(run.directory)
        print_search_summary(run, outcome, report, arguments, _heard(console, outcome.status))
    return SearchResult(outcome.status, run.directory, outcome.genotype, outcome.valid_accuracy, outcome.evidence)


def run_train(
    options: TrainOptions,
    arguments: Arguments,
    console: Console,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    genotype: Genotype | None = None,
) -> TrainResult:
    """Trains a network for every seed, as `run_search` searches. genotype: None for the one that the options name."""
    named = options.command.search_run or Path(options.network.genotype or GENOTYPE)
    label = named.resolve().stem
    with run_directory(options.command.resume, options.run.out, f"train-{label}", options.data.data) as lock:
        return _train_in(lock, options, arguments, console, on_epoch, on_step, genotype)


def _train_in(
    lock: RunLock,
    options: TrainOptions,
    arguments: Arguments,
    console: Console,
    on_epoch: OnEpoch | None,
    on_step: OnStep | None,
    given: Genotype | None,
) -> TrainResult:
    directory, seeds, resume = lock.directory, options.run.seed_list(), options.command.resume is not None
    options = with_absolute_places(options, directory if resume else None)
    folders = {seed: directory / f"seed-{seed}" if len(seeds) > 1 else directory for seed in seeds}
    known = [directory, *folders.values()]
    genotype = genotype_of_run(options, known) if given is None or resume else given
    if given not in (None, genotype):
        raise UserError(f"the run in {directory} began with another genotype: leave it out, or start a new run.")
    sources = open_train_sources(options)
    if options.command.search_run is not None:
        print_search_run(read_search(options.command.search_run), options, sources, console)
    trained: list[TrainedNetwork] = []
    for seed, folder in folders.items():
        own = dataclasses.replace(options, run=dataclasses.replace(options.run, seeds=str(seed)))
        with nullcontext(lock) if folder == directory else locked_directory(folder) as inner:
            if is_finished(folder):  # its test images were read once, and are not read again
                print_text(console, f"seed {seed} is done: {folder}")
                trained.append(TrainedNetwork(seed, "finished", folder, recorded_test(folder)))
                if not (folder / "report.html").exists():  # killed at the very end
                    write_report(folder)
                continue
            retrain = prepare_training(own, sources, folder, seed, arguments, genotype)
            retrain.check_owned = inner.check
            if folder != directory:
                genotype.to_json(directory / GENOTYPE)
                write_config(directory, options)
            print_train_header(retrain, seed, console)
            with shown(retrain, console, TRAIN_HEADER, train_line):
                call_back(retrain, on_epoch, on_step)
                outcome = retrain.run()
            report = write_report(folder)
            print_train_summary(retrain, outcome, directory, report, arguments, _heard(console, outcome.status))
        trained.append(TrainedNetwork(seed, outcome.status, folder, outcome.test))
        if outcome.status != "finished":
            return TrainResult(outcome.status, directory, tuple(trained))
    if len(seeds) > 1:
        report = write_seeds_report(directory, folders)
        print_text(console, f"\n{summary(json.loads((directory / SUMMARY).read_text()))}")
        print_report(report, console)
    return TrainResult("finished", directory, tuple(trained))


def run_evaluate(
    options: EvaluateOptions, arguments: Arguments, console: Console, network: DerivedNetwork | None = None
) -> dict[str, Any]:
    """Measures, prints, and writes the files that the options name. network: None for the one of the options."""
    result = measure(options, console, network)
    if "evaluation" in result and (options.report or options.network.exists()):
        write_page(options, result, arguments, console)
    if options.json:
        try:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {str(options.json)!r}: {error.strerror}; give a writable file.") from error
    return result


def run_export(options: ExportOptions, console: Console, network: DerivedNetwork | None = None) -> list[Path]:
    """Writes the files that the options name. network: None for the one of the options."""
    return write_files(options, console, network)


def _console(progress: bool) -> Console:
    # As text also in a notebook, where rich makes a block of its own of every line.
    return Console(force_jupyter=False, quiet=not progress)


def _heard(console: Console, status: str) -> Console:
    """Where the end is told: that a run was interrupted is told in any case."""
    return Console(stderr=True, force_jupyter=False) if console.quiet and status == "interrupted" else console


def _path_or_network(network: AnyNetwork) -> tuple[Path, DerivedNetwork | None]:
    if isinstance(network, DerivedNetwork):
        return Path("the given network"), network
    if isinstance(network, TrainResult) and len(network.trained) == 1:
        network = network.trained[0]
    return Path(network), None
