"""Many seeds of several strategies on one evaluator: what `fastnas.compare` runs, in several processes, and keeps."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fastnas import data, evaluators, spaces, strategies
from fastnas.atomic_file import cannot_write, replace_file, synchronise
from fastnas.cli.command import print_text
from fastnas.cli.options import CompareOptions
from fastnas.cli.process import resolve_device
from fastnas.cli.run_directory import CHECKPOINT, WRITTEN, refuse_foreign
from fastnas.engine.interrupt import deferred_interrupts
from fastnas.errors import UserError
from fastnas.evaluators import Evaluator, function
from fastnas.report.comparison import Summary, summarise
from fastnas.report.results import OPTIONS_FILE, RUNS_FILE, Result, read_options, read_results
from fastnas.spaces.encoding import encoding_of
from fastnas.strategies import DiscreteStrategy

FORMERLY = {"device": "cpu"}
"""What an option was for comparisons that did not know it yet."""


def split_names(text: str) -> list[str]:
    """The strategies of a comma-separated list; commas also separate the options of each."""
    names: list[str] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        if "=" in word and ":" not in word and names:
            names[-1] += f",{word}"
        else:
            names.append(word)
    if not names:
        raise UserError("no strategy: give --strategies random,aging-evolution, for example.")
    return list(dict.fromkeys(names))


def discrete(name: str) -> DiscreteStrategy:
    """A strategy that needs no supernet. UserError for the others."""
    strategy = strategies.parse(name)
    if not isinstance(strategy, DiscreteStrategy):
        known = [n for n, kind in strategies.STRATEGIES.items() if issubclass(kind, DiscreteStrategy)]
        raise UserError(
            f"{strategy.name} moves α of a supernet, which an evaluator of single architectures does not have: compare "
            f"{', '.join(known)}; run it with python -m fastnas.search."
        )
    return strategy


def open_evaluator(options: CompareOptions) -> Evaluator:
    """The evaluator of a comparison. UserError for an unknown one."""
    kind, _, detail = options.evaluator.partition(":")
    if kind == "nb201" and detail:
        return evaluators.NB201(detail)
    if kind == "python":
        return evaluators.Function(function.load(detail), encoding_of(spaces.find(options.space)))
    if kind == "training" and detail:
        return _training(options, detail)
    raise UserError(
        f"unknown evaluator {options.evaluator!r}: expected nb201:PATH, python:MODULE:FUNCTION or training:DATA."
    )


def _training(options: CompareOptions, spec: str) -> Evaluator:
    source, device = data.open(spec, limit=options.limit), resolve_device(options.device)
    first, second = source.search_split(0.5)

    def pipeline(indices: np.ndarray, train: bool) -> data.Pipeline:
        size = min(options.batch_size, len(indices))
        return data.pipeline(source, "auto", batch_size=size, indices=indices, train=train, device=device)

    build = functools.partial(
        evaluators.derived_network,
        channels=options.channels,
        layers=options.layers,
        num_classes=len(source.classes),
        in_channels=source.channels,
    )
    encoding = encoding_of(spaces.find(options.space))
    wanted = ("parameters", "macs") if "nsga2" in options.strategies else ()
    costs = evaluators.Costs(wanted, encoding, build, (source.channels, *source.image_size), device) if wanted else None
    return evaluators.ShortTraining(
        encoding, build, pipeline(first, True), pipeline(second, False), options.epochs, costs=costs
    )


def run_once(evaluator: Evaluator, name: str, seed: int, budget: float) -> Result:
    """One run of a strategy.

    Raises:
        UserError: the budget does not suffice for one architecture.
    """
    seconds, count = 0.0, 0
    curve: list[tuple[float, float, float | None]] = []
    best = None
    for individual in discrete(name).run(evaluator, seed, budget):
        seconds += individual.evaluation.seconds
        count += 1
        if best is None or individual.accuracy > best.accuracy:
            best = individual
            curve.append((seconds, individual.accuracy, evaluator.judge(individual.code)))
    if best is None:
        raise UserError(f"a budget of {budget:g} seconds does not suffice for one architecture: raise --budget.")
    genotype = evaluator.encoding.decode(best.code).to_dict()
    return Result(name, seed, count, seconds, best.accuracy, curve[-1][2], genotype, curve)


# --- processes ---

_evaluator: Evaluator


def _begin(options: CompareOptions) -> None:
    global _evaluator
    torch.set_num_threads(options.threads or 1)
    _evaluator = open_evaluator(options)


def _work(arguments: tuple[str, Sequence[int], float]) -> list[Result]:
    name, seeds, budget = arguments
    return [run_once(_evaluator, name, seed, budget) for seed in seeds]


def compare(options: CompareOptions, console: Console) -> list[Summary]:
    """Runs what is missing, and returns the table."""
    names = split_names(options.strategies)
    for name in names:
        discrete(name)  # complain before work is done
    clock = open_evaluator(options).clock
    _claim(options, clock)
    done = {(result.strategy, result.seed) for result in read_results(options.out)}
    seeds = range(options.seed, options.seed + options.runs)
    missing = {name: [seed for seed in seeds if (name, seed) not in done] for name in names}
    total = sum(map(len, missing.values()))
    if kept := len(names) * options.runs - total:
        print_text(console, f"{kept} runs of {len(names) * options.runs} are there already")
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=32), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("runs", total=total)
        for results in _results(options, missing):
            _append(options.out / RUNS_FILE, results)
            bar.advance(task, len(results))
    return [summary for summary in summarise(read_results(options.out)) if summary.strategy in names]


def _results(options: CompareOptions, missing: dict[str, list[int]]) -> Iterator[list[Result]]:
    processes = options.processes or os.cpu_count() or 1
    # Small enough to lose little at a stop, large enough for the overhead between processes not to matter.
    size = max(1, min(10, options.runs // (4 * processes)))
    if not options.evaluator.startswith("nb201:"):
        size = 1
    work = [
        (name, seeds[i : i + size], options.budget)
        for name, seeds in missing.items()
        for i in range(0, len(seeds), size)
    ]
    if processes == 1 or len(work) < 2:
        _begin(options)
        for arguments in work:
            yield _work(arguments)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with contextlib.ExitStack() as stack:
        with deferred_interrupts():
            pool = stack.enter_context(context.Pool(min(processes, len(work)), _begin, (options,)))
        yield from pool.imap_unordered(_work, work)  # leaving the stack ends the processes


def _append(path: Path, results: Sequence[Result]) -> None:
    """Adds finished runs, all or none. UserError where they cannot be written."""
    try:
        with path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            lines = "".join(json.dumps(asdict(result)) + "\n" for result in results).encode()
            try:
                while lines:
                    lines = lines[file.write(lines) or 0 :]
                synchronise(file.fileno())
            except BaseException:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise cannot_write("the runs", path, error) from error


def _claim(options: CompareOptions, clock: str) -> None:
    """Makes the directory that of a comparison, or checks that its runs can be compared with new ones; repairs a torn
    last line.

    Raises:
        UserError: it holds other files, or runs that cannot be compared or whose options are lost.
    """
    path, runs, fixed = options.out / OPTIONS_FILE, options.out / RUNS_FILE, options.fixed(clock)
    if not path.exists():
        if runs.exists():
            raise UserError(
                f"{options.out} holds {RUNS_FILE} but no {OPTIONS_FILE}, which says what evaluator and budget the runs "
                "had: restore it, or give another --out."
            )
        refuse_foreign(options.out, (*WRITTEN, CHECKPOINT), own=False)
        replace_file(path, json.dumps(fixed, indent=2) + "\n", "the options")
        return
    before = read_options(options.out)
    before = FORMERLY | before
    if changed := [name for name in fixed if fixed[name] != before.get(name)]:
        name = changed[0]
        raise UserError(
            f"the runs in {options.out} had {name}={before.get(name)!r}, not {fixed[name]!r}: they cannot be compared; "
            "give another --out."
        )
    read_results(options.out)  # before anything is changed
    if runs.exists() and (text := runs.read_bytes()) and not text.endswith(b"\n"):
        replace_file(runs, text[: text.rfind(b"\n") + 1], "the runs")
