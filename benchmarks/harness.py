"""Times contenders against each other in turns, so that a machine whose speed drifts treats them alike."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fastnas.env import environment

Run = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """Times of one contender in one case, in milliseconds, and how they compare."""

    benchmark: str
    case: str
    mode: str  # forward, backward or both
    contender: str
    repetitions: int
    p20_ms: float
    p50_ms: float
    p80_ms: float
    speed_up: float  # median over repetitions of baseline time / this time, pair by pair; 1 for the baseline
    bytes: int  # that must move at least
    gigabytes_per_second: float  # those bytes in the median time


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
    warm_up: int = 3,
) -> list[Row]:
    """Runs all contenders A B C A B C … for about `seconds`, at least 5 times each, after `warm_up` rounds.

    Args:
        contenders: name → what to time.
        baseline: the contender that speed-ups refer to.
        least_bytes: what a perfect implementation must read and write.
    """
    for _ in range(warm_up):
        for run in contenders.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times[baseline]) < 5:
        for name, run in contenders.items():
            times[name].append(milliseconds(run, device))
    rows = []
    for name, values in times.items():
        p20, p50, p80 = np.percentile(values, [20, 50, 80]).tolist()
        ratio = float(np.median(np.asarray(times[baseline]) / np.asarray(values)))
        bandwidth = least_bytes / p50 / 1e6
        rows.append(Row(benchmark, case, mode, name, len(values), p20, p50, p80, ratio, least_bytes, bandwidth))
    return rows


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


def show(rows: list[Row], console: Console) -> None:
    """The table that a person reads."""
    table = Table(title="medians of interleaved repetitions", title_justify="left", box=None, pad_edge=False)
    for name in ("case", "mode", "contender"):
        table.add_column(name)
    for name in ("n", "ms", "p20–p80", "speed-up", "GB/s"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = ""
    for row in rows:
        head = f"{row.benchmark} {row.case}"
        table.add_row(
            head if head + row.mode != previous else "",
            row.mode if head + row.mode != previous else "",
            row.contender,
            str(row.repetitions),
            f"{row.p50_ms:.3f}",
            f"{row.p20_ms:.2f}–{row.p80_ms:.2f}",
            f"{row.speed_up:.2f}×",
            f"{row.gigabytes_per_second:.1f}",
        )
        previous = head + row.mode
    console.print(table)


def write(rows: list[Row], stem: Path, device: torch.device, command: str) -> None:
    """`stem`.csv with the rows, `stem`.json with rows and environment."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    records = [asdict(row) for row in rows]
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    content = {"command": command, "environment": environment(device), "rows": records}
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
