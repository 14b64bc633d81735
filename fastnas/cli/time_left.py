"""How long a run still takes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from fastnas.engine.forecast import Forecast

RECENT = 3  # epochs by which the coming ones are judged


class TimeLeft:
    """Seconds until the end of a run, from what it tells about its steps and epochs, and from what was expected.

    The coming epochs are taken to differ from what was expected of them as the last ones did. Where nothing was, all
    epochs are taken to be alike: then what a strategy does only later, such as evolution after the warm-up, is not
    known before it has done it once. Before the first epoch has ended, its length is what was expected, or else
    estimated from the phase of the weight steps.

    Args:
        epochs: planned.
        done: epochs that earlier processes have completed.
        clock: seconds.
        forecast: seconds of each epoch and of the end, as they were measured before the run.
    """

    def __init__(
        self,
        epochs: int,
        done: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        forecast: Forecast | None = None,
    ) -> None:
        self._expected = [1.0] * epochs if forecast is None else list(forecast.epochs)
        self._end = 0.0 if forecast is None else forecast.end
        self._done, self._clock = done, clock
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)  # lengths of epochs: real, expected
        self._begin = clock()
        # Seconds of an epoch for each that was expected, before one has ended.
        self._first: float | None = None if forecast is None else 1.0
        self._guessed = forecast is None

    def step(self, phase: str, done: int, total: int) -> None:
        """A step of a phase, as `Loop.show` tells."""
        if self._guessed and not self._recent and phase in ("weights", "training") and done:
            self._first = (self._clock() - self._begin) * total / done

    def epoch(self, record: dict[str, Any]) -> None:
        """The end of an epoch, from its event."""
        now = self._clock()
        self._recent.append((now - self._begin, self._expected[record["epoch"]]))
        self._begin, self._done = now, record["epoch"] + 1

    @property
    def seconds(self) -> float | None:
        """None as long as nothing is known."""
        pace = self._first
        if self._recent:
            real, expected = (sum(lengths) for lengths in zip(*self._recent, strict=True))
            pace = real / max(expected, 1e-9)
        if pace is None:
            return None
        coming = [pace * seconds for seconds in self._expected[self._done :]]
        spent = self._clock() - self._begin
        return max(0.0, sum(coming) - min(spent, coming[0] if coming else 0.0)) + pace * self._end


def short_time(seconds: float | None) -> str:
    """At most 6 characters: 12s, 3m05s, 2h40m, 5d03h; - where it is not known."""
    if seconds is None:
        return "-"
    for unit, size, lower, lower_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size - lower_size / 2:
            whole, rest = divmod(round(seconds / lower_size), size // lower_size)
            return f"{whole}{unit}{rest:02d}{lower}" if whole < 100 else f"{whole}{unit}"
    return f"{seconds:.0f}s"
