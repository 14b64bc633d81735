"""How long a run still takes, as its last epochs went."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

RECENT = 3  # epochs that the coming ones are taken to be like


class TimeLeft:
    """Seconds until the end of a run, from what it tells about its steps and epochs.

    Before the first epoch has ended, its length is estimated from the phase of the weight steps. What a strategy does
    only later, such as evolution after the warm-up, is not known before it has done it once.

    Args:
        epochs: planned.
        done: epochs that earlier processes have completed.
        clock: seconds.
    """

    def __init__(self, epochs: int, done: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._epochs, self._done, self._clock = epochs, done, clock
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._begin = clock()
        self._first: float | None = None  # estimated length of the first epoch

    def step(self, phase: str, done: int, total: int) -> None:
        """A step of a phase, as `Loop.show` tells."""
        if not self._recent and phase in ("weights", "training") and done:
            self._first = (self._clock() - self._begin) * total / done

    def epoch(self, record: dict[str, Any]) -> None:
        """The end of an epoch, from its event."""
        now = self._clock()
        self._recent.append(now - self._begin)
        self._begin, self._done = now, record["epoch"] + 1

    @property
    def seconds(self) -> float | None:
        """None as long as nothing is known."""
        if not self._recent and self._first is None:
            return None
        pace = sum(self._recent) / len(self._recent) if self._recent else self._first or 0.0
        spent = self._clock() - self._begin
        return max(0.0, pace * (self._epochs - self._done) - min(spent, pace))


def short_time(seconds: float | None) -> str:
    """At most 6 characters: 12s, 3m05s, 2h40m, 5d03h; - where it is not known."""
    if seconds is None:
        return "-"
    for unit, size, lower, lower_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size - lower_size / 2:
            whole, rest = divmod(round(seconds / lower_size), size // lower_size)
            return f"{whole}{unit}{rest:02d}{lower}" if whole < 100 else f"{whole}{unit}"
    return f"{seconds:.0f}s"
