"""What both processes of a pair do, all in one start: FOLDER gets what each of them finds.

`torchrun … pair.py FOLDER`
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from torch import Tensor
from two_processes import KILLED, OWN, SMALL, flags_of

from fastnas import data, train
from fastnas.cli import running
from fastnas.cli.configuration import parse_search
from fastnas.cli.run_directory import for_all, run_directory
from fastnas.cli.running import run_search
from fastnas.cli.searching import begin, search_parts
from fastnas.engine.evaluation import evaluate
from fastnas.engine.search import Search
from fastnas.errors import UserError
from fastnas.strategies.egnas_scores import Scores
from fastnas.world import ALONE, World, joined

CHECKS: list[Callable[[World, Path], Any]] = []


def check(function: Callable[[World, Path], Any]) -> Callable[[World, Path], Any]:
    """Its result in each process is what the tests of its name look at."""
    CHECKS.append(function)
    return function


@contextmanager
def caught() -> Iterator[list[Search]]:
    """The searches that `run_search` begins within the context."""
    searches: list[Search] = []
    original = running.begin_search

    def begin_search(*arguments: Any) -> Search:
        searches.append(original(*arguments))
        return searches[-1]

    report = patch.object(running, "write_report", lambda run: (run / "report.html").touch() or run)
    with patch.object(running, "begin_search", begin_search), report:
        yield searches


def search(arguments: list[str]) -> tuple[Search, Any]:
    torch.rand(7)
    with caught() as searches:
        outcome = run_search(parse_search(arguments, "test", ""), arguments, Console(quiet=True))
    return searches[0], outcome


@check
def strategies(world: World, folder: Path) -> dict[str, Any]:
    found = {}
    for name in OWN:
        run, outcome = search([*flags_of(name), "--out", str(folder / name)])
        found[name] = {
            "alpha": {kind: alpha.detach() for kind, alpha in run.network.alphas.items()},
            "weights": run.network.state_dict(),
            "genotype": repr(outcome.genotype),
            "accuracy": outcome.valid_accuracy,
            "chosen": run.strategy.chosen,
            "evidence": {key: value for key, value in (outcome.evidence or {}).items() if key != "seconds"},
        }
    return found


@check
def resumed_after_a_kill(world: World, folder: Path) -> list[str]:
    """The run that the test has killed goes on; another one is never interrupted."""
    outcomes = [search(["--resume", str(folder / "killed")]), search([*KILLED, "--out", str(folder / "whole")])]
    return [outcome.status for _, outcome in outcomes]


@check
def interrupted(world: World, folder: Path) -> list[Any]:
    """A signal reaches process 1 alone, within an epoch of weight steps; then the run goes on."""
    arguments = [*flags_of("snas"), "--out", str(folder / "interrupted")]
    step = Search._train_on

    def signalled(run: Search, images: Tensor, labels: Tensor) -> None:
        step(run, images, labels)
        if world.rank == 1 and (run.epoch, run.step) == (1, 0):
            run._guard.requested = "SIGTERM"

    with patch.object(Search, "_train_on", signalled):
        run, outcome = search(arguments)
    place = (outcome.status, run.epoch, run.step, run._guard.requested)
    _, outcome = search(["--resume", str(folder / "interrupted")])
    return [*place, outcome.status]


@check
def training(world: World, folder: Path) -> dict[str, Any]:
    flags = "--genotype DARTS_V2 --data digits --limit 90 --batch-size 16 --channels 4 --layers 3 --epochs 2 --cutout 0"
    flags += " --validation 0.2 --ema 0.9 --select best_valid --device cpu --threads 1 --drop-path 0.3"
    status = train.main([*flags.split(), "--out", str(folder / "trained")])
    masks = torch.rand(3)  # the generator from which paths are dropped
    return {"status": status, "masks": masks}


def prepared(world: World, folder: Path, *flags: str) -> Search:
    arguments = [*SMALL, *flags, "--out", str(folder / f"prepared-{world.size}")]
    if world.size == 1:
        (folder / "prepared-1").mkdir(exist_ok=True)
        return begin(search_parts(parse_search(arguments, "test", "")), arguments, folder / "prepared-1")
    with for_all(world, run_directory(None, arguments[-1], "", "")) as lock:
        return begin(search_parts(parse_search(arguments, "test", ""), world), arguments, lock.directory)


def freeze(run: Search) -> None:
    """In float64, with every BatchNorm as in evaluation."""
    run.network.double()
    for parameter in run.strategy.alpha_parameters:  # β is not the network's
        parameter.data = parameter.data.double()
    for module in run.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    pipeline = run.strategy._pipeline
    batch = pipeline.batch
    pipeline.batch = lambda epoch, step: (batch(epoch, step)[0].double(), batch(epoch, step)[1])


@check
def halves(world: World, folder: Path) -> dict[str, Any]:
    """Two halves of each batch in two processes, and in this one whole batches: the numbers after three steps."""
    found = {}
    for number, flags in enumerate(("darts", "pc-darts --warm-up 0", "snas --search-drop-path 0", "gdas")):
        place = folder / f"halves-{number}-{world.rank}"
        place.mkdir()
        both = world.broadcast(str(folder / f"halves-{number}-both"))
        ends = []
        for size, where in ((world, Path(both)), (ALONE, place)):
            where.mkdir(exist_ok=True)
            run = prepared(size, where, "--strategy", *flags.split(), "--backend", "reference")
            run.network.train()
            freeze(run)
            for images, labels in list(run._pipeline.epoch(0))[:3]:
                run._train_on(images.double(), labels)
                run.step += 1
            beta = [parameter.detach() for parameter in run.strategy.alpha_parameters]
            ends.append([*beta, *(parameter.detach() for parameter in run.weight_parameters)])
            run.log.close()
        found[flags] = ends
    return found


class Recorder:
    """A stand-in for CUDA graphs: a recording is the call itself."""

    def __init__(self) -> None:
        self.recorded = 0

    def warm_up(self, call: Callable[[], Any]) -> Any:
        return call()

    def record(self, call: Callable[[], Any]) -> Callable[[], Any]:
        self.recorded += 1
        return call


@check
def recordings(world: World, folder: Path) -> list[Any]:
    """The weights after an epoch of plain steps, and of recorded ones."""
    ends = []
    for recorder in (None, Recorder()):
        place = folder / f"recordings-{'plain' if recorder is None else 'recorded'}"
        run = prepared(world, place, *flags_of("egnas")[len(SMALL) :], "--epochs", "3", "--batch-size", "8")
        run.graphs.recorder = recorder
        run.run()
        ends.append(run.network.state_dict())
    assert recorder is not None
    return [*ends, recorder.recorded]


@check
def population(world: World, folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Scores of five individuals, and of one, shared out and not."""
    run = prepared(ALONE, folder, "--strategy", "egnas", "--warm-up", "1", "--fitness-batch-size", "20")
    batches = [run.alpha_pipeline(20).batch(0, 0)]
    vector = run.strategy._vector
    own = vector.flatten(dict(run.network.alphas)).detach()  # [n]
    candidates = own + torch.randn(5, len(own), generator=torch.Generator().manual_seed(1))
    scores = [Scores(run.network, run.graphs, vector, "mixture", "batch", "auto", each) for each in (world, ALONE)]
    return [each.of(some, batches) for some in (candidates, candidates[:1]) for each in scores]


