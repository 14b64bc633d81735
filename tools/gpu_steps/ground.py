"""What a step runs on: a GPU, or in a rehearsal the CPU and the emulated kernels; and where it writes what it finds."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.8  # of its limit, after which a step begins nothing new


@dataclass
class Ground:
    name: str  # of the step
    rehearse: bool
    seed: int
    path: Path
    found: dict[str, Any] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        import torch

        if not self.rehearse and not torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU; --rehearse runs without one")
        return torch.device("cpu" if self.rehearse else "cuda")

    def say(self, **values: Any) -> None:
        """Adds to what was found, and writes it."""
        self.found |= values
        text = json.dumps(self.found)
        other = self.path.with_suffix(".new")
        other.write_text(text, encoding="utf-8")
        other.replace(self.path)  # whole, even if the step is killed meanwhile

    def add(self, key: str, value: Any) -> None:
        """Appends to a list of what was found, and writes it."""
        self.say(**{key: [*self.found.get(key, []), value]})

    def end(self, status: str) -> None:
        self.say(status=status)

    def has_time(self) -> bool:
        return time.monotonic() - self.begin < SHARE * self.limit

    @property
    def limit(self) -> float:
        """Seconds that the step may take."""
        return float(os.environ.get("STEP_SECONDS", "60"))

    def use_tests(self) -> None:
        """Makes the modules of tests/ importable, by the names under which they import each other."""
        sys.path.insert(0, str(ROOT / "tests"))

    @contextlib.contextmanager
    def kernels(self) -> Iterator[None]:
        """Within it, a rehearsal runs CUDA kernels on tensors of the CPU, and compares every call."""
        if not self.rehearse:
            yield
            return
        self.use_tests()
        from cuda_emulation import emulation

        with emulation.emulated("shuffled", self.seed):
            yield

    def prepare_benchmarks(self) -> None:
        """A rehearsal measures small ceilings, and records CUDA graphs by a stand-in that calls the function again."""
        if not self.rehearse:
            return
        from benchmarks.harness import ceilings, networks

        ceilings.SIDE["cpu"], ceilings.COPIED["cpu"], ceilings.SECONDS = 64, 2**16, 0.0
        networks.CudaRecorder = Again  # type: ignore[assignment, misc]


class Again:
    """A recorder of CUDA graphs without CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def warm_up(self, call: Callable[[], Any]) -> Any:
        return call()

    def record(self, call: Callable[[], Any]) -> Callable[[], Any]:
        return call
