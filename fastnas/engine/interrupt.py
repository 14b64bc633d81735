"""Ctrl-C and SIGTERM: ask the run to stop at the next place where it can be resumed exactly."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, Self


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the context is closed. Processes that are started in it never hear it: a terminal sends it to
    all, and whoever started them ends them."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield
        return
    heard: list[int] = []
    resource_tracker.ensure_running()  # as it starts, it lets through what is blocked
    handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # which new processes inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)
    if heard:
        signal.raise_signal(signal.SIGINT)


class Interrupted(Exception):  # noqa: N818 (a request, not an error)
    """The run was asked to stop, and its state is complete."""


class InterruptGuard:
    """While the context is open, the first signal sets `requested`; a second Ctrl-C stops at once, without saving.

    Signal handlers can only be set in the main thread; elsewhere the guard does nothing.

    Args:
        impatient: whether it does. A process that `torchrun` has started hears each Ctrl-C twice, from the terminal and
            from there.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, impatient: bool = True) -> None:
        self.impatient = impatient
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
            if signal.getsignal(number) == self._handle:  # else the handler before has chosen another one
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT and self.impatient:
            before = self._previous[number]
            if callable(before):
                before(number, frame)
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
