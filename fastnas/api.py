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

import json
import os
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

from fastnas.cli.configuration import parse_search, parse_train
from fastnas.cli.evaluating import EvaluateOptions, measure, write_page
from fastnas.cli.exporting import ExportOptions, write_files
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
from fastnas.cli.progress import OnEpoch, OnStep
from fastnas.cli.results import SearchResult, TrainedNetwork, TrainResult
from fastnas.cli.run import Arguments
from fastnas.cli.running import run_search, run_train, show_search, show_train
from fastnas.data import HeldData
from fastnas.engine.trained import load_trained
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn import DerivedNetwork
from fastnas.spaces import CellSpace
from fastnas.strategies import Strategy

__all__ = [
    "SearchResult", "TrainResult", "TrainedNetwork", "evaluate", "export", "run_evaluate", "run_export", "run_search",
    "run_train", "search", "show_search", "show_train", "train",
]  # fmt: skip

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
            with_preprocessing, threads.

    Raises:
        UserError: the network cannot be read or exported, or a file cannot be written.
    """
    path, given = _path_or_network(network)
    parsed = options_of("export", ExportOptions, {**options, "network": path, "space": space})
    return run_export(parsed, _console(progress), given)


# --- what the commands call, with parsed options ---


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


def _path_or_network(network: AnyNetwork) -> tuple[Path, DerivedNetwork | None]:
    if isinstance(network, DerivedNetwork):
        return Path("the given network"), network
    if isinstance(network, TrainResult) and len(network.trained) == 1:
        network = network.trained[0]
    return Path(network), None
