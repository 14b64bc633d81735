"""Peak memory of one call of a contender, measured in a process of its own.

On a CPU the figure is the high-water mark of the resident memory (VmHWM of /proc/self/status) during the call, minus
the resident memory before it: activations, saved tensors, gradients, workspaces, and what an allocator keeps meanwhile.
What exists before does not count: imports, the network, its inputs, and whatever a call on a little input has left
behind (thread pools, code that was compiled, caches), which is made first.

The C library's allocator keeps freed blocks and cuts large ones up, and transparent huge pages round up to 2 MiB: a
figure of a few MiB is noise, and larger ones do not repeat to the byte. Memory that the little call has freed is
returned to the system before the measurement, so that it is not used again unseen. On a GPU torch's allocator is
asked (`torch.cuda.max_memory_allocated`), which is exact.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.clock import Run

ROOT = Path(__file__).resolve().parents[2]
STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Task:
    """Something to measure. A module that wants its memory measured has a function `task(device, …) -> Task`."""

    run: Run
    small: Run  # the same on a little input


def peak_memory(module: str, device: torch.device, **arguments: Any) -> int | None:
    """Bytes that `module.task(device, **arguments).run()` takes at its peak, in a fresh process.

    Args:
        module: by its full name.
        arguments: plain values, since they are passed as JSON.

    Returns:
        None where the system does not report it (no /proc).

    Raises:
        RuntimeError: the process failed; the message holds the end of what it wrote.
    """
    if device.type != "cuda" and not STATUS.exists():
        return None
    request = {
        "module": module,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "arguments": arguments,
    }
    command = [sys.executable, "-m", "benchmarks.harness.memory", json.dumps(request)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"measuring the memory of {module} with {arguments} ended with status {done.returncode}: "
            f"{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def peak_of(run: Run, device: torch.device) -> int:
    """Bytes at the peak of one call beyond those before it, in this process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        present = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - present
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # not allowed: the mark of the whole process is an upper bound then
        RESET.write_text("5")
    present = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - present)


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _main() -> None:
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    task = importlib.import_module(request["module"]).task(device, **request["arguments"])
    task.small()
    print(json.dumps(peak_of(task.run, device)))


if __name__ == "__main__":
    _main()
