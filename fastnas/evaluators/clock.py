"""A stopwatch for real time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stopwatch:
    """`seconds` is known once the context has ended."""

    seconds: float = 0.0


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """Measures the context's wall time."""
    watch = Stopwatch()
    begin = time.perf_counter()
    try:
        yield watch
    finally:
        watch.seconds = time.perf_counter() - begin
