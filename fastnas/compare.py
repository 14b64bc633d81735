"""`python -m fastnas.compare`: many seeds of several strategies on one evaluator, as a table and a page."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fastnas import data, evaluators, spaces, strategies
from fastnas.errors import UserError
from fastnas.evaluators import Evaluator, function
from fastnas.report.comparison import (
    OPTIONS_FILE,
    RUNS_FILE,
    Result,
    Summary,
    read_results,
    summarise,
    write_comparison,
)
from fastnas.spaces.encoding import encoding_of
from fastnas.strategies import DiscreteStrategy

DESCRIPTION = """Compares strategies that choose architectures: random, aging-evolution, genetic, nsga2, particle-swarm,
reinforce, nasnet-ppo, enas.

Every run gets the same budget on the clock of the evaluator. Finished runs are kept: the same command goes on where it
was stopped, and more runs or further strategies can be added later."""


@dataclass(frozen=True)
class Options:
    """Options of a comparison."""

    strategies: str
    """Names, separated by commas; each may have options: random,reinforce:controller=independent."""
    evaluator: str
    """nb201:PATH (the table of NAS-Bench-201), python:MODULE:FUNCTION, or training:DATA such as training:digits."""
    out: Path
    """Directory of the comparison; an existing one is continued."""
    runs: int = 100
    """Seeds of each strategy."""
    budget: float = 12000.0
    """Seconds of a run, on the clock of the evaluator: simulated for a table, real otherwise."""
    seed: int = 0
    """Of the first run; the others follow."""
    processes: int | None = None
    """Runs at a time; None for one per CPU core."""
    space: str = "egnas"
    """Search space of python: and training:; a table brings its own."""
    epochs: int = 1
    """training: epochs of each architecture."""
    channels: int = 8
    """training: channels of a node in the first cell."""
    layers: int = 5
    """training: cells."""
    batch_size: int = 64
    """training: images of a step."""
    limit: int | None = None
    """training: at most this many images."""

    def __post_init__(self) -> None:
        for name in ("runs", "processes", "epochs", "channels", "layers", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, expected at least 1.")
        if not 0 < self.budget < float("inf"):
            raise UserError(f"budget is {self.budget}, expected a finite number of seconds above 0.")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}, expected at least 0.")

    def fixed(self, clock: str) -> dict[str, Any]:
        """What all runs of a directory have in common."""
        names = ["evaluator", "budget"]
        if not self.evaluator.startswith("nb201:"):
            names.append("space")
        if self.evaluator.startswith("training:"):
            names += ["epochs", "channels", "layers", "batch_size", "limit"]
        return {"clock": clock, **{name: getattr(self, name) for name in names}}


def split_names(text: str) -> list[str]:
    """Strategies of a list separated by commas, in which options are separated by commas, too."""
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


def open_evaluator(options: Options) -> Evaluator:
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


def _training(options: Options, spec: str) -> Evaluator:
    source = data.open(spec, limit=options.limit)
    first, second = source.search_split(0.5)

    def pipeline(indices: np.ndarray, train: bool) -> data.Pipeline:
        size = min(options.batch_size, len(indices))
        return data.pipeline(source, "auto", batch_size=size, indices=indices, train=train)

    build = functools.partial(
        evaluators.derived_network,
        channels=options.channels,
        layers=options.layers,
        num_classes=len(source.classes),
        in_channels=source.channels,
    )
    encoding = encoding_of(spaces.find(options.space))
    wanted = ("parameters", "macs") if "nsga2" in options.strategies else ()
    costs = evaluators.Costs(wanted, encoding, build, (source.channels, *source.image_size)) if wanted else None
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


def _begin(options: Options) -> None:
    global _evaluator
    torch.set_num_threads(1)
    _evaluator = open_evaluator(options)


def _begin_worker(options: Options) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and ends its workers
    _begin(options)


def _work(arguments: tuple[str, Sequence[int], float]) -> list[Result]:
    name, seeds, budget = arguments
    return [run_once(_evaluator, name, seed, budget) for seed in seeds]


def compare(options: Options, console: Console) -> list[Summary]:
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
        console.print(f"{kept} runs of {len(names) * options.runs} are there already", highlight=False)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=32), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar, (options.out / RUNS_FILE).open("a", encoding="utf-8") as file:
        task = bar.add_task("runs", total=total)
        for results in _results(options, missing):
            for result in results:
                file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            bar.advance(task, len(results))
    return [summary for summary in summarise(read_results(options.out)) if summary.strategy in names]


def _results(options: Options, missing: dict[str, list[int]]) -> Iterator[list[Result]]:
    processes = options.processes or os.cpu_count() or 1
    # Small enough to lose little at a stop, large enough that handing over takes no time.
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
    with context.Pool(min(processes, len(work)), _begin_worker, (options,)) as pool:  # leaving it ends the processes
        yield from pool.imap_unordered(_work, work)


def _claim(options: Options, clock: str) -> None:
    """Creates the directory, or checks that its runs can be compared with new ones; repairs a torn last line."""
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {options.out}: {error.strerror}; give another --out.") from error
    path, fixed = options.out / OPTIONS_FILE, options.fixed(clock)
    if not path.exists():
        path.write_text(json.dumps(fixed, indent=2) + "\n", encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if changed := [name for name in fixed if fixed[name] != before.get(name)]:
        name = changed[0]
        raise UserError(
            f"the runs in {options.out} had {name}={before.get(name)!r}, not {fixed[name]!r}: they cannot be compared; "
            "give another --out."
        )
    runs = options.out / RUNS_FILE
    if runs.exists() and (text := runs.read_bytes()) and not text.endswith(b"\n"):
        runs.write_bytes(text[: text.rfind(b"\n") + 1])


def print_table(summaries: Sequence[Summary], console: Console) -> None:
    width = max(len("strategy"), *(len(summary.strategy) for summary in summaries))
    header = f"{'strategy':<{width}} {'runs':>5} {'mean ± std (%)':>15} {'worst to best':>16} {'evaluations':>12}"
    console.print(header, style="bold", highlight=False, soft_wrap=True)
    for s in summaries:
        spread = f"{s.worst:.2f} to {s.best:.2f}"
        row = f"{f'{s.mean:.2f} ± {s.std:.2f}':>15} {spread:>16} {s.evaluations:>12.1f}"
        console.print(f"{s.strategy:<{width}} {s.runs:>5} {row}", highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, 130 after Ctrl-C, 2 after an error of the user."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    try:
        options = tyro.cli(Options, args=arguments, prog="python -m fastnas.compare", description=DESCRIPTION)
        print_table(compare(options, console), console)
        console.print(f"report    {write_comparison(options.out)}", highlight=False, soft_wrap=True)
        return 0
    except KeyboardInterrupt:
        command = shlex.join(["python", "-m", "fastnas.compare", *arguments])
        console.print(f"stopped; finished runs are kept, go on with: {command}", highlight=False, soft_wrap=True)
        return 130
    except UserError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {error}", highlight=False, soft_wrap=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
