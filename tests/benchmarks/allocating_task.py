"""What `test_harness` lets a fresh process measure: a call that touches a known amount of memory."""

from __future__ import annotations

import torch

from benchmarks.harness.memory import Task


def task(device: torch.device, mebibytes: int) -> Task:
    def allocate(count: int) -> None:
        first = torch.ones(count * 2**20, dtype=torch.uint8, device=device)
        del first  # a peak counts once what is freed before the next allocation
        torch.ones(count * 2**20, dtype=torch.uint8, device=device)

    return Task(run=lambda: allocate(mebibytes), small=lambda: allocate(1))
