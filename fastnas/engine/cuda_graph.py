"""CUDA graphs: the kernels of a function are recorded once and from then on launched together.

A weight step launches thousands of small kernels, and Python cannot launch them as fast as a GPU runs them. A
graph replays them with one call, on the same memory: arguments are copied into the recorded ones, and results are
overwritten by the next replay. Nothing in a recorded function may wait for the GPU or depend on a tensor's values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# Calls that run as usual before one is recorded. They do the function's real work, and allocate what it allocates only
# once: momentum buffers, layouts of cells, handles of libraries.
WARM_UP = 3

Function = Callable[..., Any]


class Recorder(Protocol):
    """What a device can record. The tests have one for the CPU."""

    def warm_up(self, call: Callable[[], Any]) -> Any:
        """The result of `call`, made the way that `record` will make it."""

    def record(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """A function that does the same as `call`, with results in the same memory each time. Computes nothing yet."""


class CudaRecorder:
    """Records on a stream of its own, as torch.cuda.graph asks for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def warm_up(self, call: Callable[[], Any]) -> Any:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = call()
        current.wait_stream(self.stream)
        return results

    def record(self, call: Callable[[], Any]) -> Callable[[], Any]:
        graph = torch.cuda.CUDAGraph()
        # Threads that pin memory for pipelines may allocate meanwhile; by default that would end the recording.
        recording = torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")
        # Both wait for, and launch on, streams of the current device, whatever device the graph is of.
        with torch.cuda.device(self.device), recording:
            results = call()

        def replay() -> Any:
            with torch.cuda.device(self.device):
                graph.replay()
            return results

        return replay


@dataclass
class _Entry:
    """One function with arguments of one kind."""

    calls: int = 0
    arguments: Sequence[Tensor] = ()
    replay: Callable[[], Any] | None = None


class Graphs:
    """Calls functions of tensors, and records those that are called often with arguments of one kind.

    Args:
        recorder: None for plain calls.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self.recorder = recorder
        self._entries: dict[Any, _Entry] = {}

    @classmethod
    def on(cls, device: torch.device, wanted: bool) -> Graphs:
        """Graphs where the device has them and they are wanted; plain calls elsewhere."""
        return cls(CudaRecorder(device) if wanted and device.type == "cuda" else None)

    def forget(self) -> None:
        """Drops all recordings. Call it when values that they hold may have changed: rates, modes, parameters."""
        self._entries.clear()

    def call(self, name: str, function: Function, *arguments: Tensor) -> Any:
        """`function(*arguments)`. Use the results before the next call of this name: they may be overwritten then.

        Args:
            name: of the function; calls of one name do the same with arguments of one shape, dtype and device.
            function: computes from its arguments and from tensors that stay where they are.
        """
        if self.recorder is None:
            return function(*arguments)
        kind = (name, *((a.shape, a.stride(), a.dtype, a.device) for a in arguments))
        entry = self._entries.setdefault(kind, _Entry())
        entry.calls += 1
        if entry.calls <= WARM_UP:
            return self.recorder.warm_up(lambda: function(*arguments))
        if entry.replay is None:
            own = [argument.detach().clone(memory_format=torch.preserve_format) for argument in arguments]
            try:
                entry.replay = self.recorder.record(lambda: function(*own))
            except RuntimeError as error:
                warnings.warn(f"{name} cannot be recorded as a CUDA graph and runs without: {error}", stacklevel=2)
                self.recorder = None
                self.forget()
                return function(*arguments)
            entry.arguments = own
        for own_argument, argument in zip(entry.arguments, arguments, strict=True):
            own_argument.copy_(argument, non_blocking=True)
        return entry.replay()
