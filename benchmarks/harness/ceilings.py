"""What the machine can do at most, measured in the same run: arithmetic by a matrix product, traffic by a copy."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import torch

from benchmarks.harness.clock import Run, milliseconds

SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
COPIED = {"cpu": 256 * 2**20, "cuda": 2**30}  # bytes, far more than any cache holds
SECONDS = 0.5  # per ceiling, at least


@dataclass(frozen=True)
class Ceilings:
    """Rates of torch's own kernels with the threads in force."""

    gemm_gflops: float  # float32 `mm` of square matrices, a multiply-add counting 2
    copy_gbs: float  # `copy_` of a large tensor, bytes read plus bytes written


def ceilings(device: torch.device) -> Ceilings:
    """Measured at the first call for a device and a number of threads, then remembered."""
    return _measured(device, torch.get_num_threads())


def floor_ms(flops: int, least_bytes: int, limits: Ceilings) -> float:
    """The time that no implementation can beat at these rates: arithmetic and traffic overlap at best."""
    return max(flops / limits.gemm_gflops, least_bytes / limits.copy_gbs) / 1e6


@functools.cache
def _measured(device: torch.device, threads: int) -> Ceilings:
    def best(run: Run) -> float:
        # The best repetition, not the median: other work on the machine lowers a rate but not a ceiling.
        run()
        begin, times = time.perf_counter(), list[float]()
        while len(times) < 5 or time.perf_counter() - begin < SECONDS:
            times.append(milliseconds(run, device))
        return min(times)

    side = SIDE[device.type]
    a, b = torch.randn(2, side, side, device=device)  # [side, side]
    gemm = 2 * side**3 / best(functools.partial(torch.mm, a, b, out=torch.empty_like(a))) / 1e6
    source = torch.ones(COPIED[device.type] // 4, device=device)  # [bytes / 4]
    copy = 2 * source.nbytes / best(functools.partial(torch.ones_like(source).copy_, source)) / 1e6
    return Ceilings(gemm, copy)
