"""Rows as a table for people, as CSV and as JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.harness.timing import Row
from fastnas.env import environment

LEGEND = (
    "Medians of n interleaved repetitions. speed-up: over the first contender; fastnas: how many times faster fastnas "
    "is; both pair by pair. floor: least possible time at the measured ceilings / median. memory: peak of a call."
)


def show(rows: Sequence[Row], console: Console) -> None:
    """The tables that a person reads, one for each case and mode, with the columns in which a row has a value."""
    for (benchmark, case, mode), group in groupby(rows, lambda row: (row.benchmark, row.case, row.mode)):
        _print(console, "")
        _show_group(f"{benchmark} {case}, {mode}", list(group), console)
    if rows:
        _print(console, f"\n{LEGEND}")
        limits = f"{rows[0].gemm_gflops:.0f} GFLOP/s (float32 product), {rows[0].copy_gbs:.1f} GB/s (copy)"
        _print(console, f"Ceilings, threads {rows[0].threads}: {limits}.")


def _show_group(title: str, rows: list[Row], console: Console) -> None:
    first = rows[0]
    arithmetic = f"{first.flops / 1e9:.4g} GFLOP, " if first.flops else ""
    _print(console, f"{title}: {arithmetic}{first.bytes / 1e6:.4g} MB, floor {_number(first.floor_ms)} ms")
    columns = {
        "contender": [row.contender for row in rows],
        "n": [str(row.repetitions) for row in rows],
        "ms": [_number(row.p50_ms) for row in rows],
        "p20–p80": [f"{_number(row.p20_ms)}–{_number(row.p80_ms)}" for row in rows],
        "speed-up": [f"{row.speed_up:.2f}×" for row in rows],
        "fastnas": ["" if row.fastnas_speed_up is None else f"{row.fastnas_speed_up:.2f}×" for row in rows],
        "floor": [f"{row.floor_fraction:.3f}" for row in rows],
        "GFLOP/s": [_number(row.gigaflops_per_second) if row.flops else "" for row in rows],
        "GB/s": [f"{row.gigabytes_per_second:.1f}" for row in rows],
        "images/s": ["" if row.images_per_second is None else _number(row.images_per_second) for row in rows],
        "memory": ["" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB" for row in rows],
    }
    columns = {name: [name, *texts] for name, texts in columns.items() if any(texts)}
    widths = {name: max(map(len, texts)) for name, texts in columns.items()}
    for index in range(len(rows) + 1):
        cells = [
            texts[index].ljust(widths[name]) if name == "contender" else texts[index].rjust(widths[name])
            for name, texts in columns.items()
        ]
        _print(console, f"  {'  '.join(cells)}", style="dim" if index == 0 else None)
    for row in rows:
        if row.note:
            _print(console, f"  {row.contender}: {row.note}")


def _print(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def write(rows: Sequence[Row], stem: Path, device: torch.device, command: str) -> None:
    """`stem`.csv with the rows, each with commit and version, and `stem`.json with rows, command and environment."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    about = environment(device)
    records = [asdict(row) for row in rows]
    origin = {name: about[name] for name in ("commit", "torch", "isa", "device")}
    with stem.with_name(f"{stem.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*Row.__dataclass_fields__, *origin])
        writer.writeheader()
        writer.writerows({**record, **origin} for record in records)
    content = {"command": command, "environment": about, "rows": records}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    stem.with_name(f"{stem.name}.json").write_text(text, encoding="utf-8")


def _number(value: float) -> str:
    """About three significant digits; a whole number from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{3 if value < 1 else 2 if value < 10 else 1}f}"
