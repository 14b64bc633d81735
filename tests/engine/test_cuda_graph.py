"""Recorded calls: when they are recorded, what they are given, and that a search with them ends in the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from run_files import events, same_bits

from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.cuda_graph import WARM_UP, CudaRecorder, Graphs


class Recorder:
    """A stand-in for CUDA's: a recording is the call itself, on the arguments that were recorded."""

    def __init__(self, fails: bool = False) -> None:
        self.warm, self.recorded, self.replayed, self.fails = 0, 0, 0, fails

    def warm_up(self, call: Callable[[], Any]) -> Any:
        self.warm += 1
        return call()

    def record(self, call: Callable[[], Any]) -> Callable[[], Any]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded += 1

        def replay() -> Any:
            self.replayed += 1
            return call()

        return replay


def test_a_call_is_recorded_after_the_warm_up_and_gets_its_arguments():
    recorder = Recorder()
    graphs = Graphs(recorder)
    for step in range(WARM_UP + 4):
        assert graphs.call("double", lambda x: 2 * x, torch.full((3,), float(step))).eq(2 * step).all()
    assert (recorder.warm, recorder.recorded, recorder.replayed) == (WARM_UP, 1, 4)


def test_arguments_of_another_kind_and_another_name_are_recorded_on_their_own():
    recorder = Recorder()
    graphs = Graphs(recorder)
    for _ in range(WARM_UP + 1):
        assert graphs.call("sum", torch.sum, torch.ones(3)).item() == 3
        assert graphs.call("sum", torch.sum, torch.ones(5)).item() == 5
        assert graphs.call("mean", torch.mean, torch.ones(5)).item() == 1
        assert graphs.call("sum", torch.sum, torch.ones(3, dtype=torch.float64)).dtype == torch.float64
    assert recorder.recorded == 4
    graphs.forget()
    graphs.call("sum", torch.sum, torch.ones(3))
    assert recorder.warm == 4 * WARM_UP + 1


def test_what_cannot_be_recorded_runs_without_and_says_so_once():
    graphs = Graphs(Recorder(fails=True))
    for _ in range(WARM_UP):
        graphs.call("step", torch.sum, torch.ones(3))
    with pytest.warns(UserWarning, match="step cannot be recorded as a CUDA graph and runs without: operation not"):
        assert graphs.call("step", torch.sum, torch.ones(3)).item() == 3
    assert graphs.recorder is None
    assert graphs.call("step", torch.sum, torch.ones(3)).item() == 3


def test_recording_and_replaying_on_a_second_gpu(monkeypatch):
    """CUDA's own recorder, on stubs. What other threads allocate does not end a recording; both happen on the device of
    the stream, whatever the current one is."""
    seen: list[Any] = []

    class Within:
        def __init__(self, *what: Any) -> None:
            self.what = what

        def __enter__(self) -> None:
            seen.append(("enter", *self.what))

        def __exit__(self, *reason: Any) -> None:
            seen.append(("leave", *self.what))

    class Graph:
        def replay(self) -> None:
            seen.append("replay")

    def graph(recorded: Graph, stream: str, capture_error_mode: str) -> Within:
        return Within(stream, capture_error_mode)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "device", lambda device: Within(str(device)))
    replay = CudaRecorder(torch.device("cuda:1")).record(lambda: 7)
    recording = ("a stream of cuda:1", "thread_local")
    assert seen == [("enter", "cuda:1"), ("enter", *recording), ("leave", *recording), ("leave", "cuda:1")]
    seen.clear()
    assert replay() == 7
    assert seen == [("enter", "cuda:1"), "replay", ("leave", "cuda:1")]


def test_there_are_none_on_a_cpu_or_where_they_are_not_wanted():
    assert Graphs.on(torch.device("cpu"), wanted=True).recorder is None
    assert Graphs.on(torch.device("cuda"), wanted=False).recorder is None


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_search_with_recordings_ends_in_the_same_bits(small, variant):
    flags = ["--variant", variant, "--batch-size", "8", "--epochs", "2"]
    plain, recorded = small("plain", *flags), small("recorded", *flags)
    recorder = Recorder()
    recorded.graphs.recorder = recorder
    outcomes = [search.run() for search in (plain, recorded)]
    assert recorder.replayed > 2 * recorder.recorded > 0
    assert outcomes[0].genotype == outcomes[1].genotype
    states = [load_checkpoint(search.checkpoint_path) for search in (plain, recorded)]
    for part in ("network", "optimizer", "strategy", "meter"):
        assert same_bits(states[0][part], states[1][part]), part
    assert events(plain.directory) == events(recorded.directory)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_search_on_a_gpu_records(small):
    plain = small("plain", "--device=cuda", "--deterministic", "--no-cuda-graphs")
    recorded = small("recorded", "--device=cuda", "--deterministic")
    for search in (plain, recorded):
        search.run()
    assert recorded.graphs.recorder is not None
    a, b = (load_checkpoint(search.checkpoint_path)["network"] for search in (plain, recorded))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-3, atol=1e-4, msg=name)
