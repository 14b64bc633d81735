"""How long a run will take and how much memory, and how many epochs fit into a time."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastnas.errors import UserError

MOST_EPOCHS = 100_000  # that are fitted to a time


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to need, by what was measured of it.

    Attributes:
        epochs: seconds of every epoch.
        end: seconds after the last one.
        peak_memory_mb: MiB, allocated on a GPU, else resident in the process.
        at_most: whether the run may end before its last epoch.
    """

    epochs: Sequence[float]
    end: float
    peak_memory_mb: float
    at_most: bool = False

    def seconds(self, done: int = 0) -> float:
        """From the end of the first `done` epochs to the end of the run."""
        return sum(self.epochs[done:]) + self.end


def least_epochs(check: Callable[[int], None], start: int = 1) -> int:
    """The first number of epochs from `start` on that `check` does not refuse. UserError if it refuses them all."""
    for epochs in range(start, MOST_EPOCHS):
        try:
            check(epochs)
        except UserError:
            continue
        return epochs
    check(MOST_EPOCHS)
    return MOST_EPOCHS


def fitting_epochs(forecast: Callable[[int], Forecast], check: Callable[[int], None], seconds: float) -> int | None:
    """The largest number of epochs, at most 100,000, that `check` does not refuse and whose run ends within `seconds`;
    None if there is none.

    Args:
        forecast: of a run of so many epochs. More of them take longer.
        check: raises UserError for a number of epochs that makes no sense.
        seconds: for the whole run.
    """
    least = least_epochs(check)
    if forecast(least).seconds() > seconds:
        return None
    most = least
    while most < MOST_EPOCHS and forecast(most).seconds() <= seconds:
        most = min(2 * most, MOST_EPOCHS)
    # bisect counts what is not above `seconds`; below `least` nothing is asked.
    candidates = range(least, most + 1)
    fitting = least + bisect.bisect_right(candidates, seconds, key=lambda n: forecast(n).seconds()) - 1
    for epochs in range(fitting, least, -1):
        try:
            check(epochs)
        except UserError:
            continue
        return epochs
    return least
