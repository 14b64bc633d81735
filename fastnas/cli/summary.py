"""What is printed before a search or a training begins and after it has ended."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from fastnas.cli.command import command_line, print_text
from fastnas.cli.configuration import TrainOptions
from fastnas.cli.images import TrainSources
from fastnas.cli.progress import VALIDATED, print_left_out
from fastnas.cli.run import Arguments
from fastnas.cli.search_run import SearchRun
from fastnas.counting import count_macs, count_parameters
from fastnas.data import Source
from fastnas.engine.loop import Loop
from fastnas.engine.rehearsal import Rehearsal
from fastnas.engine.retrain import Retrain, TrainOutcome
from fastnas.engine.search import Outcome, Search
from fastnas.genotype import Genotype
from fastnas.report import print_genotype
from fastnas.report.evidence import evidence_words


def print_search_header(search: Search, console: Console) -> None:
    source, network = search.weight_pipeline.source, search.network
    height, width = source.image_size
    of_weights, of_alpha = (len(pipeline.indices) for pipeline in (search.weight_pipeline, search.valid_pipeline))
    own = "" if search.valid_pipeline.source is source else f", of the folder {search.valid_pipeline.source.split}"
    print_text(
        console,
        (search.strategy.name, "bold"),
        f" on {source.spec}: {len(source):,} images ({height}×{width}×{source.channels}, {len(source.classes)} "
        f"classes), {of_weights:,} for the weights, {of_alpha:,} for α{own}",
    )
    print_text(
        console,
        f"supernet {network.space.name}, {count_parameters(network):,} parameters, {network.backend} on "
        f"{search.device}{_processes(search)}; {_place(search)}",
    )
    _print_kept(source, console)
    print_left_out(source.left_out, console)
    _print_resumed(search, console)


def print_search_summary(
    search: Search, outcome: Outcome, report: Path, arguments: Arguments, console: Console
) -> None:
    if outcome.status == "finished":
        console.print()
        print_genotype(outcome.genotype, console)
        console.print()
        if outcome.chosen is not None:
            print_text(
                console,
                f"chosen architecture: accuracy {outcome.chosen['accuracy']:.2%} by {outcome.chosen['by']}, the best "
                f"of {outcome.chosen['evaluated']:,}",
            )
        if outcome.valid_accuracy is not None:
            images = len(search.valid_pipeline.indices)
            whose = VALIDATED[outcome.valid_of]
            augmented = "" if search.augmented_pipeline is None else " augmented"
            accuracy = f"accuracy {outcome.valid_accuracy:.2%} on {images:,}{augmented} images"
            print_text(console, f"{whose}, validation half: {accuracy}")
        for size in outcome.derived[-1:]:
            print_text(
                console,
                f"network of the cell, {size['channels']} channels, {size['layers']} cells: {size['parameters']:,} "
                f"parameters, {size['macs'] / 1e6:,.1f} M multiply-adds, not trained yet",
            )
        if outcome.evidence is not None:
            said, warned = evidence_words(outcome.evidence)
            for number, words in enumerate(said):
                print_text(console, f"{'' if number else 'evidence':<9} {words}")
            for words in warned:
                print_text(console, f"{'':<9} {words}", style="yellow")
        print_text(console, f"genotype  {search.directory / 'genotype.json'}")
        if isinstance(outcome.genotype, Genotype):
            following = command_line("fastnas.train", "--from", str(search.directory))
            if isinstance(arguments, str):
                given = ", data" if _in_memory(search) else ""
                following = f"fastnas.api.train({str(search.directory)!r}{given})"
            print_text(console, f"next      {following}")
    else:
        _print_unfinished(outcome, "fastnas.search", search, search.directory, arguments, console)
    print_report(report, console)


def print_search_run(search: SearchRun, options: TrainOptions, sources: TrainSources, console: Console) -> None:
    """What a training has taken from a search. UserError if its images are not the same any more."""
    warning = search.check(sources.train, sources.test)
    preset = options.command.preset or search.preset
    print_text(console, f"from {search.path}: its genotype and images, and the recipe {preset}")
    if search.run.status != "finished":
        print_text(console, f"that search is {search.run.status}: its genotype is not final", style="yellow")
    if warning is not None:
        print_text(console, warning, style="yellow")


def _processes(loop: Loop) -> str:
    return "" if loop.world.size == 1 else f" in {loop.world.size} processes"


def _place(loop: Loop) -> str:
    return "nothing is written" if isinstance(loop, Rehearsal) else f"run directory {loop.directory}"


def _print_kept(source: Source, console: Console) -> None:
    if source.kept_for_test:
        print_text(
            console,
            f"{source.spec} has no test split: {source.kept_for_test:,} of its images, {source.test_share:.0%} of "
            "each class and always the same ones, are kept for the test of the trained network",
        )


def print_train_header(retrain: Retrain, seed: int, console: Console) -> None:
    source, network = retrain.train_pipeline.source, retrain.network
    height, width = source.image_size
    held_out = 0 if retrain.valid_pipeline is None else len(retrain.valid_pipeline.indices)
    macs = count_macs(network, (source.channels, height, width))
    print_text(
        console,
        (f"seed {seed}", "bold"),
        f" on {source.spec}: {len(retrain.train_pipeline.indices):,} images ({height}×{width}×{source.channels}, "
        f"{len(source.classes)} classes) to train, {held_out:,} held out",
    )
    print_text(
        console,
        f"{count_parameters(network):,} parameters, {macs / 1e6:.1f} M multiply-adds, {network.backend} on "
        f"{retrain.device}{_processes(retrain)}; {_place(retrain)}",
    )
    _print_kept(source, console)
    _print_resumed(retrain, console)
    print_left_out(source.left_out, console)


def print_train_summary(
    retrain: Retrain, outcome: TrainOutcome, run: Path, report: Path, arguments: Arguments, console: Console
) -> None:
    """run: the directory to resume, which may hold several seeds."""
    if outcome.status != "finished":
        _print_unfinished(outcome, "fastnas.train", retrain, run, arguments, console)
    elif outcome.test is not None:
        assert outcome.selected_epoch is not None
        top5 = f" (top-5 {outcome.test.top5:.2%})" if len(outcome.test.per_class) > 5 else ""
        print_text(
            console,
            f"\nnetwork after training, test: accuracy {outcome.test.top1:.2%}{top5} on {outcome.test.images:,} "
            f"images, weights of epoch {outcome.selected_epoch + 1}",
        )
    print_report(report, console)


def print_report(report: Path, console: Console) -> None:
    print_text(console, f"report    {report}")


def _print_resumed(loop: Search | Retrain, console: Console) -> None:
    if loop.resumed:
        print_text(console, f"resumed after {loop.epoch} epochs and {loop.step} steps")
        if loop.log.lost:
            print_text(
                console,
                f"metrics.jsonl lacks {loop.log.lost:,} bytes that the checkpoint knows to be written: the records of "
                "some earlier epochs are lost, the run itself is whole",
                style="yellow",
            )


def _print_unfinished(
    outcome: Outcome | TrainOutcome, program: str, loop: Loop, run: Path, arguments: Arguments, console: Console
) -> None:
    if isinstance(arguments, str):
        images = "data=data, " if _in_memory(loop) else ""
        again = f"{program.replace('fastnas', 'fastnas.api')}({images}resume={str(run)!r})"
    else:
        again = command_line(program, "--resume", str(run))
        if loop.world.size > 1:
            again = f"torchrun, as before, -m {program} {shlex.join(['--resume', str(run)])}"
    print_text(console, f"{outcome.status} after {outcome.epoch} epochs; continue with: {again}")


def _in_memory(loop: Loop) -> bool:
    """Whether the images are those of a Python program."""
    return str(loop.options["data"]["data"]).startswith("memory:")