@check
def evaluation(world: World, folder: Path) -> list[dict[str, Any]]:
    """Of 91 images, in two parts by batches of 4, and at once by batches of 7."""
    source = data.open("digits", limit=91)
    whole = data.pipeline(source, batch_size=7, train=False)
    torch.manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))
    parts = evaluate(network, whole.part(world.rank, world.size), world=world)
    return [each.to_dict() for each in (parts, evaluate(network, whole))]


@check
def errors(world: World, folder: Path) -> list[str]:
    """What both are told of an error in process 1, of different values, and of work that fails in one of them."""
    told = []

    def fail(items: Any) -> list[int]:
        if world.rank == 1:
            raise UserError("item 3 is bad")
        return list(items)

    def in_one() -> None:
        with world.together():
            fail([])

    for call in (
        in_one,
        lambda: world.agree("at the end", {"α": "same", "genotype": str(world.rank)}, "do something"),
        lambda: world.spread([1, 2, 3], fail),
    ):
        try:
            call()
        except UserError as error:
            told.append(f"{type(error).__name__}: {error}")
    assert world.spread([1, 2, 3], lambda items: [2 * item for item in items]) == [2, 4, 6]
    assert world.spread([1], lambda items: [2 * item for item in items]) == [2]
    return told


@check
def disagreement(world: World, folder: Path) -> str:
    """A strategy that moves α by something that only this process has."""
    run = prepared(world, folder / "own", "--strategy", "egnas", "--warm-up", "1", "--fitness-batch-size", "20")
    with torch.no_grad():
        run.network.alphas["normal"] += world.rank
    try:
        run.run()
    except UserError as error:
        return str(error)
    return "agreed"


def main(folder: Path) -> None:
    # Counting the networks of the cells would take longer than everything else.
    with joined("cpu") as world, patch("fastnas.engine.search.derived_sizes", lambda *given: []):
        found = {}
        for function in CHECKS:
            begin = time.perf_counter()
            found[function.__name__] = function(world, folder)
            print(f"{function.__name__}: {time.perf_counter() - begin:.1f} s", flush=True)
        torch.save(found, folder / f"found-{world.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
