"""Searches and trainings as commands and Python run them: prepared, shown on a console, and reported."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from fastnas.cli.command import print_text
from fastnas.cli.configuration import SearchOptions, TrainOptions
from fastnas.cli.estimate import estimated, print_forecast
from fastnas.cli.images import TrainSources, open_train_sources
from fastnas.cli.places import with_absolute_places
from fastnas.cli.progress import TRAIN_HEADER, OnEpoch, OnStep, call_back, shown, train_line
from fastnas.cli.results import SearchResult, TrainedNetwork, TrainResult, recorded_test
from fastnas.cli.run import Arguments, fitted_epochs, is_finished, write_config
from fastnas.cli.run_directory import FollowedDirectory, for_all, locked_directory, refuse_run, run_directory
from fastnas.cli.run_lock import RunLock
from fastnas.cli.search_run import read_search
from fastnas.cli.searching import begin as begin_search
from fastnas.cli.searching import search_parts
from fastnas.cli.summary import (
    print_report,
    print_search_header,
    print_search_run,
    print_search_summary,
    print_train_header,
    print_train_summary,
)
from fastnas.cli.training import GENOTYPE, genotype_of_run, training_parts, with_epochs
from fastnas.cli.training import begin as begin_training
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.report import write_report
from fastnas.report.seeds import SUMMARY, summary, write_seeds_report
from fastnas.world import World, joined, launched


def run_search(
    options: SearchOptions,
    arguments: Arguments,
    console: Console,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
) -> SearchResult:
    """Searches, and shows it on `console`. arguments: how it was asked for, for the records of the run."""
    own = run_directory(options.command.resume, options.run.out, options.strategy.name, options.data.data)
    with joined(options.run.device) as world, for_all(world, own) as lock:
        console = _of(world, console)
        with world.together():
            parts, forecast = estimated(search_parts(options, world), console)
            run = begin_search(parts, arguments, lock.directory)
        run.check_owned = lock.check
        print_search_header(run, console)
        print_forecast(parts, forecast, console)
        with shown(run, console, forecast=forecast):
            call_back(run, on_epoch, on_step)
            outcome = run.run()
        if world.leads:
            report = write_report(run.directory)
            print_search_summary(run, outcome, report, arguments, _heard(console, outcome.status))
    return SearchResult(outcome.status, run.directory, outcome.genotype, outcome.valid_accuracy, outcome.evidence)


def show_search(options: SearchOptions, console: Console) -> None:
    """--dry-run: prepares a search, and prints what would run and what it would need."""
    refuse_run(options.command.resume, options.run.out)
    parts = search_parts(options, World(*launched()))
    parts, forecast = estimated(parts, console, anyway=True, about=lambda run: print_search_header(run, console))
    print_forecast(parts, forecast, console, dry=True)


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
    own = run_directory(options.command.resume, options.run.out, f"train-{label}", options.data.data)
    with joined(options.run.device) as world, for_all(world, own) as lock:
        return _train_in(lock, world, options, arguments, _of(world, console), on_epoch, on_step, genotype)


def _train_in(
    lock: RunLock | FollowedDirectory,
    world: World,
    options: TrainOptions,
    arguments: Arguments,
    console: Console,
    on_epoch: OnEpoch | None,
    on_step: OnStep | None,
    given: Genotype | None,
) -> TrainResult:
    directory, seeds = lock.directory, options.run.seed_list()
    with world.together():
        options, folders, genotype, sources = _opened(options, directory, console, given)
    trained: list[TrainedNetwork] = []
    budget, forecast = options.run.budget, None
    for seed, folder in folders.items():
        with nullcontext(lock) if folder == directory else for_all(world, locked_directory(folder)) as inner:
            if world.broadcast(is_finished(folder)):  # its test images were read once, and are not read again
                print_text(console, f"seed {seed} is done: {folder}")
                trained.append(TrainedNetwork(seed, "finished", folder, recorded_test(folder)))
                if world.leads and not (folder / "report.html").exists():  # killed at the very end
                    write_report(folder)
                continue
            with world.together():
                parts = training_parts(_of_seed(options, seed), sources, folder, seed, genotype, world)
                first = forecast is None
                if first:
                    parts, forecast = estimated(parts, console, runs=len(seeds) - len(trained))
                    if budget is not None:
                        options = with_epochs(options, parts.epochs)
                retrain = begin_training(parts, arguments, folder, budget)
            retrain.check_owned = inner.check
            if world.leads and folder != directory:
                genotype.to_json(directory / GENOTYPE)
                write_config(directory, options, origins=fitted_epochs("recipe", budget))
            print_train_header(retrain, seed, console)
            if first:
                print_forecast(parts, forecast, console, runs=len(seeds) - len(trained))
            with shown(retrain, console, TRAIN_HEADER, train_line, forecast):
                call_back(retrain, on_epoch, on_step)
                outcome = retrain.run()
            if world.leads:
                report = write_report(folder)
                print_train_summary(retrain, outcome, directory, report, arguments, _heard(console, outcome.status))
        trained.append(TrainedNetwork(seed, outcome.status, folder, outcome.test))
        if outcome.status != "finished":
            return TrainResult(outcome.status, directory, tuple(trained))
    if world.leads and len(seeds) > 1:
        report = write_seeds_report(directory, folders)
        print_text(console, f"\n{summary(json.loads((directory / SUMMARY).read_text()))}")
        print_report(report, console)
    return TrainResult("finished", directory, tuple(trained))


def show_train(options: TrainOptions, console: Console) -> None:
    """--dry-run: prepares a training, and prints what would run and what it would need."""
    refuse_run(options.command.resume, options.run.out)
    directory = options.command.resume or Path(options.run.out or "runs")
    options, folders, genotype, sources = _opened(options, directory, console, None)
    waiting = [seed for seed, folder in folders.items() if options.command.resume is None or not is_finished(folder)]
    if not waiting:
        print_text(console, f"all seeds are done: {directory}")
        return
    seed = waiting[0]
    parts = training_parts(_of_seed(options, seed), sources, folders[seed], seed, genotype, World(*launched()))
    parts, forecast = estimated(
        parts,
        console,
        runs=len(waiting),
        anyway=True,
        about=lambda run: print_train_header(run, seed, console),
    )
    print_forecast(parts, forecast, console, runs=len(waiting), dry=True)


def _opened(
    options: TrainOptions, directory: Path, console: Console, given: Genotype | None
) -> tuple[TrainOptions, dict[int, Path], Genotype, TrainSources]:
    """What all seeds of a training have in common: options, folders by seed, genotype and images."""
    seeds, resume = options.run.seed_list(), options.command.resume is not None
    options = with_absolute_places(options, directory if resume else None)
    folders = {seed: directory / f"seed-{seed}" if len(seeds) > 1 else directory for seed in seeds}
    known = [directory, *folders.values()]
    genotype = genotype_of_run(options, known) if given is None or resume else given
    if given not in (None, genotype):
        raise UserError(f"the run in {directory} began with another genotype: leave it out, or start a new run.")
    sources = open_train_sources(options)
    if options.command.search_run is not None:
        print_search_run(read_search(options.command.search_run), options, sources, console)
    return options, folders, genotype, sources


def _of(world: World, console: Console) -> Console:
    """Where a process prints: only the first one does."""
    return console if world.leads else Console(quiet=True)


def _of_seed(options: TrainOptions, seed: int) -> TrainOptions:
    return dataclasses.replace(options, run=dataclasses.replace(options.run, seeds=str(seed)))


def _heard(console: Console, status: str) -> Console:
    """Where the end is told: that a run was interrupted is told in any case."""
    return Console(stderr=True, force_jupyter=False) if console.quiet and status == "interrupted" else console
