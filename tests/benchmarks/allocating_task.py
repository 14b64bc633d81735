"""What `test_harness` lets a fresh process measure: a call that touches a known amount of memory."""

from __future__ import annotations

import torch

from benchmarks.harness.memory import Task


def task(device: torch.device, mebibytes: int) -> Task:
    left_behind: list[torch.Tensor] = []

    def allocate(count: int) -> None:
        first = torch.ones(count * 2**20, dtype=torch.uint8, device=device)
        del first  # freed before the next allocation, it must not count twice
        torch.ones(count * 2**20, dtype=torch.uint8, device=device)

    def small() -> None:
        left_behind.append(torch.ones(50 * 2**20, dtype=torch.uint8, device=device))

    def run() -> None:
        assert left_behind, "the little call comes first"
        allocate(mebibytes)

    return Task(run, small)
