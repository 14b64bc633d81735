"""Signs of life between the processes of a run: they tell what a closed connection does not, that a machine is without
power, or that a process stands still."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

BEAT = 5.0  # seconds between two signs of life
SILENCE = 40.0  # seconds after which a process counts as gone
STATUS = 2  # of a process that ends because another one is gone


def _end(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(STATUS)  # the main thread waits in a collective that nobody will complete


class Heartbeat:
    """While the context is open, this process shows that it is alive, and ends as soon as another one does not.

    Args:
        store: of torch.distributed, which all processes reach.
        rank, size: of this process, and how many there are.
        lost: what to say.
        end: is called with a line that names the silent process; by default it prints that and ends the process.
        beat, silence: seconds.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        lost: str,
        end: Callable[[str], None] = _end,
        beat: float = BEAT,
        silence: float = SILENCE,
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._lost, self._end, self._beat, self._silence = lost, end, beat, silence
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.leaving = False
        """Set where the others may end before this process does."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving = True
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        heard = {rank: (0, time.monotonic()) for rank in range(self._size) if rank != self._rank}
        while not self._stop.wait(self._beat):
            try:
                self._store.add(f"beat/{self._rank}", 1)
                counts = {rank: self._store.add(f"beat/{rank}", 0) for rank in heard}
            except RuntimeError:  # the store went with the process that held it
                if not self.leaving:
                    self._end(f"the process that connects the others has ended: {self._lost}")
                return
            now = time.monotonic()
            heard = {rank: (n, now) if n != heard[rank][0] else heard[rank] for rank, n in counts.items()}
            silent = [rank for rank, (_, last) in heard.items() if now - last > self._silence]
            if silent and not self.leaving:
                self._end(f"process {silent[0]} has given no sign of life for {self._silence:.0f} s: {self._lost}")
                return
