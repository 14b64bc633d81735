"""The time of one call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Run = Callable[[], Any]


def milliseconds(run: Run, device: torch.device) -> float:
    """One call. On a GPU by events, so that the launch queue is not what is measured."""
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begin)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
