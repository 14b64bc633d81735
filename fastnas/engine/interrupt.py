"""Ctrl-C and SIGTERM: ask the run to stop at the next place where it can be resumed exactly."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self


class Interrupted(Exception):  # noqa: N818 (a request, not an error)
    """The run was asked to stop, and its state is complete."""


class InterruptGuard:
    """While the context is open, the first signal sets `requested`; a second Ctrl-C stops at once, without saving.

    Signal handlers can only be set in the main thread; elsewhere the guard does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested: str | None = None  # name of the signal
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        try:
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        except ValueError:
            self._previous.clear()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
