"""Times contenders against each other in turns, so that a machine whose speed drifts treats them alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.harness.ceilings import ceilings, floor_ms
from benchmarks.harness.clock import Run, milliseconds

# Contenders are called the same in every table.
PLAIN = "plain torch"
CHANNELS_LAST = "channels-last torch"
COMPILED = "torch.compile"
FASTNAS = "fastnas"
GRAPHED = "CUDA-graphed torch"  # channels-last
FASTNAS_GRAPHED = "CUDA-graphed fastnas"  # as a search runs it on a GPU


@dataclass(frozen=True)
class Row:
    """Times of one contender in one case, in milliseconds, and how they compare. A row can be read alone."""

    benchmark: str
    case: str
    mode: str  # forward, backward, both, or what the benchmark says
    contender: str
    threads: int
    repetitions: int
    p20_ms: float
    p50_ms: float
    p80_ms: float
    speed_up: float  # median over repetitions of baseline time / this time, pair by pair; 1 for the baseline
    fastnas_speed_up: float | None  # the same of this time / fastnas' time; None where fastnas does not take part
    flops: int  # that must be computed, a multiply-add counting 2; 0 where traffic is all that matters
    bytes: int  # that must move at least
    gigaflops_per_second: float  # those FLOPs in the median time
    gigabytes_per_second: float  # those bytes in the median time
    gemm_gflops: float  # the ceilings of this machine with these threads, measured in this run
    copy_gbs: float
    floor_ms: float  # max(flops / gemm ceiling, bytes / copy ceiling)
    floor_fraction: float  # floor / median; above 1 where the data stay in cache and are not copied at all
    peak_bytes: int | None  # peak memory of a call beyond what was there before it; None where not measured
    images: int | None  # per call
    images_per_second: float | None
    note: str


def compare(
    benchmark: str,
    case: str,
    mode: str,
    contenders: Mapping[str, Run],
    *,
    baseline: str,
    least_bytes: int,
    device: torch.device,
    seconds: float,
    flops: int = 0,
    memory: Mapping[str, int | None] | None = None,
    images: int | None = None,
    notes: Mapping[str, str] | None = None,
    scale: Mapping[str, float] | None = None,
    before: Mapping[str, Run] | None = None,
    warm_up: int = 3,
) -> list[Row]:
    """Runs all contenders A B C A B C … for about `seconds`, at least 5 times each, after `warm_up` rounds.

    Where a round takes longer than `seconds`, one round of warm-up and 3 repetitions are enough.

    Args:
        contenders: name → what to time.
        baseline: the contender that speed-ups refer to.
        least_bytes: what a perfect implementation must read and write.
        flops: what a perfect implementation must compute, a multiply-add counting 2.
        memory: name → peak memory of a call in bytes, as `harness.memory` measures it.
        images: that one call processes.
        notes: name → what a reader of the row must know.
        scale: name → factor on the times of a contender that is given a part of the work only; say so in `notes`.
        before: name → what must happen before each call of a contender and is not timed.

    Raises:
        ValueError: an argument names something that is not a contender.
    """
    named = {"baseline": {baseline}, "memory": memory or {}, "notes": notes or {}, "scale": scale or {},
             "before": before or {}}  # fmt: skip
    for argument, names in named.items():
        if unknown := set(names) - set(contenders):
            raise ValueError(f"{argument} names {sorted(unknown)}, but the contenders are {list(contenders)}.")
    limits = ceilings(device)

    def round_of_all() -> dict[str, float]:
        times = {}
        for name, run in contenders.items():
            if before and name in before:
                before[name]()
            times[name] = milliseconds(run, device) * (scale or {}).get(name, 1.0)
        return times

    begin = time.perf_counter()
    for _ in range(warm_up):
        round_of_all()
        if time.perf_counter() - begin > seconds:
            break
    rounds: list[dict[str, float]] = []
    begin, elapsed = time.perf_counter(), 0.0
    while elapsed < seconds or len(rounds) < (3 if elapsed > len(rounds) * seconds else 5):
        rounds.append(round_of_all())
        elapsed = time.perf_counter() - begin
    times = {name: np.asarray([one[name] for one in rounds]) for name in contenders}  # [repetitions] each
    floor = floor_ms(flops, least_bytes, limits)
    rows = []
    for name, values in times.items():
        p20, p50, p80 = np.percentile(values, [20, 50, 80]).tolist()
        rows.append(
            Row(
                benchmark=benchmark,
                case=case,
                mode=mode,
                contender=name,
                threads=torch.get_num_threads(),
                repetitions=len(values),
                p20_ms=p20,
                p50_ms=p50,
                p80_ms=p80,
                speed_up=float(np.median(times[baseline] / values)),
                fastnas_speed_up=float(np.median(values / times[FASTNAS])) if FASTNAS in times else None,
                flops=flops,
                bytes=least_bytes,
                gigaflops_per_second=flops / p50 / 1e6,
                gigabytes_per_second=least_bytes / p50 / 1e6,
                gemm_gflops=limits.gemm_gflops,
                copy_gbs=limits.copy_gbs,
                floor_ms=floor,
                floor_fraction=floor / p50,
                peak_bytes=(memory or {}).get(name),
                images=images,
                images_per_second=None if images is None else 1e3 * images / p50,
                note=(notes or {}).get(name, ""),
            )
        )
    return rows
