"""Before a run: how long it will take, how much memory it needs, and how many epochs fit into `--budget`."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from rich.console import Console

from fastnas.cli.command import print_text
from fastnas.cli.duration import in_words, seconds_of
from fastnas.engine.forecast import Forecast, fitting_epochs, least_epochs
from fastnas.engine.rehearsal import Rehearsal, generators_kept
from fastnas.errors import UserError
from fastnas.world import World

FEWEST_STEPS = 50
"""A run of fewer weight steps has nearly ended once its steps have been timed: it begins without an estimate."""


class Parts(ABC):
    """What a run is made of, before anything is written: it can be rehearsed, and given another number of epochs."""

    checkpoint: dict[str, Any] | None
    world: World
    budget: str | None
    """What --budget says."""

    @property
    @abstractmethod
    def epochs(self) -> int: ...

    @property
    @abstractmethod
    def steps(self) -> int:
        """Weight steps of an epoch."""

    @abstractmethod
    def check_epochs(self, epochs: int) -> None:
        """UserError where so many epochs make no sense."""

    @abstractmethod
    def with_epochs(self, epochs: int) -> Self:
        """The same run with other epochs, which were fitted to the budget."""

    @abstractmethod
    def rehearsal(self) -> Rehearsal: ...

    @property
    def done(self) -> int:
        """Epochs that earlier processes have completed."""
        return 0 if self.checkpoint is None else self.checkpoint["clock"]["epoch"]


def estimated(
    parts: Parts,
    console: Console,
    *,
    runs: int = 1,
    anyway: bool = False,
    about: Callable[[Any], None] = lambda rehearsal: None,
) -> tuple[Any, Forecast | None]:
    """Measures what a run needs, and gives it the epochs that fit into the budget, if there is one.

    Args:
        parts: of the run.
        console: where somebody waits.
        runs: how many of them share the budget.
        anyway: measure also where nobody waits, or the run is short.
        about: is told the rehearsal, before it measures.

    Returns:
        The parts of the run, and its forecast: None where it is unknown, or not worth its time.

    Raises:
        UserError: the budget is too small, or cannot be kept since nothing is known of the run's time.
    """
    budget = None if parts.budget is None else seconds_of(parts.budget)
    if parts.world.size > 1:  # whose steps wait for each other
        if budget is not None:
            raise UserError(f"--budget {parts.budget} is measured in a single process: give --epochs.")
        if anyway:
            raise UserError("--dry-run measures in a single process: start it without torchrun.")
        return parts, None
    steps = parts.steps * (parts.epochs - parts.done)
    if budget is None and not anyway and (console.quiet or steps < FEWEST_STEPS):
        return parts, None
    rehearsed = parts
    if budget is not None:  # all kinds of epochs must be there
        rehearsed = parts.with_epochs(least_epochs(parts.check_epochs, 2 * least_epochs(parts.check_epochs)))
    with generators_kept(), console.status("measuring time and memory"):
        rehearsal = rehearsed.rehearsal()
        about(rehearsal)
        if not rehearsal.measure():
            if budget is not None:
                raise UserError(
                    f"--budget {parts.budget}: what an epoch of this run costs is unknown before it has run: give "
                    "--epochs."
                )
            return parts, None
    if budget is not None:
        parts = _fitted(parts, rehearsal, budget, runs)
    forecast = rehearsal.forecast(parts.epochs)
    device = rehearsal.device
    del rehearsal
    gc.collect()  # search and strategy hold each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return parts, forecast


def _fitted(parts: Parts, rehearsal: Rehearsal, budget: float, runs: int) -> Parts:
    epochs = fitting_epochs(rehearsal.forecast, parts.check_epochs, budget / runs)
    if epochs is None:
        least = least_epochs(parts.check_epochs)
        seconds = in_words(runs * rehearsal.forecast(least).seconds())
        each = "" if runs == 1 else f" for each of {runs} seeds"
        raise UserError(
            f"--budget {parts.budget} is too little: {counted(least, 'epoch')}{each}, the fewest that this run can "
            f"have, would take about {seconds}. Raise the budget, or take fewer images or a smaller network."
        )
    return parts.with_epochs(epochs)


def print_forecast(parts: Parts, forecast: Forecast | None, console: Console, runs: int = 1, dry: bool = False) -> None:
    """One line: how long the rest of the run takes, and its memory.

    dry: whether somebody has asked for nothing else."""
    if forecast is None:
        if parts.world.size > 1:
            return
        if dry or parts.steps * (parts.epochs - parts.done) >= FEWEST_STEPS:
            print_text(console, "estimate  none: what an epoch of this run costs is unknown before it has run")
        return
    memory = forecast.peak_memory_mb
    size = f"{memory / 1024:.1f} GiB" if memory >= 1000 else f"{memory:.0f} MiB"
    rest = "the remaining " if parts.done else ""
    each = "" if runs == 1 else f" for each of {runs} seeds, {in_words(runs * forecast.seconds(parts.done))} in all"
    print_text(
        console,
        f"estimate  {'at most ' if forecast.at_most else ''}about {in_words(forecast.seconds(parts.done))} for {rest}"
        f"{counted(parts.epochs - parts.done, 'epoch')}{each}, {size} of memory at its peak",
    )


def counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
