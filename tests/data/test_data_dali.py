"""When DALI gets its memory back: no GPU is needed for that, only stand-ins for its stream and for DALI."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastnas.data.dali import Graph

BATCHES = 3


class Executor:
    def __init__(self, seen: list[str]) -> None:
        self.seen, self.batches = seen, iter(range(BATCHES))

    def schedule_run(self) -> None:
        self.seen.append("schedule")

    def share_outputs(self, cuda_stream: Any) -> tuple[int]:
        return (next(self.batches),)

    def release_outputs(self) -> None:
        self.seen.append("release")

    def reset(self) -> None:
        self.seen.append("reset")


def a_graph(seen: list[str], device: torch.device | None) -> Graph:
    graph = Graph.__new__(Graph)
    graph._executor, graph._stream_device, graph._read = Executor(seen), device, None
    graph._feed = SimpleNamespace(inputs=None, error=None)  # type: ignore[assignment]
    return graph


@pytest.mark.parametrize("device", [None, torch.device("cuda:1")])
def test_memory_goes_back_to_dali_once_the_gpu_has_read_it_and_not_before(monkeypatch, device):
    seen: list[str] = []
    event = SimpleNamespace(synchronize=lambda: seen.append("wait for the reader"))

    def record_event() -> Any:
        seen.append("mark")
        return event

    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: SimpleNamespace(record_event=record_event))
    graph = a_graph(seen, device)
    for images in graph.run(iter([])):
        seen.append(f"read {images}")
        graph.has_been_read()
        seen.append("consumer's own work")
    expected = ["schedule"]
    for batch in range(BATCHES):
        expected += [f"read {batch}", "mark", "consumer's own work", "wait for the reader", "release", "schedule"]
    if device is None:  # on a CPU everything has been read when it returns
        expected = [what for what in expected if what not in ("mark", "wait for the reader")]
    assert seen == [*expected, "reset"]
