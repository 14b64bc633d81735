"""How long a study still takes, from how fast the epochs of each stage went by so far."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

EPOCH = b'{"event": "epoch"'


@dataclass(frozen=True)
class Left:
    """Seconds until the end: of the stages whose pace is known, all of them or not."""

    seconds: float
    all_known: bool


class StudyTime:
    """Counts epochs. A unit without epochs, such as an evaluation, counts as one.

    Args:
        planned: epochs by unit.
        stages: by unit.
        clock: seconds.
    """

    def __init__(
        self, planned: Mapping[str, int], stages: Mapping[str, str], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._planned, self._stages, self._clock = planned, stages, clock
        self._begun: dict[str, tuple[float, int]] = {}  # when, and the epochs that were there
        self._seconds: dict[str, float] = defaultdict(float)  # by stage, of units that are over
        self._epochs: dict[str, int] = defaultdict(int)

    def begin(self, unit: str, epochs: int) -> None:
        """A unit begins, or goes on after so many epochs."""
        self._begun[unit] = self._clock(), epochs

    def end(self, unit: str, epochs: int) -> float:
        """A unit is over, with so many epochs. Returns its seconds."""
        begin, before = self._begun.pop(unit)
        seconds = self._clock() - begin
        if epochs > before:
            self._seconds[self._stages[unit]] += seconds
            self._epochs[self._stages[unit]] += epochs - before
        return seconds

    def left(self, waiting: Mapping[str, int], slots: int) -> Left | None:
        """Until the end of the study; None where nothing is known.

        Args:
            waiting: units that are not over, with the epochs that they have done.
            slots: units at a time.
        """
        seconds, epochs = dict(self._seconds), dict(self._epochs)
        now = self._clock()
        for unit, (begin, before) in self._begun.items():
            if (done := waiting.get(unit, 0) - before) > 0:
                stage = self._stages[unit]
                seconds[stage] = seconds.get(stage, 0.0) + now - begin
                epochs[stage] = epochs.get(stage, 0) + done
        total, unknown, known = 0.0, False, False
        for unit, done in waiting.items():
            stage = self._stages[unit]
            if epochs.get(stage):
                total += (self._planned[unit] - done) * seconds[stage] / epochs[stage]
                known = True
            else:
                unknown = True
        return Left(total / max(1, min(slots, len(waiting))), not unknown) if known else None


def epochs_done(folder: Path) -> int:
    """Epochs that the run in a folder has recorded."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            return sum(line.startswith(EPOCH) for line in file)
    except OSError:
        return 0
